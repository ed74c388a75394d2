package ca

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"net"
	"net/url"
	"time"

	"imprint"
)

// maxCommonName is ub-common-name (RFC 5280 appendix A.1).
const maxCommonName = 64

// machineLeaf checks g and returns the certificate to sign for it.
func (a *Authority) machineLeaf(g *imprint.Grant) (*x509.Certificate, error) {
	bad := func(format string, args ...any) (*x509.Certificate, error) {
		return nil, imprint.Errorf(imprint.Invalid, "issue", "certificate for "+string(g.Name), format, args...)
	}
	m := &a.material
	if g.Tenant != m.Tenant.Name {
		return bad("it is for tenant %s; this CA belongs to tenant %s", g.Tenant, m.Tenant.Name)
	}
	if g.Profile != "" && g.Profile != defaultProfile {
		return nil, imprint.Errorf(imprint.Invalid, "issue", "certificate for "+string(g.Name), "unknown profile %q", g.Profile).
			WithHint("the only profile is %q", defaultProfile)
	}
	if err := imprint.CheckLabel("instance name", string(g.Name)); err != nil {
		return nil, err
	}
	if !imprint.ValidID(string(g.Instance)) {
		return bad("instance %q is not an identifier", g.Instance)
	}
	serial, ok := g.Serial.Int()
	if !ok || imprint.SerialOf(serial) != g.Serial || serial.BitLen() > 159 {
		return bad("serial %q is not a positive number of at most 159 bits in lower-case hexadecimal", g.Serial)
	}
	if err := m.checkMachineNames(g); err != nil {
		return nil, err
	}
	pub, err := ParsePublicKey(g.PublicKey)
	if err != nil {
		return nil, err
	}
	skid, err := keyIdentifier(g.PublicKey)
	if err != nil {
		return nil, err
	}
	enrolment, err := Enrolment{g.Tier, g.Generation, g.Channel}.Encode()
	if err != nil {
		return nil, err
	}
	uri, err := url.Parse(URI(m.TrustDomain, g.Tenant, g.Instance, g.Generation))
	if err != nil {
		return bad("%w", err)
	}
	notBefore, notAfter, err := a.clamp(g.NotBefore, g.NotAfter)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber:    serial,
		Subject:         pkix.Name{CommonName: commonName(g)},
		NotBefore:       notBefore,
		NotAfter:        notAfter,
		PublicKey:       pub,
		SubjectKeyId:    skid,
		DNSNames:        g.DNSNames,
		URIs:            []*url.URL{uri},
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		ExtraExtensions: []pkix.Extension{enrolment},
	}
	for _, addr := range g.IPs {
		leaf.IPAddresses = append(leaf.IPAddresses, net.IP(addr.AsSlice()))
	}
	return leaf, nil
}

// commonName is the first DNS name if it fits, else the instance's name. It is
// for people: verifiers look at the subject alternative names.
func commonName(g *imprint.Grant) string {
	if len(g.DNSNames) > 0 && len(g.DNSNames[0]) <= maxCommonName {
		return g.DNSNames[0]
	}
	return string(g.Name)
}

// clamp cuts a validity to the issuing CA's. A validity wholly outside it means
// that the clock of whoever decided is wrong, as after a start in 1970.
func (a *Authority) clamp(notBefore, notAfter time.Time) (time.Time, time.Time, error) {
	ca := a.issuing[0]
	notBefore, notAfter = notBefore.UTC().Truncate(time.Second), notAfter.UTC().Truncate(time.Second)
	refuse := func(kind imprint.Kind, hint, format string, args ...any) (time.Time, time.Time, error) {
		return time.Time{}, time.Time{}, imprint.Errorf(kind, "issue", "certificate", format, args...).WithHint("%s", hint)
	}
	switch {
	case !notBefore.Before(notAfter):
		return refuse(imprint.Invalid, "check the certificate lifetime", "valid from %s to %s is no time at all", stamp(notBefore), stamp(notAfter))
	case !notAfter.After(ca.NotBefore):
		return refuse(imprint.Conflict, "set the server's clock", "valid until %s, before the CA's own start at %s", stamp(notAfter), stamp(ca.NotBefore))
	case !notBefore.Before(ca.NotAfter):
		return refuse(imprint.Conflict, "set the server's clock, or reissue the issuing CA with the root key", "valid from %s, after the CA's own end at %s", stamp(notBefore), stamp(ca.NotAfter))
	}
	if notBefore.Before(ca.NotBefore) {
		notBefore = ca.NotBefore
	}
	if notAfter.After(ca.NotAfter) {
		notAfter = ca.NotAfter
	}
	return notBefore, notAfter, nil
}

// sign completes leaf with what all leaves of this CA share and signs it.
//
// crypto/x509 builds the part to be signed; it is signed here, because
// CreateCertificate would verify each signature again, at more than the cost of
// making it. Open has shown once that the signer's signatures verify.
func (a *Authority) sign(leaf *x509.Certificate) ([]byte, error) {
	leaf.BasicConstraintsValid = true // and not a CA
	leaf.MaxPathLen = -1
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	if _, ok := leaf.PublicKey.(*rsa.PublicKey); ok {
		leaf.KeyUsage |= x509.KeyUsageKeyEncipherment // TLS 1.2 with RSA key exchange
	}
	if a.material.CRL != "" {
		leaf.CRLDistributionPoints = []string{a.material.CRL}
	}
	tbs := &toBeSigned{public: a.key.Public()}
	if _, err := x509.CreateCertificate(nil, leaf, a.issuing[0], leaf.PublicKey, tbs); !errors.Is(err, errTaken) {
		return nil, imprint.Errorf(imprint.Invalid, "encode", "certificate", "%w", err)
	}
	return tbs.signWith(a.key)
}

// errTaken stops CreateCertificate when it has built what is to be signed.
var errTaken = errors.New("taken")

// toBeSigned is a [crypto.MessageSigner] that keeps the message instead of
// signing it.
type toBeSigned struct {
	public  crypto.PublicKey
	message []byte
	hash    crypto.Hash
}

func (t *toBeSigned) Public() crypto.PublicKey { return t.public }

func (t *toBeSigned) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("only whole messages are taken")
}

func (t *toBeSigned) SignMessage(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	t.message, t.hash = message, opts.HashFunc()
	return nil, errTaken
}

// signWith signs the message and puts the certificate together (RFC 5280
// section 4.1). The signature algorithm is the one inside the message: the
// third element, after version and serial number.
func (t *toBeSigned) signWith(key crypto.Signer) ([]byte, error) {
	var inner struct {
		Version   asn1.RawValue
		Serial    asn1.RawValue
		Algorithm asn1.RawValue
	}
	if _, err := asn1.Unmarshal(t.message, &inner); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "encode", "certificate", "%w", err)
	}
	h := t.hash.New()
	h.Write(t.message)
	signature, err := key.Sign(nil, h.Sum(nil), t.hash)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}{
		asn1.RawValue{FullBytes: t.message},
		asn1.RawValue{FullBytes: inner.Algorithm.FullBytes},
		asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)},
	})
}
