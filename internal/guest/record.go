package guest

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"imprint"
	"imprint/internal/durable"
)

// record is the content of identity.json: what the agent remembers besides the
// key and the certificate. The three serials say how far a certificate got, so
// that a run after a crash repeats only what it must.
type record struct {
	Payload   imprint.Payload `json:"payload"` // without its token
	Source    string          `json:"source"`  // where the payload was found
	Confirmed imprint.Serial  `json:"confirmed,omitempty"`
	Closed    imprint.Serial  `json:"closed,omitempty"`  // readiness was reported
	Applied   imprint.Serial  `json:"applied,omitempty"` // enrolled.d ran
	Medium    *medium         `json:"medium,omitempty"`  // nil if no volume brought the payload
}

// loadRecord returns kind [imprint.NotFound] on a machine that has no identity yet.
func (l Layout) loadRecord() (*record, error) {
	b, err := readFile(l.Record(), maxFile)
	if err != nil {
		return nil, err
	}
	r, err := parseRecord(b)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "read", l.Record(), "%w", err).
			WithHint("restore the file, or remove it and reset the machine's enrolment with imprint rebirth")
	}
	return r, nil
}

// parseRecord reads a record whose payload is as good as one from a carrier:
// parts of it become file names.
func parseRecord(b []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	encoded, err := r.Payload.Encode()
	if err != nil {
		return nil, err
	}
	if _, err := imprint.DecodePayload(encoded); err != nil {
		return nil, err
	}
	for _, s := range []imprint.Serial{r.Confirmed, r.Closed, r.Applied} {
		if _, ok := s.Int(); !ok && s != "" {
			return nil, imprint.Errorf(imprint.Invalid, "decode", "serial", "%q is not one", s)
		}
	}
	return &r, nil
}

func (l Layout) saveRecord(r *record) error {
	r.Payload.Token = "" // it is spent, and never belongs on a disk
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return imprint.Errorf(imprint.Internal, "encode", l.Record(), "%w", err)
	}
	return writeFile(l.Record(), append(b, '\n'), 0o600)
}

// succession says what a payload means for a machine that may have an identity.
type succession int

const (
	firstLife succession = iota // no identity yet
	sameLife                    // the same generation of the same machine
	nextLife                    // a newer generation: everything starts again
)

// succeed compares the payload with what the machine is; live says that the
// host itself gave it. It fails with kind [imprint.Conflict] if the payload is
// for another machine or an earlier life, or if it came one way and names
// another CA than the machine trusts: whoever can attach a volume must not be
// able to talk an enrolled machine into a new life of theirs.
func (r *record) succeed(p *imprint.Payload, live bool) (succession, error) {
	switch {
	case r == nil:
		return firstLife, nil
	case r.Payload.Instance != p.Instance:
		return 0, imprint.Errorf(imprint.Conflict, "accept", "payload",
			"it is for %s (%s), but this machine is %s (%s) already", p.Name, p.Instance, r.Payload.Name, r.Payload.Instance).
			WithHint("if this disk is a copy of another machine's, remove the imprint configuration directory from the copy and restart")
	case p.Generation < r.Payload.Generation:
		return 0, imprint.Errorf(imprint.Conflict, "accept", "payload",
			"it is for generation %d of %s, but this machine is generation %d already", p.Generation, p.Name, r.Payload.Generation).
			WithHint("the carrier holds a stale payload: have the platform attach the current one")
	case !live && p.CA != r.Payload.CA:
		return 0, imprint.Errorf(imprint.Conflict, "accept", "payload",
			"it names another CA than %s trusts, and came on a medium", p.Name).
			WithHint("if the CA was really replaced, remove the imprint configuration directory and restart")
	case p.Generation > r.Payload.Generation:
		return nextLife, nil
	}
	return sameLife, nil
}

// setAside moves the files of an identity into old/. The record goes last, so
// that a crash in the middle leads here again.
func (l Layout) setAside(gen imprint.Generation) error {
	dir := l.aside(gen)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return imprint.Errorf(imprint.Internal, "create", dir, "%w", err)
	}
	for _, path := range []string{l.Key(), l.Cert(), l.CA(), l.Record()} {
		err := os.Rename(path, filepath.Join(dir, filepath.Base(path)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return imprint.Errorf(imprint.Internal, "set aside", path, "%w", err)
		}
	}
	return errors.Join(durable.SyncDir(dir), durable.SyncDir(l.Config()))
}
