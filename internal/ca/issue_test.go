package ca

import (
	"bytes"
	"crypto/x509"
	"testing"
)

// verifyChain checks a leaf as a machine that trusts the root alone does.
func verifyChain(a *Authority, leaf *x509.Certificate, usage x509.ExtKeyUsage, name string) error {
	roots, mids := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.root)
	for _, c := range a.issuing {
		mids.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: mids, CurrentTime: clock, DNSName: name, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	return err
}

func TestIssue(t *testing.T) {
	t.Parallel()
	c := newTestCA(t, testProfile())
	g := testGrant(t)
	out, err := c.Issue(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	leaf := parse(t, out.DER)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if err := verifyChain(c.Authority, leaf, usage, "www.acme.example"); err != nil {
			t.Error(err)
		}
	}
	if !bytes.Equal(leaf.RawSubjectPublicKeyInfo, g.PublicKey) {
		t.Error("the leaf has another key")
	}
	who, err := c.Identify(leaf, clock)
	if err != nil {
		t.Fatal(err)
	}
	if who.Instance != g.Instance || who.Generation != g.Generation || who.Tier != g.Tier || who.Serial != g.Serial || who.Tenant != g.Tenant {
		t.Errorf("identity %+v", who)
	}
	again, err := c.Issue(t.Context(), g)
	if err != nil || !bytes.Equal(again.DER, out.DER) || again.SSH != out.SSH {
		t.Errorf("the same grant gave another certificate (%v)", err)
	}
}

func BenchmarkIssue(b *testing.B) {
	c := newTestCA(b, testProfile())
	c.Authority.log = discard{}
	for _, bench := range []struct{ name, ssh string }{{"TLS", ""}, {"TLS and SSH", testSSHHost}} {
		b.Run(bench.name, func(b *testing.B) {
			g := testGrant(b)
			g.SSHHost = bench.ssh
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Issue(b.Context(), g); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

