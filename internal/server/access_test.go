package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"imprint"
	"imprint/api"
	"imprint/internal/peercred"
)

func quiet(t *testing.T) *Server {
	t.Helper()
	s, err := New(config(newWorld(), io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// concrete returns a request that matches pattern.
func concrete(pattern string) *http.Request {
	method, path, _ := strings.Cut(pattern, " ")
	path = strings.NewReplacer("{ref}", "web-1", "{name}", "motd", "{number}", "1", "{tenant}", "default").Replace(path)
	return httptest.NewRequest(method, path, strings.NewReader("{}"))
}

// Every route that is registered has an entry in the access table, and lets in
// exactly the roles that the entry says.
func TestEveryRouteHasAccess(t *testing.T) {
	t.Parallel()
	s := quiet(t)
	s.watches = nil // so that a watch is refused at once instead of streaming
	control, _ := s.controlMux()
	for name, mux := range map[string]*guardedMux{"control": control, "operator": s.operatorMux()} {
		if len(mux.patterns) == 0 || len(mux.patterns) != len(mux.access) {
			t.Errorf("%s: %d routes and %d access entries", name, len(mux.patterns), len(mux.access))
		}
		for _, pattern := range mux.patterns {
			need, listed := mux.access[pattern]
			if !listed || need == Nobody {
				t.Errorf("%s: %s has no access entry", name, pattern)
			}
			for role := Anyone; role <= Operator; role++ {
				r := concrete(pattern)
				w := httptest.NewRecorder()
				func() {
					defer func() {
						if v := recover(); v != nil && v != http.ErrAbortHandler { // a stream finds no connection here
							panic(v)
						}
					}()
					mux.ServeHTTP(w, r.WithContext(withCaller(r.Context(), caller{name: "someone", role: role})))
				}()
				refused := w.Code == http.StatusForbidden
				if want := role < need; refused != want {
					t.Errorf("%s: %s called by %s (needs %s): status %d", name, pattern, role, need, w.Code)
				}
			}
		}
	}
}

// The routes that a reader may call change nothing and give no credential, and
// those that anyone may call are these.
func TestAccessTable(t *testing.T) {
	t.Parallel()
	anyone := []string{
		"GET /openapi.json", "GET /healthz", "GET /readyz", "GET /v1/ca/{tenant}/bundle", "GET /v1/ca/{tenant}/crl",
	}
	for _, r := range quiet(t).routes() {
		pattern := r.method + " " + r.path
		if (r.access == Anyone) != slices.Contains(anyone, pattern) {
			t.Errorf("%s is open to %s", pattern, r.access)
		}
		if r.method != http.MethodGet && r.access != Operator {
			t.Errorf("%s changes something and is open to %s", pattern, r.access)
		}
	}
}

// What has no entry is closed even to operators.
func TestMissingEntryIsClosed(t *testing.T) {
	t.Parallel()
	mux := quiet(t).guardedMux(nil)
	mux.HandleFunc("GET /forgotten", func(http.ResponseWriter, *http.Request) { t.Error("the handler ran") })
	r := httptest.NewRequest("GET", "/forgotten", nil)
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r.WithContext(withCaller(r.Context(), caller{name: "root", role: Operator})))
	if w.Code != http.StatusForbidden {
		t.Errorf("status %d", w.Code)
	}
}

// Nobody without an identity gets past the open routes.
func TestUnknownCaller(t *testing.T) {
	t.Parallel()
	mux, _ := quiet(t).controlMux()
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("GET", "/v1/instances", nil))
	if w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), `"unauthorized"`) {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
}

func TestPeerRoles(t *testing.T) {
	t.Parallel()
	a := accessList{group: 500}
	const own = 990
	for _, test := range []struct {
		peer peercred.Peer
		want Role
	}{
		{peercred.Peer{UID: 0, GID: 0}, Operator},
		{peercred.Peer{UID: own, GID: 1}, Operator},
		{peercred.Peer{UID: 1000, GID: 500}, Operator},
		{peercred.Peer{UID: 1000, GID: 1000, Groups: []int{27, 500}}, Operator},
		{peercred.Peer{UID: 1000, GID: 1000, Groups: []int{27, 0}}, Anyone},
		{peercred.Peer{UID: 500, GID: 1000}, Anyone},
	} {
		if got := a.ofPeer(test.peer, own); got != test.want {
			t.Errorf("%+v is %s, want %s", test.peer, got, test.want)
		}
	}
	none := accessList{group: noGroup}
	if got := none.ofPeer(peercred.Peer{UID: 1000, GID: noGroup, Groups: []int{noGroup}}, own); got != Anyone {
		t.Errorf("no group is %s", got)
	}
}

// The kernel says who is at the other end of a socket: this process, with all
// its groups.
func TestListenUnix(t *testing.T) {
	t.Parallel()
	s, dir := quiet(t), t.TempDir()
	path := filepath.Join(dir, "run", "imprint.sock") // its directory is made
	first, err := s.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := s.ListenUnix(path); imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "another server listens there") {
		t.Errorf("a live socket: %v", err)
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false)
	first.Close() // as after kill -9: the socket is there and nobody listens
	second, err := s.ListenUnix(path)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	second.Close()

	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link, dir} {
		if _, err := s.ListenUnix(path); imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "is not a socket") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if b, err := os.ReadFile(file); string(b) != "data" {
		t.Errorf("the file was touched: %q, %v", b, err)
	}
	if _, err := s.ListenUnix(filepath.Join(dir, strings.Repeat("x", 108))); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("a long path: %v", err)
	}
}

// With a group the socket belongs to it. This needs a group that the process is in.
func TestListenUnixGroup(t *testing.T) {
	t.Parallel()
	s := quiet(t)
	s.access.group = os.Getgid()
	l, err := s.ListenUnix(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(l.Addr().String()); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestUnknownGroup(t *testing.T) {
	t.Parallel()
	c := config(newWorld(), io.Discard)
	c.Group = "no-such-group"
	if _, err := New(c); imprint.KindOf(err) != imprint.Invalid || !strings.Contains(imprint.HintOf(err), "groupadd") {
		t.Errorf("got %v", err)
	}
}

// authority is a CA of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) issue(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// The values for an installation go to a process of this machine alone, whatever role
// another caller has.
func TestInstallValuesStayOnThisMachine(t *testing.T) {
	t.Parallel()
	ours := newAuthority(t, "ours")
	w := newWorld()
	c := config(w, io.Discard)
	c.Operators = []string{"alice"}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	l := loopback(t)
	defer serve(t, s, Listeners{TLS: l, TLSConf: TLSConfig(ours.issue(t, "server"), ours.pool())})()
	client, err := api.NewTLS("https://"+l.Addr().String(), &tls.Config{RootCAs: ours.pool(), Certificates: []tls.Certificate{ours.issue(t, "alice")}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	must[*api.Created](t)(client.Create(t.Context(), web("web-1"), values(), false))
	must[*api.Instance](t)(client.ReportInstallation(t.Context(), "web-1", api.InstallReport{ID: imprint.DigestOf(nil), Generation: 1, Step: imprint.InstallStarted}))
	if got, err := client.InstallValues(t.Context(), "web-1"); imprint.KindOf(err) != imprint.Denied || len(got) != 0 {
		t.Errorf("an operator elsewhere has %d values, %v", len(got), err)
	}
}

// Over TCP the verified certificate's subject decides, and without one from the
// client CA there is no connection at all.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	ours, theirs := newAuthority(t, "ours"), newAuthority(t, "theirs")
	c := config(newWorld(), io.Discard)
	c.Operators, c.Readers = []string{"alice"}, []string{"bob"}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	l := loopback(t)
	defer serve(t, s, Listeners{TLS: l, TLSConf: TLSConfig(ours.issue(t, "server"), ours.pool())})()
	call := func(certs ...tls.Certificate) (read, write error) {
		client, err := api.NewTLS("https://"+l.Addr().String(), &tls.Config{RootCAs: ours.pool(), Certificates: certs})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		_, read = client.List(context.Background(), api.Query{})
		_, write = client.Create(context.Background(), imprint.Spec{Name: "web-1"}, nil, true)
		return read, write
	}
	const ok = imprint.Kind(255)
	kind := func(err error) imprint.Kind {
		if err == nil {
			return ok
		}
		return imprint.KindOf(err)
	}
	for name, test := range map[string]struct {
		certs       []tls.Certificate
		read, write imprint.Kind
	}{
		"operator":      {[]tls.Certificate{ours.issue(t, "alice")}, ok, ok},
		"reader":        {[]tls.Certificate{ours.issue(t, "bob")}, ok, imprint.Denied},
		"not listed":    {[]tls.Certificate{ours.issue(t, "eve")}, imprint.Denied, imprint.Denied},
		"another CA's":  {[]tls.Certificate{theirs.issue(t, "alice")}, imprint.Unavailable, imprint.Unavailable},
		"none":          {nil, imprint.Unavailable, imprint.Unavailable},
		"without names": {[]tls.Certificate{ours.issue(t, "")}, imprint.Denied, imprint.Denied},
	} {
		read, write := call(test.certs...)
		if kind(read) != test.read || kind(write) != test.write {
			t.Errorf("%s: read %v, write %v", name, read, write)
		}
	}
}

// The operator listener serves health and metrics in the clear and nothing else.
func TestOperatorListener(t *testing.T) {
	t.Parallel()
	w := newWorld()
	c := config(w, io.Discard)
	c.Metrics = prometheus.NewRegistry()
	c.Logger = slog.New(slog.DiscardHandler)
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	unix, err := s.ListenUnix(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	l := loopback(t)
	defer serve(t, s, Listeners{Unix: unix, Operator: l})()
	client := api.NewUnix(unix.Addr().String())
	defer client.Close()
	must[*api.Created](t)(client.Create(t.Context(), imprint.Spec{Name: "web-1"}, nil, false))
	hc := &http.Client{Transport: &http.Transport{}}
	defer hc.CloseIdleConnections()
	get := func(path string) (int, string) {
		resp, err := hc.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if code, body := get("/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("healthz: %d %q", code, body)
	}
	if code, body := get("/readyz"); code != 200 || body != "ready\n" {
		t.Errorf("readyz: %d %q", code, body)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, `imprint_api_requests_total{operation="POST /v1/instances",status="200"} 1`) {
		t.Errorf("metrics: %d %s", code, body)
	}
	if code, _ := get("/v1/instances"); code != http.StatusNotFound {
		t.Errorf("instances on the operator listener: %d", code)
	}
	if err := client.Ready(t.Context()); err != nil {
		t.Errorf("ready: %v", err)
	}
	w.mu.Lock()
	w.fail = imprint.Errorf(imprint.Unavailable, "reach", "etcd", "no answer").WithHint("start it")
	w.mu.Unlock()
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "no answer") {
		t.Errorf("readyz: %d %s", code, body)
	}
	if err := client.Ready(t.Context()); imprint.KindOf(err) != imprint.Unavailable || imprint.HintOf(err) != "start it" {
		t.Errorf("not ready: %v", err)
	}
}
