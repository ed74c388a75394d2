//go:build interop

package interop

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"imprint"
	"imprint/internal/ca"
	"imprint/internal/enrol"
	"imprint/internal/est"
	"imprint/internal/store"
)

// estSite is the check-in endpoint on a loopback port over the real engine,
// authority and log, and the store's twin in memory.
type estSite struct {
	store     *store.Store
	engine    *enrol.Engine
	authority *ca.Authority
	tenant    imprint.Tenant
	url       string // https://localhost:PORT, a name that selects the default tenant
	root      string // path of the root certificate in PEM
	bundle    string // path of root and issuing certificates in PEM
	dir       string // of everything else
}

// newESTSite serves until the test ends.
func newESTSite(t *testing.T) *estSite {
	t.Helper()
	s := &estSite{
		store: store.OpenMemory(),
		tenant: imprint.Tenant{
			Name: imprint.DefaultTenant, Domains: []string{"lab.internal"},
			Networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/8")},
		},
		dir: t.TempDir(),
	}
	t.Cleanup(func() { s.store.Close() })
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))

	s.authority = newAuthority(t, s.tenant, filepath.Join(s.dir, "log"), s.store, logger)
	s.engine = enrol.New(enrol.Config{
		Store: s.store, Issuer: issuer{s.authority}, Now: time.Now, Logger: logger,
	})
	s.root = s.write(t, "root.pem", s.authority.Root())
	s.bundle = s.write(t, "bundle.pem", s.authority.Bundle()...)

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	leaf, err := s.authority.IssueEndpoint(t.Context(), ca.Endpoint{
		PublicKey: key.Public(), Serial: imprint.NewSerial(), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	limits := est.DefaultLimits()
	limits.RetryAfter = time.Second
	server, err := est.New(est.Config{
		Engine: s.engine, Instances: s.store, Authority: published{s}, Values: values{"db": "canary"},
		Limits: limits, Logger: logger,
		Tenants: []est.Tenant{{
			Name: s.tenant.Name, Names: []string{"localhost"}, Trust: s.authority.Issuers(),
			Certificate: tls.Certificate{Certificate: [][]byte{leaf, s.authority.Issuing()}, PrivateKey: key},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s.url = "https://localhost:" + port
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// issuer is an authority as the engine sees it.
type issuer struct{ *ca.Authority }

func (i issuer) Issue(_ context.Context, g imprint.Grant) (*imprint.Certificate, *imprint.LogEntry, error) {
	return i.Authority.Issue(g)
}

// newAuthority makes a tenant's CA with fresh keys and a log in dir.
func newAuthority(t *testing.T, tenant imprint.Tenant, dir string, queue ca.Queue, logger *slog.Logger) *ca.Authority {
	t.Helper()
	logKey, _, err := ca.GenerateLogKey("localhost")
	if err != nil {
		t.Fatal(err)
	}
	log, err := ca.OpenLog(t.Context(), ca.LogConfig{Dir: dir, Key: logKey, Queue: queue, Now: time.Now, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
	signers := make([]*ecdsa.PrivateKey, 3)
	for i := range signers {
		if signers[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	root, issuing, ssh := signers[0], signers[1], signers[2]
	profile := ca.Profile{Tenant: tenant, TrustDomain: "imprint.internal"}
	material, err := ca.Create(profile, ca.CreateKeys{Root: root, Issuing: issuing.Public(), SSH: ssh.Public()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.Open(material, ca.Keys{Issuing: issuing, SSH: ssh}, log)
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

// published is what the endpoint asks an authority for.
type published struct{ *estSite }

func (p published) Bundle(context.Context, imprint.TenantName) ([]*x509.Certificate, error) {
	return x509.ParseCertificates(bytes.Join(p.authority.Bundle(), nil))
}

func (p published) CRL(ctx context.Context, tenant imprint.TenantName) ([]byte, error) {
	revoked, err := p.store.Revocations(ctx, tenant)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return p.authority.CRL(ca.CRLRequest{
		Number: uint64(now.UnixNano()), ThisUpdate: now, NextUpdate: now.Add(time.Hour), Revocations: revoked,
	})
}

func (p published) Identify(leaf *x509.Certificate) (imprint.Identity, error) {
	return p.authority.Identify(leaf, time.Now())
}

// values are private parameters by name, the same for every instance.
type values map[string]string

func (v values) Value(_ context.Context, inst *imprint.Instance, name string) (imprint.Secret, error) {
	if value, ok := v[name]; ok {
		return imprint.NewSecret([]byte(value)), nil
	}
	return imprint.Secret{}, imprint.Errorf(imprint.NotFound, "read", inst.Ref(), "no value for %q", name)
}

func (v values) Held(context.Context, *imprint.Instance) (map[string]bool, error) {
	held := map[string]bool{}
	for name := range v {
		held[name] = true
	}
	return held, nil
}

// reserve creates an instance named name with a DNS name to match, and returns
// it with a one-time token.
func (s *estSite) reserve(t *testing.T, name imprint.InstanceName, change func(*imprint.Spec)) (*imprint.Instance, string) {
	t.Helper()
	spec := imprint.Spec{Name: name, Tenant: s.tenant.Name, DNSNames: []string{string(name) + ".lab.internal"}}
	if change != nil {
		change(&spec)
	}
	inst, record, err := enrol.Reserve(spec, s.tenant, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.store.Create(t.Context(), &inst, nil, record); err != nil {
		t.Fatal(err)
	}
	token, err := s.engine.Token(t.Context(), inst.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return &inst, string(token.Reveal())
}

// state returns where an instance's enrolment stands.
func (s *estSite) state(t *testing.T, id imprint.InstanceID) imprint.State {
	t.Helper()
	inst, err := s.store.Instance(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return inst.Enrolment.State
}

// approveWhenClaimed consents to the request of instance id once it has come.
func (s *estSite) approveWhenClaimed(ctx context.Context, id imprint.InstanceID) error {
	for notice, err := range s.store.Watch(ctx, store.Scope{Instance: id}, 0) {
		if err != nil {
			return err
		}
		if i := notice.Instance; i != nil && i.Enrolment.Claim != nil {
			_, err := s.engine.Approve(ctx, id, "the test")
			return err
		}
	}
	return ctx.Err()
}

func (s *estSite) path(name string) string { return filepath.Join(s.dir, name) }

// write puts certificates into a PEM file and returns its path.
func (s *estSite) write(t *testing.T, name string, certs ...[]byte) string {
	t.Helper()
	var b bytes.Buffer
	for _, der := range certs {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(s.path(name), b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return s.path(name)
}

// try runs a program in s's directory and returns its standard output.
func (s *estSite) try(t *testing.T, program string, args ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = s.dir
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	t.Logf("%s: %v\n%s", cmd, err, errs.Bytes())
	return out, err
}

// must runs a program that has to succeed.
func (s *estSite) must(t *testing.T, program string, args ...string) []byte {
	t.Helper()
	out, err := s.try(t, program, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return out
}

// save runs a program and keeps its output in a file, whose path it returns.
func (s *estSite) save(t *testing.T, name, program string, args ...string) string {
	t.Helper()
	if err := os.WriteFile(s.path(name), s.must(t, program, args...), 0o600); err != nil {
		t.Fatal(err)
	}
	return s.path(name)
}

func (s *estSite) keep(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(s.path(name), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// leaf reads the first certificate of a PEM file.
func (s *estSite) leaf(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(s.path(name))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatalf("%s is not PEM:\n%s", name, b)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
