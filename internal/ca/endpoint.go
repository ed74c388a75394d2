package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/netip"
	"time"

	"imprint"
)

// Endpoint asks for a certificate of the check-in endpoint.
type Endpoint struct {
	PublicKey crypto.PublicKey
	Serial    imprint.Serial
	NotBefore time.Time
	NotAfter  time.Time
}

// IssueEndpoint signs and logs a certificate with which the check-in endpoint
// serves this tenant: server authentication only, for all of [Profile.Endpoints].
// It returns the leaf in DER and fails as [Authority.Issue] does.
func (a *Authority) IssueEndpoint(ctx context.Context, e Endpoint) ([]byte, error) {
	const what = "endpoint certificate"
	serial, ok := e.Serial.Int()
	if !ok {
		return nil, imprint.Errorf(imprint.Invalid, "issue", what, "serial %q", e.Serial)
	}
	spki, err := x509.MarshalPKIXPublicKey(e.PublicKey)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "issue", what, "%w", err)
	}
	pub, err := ParsePublicKey(spki)
	if err != nil {
		return nil, err
	}
	skid, err := keyIdentifier(spki)
	if err != nil {
		return nil, err
	}
	notBefore, notAfter, err := a.clamp(e.NotBefore, e.NotAfter)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "imprint check-in"},
		NotBefore:    notBefore,
		NotAfter:     notAfter,
		PublicKey:    pub,
		SubjectKeyId: skid,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range a.material.Endpoints {
		if addr, err := netip.ParseAddr(name); err == nil {
			leaf.IPAddresses = append(leaf.IPAddresses, net.IP(addr.AsSlice()))
		} else {
			leaf.DNSNames = append(leaf.DNSNames, name)
		}
	}
	der, err := a.sign(leaf)
	if err != nil {
		return nil, wrap("sign", what, err)
	}
	if _, err := a.log.Append(ctx, endpointEntry(a.material.Tenant.Name, e.Serial, leaf, spki, der)); err != nil {
		return nil, wrap("log", what, err)
	}
	return der, nil
}
