//go:build interop

package interop

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"imprint"
	"imprint/test/need"
)

// TestCSRAttributesNames: the names that belong in a request come as RFC 9908
// section 3.2 has them, one extensionRequest with one list of extensions, in the
// eyes of a parser that is not ours. They are told only to the machine itself.
func TestCSRAttributesNames(t *testing.T) {
	t.Parallel()
	curl, openssl := need.Program(t, "curl", "curl"), need.Program(t, "openssl", "openssl")
	s := newESTSite(t)
	inst, token := s.reserve(t, "web-1", func(spec *imprint.Spec) {
		spec.DNSNames = []string{"web-1.lab.internal", "www.lab.internal"}
		spec.IPs = []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::7")}
	})
	attributes := func(args ...string) string {
		s.must(t, curl, append([]string{"-sS", "--fail", "--cacert", s.root, "-o", "attrs", s.url + "/.well-known/est/csrattrs"}, args...)...)
		s.must(t, openssl, "base64", "-d", "-A", "-in", "attrs", "-out", "attrs.der")
		return string(s.must(t, openssl, "asn1parse", "-inform", "DER", "-in", "attrs.der"))
	}
	const key = `d=0 SEQUENCE
d=1 SEQUENCE
d=2 OBJECT :id-ecPublicKey
d=2 SET
d=3 OBJECT :prime256v1
d=1 OBJECT :ecdsa-with-SHA256
`
	if got := structure(attributes()); got != key {
		t.Errorf("to a stranger:\n%swant\n%s", got, key)
	}

	s.must(t, openssl, "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-keyout", "key.pem", "-subj", "/CN="+string(inst.Spec.Name), "-outform", "DER", "-out", "csr.der")
	s.must(t, curl, "-sS", "--fail", "--cacert", s.root, "-u", "web-1:"+token, "-H", "Content-Type: application/pkcs10",
		"--data-binary", "@csr.der", "-o", "reply", s.url+"/.well-known/est/simpleenroll")
	s.must(t, openssl, "base64", "-d", "-A", "-in", "reply", "-out", "reply.p7")
	s.must(t, openssl, "pkcs7", "-inform", "DER", "-in", "reply.p7", "-print_certs", "-out", "cert.pem")

	parsed := attributes("--cert", "cert.pem", "--key", "key.pem")
	const template = key + `d=1 SEQUENCE
d=2 OBJECT :Extension Request
d=2 SET
d=3 SEQUENCE
d=4 SEQUENCE
d=5 OBJECT :X509v3 Subject Alternative Name
d=5 OCTET STRING
`
	if got := structure(parsed); got != template {
		t.Fatalf("to the machine:\n%swant\n%s", got, template)
	}
	at := regexp.MustCompile(`(?m)^ *(\d+):.*OCTET STRING`).FindStringSubmatch(parsed)[1]
	const names = `d=0 SEQUENCE
d=1 cont [ 2 ]
d=1 cont [ 2 ]
d=1 cont [ 7 ]
d=1 cont [ 7 ]
`
	if got := structure(string(s.must(t, openssl, "asn1parse", "-inform", "DER", "-in", "attrs.der", "-strparse", at))); got != names {
		t.Errorf("the names:\n%swant\n%s", got, names)
	}

	// What the template says, in a request, is what the reservation allows: OpenSSL
	// makes one with the very bytes of the extension.
	dump := regexp.MustCompile(`OCTET STRING *\[HEX DUMP\]:([0-9A-F]+)`).FindStringSubmatch(parsed)
	if dump == nil {
		t.Fatalf("no names in\n%s", parsed)
	}
	s.must(t, openssl, "req", "-new", "-key", "key.pem", "-subj", "/CN=web-1", "-addext", "subjectAltName=DER:"+dump[1],
		"-outform", "DER", "-out", "again.der")
	text := string(s.must(t, openssl, "req", "-inform", "DER", "-in", "again.der", "-noout", "-text"))
	if want := "DNS:web-1.lab.internal, DNS:www.lab.internal, IP Address:10.1.2.3, IP Address:FD00:0:0:0:0:0:0:7"; !strings.Contains(text, want) {
		t.Errorf("OpenSSL does not read %q in\n%s", want, text)
	}
	s.must(t, curl, "-sS", "--fail", "--cacert", s.root, "--cert", "cert.pem", "--key", "key.pem", "-H", "Content-Type: application/pkcs10",
		"--data-binary", "@again.der", "-o", "renewed", s.url+"/.well-known/est/simplereenroll")
}

// structure is the output of openssl asn1parse without positions and lengths:
// depth, type and, of object identifiers, the value.
func structure(parsed string) string {
	line := regexp.MustCompile(`(?m)^ *\d+:(d=\d+) .*(?:prim|cons): (OBJECT|[^:\[\n]*(?:\[ \d \])?)(.*)$`)
	var b strings.Builder
	for _, m := range line.FindAllStringSubmatch(parsed, -1) {
		depth, kind, value := m[1], strings.TrimSpace(m[2]), strings.TrimSpace(m[3])
		b.WriteString(depth + " " + kind)
		if kind == "OBJECT" {
			b.WriteString(" " + value)
		}
		b.WriteString("\n")
	}
	return b.String()
}
