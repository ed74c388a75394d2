package enrol

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"imprint"
)

// MaxRequest is the size limit of a certificate request in bytes of DER: one
// with an RSA-8192 key and 32 names of full length has 11 KiB.
const MaxRequest = 16 << 10

// Request is a PKCS #10 certificate request (RFC 2986) whose signature is right
// and whose key is strong enough. Attributes that carry no name, a
// challengePassword among them, are ignored.
type Request struct {
	SPKI []byte        // DER SubjectPublicKeyInfo
	Key  imprint.KeyID // of SPKI

	commonNames []string
	dnsNames    []string
	ips         []netip.Addr
	uris        []string
	emails      []string
}

// ParseRequest reads a request of at most [MaxRequest] bytes of DER. It fails
// with kind [imprint.Invalid] if the request is malformed, is not signed by its
// own key, has a key that [checkKey] refuses, or asks for kinds of names that
// cannot be compared with a reservation.
func ParseRequest(der []byte) (*Request, error) {
	if len(der) > MaxRequest {
		return nil, unreadable("%d bytes; the limit is %d", len(der), MaxRequest)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, unreadable("it is not a PKCS #10 request in DER: %s", clip(err.Error()))
	}
	// The key first: its size bounds what checking the signature costs.
	if err := checkKey(csr.PublicKey, csr.RawSubjectPublicKeyInfo); err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, unreadable("its signature is not by its own key").
			WithHint("sign the request with the private key whose public key is in it")
	}
	r := &Request{
		SPKI: csr.RawSubjectPublicKeyInfo, Key: imprint.KeyIDOf(csr.RawSubjectPublicKeyInfo),
		dnsNames: csr.DNSNames, emails: csr.EmailAddresses,
	}
	for _, attribute := range csr.Subject.Names {
		if attribute.Type.Equal(oidCommonName()) {
			r.commonNames = append(r.commonNames, fmt.Sprint(attribute.Value))
		}
	}
	for _, ip := range csr.IPAddresses {
		addr, ok := netip.AddrFromSlice(ip)
		if !ok {
			return nil, unreadable("an address has %d bytes", len(ip))
		}
		r.ips = append(r.ips, addr.Unmap())
	}
	for _, u := range csr.URIs {
		r.uris = append(r.uris, u.String())
	}
	return r, r.sawAllNames(csr)
}

func oidCommonName() asn1.ObjectIdentifier     { return asn1.ObjectIdentifier{2, 5, 4, 3} }
func oidSubjectAltName() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 5, 29, 17} }

// sawAllNames refuses general names that crypto/x509 skips, such as otherName
// and directoryName (RFC 5280 section 4.2.1.6): what is not seen is not compared.
func (r *Request) sawAllNames(csr *x509.CertificateRequest) error {
	for _, ext := range csr.Extensions {
		if !ext.Id.Equal(oidSubjectAltName()) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(ext.Value, &names); err != nil || len(rest) > 0 {
			return unreadable("its names are malformed")
		}
		if len(names) != len(r.dnsNames)+len(r.ips)+len(r.uris)+len(r.emails) {
			return unreadable("it asks for names of another kind than DNS, IP and URI")
		}
	}
	return nil
}

func unreadable(format string, args ...any) *imprint.Error {
	return imprint.Errorf(imprint.Invalid, "read", "certificate request", format, args...)
}

// fits returns an error of kind [imprint.Invalid] that lists the names in the
// request which were not reserved for i. Names that the request leaves out are
// no fault: the certificate is built from the reservation. A renewal repeats
// the names of the certificate (RFC 7030 section 4.2.2), and so its own URI.
func (r *Request) fits(i *imprint.Instance) error {
	var extra []string
	for _, name := range r.commonNames {
		lower := lowerASCII(name)
		if lower != "" && lower != string(i.Spec.Name) && lower != string(i.ID) && !slices.Contains(i.Spec.DNSNames, lower) {
			extra = append(extra, "CN="+name)
		}
	}
	for _, name := range r.dnsNames {
		if !slices.Contains(i.Spec.DNSNames, lowerASCII(name)) {
			extra = append(extra, name)
		}
	}
	for _, ip := range r.ips {
		if !slices.Contains(i.Spec.IPs, ip) {
			extra = append(extra, ip.String())
		}
	}
	for _, uri := range r.uris {
		own := fmt.Sprintf("/tenant/%s/instance/%s/generation/%d", i.Spec.Tenant, i.ID, i.Generation)
		rest, ok := strings.CutPrefix(uri, "spiffe://")
		if _, path, _ := strings.Cut(rest, "/"); !ok || "/"+path != own {
			extra = append(extra, uri)
		}
	}
	extra = append(extra, r.emails...)
	if len(extra) == 0 {
		return nil
	}
	return imprint.Errorf(imprint.Invalid, "enrol", i.Ref(), "the request names what was not reserved: %s", clip(strings.Join(extra, ", "))).
		WithHint("ask for the reserved names or for none: the certificate gets all of them anyway")
}

// lowerASCII folds case as the DNS does (RFC 4343): of ASCII letters only, so
// that the Kelvin sign is not a k.
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// maxQuoted is how many bytes of a guest's text go into an error or an event.
const maxQuoted = 200

// clip makes foreign text fit for a line of a log or a terminal: short, and
// without controls, those of C1 and of writing direction included.
func clip(s string) string { return clipTo(s, maxQuoted) }

// clipTo is clip for so many bytes.
func clipTo(s string, most int) string {
	long := len(s) > most
	if long {
		s = s[:most]
	}
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if long {
		s += "…"
	}
	return s
}
