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
	id, err := s.find(c.Context(), c.tenant.name, user)
	var inst *imprint.Instance
	if err == nil {
		inst, err = s.engine.Enrol(c.Context(), imprint.Submission{
			Instance: id, Tenant: c.tenant.name, Profile: c.PathValue("label"), Channel: imprint.NetworkEST, CSR: csr, Token: token,
		})
	}
	switch kind := imprint.KindOf(err); kind {
	case imprint.NotFound, imprint.Denied, imprint.Conflict, imprint.Contested:
		if kind == imprint.Conflict || kind == imprint.Contested { // the engine found evidence
			if end := endOf(inst); end != nil && isClaimant(inst, csr) {
				return end
			}
		}
		// To somebody without a certificate all of them look like a wrong token:
		// which instances there are and how they fare is not for guessers.
		return imprint.Errorf(imprint.Unauthorized, "enrol", user, "%w", err)
	}
	if err != nil {
		return err
	}
	return writeIssued(c, inst)
}

// isClaimant reports whether csr is of the key that claimed inst. Its signature
// was checked. Who has a right token for another key is not told how things are:
// he may have found it.
func isClaimant(inst *imprint.Instance, csr []byte) bool {
	req, err := x509.ParseCertificateRequest(csr)
	claim := inst.Enrolment.Claim
	return err == nil && claim != nil && claim.Key == imprint.KeyIDOf(req.RawSubjectPublicKeyInfo)
}

// simpleReenroll answers POST simplereenroll (RFC 7030 section 4.2.2). A
// generation has one key for its life, so the request must be for the key of
// the certificate that was shown.
func (s *Server) simpleReenroll(c *call) error {
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
		Instance: c.identity.Instance, Tenant: c.tenant.name, Profile: c.PathValue("label"),
		Generation: c.identity.Generation, Channel: imprint.NetworkEST, CSR: der,
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

// find returns the identifier of the instance that a Basic user names at tenant:
// that identifier itself, its name, or tenant/name. It fails with kind NotFound.
// Whether the instance exists, and is of tenant, is for the engine to see.
func (s *Server) find(ctx context.Context, tenant imprint.TenantName, user string) (imprint.InstanceID, error) {
	if imprint.ValidID(user) {
		return imprint.InstanceID(user), nil
	}
	name := user
	if prefix, rest, ok := strings.Cut(user, "/"); ok && prefix == string(tenant) {
		name = rest
	}
	if imprint.CheckLabel("instance", name) != nil {
		return "", imprint.Errorf(imprint.NotFound, "find", "instance", "not a name")
	}
	return s.instances.Lookup(ctx, tenant, imprint.InstanceName(name))
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
