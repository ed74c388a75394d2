package enrol

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"imprint"
)

// Limits on a certificate request.
const (
	MaxRequest = 16 << 10 // bytes of DER
	minRSABits = 3072     // as strong as the rest of the chain (NIST SP 800-57 part 1)
	maxRSABits = 8192     // bounds the time of a verification
)

// Request is a PKCS #10 certificate request (RFC 2986) whose signature is right
// and whose key is strong enough.
type Request struct {
	SPKI []byte // DER SubjectPublicKeyInfo
	Key  imprint.KeyID

	commonName string
	dnsNames   []string
	ips        []netip.Addr
	uris       []string
	emails     []string
}

// ParseRequest reads a request in DER. It fails with kind [imprint.Invalid] if
// the request is malformed, not signed by its own key, or its key is weak.
func ParseRequest(der []byte) (*Request, error) {
	if len(der) > MaxRequest {
		return nil, imprint.Errorf(imprint.Invalid, "read", "certificate request", "%d bytes; the limit is %d", len(der), MaxRequest)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "read", "certificate request", "it is not a PKCS #10 request in DER: %w", err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "check", "certificate request", "its signature is not by its own key").
			WithHint("sign the request with the private key whose public key is in it")
	}
	r := &Request{
		SPKI: csr.RawSubjectPublicKeyInfo, Key: imprint.KeyIDOf(csr.RawSubjectPublicKeyInfo),
		commonName: csr.Subject.CommonName, dnsNames: csr.DNSNames, emails: csr.EmailAddresses,
	}
	for _, ip := range csr.IPAddresses {
		addr, ok := netip.AddrFromSlice(ip)
		if !ok {
			return nil, imprint.Errorf(imprint.Invalid, "read", "certificate request", "an address has %d bytes", len(ip))
		}
		r.ips = append(r.ips, addr.Unmap())
	}
	for _, u := range csr.URIs {
		r.uris = append(r.uris, u.String())
	}
	if err := r.noOtherNames(csr); err != nil {
		return nil, err
	}
	return r, nil
}

func checkKey(pub any) error {
	weak := func(format string, args ...any) error {
		return imprint.Errorf(imprint.Invalid, "check", "public key", format, args...).
			WithHint("make a P-256, P-384 or Ed25519 key, or RSA of %d bits or more", minRSABits)
	}
	switch k := pub.(type) {
	case ed25519.PublicKey:
		return nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return weak("curve %s is not accepted", k.Params().Name)
	case *rsa.PublicKey:
		switch bits := k.N.BitLen(); {
		case bits < minRSABits:
			return weak("RSA of %d bits is too weak", bits)
		case bits > maxRSABits:
			return weak("RSA of %d bits is too long; at most %d are accepted", bits, maxRSABits)
		}
		return nil
	}
	return weak("a key of type %T is not accepted", pub)
}

// noOtherNames refuses general names that crypto/x509 skips, such as otherName
// and directoryName (RFC 5280 section 4.2.1.6): what is not seen is not compared.
func (r *Request) noOtherNames(csr *x509.CertificateRequest) error {
	subjectAltName := asn1.ObjectIdentifier{2, 5, 29, 17}
	for _, ext := range csr.Extensions {
		if !ext.Id.Equal(subjectAltName) {
			continue
		}
		var names []asn1.RawValue
		rest, err := asn1.Unmarshal(ext.Value, &names)
		if err != nil || len(rest) > 0 {
			return imprint.Errorf(imprint.Invalid, "read", "certificate request", "its names are malformed")
		}
		if seen := len(r.dnsNames) + len(r.ips) + len(r.uris) + len(r.emails); len(names) != seen {
			return imprint.Errorf(imprint.Invalid, "read", "certificate request", "it asks for names of another kind than DNS, IP and URI")
		}
	}
	return nil
}

// fits tells which name in the request was not reserved for the instance, or
// returns nil. Names that the request leaves out are no fault: the certificate
// is built from the reservation.
func (r *Request) fits(i *imprint.Instance) error {
	var extra []string
	known := func(name string) bool {
		name = strings.ToLower(name)
		return name == string(i.Spec.Name) || name == string(i.ID) || slices.Contains(i.Spec.DNSNames, name)
	}
	if r.commonName != "" && !known(r.commonName) {
		extra = append(extra, "CN="+r.commonName)
	}
	for _, name := range r.dnsNames {
		if !slices.Contains(i.Spec.DNSNames, strings.ToLower(name)) {
			extra = append(extra, name)
		}
	}
	for _, ip := range r.ips {
		if !slices.Contains(i.Spec.IPs, ip) {
			extra = append(extra, ip.String())
		}
	}
	own := fmt.Sprintf("/tenant/%s/instance/%s/generation/%d", i.Spec.Tenant, i.ID, i.Generation)
	for _, uri := range r.uris {
		rest, ok := strings.CutPrefix(uri, "spiffe://")
		if _, path, _ := strings.Cut(rest, "/"); !ok || "/"+path != own {
			extra = append(extra, uri)
		}
	}
	extra = append(extra, r.emails...)
	if len(extra) == 0 {
		return nil
	}
	return imprint.Errorf(imprint.Invalid, "check", "certificate request", "it names what was not reserved for this machine: %s", clip(strings.Join(extra, ", "))).
		WithHint("ask for the reserved names or for none: the certificate gets all of them anyway")
}

// maxQuoted is how many bytes of a guest's text go into an error or an event.
const maxQuoted = 200

// clip makes foreign text fit for a line of a log.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxQuoted {
		s = strings.ToValidUTF8(s[:maxQuoted], "") + "…"
	}
	return s
}
