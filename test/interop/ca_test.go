//go:build interop

package interop

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/ca"
	"imprint/test/need"
)

// unlogged is an issuance log that keeps nothing.
type unlogged struct{}

func (unlogged) Name() string                              { return "none" }
func (unlogged) Writable() error                           { return nil }
func (unlogged) Entry(ca.Entry) (*imprint.LogEntry, error) { return &imprint.LogEntry{}, nil }
func (unlogged) Append(context.Context, ca.Entry) error    { return nil }

// issued is a directory of what an authority made, as PEM files.
type issued struct {
	dir  string
	cert imprint.Certificate
}

func (i issued) path(name string) string { return filepath.Join(i.dir, name) }

func (i issued) write(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(i.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func caKey(t *testing.T) crypto.Signer {
	t.Helper()
	secret, err := ca.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ca.ParseKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue makes an authority, a machine's certificate, a revocation list that
// names it, the endpoint's certificate, and one that breaks the constraint.
func issue(t *testing.T) issued {
	t.Helper()
	now := time.Now()
	root, keys := caKey(t), ca.Keys{Issuing: caKey(t), SSH: caKey(t)}
	material, err := ca.Create(ca.Profile{
		Tenant: imprint.Tenant{
			Name: "acme", Domains: []string{"acme.example"}, CheckIn: "checkin.example",
			Networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		},
		TrustDomain: "imprint.example",
		CRL:         "http://checkin.example/crl",
	}, ca.CreateKeys{Root: root, Issuing: keys.Issuing.Public(), SSH: keys.SSH.Public()}, now)
	if err != nil {
		t.Fatal(err)
	}
	a, err := ca.Open(material, keys, unlogged{})
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(caKey(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	grant := imprint.Grant{
		Tenant: "acme", Instance: imprint.NewInstanceID(), Name: "web-1", Generation: 1, Tier: imprint.TierHost, Channel: imprint.VirtioSerial,
		DNSNames: []string{"web-1.acme.example"}, IPs: []netip.Addr{netip.MustParseAddr("10.1.2.3")},
		PublicKey: spki, SSHHost: material.SSH, Serial: imprint.NewSerial(),
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
	}
	cert, _, err := a.Issue(grant)
	if err != nil {
		t.Fatal(err)
	}
	endpoint, err := a.IssueEndpoint(t.Context(), ca.Endpoint{PublicKey: caKey(t).Public(), Serial: imprint.NewSerial(), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	crl, err := a.CRL(ca.CRLRequest{Number: 1, ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour),
		Revocations: []imprint.Revocation{{Serial: grant.Serial, At: now.Add(-time.Minute), NotAfter: grant.NotAfter, Reason: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	issuing, err := x509.ParseCertificate(a.Issuing())
	if err != nil {
		t.Fatal(err)
	}
	outside, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: grant.NotBefore, NotAfter: grant.NotAfter, DNSNames: []string{"bank.example"},
	}, issuing, caKey(t).Public(), keys.Issuing)
	if err != nil {
		t.Fatal(err)
	}
	i := issued{t.TempDir(), *cert}
	i.write(t, "root.pem", "CERTIFICATE", a.Root())
	i.write(t, "issuing.pem", "CERTIFICATE", a.Issuing())
	i.write(t, "leaf.pem", "CERTIFICATE", cert.DER)
	i.write(t, "endpoint.pem", "CERTIFICATE", endpoint)
	i.write(t, "outside.pem", "CERTIFICATE", outside)
	i.write(t, "crl.pem", "X509 CRL", crl)
	if err := os.WriteFile(i.path("host-cert.pub"), []byte(cert.SSH+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

// OpenSSL accepts the chain, enforces the name constraint and reads the list.
func TestOpenSSLVerifiesChain(t *testing.T) {
	t.Parallel()
	openssl := need.Program(t, "openssl", "openssl")
	i := issue(t)
	verify := func(cert string, options ...string) (string, error) {
		args := append([]string{"verify", "-x509_strict", "-CAfile", i.path("root.pem"), "-untrusted", i.path("issuing.pem")}, options...)
		out, err := exec.CommandContext(t.Context(), openssl, append(args, i.path(cert))...).CombinedOutput()
		return string(out), err
	}
	crl := []string{"-crl_check", "-CRLfile", i.path("crl.pem")}
	for _, test := range []struct {
		cert    string
		options []string
		refusal string // "" if it is accepted
	}{
		{"leaf.pem", []string{"-purpose", "sslclient"}, ""},
		{"leaf.pem", []string{"-purpose", "sslserver", "-verify_hostname", "web-1.acme.example"}, ""},
		{"leaf.pem", []string{"-verify_ip", "10.1.2.3"}, ""},
		{"leaf.pem", crl, "certificate revoked"},
		{"endpoint.pem", crl, ""},
		{"endpoint.pem", []string{"-verify_hostname", "checkin.example"}, ""},
		{"endpoint.pem", []string{"-purpose", "sslclient"}, "purpose"},
		{"outside.pem", nil, "permitted subtree violation"},
	} {
		out, err := verify(test.cert, test.options...)
		if (err == nil) != (test.refusal == "") || !strings.Contains(out, test.refusal) {
			t.Errorf("%s %v: %v\n%s", test.cert, test.options, err, out)
		}
	}
}

// OpenSSH reads the host certificate with its principals and times.
func TestOpenSSHReadsHostCertificate(t *testing.T) {
	t.Parallel()
	keygen := need.Program(t, "ssh-keygen", "openssh-client")
	i := issue(t)
	out, err := exec.CommandContext(t.Context(), keygen, "-L", "-f", i.path("host-cert.pub")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"host certificate", "web-1.acme.example", "/generation/1", "Critical Options: (none)"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}
