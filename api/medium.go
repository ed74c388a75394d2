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
}

// Medium is what a medium of an instance holds. It travels as a tar archive, whose
// first entry, a global header, has everything but the files.
type Medium struct {
	Label   string    // of the volume
	Time    time.Time // of everything on it
	Token   bool      // the payload on it holds a one-time token
	Omitted []string  // what not all who can read the medium may read
	Files   map[string]imprint.Secret
}

// The names of the global header's records.
const (
	recordLabel   = "IMPRINT.label"
	recordTime    = "IMPRINT.time"
	recordToken   = "IMPRINT.token"
	recordOmitted = "IMPRINT.omitted"
)

// Encode returns the archive.
func (m *Medium) Encode() (imprint.Secret, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	records := map[string]string{recordLabel: m.Label, recordTime: m.Time.UTC().Format(time.RFC3339), recordOmitted: strings.Join(m.Omitted, "\n")}
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

// DecodeMedium reads an archive. It fails with kind [imprint.Invalid].
func DecodeMedium(b []byte) (*Medium, error) {
	invalid := func(err error) (*Medium, error) {
		return nil, imprint.Errorf(imprint.Invalid, "decode", "medium", "%w", err)
	}
	m := &Medium{Files: map[string]imprint.Secret{}}
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return invalid(err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			m.Label, m.Token = h.PAXRecords[recordLabel], h.PAXRecords[recordToken] == "true"
			if s := h.PAXRecords[recordOmitted]; s != "" {
				m.Omitted = strings.Split(s, "\n")
			}
			if m.Time, err = time.Parse(time.RFC3339, h.PAXRecords[recordTime]); err != nil {
				return invalid(err)
			}
			continue
		}
		data, err := io.ReadAll(io.LimitReader(r, int64(len(b)))) // a sparse file claims more than there is
		if err != nil {
			return invalid(err)
		}
		m.Files[h.Name] = imprint.NewSecret(data)
	}
	if m.Time.IsZero() {
		return invalid(errors.New("it has no global header"))
	}
	return m, nil
}

// Medium returns what a medium of the instance holds. If the dialect has a payload
// a fresh one-time token is in it, which replaces an earlier one. Kinds: Invalid if
// there is no such dialect or carrier, or they do not fit; Conflict once a key
// has claimed, where a token is needed.
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
