package est

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"imprint"
)

// state answers GET state: where the machine's enrolment stands.
func (s *Server) state(c *call) error {
	e := c.machine.Enrolment
	return writeJSON(c, struct {
		State      imprint.State      `json:"state"`
		Reason     string             `json:"reason,omitempty"`
		Waiting    bool               `json:"waiting"`
		Generation imprint.Generation `json:"generation"`
	}{e.State, e.Reason, e.Claim != nil && e.Claim.NeedsApproval && e.Claim.ApprovedBy == "", c.machine.Generation})
}

// confirm answers POST confirm. That the request came this far says it all.
func (s *Server) confirm(c *call) error {
	c.reply.WriteHeader(http.StatusNoContent)
	return nil
}

// ready answers POST ready: the machine has all it needs, the enrolment closes.
func (s *Server) ready(c *call) error {
	if err := s.report(c, imprint.ReportReady, ""); err != nil {
		return err
	}
	c.reply.WriteHeader(http.StatusNoContent)
	return nil
}

// sshCertificate answers POST ssh-certificate, whose body is the machine's SSH
// host public key, with the SSH host certificate in authorized_keys form.
func (s *Server) sshCertificate(c *call) error {
	body, err := readBody(c, imprint.MaxSSHKeyLen)
	if err != nil {
		return err
	}
	inst, err := s.engine.CertifySSHHost(c.Context(), c.identity, string(body))
	switch imprint.KindOf(err) {
	case imprint.Invalid:
		return &refusal{http.StatusBadRequest, "the body is not an SSH host public key that can be certified: " +
			"send one line of an ssh_host_*_key.pub file of type Ed25519, ECDSA on P-256 or P-384, or RSA of 3072 bits or more"}
	case imprint.Conflict:
		if end := endOf(inst); end != nil {
			return end
		}
		return &refusal{http.StatusConflict, "the SSH host key changed too often; the next change is possible when an earlier certificate has ended"}
	}
	if err != nil {
		return err
	}
	cert := inst.Enrolment.Certificate
	if cert == nil || cert.SSH == "" {
		return imprint.Errorf(imprint.Internal, "certify SSH host key of", inst.Ref(), "granted without a certificate")
	}
	c.reply.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(c.reply, cert.SSH+"\n")
	return nil
}

// medium answers POST medium, whose body says in JSON what became of the medium that
// the machine enrolled with: see [imprint.MediumEnd]. It may be said again.
func (s *Server) medium(c *call) error {
	body, err := readBody(c, maxMediumBody)
	if err != nil {
		return err
	}
	end, err := imprint.DecodeMediumEnd(body)
	if err != nil {
		return &refusal{http.StatusBadRequest, "the body does not say what became of a medium: send its digest, its state, which is taken-away or not-taken-away, and a detail, in JSON"}
	}
	r := s.reportOf(c, imprint.ReportMedium, "")
	r.Medium = end
	if err := s.engine.Report(c.Context(), r); err != nil {
		return err
	}
	c.reply.WriteHeader(http.StatusNoContent)
	return nil
}

// listParams answers GET params: which parameters there are, without values.
func (s *Server) listParams(c *call) error {
	held, err := s.values.Held(c.Context(), c.machine)
	if err != nil {
		return err
	}
	type entry struct {
		Name       string             `json:"name"`
		Visibility imprint.Visibility `json:"visibility"`
		Available  bool               `json:"available"`
	}
	list := []entry{}
	for _, p := range c.machine.Spec.Params {
		list = append(list, entry{p.Name, p.Visibility, p.Visibility == imprint.Public || held[p.Name]})
	}
	return writeJSON(c, list)
}

// param answers GET params/NAME with the value's bytes. Whoever reads this
// connection holds the enrolled key, and that a value that is not public was
// read is on record before the first byte of it leaves.
func (s *Server) param(c *call) error {
	name := c.PathValue("name")
	p, ok := findParam(c.machine, name)
	if !ok {
		return imprint.Errorf(imprint.NotFound, "read", c.machine.Ref(), "no parameter %q", name)
	}
	if ch, ok := imprint.ChannelOf(imprint.NetworkEST); !ok || !imprint.MayTravel(p.Visibility, ch.Readers) {
		return imprint.Errorf(imprint.Denied, "read", c.machine.Ref(), "parameter %q is not for this channel", name)
	}
	value := imprint.NewSecret([]byte(p.Value))
	if p.Visibility != imprint.Public {
		var err error
		if value, err = s.values.Value(c.Context(), c.machine, name); err != nil {
			return err
		}
		if err := s.report(c, imprint.ReportRead, name); err != nil {
			return err
		}
	}
	c.reply.Header().Set("Content-Type", "application/octet-stream")
	c.reply.Header().Set("Cache-Control", "no-store")
	c.reply.Write(value.Reveal())
	return nil
}

// userData answers GET user-data with its bytes: what stock software reads until
// the boot is closed, and the key's holder at any time. It is on record before.
func (s *Server) userData(c *call) error {
	if c.machine.Spec.UserData == "" {
		return imprint.Errorf(imprint.NotFound, "read", c.machine.Ref(), "it has no user data")
	}
	if err := s.report(c, imprint.ReportServed, "user-data"); err != nil {
		return err
	}
	c.reply.Header().Set("Content-Type", "application/octet-stream")
	c.reply.Header().Set("Cache-Control", "no-store")
	io.WriteString(c.reply, c.machine.Spec.UserData)
	return nil
}

// crl answers GET /crl/TENANT.crl (RFC 5280 section 4.2.1.13). Anyone may read
// any tenant's list: those who check a certificate have none themselves.
func (s *Server) crl(c *call) error {
	name, ok := strings.CutSuffix(c.PathValue("file"), ".crl")
	if !ok || s.tenants.Load().byTenant[imprint.TenantName(name)] == nil {
		return imprint.Errorf(imprint.NotFound, "read", "CRL", "no tenant %q", name)
	}
	der, err := s.authority.CRL(c.Context(), imprint.TenantName(name))
	if err != nil {
		return err
	}
	c.reply.Header().Set("Content-Type", "application/pkix-crl")
	c.reply.Write(der)
	return nil
}

// report tells the engine what c's machine says.
func (s *Server) report(c *call, kind imprint.ReportKind, name string) error {
	return s.engine.Report(c.Context(), s.reportOf(c, kind, name))
}

func (s *Server) reportOf(c *call, kind imprint.ReportKind, name string) imprint.Report {
	return imprint.Report{
		Instance: c.identity.Instance, Generation: c.identity.Generation, Channel: imprint.NetworkEST,
		Kind: kind, Name: name, Serial: c.identity.Serial, From: "whoever holds certificate " + string(c.identity.Serial),
	}
}

func findParam(inst *imprint.Instance, name string) (imprint.Param, bool) {
	for _, p := range inst.Spec.Params {
		if p.Name == name {
			return p, true
		}
	}
	return imprint.Param{}, false
}

func writeJSON(c *call, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return imprint.Errorf(imprint.Internal, "encode", "reply", "%w", err)
	}
	c.reply.Header().Set("Content-Type", "application/json")
	c.reply.Write(append(body, '\n'))
	return nil
}
