package imprint

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
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
	Digest Digest      `json:"digest"`
	Token  bool        `json:"token,omitempty"` // it holds a one-time token
	At     time.Time   `json:"at"`
	By     string      `json:"by,omitempty"`
	State  MediumState `json:"state"`
	// Detail says how it was taken away, or why it was not, and Settled when that was.
	Detail  string    `json:"detail,omitempty"`
	Settled time.Time `json:"settled,omitzero"`
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
