package est_test

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/smallstep/pkcs7"

	"imprint/internal/est"
)

// FuzzDecodeRequest: whatever comes in, what goes on is a SEQUENCE and, read
// back in each accepted form, the same one.
func FuzzDecodeRequest(f *testing.F) {
	csr, err := os.ReadFile("testdata/openssl.csr.pem")
	if err != nil {
		f.Fatal(err)
	}
	block, _ := pem.Decode(csr)
	f.Add(csr)
	f.Add(block.Bytes)
	f.Add([]byte(base64.StdEncoding.EncodeToString(block.Bytes)))
	f.Add([]byte("MII=\r\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\ntail"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		der, reason := est.DecodeRequest(body)
		if (reason == "") != (len(der) > 0) {
			t.Fatalf("%d bytes with reason %q", len(der), reason)
		}
		if reason != "" {
			return
		}
		if der[0] != 0x30 || len(der) > len(body) {
			t.Fatalf("%d bytes became %d, the first %#x", len(body), len(der), der[0])
		}
		for _, form := range [][]byte{
			[]byte(base64.StdEncoding.EncodeToString(der)),
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
		} {
			if again, reason := est.DecodeRequest(form); !bytes.Equal(again, der) {
				t.Fatalf("%q reads as %x (%s), was %x", form, again, reason, der)
			}
		}
	})
}

// TestCertsOnly: the reply is what a PKCS #7 library writes.
func TestCertsOnly(t *testing.T) {
	t.Parallel()
	site := newSite(t, "default", "blue")
	a, b := site.cas["default"].cert.Raw, site.cas["blue"].cert.Raw
	for _, certs := range [][][]byte{{a}, {a, b}} {
		want, err := pkcs7.DegenerateCertificate(bytes.Join(certs, nil))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := est.CertsOnly(certs); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d certificates: %x, %v; want %x", len(certs), got, err, want)
		}
	}
}

// FuzzCredentials: the user and token that come out are bounded and are what a
// client would have put in.
func FuzzCredentials(f *testing.F) {
	f.Add("Basic d2ViLTE6dG9rZW4=")
	f.Add("basic OnRva2Vu")
	f.Add("Basic d2ViLTE6")
	f.Add("Basic " + strings.Repeat("QUFB", 500))
	f.Add("Bearer x")
	f.Add("Basic \x00")
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequest("POST", "/", nil)
		r.Header.Set("Authorization", header)
		user, token, ok := est.Credentials(r)
		if ok != (user != "") || !ok && !token.IsZero() {
			t.Fatalf("user %q, token given %v, ok %v", user, !token.IsZero(), ok)
		}
		if !ok {
			return
		}
		if len(user) > 127 || len(token.Reveal()) > 256 || strings.Contains(user, ":") {
			t.Fatalf("user of %d bytes, token of %d", len(user), len(token.Reveal()))
		}
		again := httptest.NewRequest("POST", "/", nil)
		again.SetBasicAuth(user, string(token.Reveal()))
		if u, tok, ok := est.Credentials(again); !ok || u != user || !tok.Equal(token) {
			t.Fatalf("%q does not survive", header)
		}
	})
}

// FuzzMarshalAttributes: any names give DER that reads back to its end.
func FuzzMarshalAttributes(f *testing.F) {
	f.Add("web-1.example.net", []byte{192, 0, 2, 7})
	f.Add("", []byte{})
	f.Add(strings.Repeat("a", 300), make([]byte, 16))
	f.Fuzz(func(t *testing.T, name string, addr []byte) {
		var ips []netip.Addr
		if ip, ok := netip.AddrFromSlice(addr); ok {
			ips = append(ips, ip)
		}
		der, err := est.MarshalAttributes([]string{name}, ips)
		if err != nil {
			t.Fatal(err)
		}
		var attrs []asn1.RawValue
		if rest, err := asn1.Unmarshal(der, &attrs); err != nil || len(rest) != 0 || len(attrs) != 3 {
			t.Fatalf("%v, %d bytes left, %d attributes", err, len(rest), len(attrs))
		}
		if !bytes.Contains(der, []byte(name)) {
			t.Fatalf("%q is missing", name)
		}
	})
}

// TestDERIsNotTrimmed: one signature in forty ends with a byte that looks like
// white space.
func TestDERIsNotTrimmed(t *testing.T) {
	t.Parallel()
	for _, last := range []byte(" \t\n\v\f\r") {
		body := []byte{0x30, 2, 4, last}
		if der, reason := est.DecodeRequest(body); !bytes.Equal(der, body) {
			t.Errorf("%x became %x (%s)", body, der, reason)
		}
	}
}
