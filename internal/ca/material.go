package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"slices"
	"strings"
	"time"

	"imprint"
)

// Lifetimes of the CA certificates, and how far their start is backdated so
// that a server whose clock is behind can use them at once.
const (
	RootLifetime    = 30 * 365 * 24 * time.Hour
	IssuingLifetime = 5 * 365 * 24 * time.Hour
	caBackdate      = 24 * time.Hour
)

// maxIssuing bounds how many issuing CAs may be in use during a rollover.
const maxIssuing = 8

// maxURL is the length limit of a CRL's address in bytes.
const maxURL = 512

// Profile says what an authority is for; it is what [Create] and [Reissue] certify.
type Profile struct {
	Tenant imprint.Tenant `json:"tenant"`
	// TrustDomain is the authority part of the machines' URIs, a DNS name.
	TrustDomain string `json:"trustDomain"`
	// Endpoints are the DNS names and IP addresses under which the check-in
	// endpoint is reached, besides Tenant.CheckIn and the loopback names, which
	// are always among them. The name constraint permits them, and no machine gets them.
	Endpoints []string `json:"endpoints,omitempty"`
	// CRL is the URL of the revocation list, written into every leaf; "" is none.
	CRL string `json:"crl,omitempty"`
}

// Material is all that is public about an authority; it serialises as JSON.
type Material struct {
	Profile
	Root []byte `json:"root"` // DER
	// Issuing holds the issuing CAs in DER: first the one that signs, then
	// earlier ones whose certificates are still accepted. Cut the earlier ones
	// off when the last leaf that they signed has ended.
	Issuing [][]byte `json:"issuing"`
	// SSH is the public key that signs SSH host certificates, in authorized_keys form.
	SSH string `json:"ssh"`
}

// CreateKeys are the keys of a new authority. Only the root's signs during [Create].
type CreateKeys struct {
	Root    crypto.Signer
	Issuing crypto.PublicKey
	SSH     crypto.PublicKey
}

// Create makes a root CA and under it the first issuing CA. It fails with kind
// [imprint.Invalid] if the profile or a key cannot be used.
func Create(p Profile, keys CreateKeys, now time.Time) (Material, error) {
	for _, pub := range []crypto.PublicKey{keys.Root.Public(), keys.Issuing, keys.SSH} {
		if err := checkCAKey(pub); err != nil {
			return Material{}, err
		}
	}
	ssh, err := sshPublicKey(keys.SSH)
	if err != nil {
		return Material{}, err
	}
	subject, err := caName(p.Tenant.Name, "root", keys.Root.Public())
	if err != nil {
		return Material{}, err
	}
	serial, _ := imprint.NewSerial().Int()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               subject,
		NotBefore:             now.Add(-caBackdate).UTC().Truncate(time.Second),
		NotAfter:              now.Add(RootLifetime).UTC().Truncate(time.Second),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1,
	}
	root, err := x509.CreateCertificate(rand.Reader, template, template, keys.Root.Public(), keys.Root)
	if err != nil {
		return Material{}, imprint.Errorf(imprint.Internal, "create", "root CA", "%w", err)
	}
	return Reissue(Material{Root: root, SSH: ssh}, p, keys.Root, keys.Issuing, now)
}

// Reissue certifies an issuing CA under the root key of m: after p changed,
// because the present one nears its end, or for a new key. The result signs with
// the new issuing CA and still accepts those of m that have not ended. It fails
// with kind [imprint.Conflict] if root is not m's root key, and
// [imprint.Invalid] if the profile or the key cannot be used.
func Reissue(m Material, p Profile, root crypto.Signer, issuing crypto.PublicKey, now time.Time) (Material, error) {
	if err := checkCAKey(issuing); err != nil {
		return Material{}, err
	}
	rootCert, err := x509.ParseCertificate(m.Root)
	if err != nil {
		return Material{}, imprint.Errorf(imprint.Invalid, "reissue", "issuing CA", "root certificate: %w", err)
	}
	if pub, ok := rootCert.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(root.Public()) {
		return Material{}, imprint.Errorf(imprint.Conflict, "reissue", "issuing CA", "this is not the key of the tenant's root CA")
	}
	if err := p.check(); err != nil {
		return Material{}, err
	}
	p.Endpoints = p.endpoints()
	subject, err := caName(p.Tenant.Name, "issuing", issuing)
	if err != nil {
		return Material{}, err
	}
	notBefore, notAfter := now.Add(-caBackdate), now.Add(IssuingLifetime)
	if notBefore.Before(rootCert.NotBefore) {
		notBefore = rootCert.NotBefore
	}
	if notAfter.After(rootCert.NotAfter) {
		notAfter = rootCert.NotAfter
	}
	if !notBefore.Before(notAfter) || now.Before(rootCert.NotBefore) {
		return Material{}, imprint.Errorf(imprint.Invalid, "reissue", "issuing CA", "the clock says %s, outside the root CA's life from %s to %s",
			stamp(now), stamp(rootCert.NotBefore), stamp(rootCert.NotAfter)).WithHint("set this machine's clock")
	}
	serial, _ := imprint.NewSerial().Int()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               subject,
		NotBefore:             notBefore.UTC().Truncate(time.Second),
		NotAfter:              notAfter.UTC().Truncate(time.Second),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	p.constrain(template)
	der, err := x509.CreateCertificate(rand.Reader, template, rootCert, issuing, root)
	if err != nil {
		return Material{}, imprint.Errorf(imprint.Internal, "reissue", "issuing CA", "%w", err)
	}
	next := Material{Profile: p, Root: m.Root, Issuing: [][]byte{der}, SSH: m.SSH}
	for _, old := range m.Issuing {
		cert, err := x509.ParseCertificate(old)
		if err != nil {
			return Material{}, imprint.Errorf(imprint.Invalid, "reissue", "issuing CA", "earlier certificate: %w", err)
		}
		if now.Before(cert.NotAfter) && len(next.Issuing) < maxIssuing {
			next.Issuing = append(next.Issuing, old)
		}
	}
	return next, nil
}

// caName is the name of a CA. It changes with the key, so that what names an
// issuer names one key, in certificates and in revocation lists.
func caName(tenant imprint.TenantName, role string, pub crypto.PublicKey) (pkix.Name, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return pkix.Name{}, imprint.Errorf(imprint.Invalid, "check", "CA key", "%w", err)
	}
	return pkix.Name{
		Organization:       []string{"imprint"},
		OrganizationalUnit: []string{string(tenant)},
		CommonName:         "imprint " + role + " CA " + string(imprint.KeyIDOf(spki)[:8]),
	}, nil
}

// check refuses a profile whose names cannot go into a certificate.
func (p *Profile) check() error {
	if err := imprint.CheckLabel("tenant name", string(p.Tenant.Name)); err != nil {
		return err
	}
	if err := imprint.CheckDNSName("trust domain", p.TrustDomain); err != nil {
		return err
	}
	if p.CRL != "" {
		u, err := url.Parse(p.CRL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || len(p.CRL) > maxURL {
			return imprint.Errorf(imprint.Invalid, "check", "CRL address", "%q is not an http or https URL of at most %d bytes", p.CRL, maxURL)
		}
	}
	return p.checkNames()
}

// stamp writes a time for people.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// loopback names are always endpoints: a client on the server itself uses them.
func loopback() []string { return []string{"127.0.0.1", "::1", "localhost"} }

// endpoints returns the complete list of endpoints, sorted.
func (p *Profile) endpoints() []string {
	all := append(loopback(), p.Endpoints...)
	if p.Tenant.CheckIn != "" {
		all = append(all, p.Tenant.CheckIn)
	}
	for i := range all {
		all[i] = strings.ToLower(all[i])
	}
	slices.Sort(all)
	return slices.Compact(all)
}
