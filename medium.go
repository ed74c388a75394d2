package imprint

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"hash"
	"io"
	"maps"
	"slices"
	"time"
)

// MaxMedia is how many media of an instance are remembered; see [Instance.Remember].
const MaxMedia = 32

// MediumState says where a medium is.
type MediumState string

// The states of a medium. All that were given out are out until somebody reports
// that they were taken away, or why that could not be done.
const (
	MediumOut   MediumState = "out"
	MediumTaken MediumState = "taken-away"
	MediumLeft  MediumState = "not-taken-away"
)

// Medium records that the server gave out what a medium of an instance holds.
type Medium struct {
	Number     uint32     `json:"number"` // from 1, in the order in which they were given out
	Generation Generation `json:"generation"`
	Dialect    string     `json:"dialect"`
	Carrier    string     `json:"carrier"`
	// Digest is that of the files, by which the medium is known again: [DigestOfFiles].
	Digest Digest    `json:"digest"`
	Token  bool      `json:"token,omitempty"` // it holds a one-time token
	At     time.Time `json:"at"`
	By     string    `json:"by,omitempty"`
	// Attended says that By runs the machine, and takes the medium away: what the machine
	// cannot do about it is no news.
	Attended bool        `json:"attended,omitempty"`
	State    MediumState `json:"state"`
	// Detail says how it was taken away, or why it was not, and Settled when that was.
	Detail  string    `json:"detail,omitempty"`
	Settled time.Time `json:"settled,omitzero"`
}

// MaxMediumDetail is how many bytes may be said of a medium's end.
const MaxMediumDetail = 1024

// MediumEnd is what a machine says became of the medium that it enrolled with.
type MediumEnd struct {
	Digest Digest      `json:"digest"` // of the files that were on it
	State  MediumState `json:"state"`  // [MediumTaken] or [MediumLeft]
	Detail string      `json:"detail"` // how, or why not
}

// DecodeMediumEnd reads a [MediumEnd] in JSON. It fails with kind [Invalid] for
// everything else: a digest that is none, another state, or a detail of no bytes or of
// more than [MaxMediumDetail].
func DecodeMediumEnd(b []byte) (*MediumEnd, error) {
	bad := func(format string, args ...any) (*MediumEnd, error) {
		return nil, Errorf(Invalid, "decode", "end of a medium", format, args...)
	}
	var end MediumEnd
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&end); err != nil {
		return bad("%w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return bad("something is behind it")
	}
	if sum, err := hex.DecodeString(string(end.Digest)); err != nil || len(sum) != sha256.Size || hex.EncodeToString(sum) != string(end.Digest) {
		return bad("its digest is not of SHA-256 in lower case")
	}
	if end.State != MediumTaken && end.State != MediumLeft {
		return bad("its state is neither %s nor %s", MediumTaken, MediumLeft)
	}
	if len(end.Detail) == 0 || len(end.Detail) > MaxMediumDetail {
		return bad("its detail has %d bytes, from 1 to %d are possible", len(end.Detail), MaxMediumDetail)
	}
	return &end, nil
}

// Remember adds m to the instance's media, gives it its number and returns that.
// Of more than [MaxMedia] it forgets the oldest that was taken away, or else the
// oldest, which is then counted in MediaForgotten.
func (i *Instance) Remember(m Medium) uint32 {
	m.Number = 1
	if n := len(i.Media); n > 0 {
		m.Number = i.Media[n-1].Number + 1
	}
	kept := slices.Clone(i.Media)
	if len(kept) >= MaxMedia {
		oldest := slices.IndexFunc(kept, func(m Medium) bool { return m.State == MediumTaken })
		if oldest < 0 {
			oldest = 0
			i.MediaForgotten++
		}
		kept = slices.Delete(kept, oldest, oldest+1)
	}
	i.Media = append(kept, m)
	return m.Number
}

// DigestOfFiles returns the SHA-256 of files by path: of the length and the bytes
// of each path and of its content, in the order of the paths.
func DigestOfFiles(files map[string][]byte) Digest {
	h := sha256.New()
	for _, path := range slices.Sorted(maps.Keys(files)) {
		digestPart(h, []byte(path))
		digestPart(h, files[path])
	}
	return Digest(hex.EncodeToString(h.Sum(nil)))
}

func digestPart(h hash.Hash, b []byte) {
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
	h.Write(b)
}
