package est

import (
	"bytes"
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"strings"

	"imprint"
)

// caCerts answers GET cacerts (RFC 7030 section 4.1).
func (s *Server) caCerts(c *call) error {
	bundle, err := s.authority.Bundle(c.Context(), c.tenant.name)
	if err != nil {
		return err
	}
	der := make([][]byte, len(bundle))
	for i, cert := range bundle {
		der[i] = cert.Raw
	}
	return writeCertificates(c, der...)
}

// csrAttrs answers GET csrattrs (RFC 7030 section 4.5, RFC 9908). The names that
// belong in the request are told only to the machine that has them.
func (s *Server) csrAttrs(c *call) error {
	var spec imprint.Spec
	if s.authenticate(c) == nil {
		spec = c.machine.Spec
	}
	der, err := marshalAttributes(spec.DNSNames, spec.IPs)
	if err != nil {
		return err
	}
	writeBase64(c, "application/csrattrs", der)
	return nil
}

// simpleEnroll answers POST simpleenroll (RFC 7030 section 4.2.1).
func (s *Server) simpleEnroll(c *call) error {
	user, token, ok := credentials(c.Request)
	if !ok {
		return imprint.Errorf(imprint.Unauthorized, "enrol", "", "no usable Basic credentials")
	}
	csr, err := readRequest(c)
	if err != nil {
		return err
	}
	inst, err := s.find(c.Context(), c.tenant.name, user)
	if err == nil && !labelled(c, inst) {
		err = imprint.Errorf(imprint.NotFound, "enrol", user, "profile label %q", c.PathValue("label"))
	}
	if err == nil {
		inst, err = s.engine.Enrol(c.Context(), imprint.Submission{
			Instance: inst.ID, Channel: imprint.NetworkEST, CSR: csr, Token: token,
		})
	}
	switch imprint.KindOf(err) {
	case imprint.NotFound, imprint.Denied, imprint.Conflict, imprint.Contested:
		// To somebody without a certificate all of them look like a wrong token:
		// which instances there are and how they fare is not for guessers.
		return imprint.Errorf(imprint.Unauthorized, "enrol", user, "%w", err)
	}
	if err != nil {
		return err
	}
	return writeIssued(c, inst)
}

// simpleReenroll answers POST simplereenroll (RFC 7030 section 4.2.2). A
// generation has one key for its life, so the request must be for the key of
// the certificate that was shown.
func (s *Server) simpleReenroll(c *call) error {
	if !labelled(c, c.machine) {
		return imprint.Errorf(imprint.NotFound, "renew", c.machine.Ref(), "profile label %q", c.PathValue("label"))
	}
	der, err := readRequest(c)
	if err != nil {
		return err
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return &refusal{http.StatusBadRequest, "the body is not a PKCS #10 certificate request"}
	}
	if !bytes.Equal(req.RawSubjectPublicKeyInfo, c.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo) {
		return &refusal{http.StatusBadRequest, "a renewal is for the same key; a new key needs a new generation"}
	}
	inst, err := s.engine.Enrol(c.Context(), imprint.Submission{
		Instance: c.identity.Instance, Generation: c.identity.Generation, Channel: imprint.NetworkEST, CSR: der,
	})
	if err != nil {
		return err
	}
	return writeIssued(c, inst)
}

// notOffered answers what RFC 7030 leaves optional.
func (s *Server) notOffered(*call) error {
	return &refusal{http.StatusNotImplemented, "not offered; make the key on the machine and use simpleenroll"}
}

// find returns the instance that a Basic user names at tenant: its identifier,
// its name, or tenant/name. It fails with kind NotFound.
func (s *Server) find(ctx context.Context, tenant imprint.TenantName, user string) (*imprint.Instance, error) {
	id := imprint.InstanceID(user)
	if !imprint.ValidID(user) {
		name := user
		if prefix, rest, ok := strings.Cut(user, "/"); ok && prefix == string(tenant) {
			name = rest
		}
		if imprint.CheckLabel("instance", name) != nil {
			return nil, imprint.Errorf(imprint.NotFound, "find", "instance", "not a name")
		}
		var err error
		if id, err = s.instances.Lookup(ctx, tenant, imprint.InstanceName(name)); err != nil {
			return nil, err
		}
	}
	inst, err := s.instances.Instance(ctx, id)
	if err == nil && inst.Spec.Tenant != tenant {
		return nil, imprint.Errorf(imprint.NotFound, "find", string(id), "instance of another tenant")
	}
	return inst, err
}

// defaultProfile is the profile of an instance whose policy names none.
const defaultProfile = "machine"

// labelled reports whether the path's label, if there is one, is inst's profile.
func labelled(c *call, inst *imprint.Instance) bool {
	profile := inst.Spec.Policy.Profile
	if profile == "" {
		profile = defaultProfile
	}
	label := c.PathValue("label")
	return label == "" || label == profile
}

// writeIssued replies with exactly the leaf: clients refuse a second
// certificate here; the chain is what cacerts is for.
func writeIssued(c *call, inst *imprint.Instance) error {
	cert := inst.Enrolment.Certificate
	if cert == nil {
		return imprint.Errorf(imprint.Internal, "enrol", inst.Ref(), "granted without a certificate")
	}
	return writeCertificates(c, cert.DER)
}

// levelOf says how loudly a refusal is logged: our own faults always, those of
// peers only where an operator wants to know.
func levelOf(status int) slog.Level {
	switch {
	case status >= http.StatusInternalServerError && status != http.StatusNotImplemented:
		return slog.LevelError
	case status == http.StatusAccepted:
		return slog.LevelDebug
	}
	return slog.LevelInfo
}
