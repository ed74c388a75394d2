package host

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"slices"
	"strings"
	"time"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/keybox"
)

// native returns the value of one of imprint's own keys.
func (s *session) native(ctx context.Context, snap *snapshot, key string) ([]byte, error) {
	inst := snap.inst
	switch key {
	case dialect.KeyPayload:
		return s.payload(ctx, snap)
	case dialect.KeyTime:
		return []byte(s.unit.host.c.Now().UTC().Format(time.RFC3339)), nil
	case dialect.KeyState:
		return json.Marshal(dialect.StateOf(inst))
	case dialect.KeyCertificate:
		return certificate(snap)
	case dialect.KeySSHCertificate:
		if c := inst.Enrolment.Certificate; c != nil && inst.Enrolment.State.Open() && c.SSH != "" {
			return []byte(c.SSH), nil
		}
		return nil, notFound(key)
	case dialect.KeyUserData:
		return snap.userData()
	case dialect.KeyParams:
		return dialect.Params(inst, func(p imprint.Param) bool { return s.available(inst, p) })
	}
	if name, digest, ok := pipeOf(key); ok && digest == "" {
		return s.readPipe(key, name)
	}
	if v, ok := snap.native[s.channel.Kind].Lookup(key); ok {
		return v.Data, nil
	}
	if name, ok := strings.CutPrefix(key, dialect.KeyParam); ok {
		return s.clear(ctx, inst, name)
	}
	if name, ok := strings.CutPrefix(key, dialect.KeySealed); ok {
		return s.sealed(ctx, inst, name)
	}
	return nil, notFound(key)
}

// readPipe returns the oldest message to the machine.
func (s *session) readPipe(key, name string) ([]byte, error) {
	p, err := s.unit.pipe(name)
	if err != nil {
		return nil, err
	}
	if m, _, ok := p.down.next(); ok {
		return m.data, nil
	}
	return nil, notFound(key)
}

// payload returns the bootstrap document; its first read of a generation goes on
// record. It is public, so that a control plane that is away does not keep it
// back: the next read reports again.
func (s *session) payload(ctx context.Context, snap *snapshot) ([]byte, error) {
	if snap.err != nil {
		return nil, imprint.Errorf(imprint.KindOf(snap.err), "render", "payload", "%w", snap.err)
	}
	inst := snap.inst
	s.unit.mu.Lock()
	known := s.unit.delivered == inst.Generation || inst.Enrolment.Delivery != nil
	s.unit.mu.Unlock()
	if known {
		return snap.encoded, nil
	}
	err := s.report(ctx, inst, imprint.ReportDelivered, "", snap.encoded)
	if err != nil {
		s.log.WarnContext(ctx, "the delivery is not on record yet", "error", err)
		return snap.encoded, nil
	}
	s.unit.mu.Lock()
	s.unit.delivered = inst.Generation
	s.unit.mu.Unlock()
	return snap.encoded, nil
}

func certificate(snap *snapshot) ([]byte, error) {
	c := snap.inst.Enrolment.Certificate
	if c == nil || !snap.inst.Enrolment.State.Open() {
		return nil, notFound(dialect.KeyCertificate)
	}
	var buf bytes.Buffer
	if err := pem.Encode(&buf, &pem.Block{Type: "CERTIFICATE", Bytes: c.DER}); err != nil {
		return nil, err
	}
	buf.WriteString(snap.facts.Chain)
	return buf.Bytes(), nil
}

// available reports whether the value of a parameter that is not public is here.
func (s *session) available(inst *imprint.Instance, p imprint.Param) bool {
	if p.Visibility != imprint.SecretOnly {
		return true
	}
	value, ok := s.unit.host.c.Secrets.Get(inst.ID, inst.Generation, p.Name)
	clear(value.Reveal())
	return ok
}

// clear returns a private value as it is. The audience rule decides whether
// this channel's readers may have it; that the channel is the host's own and the
// enrolment is not closed decides whether they may still.
func (s *session) clear(ctx context.Context, inst *imprint.Instance, name string) ([]byte, error) {
	p, err := param(inst, name)
	if err != nil {
		return nil, err
	}
	state := inst.Enrolment.State
	switch {
	case !imprint.MayTravel(p.Visibility, s.channel.Readers) || !s.channel.Private():
		return nil, imprint.Errorf(imprint.Denied, "read", name, "a %s value is not sent in the clear over %s; enrol and read %s%s",
			p.Visibility, s.channel.Kind, dialect.KeySealed, name)
	case state == imprint.Closed:
		return nil, imprint.Errorf(imprint.Denied, "read", name, "the enrolment is closed; read %s%s with the enrolled key", dialect.KeySealed, name)
	case !state.Open():
		return nil, imprint.Errorf(imprint.Denied, "read", name, "the enrolment is %s", state)
	}
	value, err := s.value(ctx, inst, p)
	if err != nil {
		return nil, err
	}
	return value.Reveal(), nil
}

// sealed returns a value sealed to the enrolled key, in base64. Whatever the
// channel, its readers are then the key's holder.
func (s *session) sealed(ctx context.Context, inst *imprint.Instance, name string) ([]byte, error) {
	p, err := param(inst, name)
	if err != nil {
		return nil, err
	}
	if err := hasKey(inst, p.Visibility, name); err != nil {
		return nil, err
	}
	value, err := s.value(ctx, inst, p)
	if err != nil {
		return nil, err
	}
	defer clear(value.Reveal())
	return sealTo(inst, name, value)
}

// sealedUserData is the user data sealed to the enrolled key. Its name cannot be
// a parameter's.
func sealedUserData(inst *imprint.Instance) ([]byte, error) {
	if inst.Spec.UserData == "" {
		return nil, notFound(dialect.KeyUserData)
	}
	if err := hasKey(inst, imprint.Public, dialect.KeyUserData); err != nil {
		return nil, err
	}
	return sealTo(inst, dialect.KeyUserData, imprint.NewSecret([]byte(inst.Spec.UserData)))
}

// sameUserData reports whether [sealedUserData] is for both records the same.
func sameUserData(a, b *imprint.Instance) bool {
	if a.ID != b.ID || a.Generation != b.Generation || a.Spec.UserData != b.Spec.UserData {
		return false
	}
	if s, t := a.Enrolment.State, b.Enrolment.State; s != t && !(s.Enrolled() && t.Enrolled()) {
		return false
	}
	x, y := a.Enrolment.Claim, b.Enrolment.Claim
	return x == nil && y == nil || x != nil && y != nil && bytes.Equal(x.PublicKey, y.PublicKey)
}

// hasKey returns an error unless there is an enrolled key whose holder may read
// what is visible to v.
func hasKey(inst *imprint.Instance, v imprint.Visibility, name string) error {
	e := &inst.Enrolment
	if !e.State.Enrolled() || e.Claim == nil || !imprint.MayTravel(v, imprint.KeyHolder) {
		return imprint.Errorf(imprint.Conflict, "read", name, "no key is enrolled to seal it to (the enrolment is %s)", e.State)
	}
	return nil
}

func sealTo(inst *imprint.Instance, name string, value imprint.Secret) ([]byte, error) {
	info := keybox.Info{Instance: inst.ID, Generation: inst.Generation, Name: name}
	box, err := keybox.Seal(inst.Enrolment.Claim.PublicKey, info, value)
	if err != nil {
		return nil, err
	}
	return base64.StdEncoding.AppendEncode(nil, box), nil
}

func param(inst *imprint.Instance, name string) (imprint.Param, error) {
	i := slices.IndexFunc(inst.Spec.Params, func(p imprint.Param) bool { return p.Name == name })
	if i < 0 {
		return imprint.Param{}, notFound(name)
	}
	return inst.Spec.Params[i], nil
}

// value fetches a parameter's value. That it is about to be read is on record
// before this returns; if it cannot be recorded there is no value.
func (s *session) value(ctx context.Context, inst *imprint.Instance, p imprint.Param) (value imprint.Secret, err error) {
	switch p.Visibility {
	case imprint.Public:
		return imprint.NewSecret([]byte(p.Value)), nil
	case imprint.SecretOnly:
		var ok bool
		if value, ok = s.unit.host.c.Secrets.Get(inst.ID, inst.Generation, p.Name); !ok {
			return value, imprint.Errorf(imprint.Conflict, "read", p.Name, "its value has to be given to the host again")
		}
	default:
		if value, err = s.unit.host.c.Params.Param(ctx, inst.ID, p.Name); err != nil {
			return value, err
		}
	}
	return value, s.report(ctx, inst, imprint.ReportRead, p.Name, nil)
}

// report records what the guest does.
func (s *session) report(ctx context.Context, inst *imprint.Instance, kind imprint.ReportKind, name string, data []byte) error {
	return fromControl(s.unit.host.c.Control.Report(ctx, imprint.Report{
		Instance:   inst.ID,
		Generation: inst.Generation,
		Channel:    s.channel.Kind,
		Kind:       kind,
		Name:       name,
		Data:       data,
		Witness:    s.unit.host.c.Name,
	}))
}
