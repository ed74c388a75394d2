package host

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/pem"
	"strings"
	"time"

	"imprint"
	"imprint/internal/dialect"
)

// Limits on what a guest puts.
const (
	maxRequest      = 8 << 10 // bytes: a request with 32 names and an SSH key has 3 KiB
	maxConfirmation = 2 << 10 // bytes: an RSA-8192 signature has 1.4 KiB in base64
	maxPassword     = 4 << 10 // bytes
)

// settleTime is how long the reply to a report waits for the instance's record
// to show it, so that the guest's next question meets the new state.
const settleTime = 5 * time.Second

// put sets a key.
func (s *session) put(ctx context.Context, snap *snapshot, key string, value []byte) error {
	inst := snap.inst
	switch key {
	case dialect.KeyRequest:
		return s.request(ctx, inst, value)
	case dialect.KeyConfirmation:
		return s.confirmation(ctx, inst, value)
	case dialect.KeyReady:
		if inst.Enrolment.State == imprint.Closed {
			return nil
		}
		return s.reportUntil(ctx, inst, imprint.ReportReady, nil, func(e *imprint.Enrolment) bool { return e.State == imprint.Closed })
	case dialect.KeyPassword:
		if err := atMost(key, value, maxPassword); err != nil {
			return err
		}
		if bytes.Equal(inst.Enrolment.Password, value) {
			return nil // it came before and the reply was lost
		}
		return s.reportUntil(ctx, inst, imprint.ReportPassword, value, func(e *imprint.Enrolment) bool { return e.Password != nil })
	}
	if name, digest, ok := pipeOf(key); ok && digest == "" {
		return s.writePipe(name, value)
	}
	if err := writable(snap, key); err != nil {
		return err
	}
	return s.unit.notes.put(key, value)
}

// writePipe puts a message from the machine on a pipe. The channel has nothing by
// which to tell a put that is repeated from another one but its content: who means
// two equal messages in a row numbers them.
func (s *session) writePipe(name string, value []byte) error {
	p, err := s.unit.pipe(name)
	if err != nil {
		return err
	}
	size, err := p.up.put(value, string(imprint.DigestOf(value)))
	s.unit.traffic.add(s.unit, passage{name, fromMachine, written, s.channel.Kind, "root of the machine"}, size)
	return err
}

func atMost(key string, value []byte, limit int) error {
	if len(value) == 0 || len(value) > limit {
		return imprint.Errorf(imprint.Invalid, "put", key, "%d bytes; it has 1 to %d", len(value), limit)
	}
	return nil
}

// request passes a certificate request on, with this host as the witness that
// it came up the instance's own channel.
func (s *session) request(ctx context.Context, inst *imprint.Instance, value []byte) error {
	csr, sshHost, err := parseRequest(value)
	if err != nil {
		s.refuse(ctx, inst, err)
		return err
	}
	submission := imprint.Submission{
		Instance:   inst.ID,
		Generation: inst.Generation,
		Channel:    s.channel.Kind,
		CSR:        csr,
		SSHHost:    sshHost,
	}
	if s.channel.Private() {
		submission.Witness = s.unit.host.c.Name
	}
	after, err := s.unit.host.c.Control.Enrol(ctx, submission)
	if after != nil {
		s.unit.observe(after)
	}
	if imprint.KindOf(err) == imprint.Pending {
		return nil // accepted; imprint:state says that it waits
	}
	return fromControl(err)
}

// refuse puts a refusal on record, unless it is the last one again: a guest must
// not be able to push everything else off its timeline.
func (s *session) refuse(ctx context.Context, inst *imprint.Instance, why error) {
	if s.refusal == why.Error() {
		return
	}
	s.refusal = why.Error()
	if err := s.report(ctx, inst, imprint.ReportRefused, s.refusal, nil); err != nil {
		s.log.WarnContext(ctx, "the refusal is not on record", "error", err)
	}
}

// parseRequest reads a PEM certificate request, optionally followed by one line
// with an SSH host public key in authorized_keys form.
func parseRequest(value []byte) (csr []byte, sshHost string, err error) {
	if err := atMost(dialect.KeyRequest, value, maxRequest); err != nil {
		return nil, "", err
	}
	block, rest := pem.Decode(value)
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, "", imprint.Errorf(imprint.Invalid, "read", "request", "it does not start with a PEM certificate request")
	}
	sshHost = strings.TrimSpace(string(rest))
	if strings.ContainsAny(sshHost, "\r\n") {
		return nil, "", imprint.Errorf(imprint.Invalid, "read", "request", "more than one line follows the certificate request; one SSH host key may")
	}
	return block.Bytes, sshHost, nil
}

func (s *session) confirmation(ctx context.Context, inst *imprint.Instance, value []byte) error {
	if err := atMost(dialect.KeyConfirmation, value, maxConfirmation); err != nil {
		return err
	}
	signature, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(value)))
	if err != nil {
		return imprint.Errorf(imprint.Invalid, "read", "confirmation", "it is not a signature in base64")
	}
	return s.reportUntil(ctx, inst, imprint.ReportConfirmed, signature, func(e *imprint.Enrolment) bool { return e.State.Enrolled() })
}

// reportUntil reports and then waits for the record that shows it, for a while.
// A report that was recorded is a success even if the news takes longer.
func (s *session) reportUntil(ctx context.Context, inst *imprint.Instance, kind imprint.ReportKind, data []byte, shown func(*imprint.Enrolment) bool) error {
	if err := s.report(ctx, inst, kind, "", data); err != nil {
		return err
	}
	s.unit.shown(ctx, func(e *imprint.Enrolment) bool { return !e.State.Open() || shown(e) })
	return nil
}

// shown waits for a while until the record of the present generation, or of a
// later one, is as told; not while the control plane is away, which tells nothing.
func (u *unit) shown(ctx context.Context, told func(*imprint.Enrolment) bool) {
	if !u.host.c.Connected() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	snap, _ := u.current()
	generation := snap.inst.Generation
	u.await(ctx, func(now *snapshot) bool { return now.inst.Generation != generation || told(&now.inst.Enrolment) })
}
