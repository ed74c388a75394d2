package enrol

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"testing"
	"time"

	"imprint"
)

func requestOf(b *testing.B, key crypto.Signer) []byte {
	b.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"web-1.example.net"}}, key)
	if err != nil {
		b.Fatal(err)
	}
	return csr
}

func p256(b *testing.B) *ecdsa.PrivateKey {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	return key
}

// Reading a request is for the most part the verification of its signature.
func BenchmarkParseRequest(b *testing.B) {
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	long, err := rsa.GenerateKey(rand.Reader, minRSABits)
	if err != nil {
		b.Fatal(err)
	}
	for _, k := range []struct {
		name string
		key  crypto.Signer
	}{{"P-256", p256(b)}, {"Ed25519", edwards}, {"RSA-3072", long}} {
		b.Run(k.name, func(b *testing.B) {
			csr := requestOf(b, k.key)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParseRequest(csr); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What a decision costs without parsing and storing.
func BenchmarkClaim(b *testing.B) {
	req, err := ParseRequest(requestOf(b, p256(b)))
	if err != nil {
		b.Fatal(err)
	}
	i, _, err := Reserve(imprint.Spec{Name: "web-1", Tenant: imprint.DefaultTenant, Host: home, DNSNames: []string{"web-1.example.net"}},
		imprint.Tenant{Domains: []string{"example.net"}}, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	a := &attempt{
		Submission: imprint.Submission{Instance: i.ID, Channel: imprint.VirtioSerial, Witness: home},
		req:        req, now: time.Now(), serial: imprint.NewSerial(),
	}
	b.ReportAllocs()
	for b.Loop() {
		fresh := i
		if _, err := claim(&fresh, a); err != nil {
			b.Fatal(err)
		}
	}
}
