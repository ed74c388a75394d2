package daemon

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/url"

	"imprint"
	"imprint/api"
	"imprint/internal/ca"
	"imprint/internal/dialect"
	"imprint/internal/hostapi"
)

// trust shows the authorities to the control API, and lets operators take root
// keys out and bring them back.
type trust struct{ *authorities }

// Authority describes a tenant's CA.
func (t trust) Authority(_ context.Context, name imprint.TenantName) (*api.Authority, error) {
	a, err := t.tenant(name)
	if err != nil {
		return nil, err
	}
	p := a.doc.Material.Profile
	out := &api.Authority{
		Tenant: name, Domains: p.Tenant.Domains, Networks: p.Tenant.Networks, CheckIn: p.Tenant.CheckIn,
		RootKeyHere: a.doc.Root != nil, SSH: a.SSHKey(),
	}
	if out.Root, err = describeCA(a.Root()); err == nil {
		out.Issuing, err = describeCA(a.Issuing())
	}
	return out, err
}

func describeCA(der []byte) (api.CACertificate, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return api.CACertificate{}, imprint.Errorf(imprint.Internal, "parse", "CA certificate", "%w", err)
	}
	return api.CACertificate{
		Subject: c.Subject.String(), Serial: imprint.SerialOf(c.SerialNumber),
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, Fingerprint: imprint.DigestOf(der), DER: der,
	}, nil
}

// Bundle is PEM, the root first.
func (t trust) Bundle(_ context.Context, name imprint.TenantName) ([]byte, error) {
	a, err := t.tenant(name)
	if err != nil {
		return nil, err
	}
	return certificatesPEM(a.Authority.Bundle()...), nil
}

// Export returns the root key as PKCS #8 PEM.
func (t trust) Export(ctx context.Context, name imprint.TenantName, by string) (imprint.Secret, error) {
	doc, _, err := t.document(ctx, name)
	if err != nil {
		return imprint.Secret{}, err
	}
	if doc.Root == nil {
		return imprint.Secret{}, imprint.Errorf(imprint.NotFound, "export", "root key of tenant "+string(name), "it was taken offline before")
	}
	key, err := t.keys.Open(doc.Root, doc.sealContext("root"))
	if err != nil {
		return imprint.Secret{}, err
	}
	t.logger.WarnContext(ctx, "root key exported", "tenant", name, "by", by)
	return imprint.NewSecret(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key.Reveal()})), nil
}

// Drop removes the root key from the server.
func (t trust) Drop(ctx context.Context, name imprint.TenantName, by string) error {
	err := t.change(ctx, name, func(doc *caDocument) error {
		if doc.Root == nil {
			return imprint.Errorf(imprint.NotFound, "drop", "root key of tenant "+string(name), "it was taken offline before")
		}
		doc.Root = nil
		return nil
	})
	if err == nil {
		t.logger.WarnContext(ctx, "root key dropped", "tenant", name, "by", by)
	}
	return err
}

// Reissue certifies the issuing CA anew. A zero key means the one on the server.
func (t trust) Reissue(ctx context.Context, name imprint.TenantName, key imprint.Secret, by string) (*api.Authority, error) {
	a, err := t.tenant(name)
	if err != nil {
		return nil, err
	}
	doc, revision, err := t.document(ctx, name)
	if err != nil {
		return nil, err
	}
	if doc.Root == nil && key.IsZero() {
		return nil, imprint.Errorf(imprint.Conflict, "reissue", "CA of tenant "+string(name), "the root key is offline").
			WithHint("bring it: imprint ca reissue --tenant %s --root-key FILE", name)
	}
	if err := t.reissue(ctx, doc, a.doc.Material.Profile, key); err != nil {
		return nil, err
	}
	if err := writeDocument(ctx, t.docs, doc.name(), doc, revision); err != nil {
		return nil, err
	}
	if err := t.reload(ctx, name); err != nil {
		return nil, err
	}
	t.logger.WarnContext(ctx, "issuing CA certified anew", "tenant", name, "by", by)
	return t.Authority(ctx, name)
}

// facts are what the dialects know of each tenant.
type facts struct {
	authorities *authorities
	settings    *Settings
}

func (f *facts) of(name imprint.TenantName) (dialect.Facts, error) {
	a, err := f.authorities.tenant(name)
	if err != nil {
		return dialect.Facts{}, err
	}
	tenant, err := f.settings.Tenant(name)
	if err != nil {
		return dialect.Facts{}, err
	}
	return dialect.Facts{
		CA:      string(certificatesPEM(a.Root())),
		Chain:   string(certificatesPEM(a.Issuing())),
		CheckIn: f.settings.checkInURLs(tenant), BootWindow: f.settings.BootWindow,
	}, nil
}

// checkInURLs are the base URLs that a tenant's payloads name.
func (s *Settings) checkInURLs(t imprint.Tenant) []string {
	own := s.CheckIn.URLs
	if t.Name == hostapi.Tenant {
		own = s.Hosts.URLs
	}
	if s.CheckIn.Listen == "" || len(own) > 0 {
		return own
	}
	_, port, err := net.SplitHostPort(s.CheckIn.Listen)
	if err != nil {
		return nil
	}
	return []string{"https://" + net.JoinHostPort(t.CheckIn, port)}
}

// profiles is what each tenant's authority certifies.
func (s *Settings) profiles() []ca.Profile {
	var list []ca.Profile
	for _, t := range s.Tenants {
		p := ca.Profile{Tenant: t, TrustDomain: s.TrustDomain}
		urls := s.checkInURLs(t)
		for _, raw := range urls {
			if u, err := url.Parse(raw); err == nil && u.Hostname() != t.CheckIn {
				p.Endpoints = append(p.Endpoints, u.Hostname())
			}
		}
		if len(urls) > 0 {
			p.CRL = urls[0] + "/crl/" + string(t.Name) + ".crl"
		}
		list = append(list, p)
	}
	return list
}

func certificatesPEM(der ...[]byte) []byte {
	var out []byte
	for _, d := range der {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d})...)
	}
	return out
}
