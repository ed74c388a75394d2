package est_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/smallstep/pkcs7"
	"go.uber.org/goleak"

	"imprint"
	"imprint/internal/est"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// endpoint is a running server over a site.
type endpoint struct {
	*site
	server *est.Server
	addr   string
	log    *logBuffer
}

// logBuffer collects what the server logs.
type logBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// names are the host names of the tenants in tests.
func names(tenant imprint.TenantName) []string { return []string{string(tenant) + ".est.example"} }

func (s *site) config(t testing.TB, log io.Writer) est.Config {
	limits := est.DefaultLimits()
	limits.RefusalTime = 0
	limits.Rate, limits.Burst, limits.TotalRate, limits.TotalBurst = 1e6, 1e6, 1e6, 1e6
	cfg := est.Config{
		Engine: s, Instances: s, Authority: s, Values: s, Limits: limits,
		Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for name, ca := range s.cas {
		cfg.Tenants = append(cfg.Tenants, est.Tenant{
			Name: name, Names: names(name), Certificate: ca.server(t, names(name)...), Trust: ca.pool(),
		})
	}
	return cfg
}

// serve runs a server over s until the test ends.
func serve(t testing.TB, s *site, change func(*est.Config)) *endpoint {
	t.Helper()
	e := &endpoint{site: s, log: &logBuffer{}}
	cfg := s.config(t, e.log)
	if change != nil {
		change(&cfg)
	}
	server, err := est.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.server, e.addr = server, ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return e
}

// client returns an HTTP client that reaches e as tenant's endpoint, showing
// cert if it is given.
func (e *endpoint) client(t testing.TB, tenant imprint.TenantName, cert *tls.Certificate) *http.Client {
	cfg := &tls.Config{RootCAs: e.cas[tenant].pool()}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	transport := &http.Transport{
		TLSClientConfig: cfg,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", e.addr)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// reply is an answer with its body read.
type reply struct {
	status int
	header http.Header
	body   string
}

func do(t testing.TB, c *http.Client, req *http.Request) reply {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(body)}
}

// url returns the address of path at tenant's endpoint.
func url(tenant imprint.TenantName, path string) string {
	return "https://" + names(tenant)[0] + path
}

func get(t testing.TB, c *http.Client, tenant imprint.TenantName, path string) reply {
	t.Helper()
	req, err := http.NewRequest("GET", url(tenant, path), nil)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, c, req)
}

// post sends body as a certificate request, as user with token unless user is "".
func post(t testing.TB, c *http.Client, tenant imprint.TenantName, path, user, token, body string) reply {
	t.Helper()
	req, err := http.NewRequest("POST", url(tenant, path), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/pkcs10")
	if user != "" {
		req.SetBasicAuth(user, token)
	}
	return do(t, c, req)
}

// request returns a certificate request for key in base64.
func request(t testing.TB, key *ecdsa.PrivateKey) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(der)
}

// certificates decodes a certs-only reply and checks its form.
func certificates(t testing.TB, r reply) []*x509.Certificate {
	t.Helper()
	if r.status != http.StatusOK || !strings.HasPrefix(r.header.Get("Content-Type"), "application/pkcs7-mime") {
		t.Fatalf("status %d, type %q, body %q", r.status, r.header.Get("Content-Type"), r.body)
	}
	if line := strings.TrimSuffix(r.body, "\n"); strings.ContainsAny(line, "\r\n") {
		t.Error("base64 is wrapped; strongSwan rejects that")
	}
	der, err := base64.StdEncoding.DecodeString(r.body)
	if err != nil {
		t.Fatal(err)
	}
	p7, err := pkcs7.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	return p7.Certificates
}

// enrol takes an instance all the way to a client certificate.
func (e *endpoint) enrol(t testing.TB, tenant imprint.TenantName, name imprint.InstanceName, change func(*imprint.Instance)) (*imprint.Instance, *tls.Certificate) {
	t.Helper()
	inst, token := e.reserve(tenant, name, change)
	key := newKey(t)
	r := post(t, e.client(t, tenant, nil), tenant, "/.well-known/est/simpleenroll", string(inst.ID), token, request(t, key))
	leaf := certificates(t, r)[0]
	return inst, &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}
