package enrol

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"imprint"
	"imprint/internal/store"
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
	i := benchInstance(b, 1)
	a := &attempt{
		Submission: imprint.Submission{Instance: i.ID, Channel: imprint.VirtioSerial, Witness: home},
		req:        req, now: time.Now(), serial: imprint.NewSerial(),
	}
	b.ReportAllocs()
	for b.Loop() {
		fresh := *i
		if _, err := claim(&fresh, a); err != nil {
			b.Fatal(err)
		}
	}
}

// Enrol and confirm over the store in memory, with an issuer that only copies.
func BenchmarkEnrolment(b *testing.B) {
	db := store.OpenMemory()
	defer db.Close()
	e := New(Config{Store: db, Issuer: copier{}, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	ctx := b.Context()
	b.ReportAllocs()
	for n := 1; b.Loop(); n++ {
		b.StopTimer()
		key := p256(b)
		csr := requestOf(b, key)
		i := benchInstance(b, n)
		if err := db.Create(ctx, i, nil, imprint.Change{}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		done, err := e.Enrol(ctx, imprint.Submission{Instance: i.ID, Channel: imprint.VirtioSerial, Witness: home, CSR: csr})
		if err != nil {
			b.Fatal(err)
		}
		digest := sha256.Sum256(imprint.ConfirmationMessage(i.ID, 1, done.Enrolment.Certificate.DER))
		signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil {
			b.Fatal(err)
		}
		err = e.Report(ctx, imprint.Report{Instance: i.ID, Channel: imprint.VirtioSerial, Kind: imprint.ReportConfirmed, Data: signature, Witness: home})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func benchInstance(b *testing.B, n int) *imprint.Instance {
	b.Helper()
	i, _, err := Reserve(imprint.Spec{
		Name: imprint.InstanceName(fmt.Sprintf("web-%d", n)), Tenant: imprint.DefaultTenant, Host: home, DNSNames: []string{"web-1.example.net"},
	}, imprint.Tenant{Name: imprint.DefaultTenant, Domains: []string{"example.net"}}, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	return &i
}

// copier makes a certificate of about the usual size.
type copier struct{}

func (copier) Issue(_ context.Context, g imprint.Grant) (imprint.Certificate, error) {
	return imprint.Certificate{Serial: g.Serial, DER: make([]byte, 700), NotBefore: g.NotBefore, NotAfter: g.NotAfter, Log: "bench"}, nil
}
