package enrol_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"imprint"
	"imprint/internal/enrol"
)

const sshEd25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPlv8yW0vGDSCmeKLqiFZ2nDcVFkzgDYPjcRfrhwEQQF"

// must returns the key or fails the test.
func must[K crypto.Signer](t testing.TB) func(K, error) crypto.Signer {
	return func(key K, err error) crypto.Signer {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
}

func ed25519Key(t testing.TB) crypto.Signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return must[ed25519.PrivateKey](t)(key, err)
}

func request(t testing.TB, key crypto.Signer, template *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestRequestKeys(t *testing.T) {
	t.Parallel()
	ec, rsaKey := must[*ecdsa.PrivateKey](t), must[*rsa.PrivateKey](t)
	for name, test := range map[string]struct {
		key  crypto.Signer
		says string // "": accepted
	}{
		"P-256":    {ec(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), ""},
		"P-384":    {ec(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), ""},
		"Ed25519":  {ed25519Key(t), ""},
		"RSA-3072": {rsaKey(rsa.GenerateKey(rand.Reader, 3072)), ""},
		"P-224":    {ec(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)), "P-224"},
		"P-521":    {ec(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)), "P-521"},
		"RSA-2048": {rsaKey(rsa.GenerateKey(rand.Reader, 2048)), "2048 bits is too weak"},
	} {
		der := request(t, test.key, &x509.CertificateRequest{DNSNames: []string{"a.example.net"}})
		r, err := enrol.ParseRequest(der)
		if test.says != "" {
			if err == nil || imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), test.says) || !strings.Contains(imprint.HintOf(err), "P-256") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		spki, _ := x509.MarshalPKIXPublicKey(test.key.Public())
		if err != nil || !bytes.Equal(r.SPKI, spki) || r.Key != imprint.KeyIDOf(spki) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	good := request(t, key, &x509.CertificateRequest{DNSNames: []string{"a.example.net"}})
	forged := bytes.Clone(good)
	forged[len(forged)-1] ^= 1
	changed := bytes.Replace(good, []byte("a.example"), []byte("b.example"), 1)
	for name, test := range map[string]struct {
		der  []byte
		says string
	}{
		"nothing":              {nil, "PKCS #10"},
		"PEM":                  {[]byte("-----BEGIN CERTIFICATE REQUEST-----\n"), "PKCS #10"},
		"cut short":            {good[:len(good)-1], "PKCS #10"},
		"followed by more":     {append(bytes.Clone(good), 0), "PKCS #10"},
		"too long":             {make([]byte, enrol.MaxRequest+1), "limit"},
		"a broken signature":   {forged, "signature"},
		"changed after it":     {changed, "signature"},
		"an otherName":         {request(t, key, withExtension(t, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{6, 1, 42}})), "another kind"},
		"a directoryName":      {request(t, key, withExtension(t, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: []byte{0x30, 0}})), "another kind"},
		"an address of 5 byte": {request(t, key, withExtension(t, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 7, Bytes: []byte{1, 2, 3, 4, 5}})), "PKCS #10"},
	} {
		_, err := enrol.ParseRequest(test.der)
		if err == nil || imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHiddenNames: crypto/x509 reports one CN of several; all of them count.
func TestHiddenNames(t *testing.T) {
	t.Parallel()
	cn := asn1.ObjectIdentifier{2, 5, 4, 3}
	raw, err := asn1.Marshal(pkix.RDNSequence{
		{{Type: cn, Value: "evil.example.org"}}, {{Type: cn, Value: "web-1"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	_, err = w.engine.Enrol(t.Context(), m.asking(t, &x509.CertificateRequest{RawSubject: raw}).up(id))
	wantKind(t, err, imprint.Invalid)
	if !strings.Contains(err.Error(), "evil.example.org") {
		t.Error(err)
	}
}

// withExtension is a request for one general name.
func withExtension(t testing.TB, name asn1.RawValue) *x509.CertificateRequest {
	t.Helper()
	value, err := asn1.Marshal([]asn1.RawValue{name})
	if err != nil {
		t.Fatal(err)
	}
	return &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}}}
}

func authorized(t testing.TB, pub any) string {
	t.Helper()
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// TestSSHHostKeys: what is accepted here is what the signer will accept, or a
// claim could never be issued.
func TestSSHHostKeys(t *testing.T) {
	t.Parallel()
	ec, rsaKey := must[*ecdsa.PrivateKey](t), must[*rsa.PrivateKey](t)
	p256 := authorized(t, ec(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).Public())
	for name, test := range map[string]struct {
		line string
		ok   bool
	}{
		"Ed25519":            {sshEd25519, true},
		"with a comment":     {sshEd25519 + " root@web-1\n", true},
		"P-256":              {p256, true},
		"P-384":              {authorized(t, ec(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)).Public()), true},
		"RSA-3072":           {authorized(t, rsaKey(rsa.GenerateKey(rand.Reader, 3072)).Public()), true},
		"RSA-2048":           {authorized(t, rsaKey(rsa.GenerateKey(rand.Reader, 2048)).Public()), false},
		"P-521":              {authorized(t, ec(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)).Public()), false},
		"RSA, exponent 3":    {authorized(t, &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(3), 3071), E: 3}), false},
		"another type":       {"ssh-dss" + strings.TrimPrefix(sshEd25519, "ssh-ed25519"), false},
		"options":            {`no-pty ` + sshEd25519, false},
		"two lines":          {sshEd25519 + "\n" + sshEd25519, false},
		"no key":             {"ssh-ed25519", false},
		"not base64":         {"ssh-ed25519 ???", false},
		"cut short":          {sshEd25519[:60], false},
		"longer than it may": {sshEd25519 + " " + strings.Repeat("x", imprint.MaxSSHKeyLen), false},
	} {
		got, err := enrol.ParseSSHHost(test.line)
		if (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && len(strings.Fields(got)) != 2 {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func FuzzParseSSHHost(f *testing.F) {
	f.Add(sshEd25519 + " comment")
	f.Add("ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBFmNLtbG")
	f.Add(authorized(f, must[*ecdsa.PrivateKey](f)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).Public()))
	f.Add(authorized(f, must[*rsa.PrivateKey](f)(rsa.GenerateKey(rand.Reader, 3072)).Public()))
	f.Fuzz(func(t *testing.T, line string) {
		got, err := enrol.ParseSSHHost(line)
		if err != nil {
			if imprint.KindOf(err) != imprint.Invalid {
				t.Errorf("kind of %v", err)
			}
			return
		}
		key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(got))
		if err != nil || len(options) > 0 || len(rest) > 0 || strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) != got {
			t.Errorf("%q was accepted: %v", got, err)
		}
	})
}

// FuzzParseRequest also decides about whatever can be parsed: nothing that a
// guest sends may be certified under a name that was not reserved.
func FuzzParseRequest(f *testing.F) {
	key := must[*ecdsa.PrivateKey](f)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	f.Add(request(f, key, &x509.CertificateRequest{}))
	f.Add(request(f, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "web-1"}, DNSNames: []string{"web-1.example.net"}}))
	f.Add(request(f, ed25519Key(f), &x509.CertificateRequest{EmailAddresses: []string{"a@b"}}))
	f.Add(request(f, key, withExtension(f, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{6, 1, 42}})))
	f.Add([]byte{0x30, 0x03, 0x02, 0x01, 0x00})
	f.Fuzz(func(t *testing.T, der []byte) {
		r, err := enrol.ParseRequest(der)
		if err != nil {
			if imprint.KindOf(err) != imprint.Invalid || len(err.Error()) > 1000 {
				t.Errorf("kind %v of %.200q", imprint.KindOf(err), err)
			}
			return
		}
		if r.Key != imprint.KeyIDOf(r.SPKI) {
			t.Error("the key's identifier is not its own")
		}
		if _, err := x509.ParsePKIXPublicKey(r.SPKI); err != nil {
			t.Errorf("a key that cannot be read was accepted: %v", err)
		}
		w := newWorld()
		id := w.reserve(t)
		i, err := w.engine.Enrol(t.Context(), imprint.Submission{Instance: id, Channel: imprint.Serial2, CSR: der, Witness: placed})
		if err != nil {
			wantKind(t, err, imprint.Invalid)
			wantState(t, w.get(id), imprint.Reserved)
			return
		}
		g := w.signer.grants[0]
		if len(g.DNSNames) != 1 || g.DNSNames[0] != "web-1.example.net" || len(g.IPs) != 1 || g.IPs[0] != netip.MustParseAddr("10.0.0.7") ||
			imprint.KeyIDOf(g.PublicKey) != i.Enrolment.Claim.Key {
			t.Errorf("granted %+v", g)
		}
	})
}

// FuzzRequestNames signs what it makes up, to get past the signature: subject
// and subject alternative name are the parts that are compared.
func FuzzRequestNames(f *testing.F) {
	key := must[*ecdsa.PrivateKey](f)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	subject, err := asn1.Marshal(pkix.Name{CommonName: "web-1"}.ToRDNSequence())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(subject, []byte("\x30\x13\x82\x11web-1.example.net"))
	f.Add(subject, []byte("\x30\x06\x87\x04\x0a\x00\x00\x07"))
	f.Add([]byte{0x30, 0x00}, []byte("\x30\x08\x86\x06spiffe"))
	f.Add([]byte{0x30, 0x00}, []byte("\x30\x05\xa0\x03\x06\x01\x2a"))
	f.Fuzz(func(t *testing.T, subject, san []byte) {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			RawSubject: subject, ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: san}},
		}, key)
		if err != nil || len(der) > enrol.MaxRequest {
			t.Skip()
		}
		if _, err := enrol.ParseRequest(der); err != nil {
			wantKind(t, err, imprint.Invalid)
			return
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		w := newWorld()
		_, err = w.engine.Enrol(t.Context(), imprint.Submission{
			Instance: w.reserve(t), Channel: imprint.Serial2, CSR: der, Witness: placed,
		})
		if err != nil {
			wantKind(t, err, imprint.Invalid)
			return
		}
		for _, name := range csr.DNSNames {
			if !strings.EqualFold(name, "web-1.example.net") {
				t.Errorf("granted to a request for %q", name)
			}
		}
		for _, ip := range csr.IPAddresses {
			if ip.String() != "10.0.0.7" {
				t.Errorf("granted to a request for %s", ip)
			}
		}
		if len(csr.EmailAddresses) > 0 {
			t.Errorf("granted to a request for %q", csr.EmailAddresses)
		}
	})
}
