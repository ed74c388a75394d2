package ca

import (
	"context"
	"crypto"
	"crypto/x509"
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
	leaf := &leaf{
		serial: serial, commonName: "imprint check-in", notBefore: notBefore, notAfter: notAfter,
		publicKey: pub, spki: spki, keyID: skid,
		serverOnly: true,
	}
	for _, name := range a.material.Endpoints {
		if addr, err := netip.ParseAddr(name); err == nil {
			leaf.ips = append(leaf.ips, addr)
		} else {
			leaf.dnsNames = append(leaf.dnsNames, name)
		}
	}
	der, err := a.sign(leaf)
	if err != nil {
		return nil, wrap("sign", what, err)
	}
	if err := a.log.Append(ctx, endpointEntry(a.material.Tenant.Name, e.Serial, leaf, der)); err != nil {
		return nil, wrap("log", what, err)
	}
	return der, nil
}
