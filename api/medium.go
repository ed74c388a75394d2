package api

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"imprint"
)

// MediumRequest asks for what a medium of an instance holds.
type MediumRequest struct {
	Dialect string           `json:"dialect" maxLength:"63" doc:"The guest software that is to read it."`
	Carrier string           `json:"carrier" maxLength:"63" doc:"What it is put on: that decides who can read it."`
	TTL     imprint.Duration `json:"ttl,omitempty" doc:"How long the one-time token may be used, if there is one; absent for the server's default."`
	// MergeVendor is for cloud-init before 0.7.6, which takes no vendor data from drives.
	MergeVendor   bool   `json:"mergeVendorData,omitempty" doc:"Put vendor data into the user data."`
	AdminPassword string `json:"adminPassword,omitempty" maxLength:"255" doc:"The name of the public parameter whose value becomes the administrator's password; for Windows answer files."`
	// UserPasswords have at most as many entries as an instance has users.
	UserPasswords map[string]string `json:"userPasswords,omitempty" doc:"By user, the name of the public parameter whose value becomes the password; for Windows answer files, which make no account for a user without one."`
	Attended      bool              `json:"attended,omitempty" doc:"Whoever asks runs the machine, and takes the medium away."`
}

// MediumOutcome says what became of a medium.
type MediumOutcome struct {
	State  imprint.MediumState `json:"state" enum:"taken-away,not-taken-away"`
	Detail string              `json:"detail" maxLength:"1024" doc:"How it was taken away, or why it was not."`
}

// Medium is what a medium of an instance holds. It travels as a tar archive, whose
// first entry, a global header, has everything but the files.
type Medium struct {
	Number  uint32    // by which the instance's record knows it
	Label   string    // of the volume
	Time    time.Time // of everything on it
	Token   bool      // the payload on it holds a one-time token
	CheckIn []string  // base URLs of the check-in endpoint in the payload on it
	Omitted []string  // what not all who can read the medium may read
	// Unsupported is what of the instance's users the dialect has no place for.
	Unsupported []string
	Files       map[string]imprint.Secret
}

// The names of the global header's records.
const (
	recordNumber      = "IMPRINT.number"
	recordLabel       = "IMPRINT.label"
	recordTime        = "IMPRINT.time"
	recordToken       = "IMPRINT.token"
	recordCheckIn     = "IMPRINT.check-in"
	recordOmitted     = "IMPRINT.omitted"
	recordUnsupported = "IMPRINT.unsupported"
	recordFiles       = "IMPRINT.files" // how many there are: an archive that was cut off looks whole
)

// Encode returns the archive.
func (m *Medium) Encode() (imprint.Secret, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	records := map[string]string{
		recordNumber:      strconv.FormatUint(uint64(m.Number), 10),
		recordLabel:       m.Label,
		recordTime:        m.Time.UTC().Format(time.RFC3339),
		recordCheckIn:     strings.Join(m.CheckIn, "\n"),
		recordOmitted:     strings.Join(m.Omitted, "\n"),
		recordUnsupported: strings.Join(m.Unsupported, "\n"),
		recordFiles:       strconv.Itoa(len(m.Files)),
	}
	if m.Token {
		records[recordToken] = "true"
	}
	maps.DeleteFunc(records, func(_, v string) bool { return v == "" })
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "imprint", PAXRecords: records})
	for _, path := range slices.Sorted(maps.Keys(m.Files)) {
		data := m.Files[path].Reveal()
		err = errors.Join(err, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Size: int64(len(data)), Mode: 0o400, ModTime: m.Time.UTC().Truncate(time.Second)}))
		if _, failed := w.Write(data); failed != nil {
			err = errors.Join(err, failed)
		}
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return imprint.Secret{}, imprint.Errorf(imprint.Internal, "encode", "medium", "%w", err)
	}
	return imprint.NewSecret(b.Bytes()), nil
}

// maxMediumFiles is how many files an archive may have: as many as any medium.
const maxMediumFiles = 4096

// DecodeMedium reads an archive. Its files have together no more bytes than b: what
// claims more is sparse, and [Medium.Encode] writes no such. It fails with kind
// [imprint.Invalid].
func DecodeMedium(b []byte) (*Medium, error) {
	invalid := func(format string, args ...any) (*Medium, error) {
		return nil, imprint.Errorf(imprint.Invalid, "decode", "medium", format, args...)
	}
	m, left, count := &Medium{Files: map[string]imprint.Secret{}}, int64(len(b)), ""
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return invalid("%w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			if err := m.decodeHeader(h.PAXRecords); err != nil {
				return invalid("%w", err)
			}
			count = h.PAXRecords[recordFiles]
			continue
		}
		_, twice := m.Files[h.Name]
		switch left -= h.Size; {
		case h.Typeflag != tar.TypeReg:
			return invalid("%q is not a file", h.Name)
		case twice:
			return invalid("it has %q twice", h.Name)
		case len(m.Files) == maxMediumFiles:
			return invalid("it has more than %d files", maxMediumFiles)
		case left < 0:
			return invalid("%q has more bytes than the archive", h.Name)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return invalid("%w", err)
		}
		m.Files[h.Name] = imprint.NewSecret(data)
	}
	if m.Time.IsZero() {
		return invalid("it has no global header")
	}
	if count != strconv.Itoa(len(m.Files)) {
		return invalid("it has %d of %q files", len(m.Files), count)
	}
	return m, nil
}

// decodeHeader takes what [Medium.Encode] puts into the global header.
func (m *Medium) decodeHeader(records map[string]string) (err error) {
	m.Label, m.Token = records[recordLabel], records[recordToken] == "true"
	if s := records[recordCheckIn]; s != "" {
		m.CheckIn = strings.Split(s, "\n")
	}
	if s := records[recordOmitted]; s != "" {
		m.Omitted = strings.Split(s, "\n")
	}
	if s := records[recordUnsupported]; s != "" {
		m.Unsupported = strings.Split(s, "\n")
	}
	number, err := strconv.ParseUint(records[recordNumber], 10, 32)
	if err != nil {
		return err
	}
	m.Number = uint32(number)
	m.Time, err = time.Parse(time.RFC3339, records[recordTime])
	return err
}

// FileBytes returns the files in the clear.
func (m *Medium) FileBytes() map[string][]byte {
	files := make(map[string][]byte, len(m.Files))
	for path, content := range m.Files {
		files[path] = content.Reveal()
	}
	return files
}

// Medium returns what a medium of the instance holds, and puts it on record. If the
// dialect has a payload a fresh one-time token is in it, which replaces an earlier one.
// Kinds: Invalid if there is no such dialect or carrier, or they do not fit; Conflict
// once a key has claimed, where a token is needed; NotFound and Denied for a parameter
// that is to be the password, if it is not there or not public.
func (c *Client) Medium(ctx context.Context, ref string, what MediumRequest) (*Medium, error) {
	var buf bytes.Buffer
	if err := c.document(ctx, http.MethodPost, at(ref)+"/medium", what, &buf, "application/octet-stream"); err != nil {
		return nil, err
	}
	m, err := DecodeMedium(buf.Bytes())
	if err != nil {
		return nil, c.unavailable(err)
	}
	return m, nil
}

// SettleMedium reports what became of the medium of that number. It may be repeated,
// also with another outcome. Kinds: NotFound if the record has no such medium; Invalid
// for what cannot become of one.
func (c *Client) SettleMedium(ctx context.Context, ref string, number uint32, outcome MediumOutcome) error {
	return c.document(ctx, http.MethodPut, at(ref)+"/media/"+strconv.FormatUint(uint64(number), 10), outcome, nil, "")
}
