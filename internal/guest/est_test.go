//go:build linux

package guest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imprint"
)

const testToken = "one-time-token-canary"

// fakeEndpoint is a check-in endpoint in front of a fakeHost.
type fakeEndpoint struct {
	*httptest.Server
	host  *fakeHost
	token string // "" once it is spent
	down  bool   // answers 503
	// refusesSSH is the status with which SSH host keys are refused, if not 0, and
	// refusesMedia that for what became of media.
	refusesSSH, refusesMedia int
}

func newFakeEndpoint(t *testing.T, host *fakeHost) *fakeEndpoint {
	t.Helper()
	key := newTestKey(t)
	cert := host.ca.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(77), DNSNames: []string{"checkin.example.org", "localhost"},
		NotBefore: host.now.AddDate(0, -1, 0), NotAfter: host.now.AddDate(1, 0, 0),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, host.ca.issuing, &key.PublicKey, host.ca.issuingKey)
	roots := x509.NewCertPool()
	roots.AddCert(host.ca.root)
	e := &fakeEndpoint{host: host, token: testToken}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/est/cacerts", func(w http.ResponseWriter, _ *http.Request) {
		w.Write(certsOnly(t, host.ca.issuing, host.ca.root))
	})
	mux.HandleFunc("POST /.well-known/est/simpleenroll", func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user != string(host.payload.Instance) || e.token == "" || password != e.token {
			http.Error(w, "the token is not valid", http.StatusUnauthorized)
			return
		}
		e.enrol(w, r)
	})
	mux.HandleFunc("POST /.well-known/est/simplereenroll", e.authenticated(e.enrol))
	mux.HandleFunc("POST /.well-known/imprint/v1/confirm", e.authenticated(func(w http.ResponseWriter, _ *http.Request) {
		host.confirms++
		e.token = ""
		if host.state == imprint.Issued {
			host.state = imprint.Confirmed
		}
	}))
	mux.HandleFunc("POST /.well-known/imprint/v1/ready", e.authenticated(func(w http.ResponseWriter, _ *http.Request) { host.close() }))
	mux.HandleFunc("POST /.well-known/imprint/v1/ssh-certificate", e.authenticated(func(w http.ResponseWriter, r *http.Request) {
		key, _ := io.ReadAll(r.Body)
		if e.refusesSSH != 0 {
			http.Error(w, "not this key", e.refusesSSH)
			return
		}
		host.ssh = strings.TrimSpace(string(key))
		io.WriteString(w, "ssh-ed25519-cert-v01@openssh.com AAAAcert-for-"+host.ssh+"\n")
	}))
	mux.HandleFunc("POST /.well-known/imprint/v1/medium", e.authenticated(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		end, err := imprint.DecodeMediumEnd(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if host.state != imprint.Confirmed && host.state != imprint.Closed {
			host.t.Errorf("the medium is %s of a machine that is %s", end.State, host.state)
		}
		host.media = append(host.media, *end)
		if e.refusesMedia != 0 {
			http.Error(w, "not now", e.refusesMedia)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	mux.HandleFunc("GET /.well-known/imprint/v1/user-data", e.authenticated(func(w http.ResponseWriter, r *http.Request) {
		if host.userData == "" {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, host.userData)
	}))
	mux.HandleFunc("GET /.well-known/imprint/v1/params", e.authenticated(func(w http.ResponseWriter, _ *http.Request) {
		b, _ := host.paramList()
		w.Write(b)
	}))
	mux.HandleFunc("GET /.well-known/imprint/v1/params/{name}", e.authenticated(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, host.params[r.PathValue("name")].value)
	}))
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host.mu.Lock()
		defer host.mu.Unlock()
		if e.down {
			http.Error(w, "the database is away", http.StatusServiceUnavailable)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	e.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are part of the tests
	e.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw, host.ca.issuing.Raw}, PrivateKey: key}},
		ClientAuth:   tls.VerifyClientCertIfGiven, ClientCAs: roots,
		Time: func() time.Time { host.mu.Lock(); defer host.mu.Unlock(); return host.now },
	}
	e.StartTLS()
	t.Cleanup(e.Close)
	host.payload.CheckIn = []string{"https://checkin.example.org:8443/"}
	host.payload.Token = testToken
	return e
}

func (e *fakeEndpoint) authenticated(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) == 0 || e.host.leaf == nil || !r.TLS.PeerCertificates[0].Equal(e.host.leaf) {
			http.Error(w, "this needs the machine's certificate", http.StatusForbidden)
			return
		}
		next(w, r)
	}
}

func (e *fakeEndpoint) enrol(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	der, err := base64.StdEncoding.DecodeString(string(body))
	if err != nil {
		http.Error(w, "not base64", http.StatusBadRequest)
		return
	}
	if err := e.host.submit(der, ""); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	if e.host.leaf == nil {
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusAccepted)
		return
	}
	w.Header().Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
	w.Write(certsOnly(e.host.t, e.host.leaf))
}

// certsOnly encodes certificates as RFC 5652 section 5 has them without a signer.
func certsOnly(t testing.TB, certs ...*x509.Certificate) []byte {
	t.Helper()
	var all []byte
	for _, c := range certs {
		all = append(all, c.Raw...)
	}
	type encapsulated struct{ Type asn1.ObjectIdentifier }
	type signedData struct {
		Version int
		Digests []asn1.RawValue `asn1:"set"`
		Content encapsulated
		Certs   asn1.RawValue
		Signers []asn1.RawValue `asn1:"set"`
	}
	der, err := asn1.Marshal(struct {
		Type asn1.ObjectIdentifier
		Data signedData `asn1:"explicit,tag:0"`
	}{
		asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2},
		signedData{
			1, nil, encapsulated{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}},
			asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: all}, nil,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return []byte(base64.StdEncoding.EncodeToString(der))
}

// oneWay returns a machine whose payload came in a file.
func oneWay(t *testing.T, host *fakeHost, e *fakeEndpoint) (*machine, func() *Agent) {
	t.Helper()
	m := newMachine(t, host)
	b, err := host.payload.Encode()
	if err != nil {
		t.Fatal(err)
	}
	m.write("media/payload.json", string(b), 0o600)
	m.sources = []source{fileSource{filepath.Join(m.root, "media/payload.json")}}
	return m, func() *Agent {
		a := m.agent()
		a.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "checkin.example.org:8443" {
				t.Errorf("dialled %s", address)
			}
			return (&net.Dialer{}).DialContext(ctx, network, e.Listener.Addr().String())
		}
		return a
	}
}

func TestEnrolsOverEST(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	e := newFakeEndpoint(t, host)
	m, agent := oneWay(t, host, e)
	host.approval = true
	naps := 0
	m.onNap = func() {
		if naps++; naps == 3 {
			host.do(func() { host.approval = false })
		}
	}
	if err := m.run(agent()); err != nil {
		t.Fatalf("%v\n%s", err, m.said())
	}
	if host.state != imprint.Closed || host.issued != 1 || host.ready != 1 {
		t.Errorf("the endpoint is %s after %d certificates", host.state, host.issued)
	}
	if waited := m.now.Sub(epoch); waited < 21*time.Second || waited > 30*time.Second {
		t.Errorf("waited %s for approval; three times Retry-After is 21 s", waited)
	}
	if got := m.read("run/imprint/params/db-key"); got != "secret-canary" {
		t.Errorf("db-key = %q", got)
	}
	if !strings.Contains(m.said(), "waiting for an operator to approve web-1") {
		t.Errorf("the console does not say why it waits:\n%s", m.said())
	}
	// The token is nowhere but on the medium that brought it.
	filepath.WalkDir(m.root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasSuffix(path, "media/payload.json") {
			if b, _ := os.ReadFile(path); strings.Contains(string(b), testToken) {
				t.Errorf("%s holds the token", path)
			}
		}
		return nil
	})
	if strings.Contains(m.said(), testToken) {
		t.Error("the console shows the token")
	}
}

func TestResumesOverESTAfterACrashAtEveryStep(t *testing.T) {
	t.Parallel()
	for i := 1; i <= 10; i++ {
		host := newFakeHost(t)
		m, agent := oneWay(t, host, newFakeEndpoint(t, host))
		a := agent()
		at, last := 0, ""
		a.boundary = func(step string) error {
			if at++; at == i {
				last = step
				return errCrash
			}
			return nil
		}
		crashed := m.run(a)
		if err := m.run(agent()); err != nil {
			t.Fatalf("after a crash at %q (%v): %v\n%s", last, crashed, err, m.said())
		}
		if host.state != imprint.Closed || host.issued != 1 {
			t.Errorf("after a crash at %q: %s after %d certificates", last, host.state, host.issued)
		}
	}
}

func TestRenewsOverEST(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	m, agent := oneWay(t, host, newFakeEndpoint(t, host))
	if err := m.run(agent()); err != nil {
		t.Fatal(err)
	}
	// The medium is gone: what was recorded is enough.
	if err := os.Remove(filepath.Join(m.root, "media/payload.json")); err != nil {
		t.Fatal(err)
	}
	m.advance(5 * 24 * time.Hour)
	key := m.key()
	serial, renewed, err := agent().Renew(context.Background())
	if err != nil || !renewed {
		t.Fatalf("Renew = %s, %v, %v\n%s", serial, renewed, err, m.said())
	}
	if !m.key().Equal(key) || host.issued != 2 || host.confirms != 2 {
		t.Errorf("%d certificates, %d confirmations", host.issued, host.confirms)
	}
	if again, renewed, err := agent().Renew(context.Background()); err != nil || renewed || again != serial {
		t.Errorf("a renewal that is not due: %s, %v, %v", again, renewed, err)
	}
}

// The SSH host key is certified once the machine has its own certificate, again
// with every renewal, and for whatever key the machine has then.
func TestSSHHostCertificateOverEST(t *testing.T) {
	t.Parallel()
	const public, certificate = "etc/ssh/ssh_host_ed25519_key.pub", "etc/ssh/ssh_host_ed25519_key-cert.pub"
	host := newFakeHost(t)
	m, agent := oneWay(t, host, newFakeEndpoint(t, host))
	m.write(public, "ssh-ed25519 AAAAfirst root@image\n", 0o644)
	m.write("etc/ssh/sshd_config.d/other.conf", "", 0o644)
	if err := m.run(agent()); err != nil {
		t.Fatalf("%v\n%s", err, m.said())
	}
	if got := m.read(certificate); got != "ssh-ed25519-cert-v01@openssh.com AAAAcert-for-ssh-ed25519 AAAAfirst\n" {
		t.Errorf("the certificate is %q", got)
	}
	if got := m.read("etc/ssh/sshd_config.d/imprint.conf"); !strings.Contains(got, "\nHostCertificate /"+certificate+"\n") {
		t.Errorf("sshd is told %q", got)
	}
	m.write(public, "ssh-ed25519 AAAAsecond root@web-1\n", 0o644)
	m.advance(5 * 24 * time.Hour)
	if _, renewed, err := agent().Renew(context.Background()); err != nil || !renewed {
		t.Fatalf("%v, %v", renewed, err)
	}
	if got := m.read(certificate); !strings.HasSuffix(got, "AAAAsecond\n") {
		t.Errorf("after the renewal the certificate is %q", got)
	}
}

// A server that does not certify SSH host keys, or not this one, does not keep
// the machine from its own certificate.
func TestSSHHostRefusalOverEST(t *testing.T) {
	t.Parallel()
	for status, says := range map[int]string{
		http.StatusNotFound: "", http.StatusBadRequest: "was not certified", http.StatusConflict: "was not certified",
	} {
		host := newFakeHost(t)
		e := newFakeEndpoint(t, host)
		e.refusesSSH = status
		m, agent := oneWay(t, host, e)
		m.write("etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAAkey\n", 0o644)
		if err := m.run(agent()); err != nil || host.state != imprint.Closed || !strings.Contains(m.said(), says) {
			t.Errorf("%d: %v, %s\n%s", status, err, host.state, m.said())
		}
		if _, err := os.Stat(filepath.Join(m.root, "etc/ssh/ssh_host_ed25519_key-cert.pub")); err == nil {
			t.Errorf("%d: something was installed", status)
		}
	}
}

// How the enrolment ended is said as the endpoint put it, and ends the agent.
func TestTheEndpointsSentenceIsShown(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	m, agent := oneWay(t, host, newFakeEndpoint(t, host))
	if err := m.run(agent()); err != nil {
		t.Fatal(err)
	}
	host.do(func() { host.state = imprint.Revoked })
	m.advance(5 * 24 * time.Hour)
	_, _, err := agent().Renew(context.Background())
	if err == nil || !strings.Contains(err.Error(), "revoked") || strings.Contains(err.Error(), "contested") || exitCode(err) != ExitRefused {
		t.Errorf("Renew = %v", err)
	}
}

func TestESTRefusalsAndOutages(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		break_ func(*fakeHost, *fakeEndpoint)
		kind   imprint.Kind
		says   string
	}{
		{"spent token", func(_ *fakeHost, e *fakeEndpoint) { e.token = "" }, imprint.Unauthorized, "the token is not valid"},
		{"no token", func(h *fakeHost, _ *fakeEndpoint) { h.payload.Token = "" }, imprint.Denied, "no one-time token"},
		{"no endpoint", func(h *fakeHost, _ *fakeEndpoint) { h.payload.CheckIn = nil }, imprint.Unavailable, "names no check-in endpoint"},
		{"down", func(_ *fakeHost, e *fakeEndpoint) { e.down = true }, imprint.Unavailable, "503 the database is away"},
		{"another CA", func(h *fakeHost, _ *fakeEndpoint) { h.payload.CA = newTestCA(t).rootPEM() }, imprint.Unavailable, "unknown authority"},
		{"http", func(h *fakeHost, _ *fakeEndpoint) { h.payload.CheckIn = []string{"http://checkin.example.org:8443"} }, imprint.Invalid, "not an https URL"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host := newFakeHost(t)
			e := newFakeEndpoint(t, host)
			tt.break_(host, e)
			m, agent := oneWay(t, host, e)
			a := agent()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			naps := 0
			m.onNap = func() {
				if naps++; naps == 3 {
					cancel() // it would go on for ever
				}
			}
			err := a.Run(ctx)
			if mayPass(imprint.Errorf(tt.kind, "", "", "")) {
				if err != nil || naps != 3 {
					t.Errorf("Run = %v after %d pauses; it should keep trying", err, naps)
				}
			} else if imprint.KindOf(err) != tt.kind || naps != 0 {
				t.Errorf("Run = %v (%v) after %d pauses, want %v", err, imprint.KindOf(err), naps, tt.kind)
			}
			if said := m.said(); !strings.Contains(said+errorText(err), tt.says) {
				t.Errorf("nothing says %q:\n%s%v", tt.says, said, err)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestRetryAfterIsBounded(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]time.Duration{
		"": 30 * time.Second, "0": time.Second, "90": 90 * time.Second, "999999999": 10 * time.Minute,
		"-5": 30 * time.Second, "Wed, 21 Oct 2015 07:28:00 GMT": 30 * time.Second,
	} {
		if got := retryAfter(value, 0); got != want {
			t.Errorf("Retry-After %q: %s, want %s", value, got, want)
		}
		if got := retryAfter(value, 0.999); got < want || got > want+want/5 {
			t.Errorf("Retry-After %q with jitter: %s", value, got)
		}
	}
}

func FuzzCertsOnly(f *testing.F) {
	ca := newTestCA(f)
	f.Add(certsOnly(f, ca.root, ca.issuing))
	f.Add([]byte("MAsGCSqGSIb3DQEHAg=="))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if certs, err := parseCertsOnly(b); err == nil && (len(certs) == 0 || len(certs) > maxChain) {
			t.Errorf("%d certificates", len(certs))
		}
	})
}

func FuzzParams(f *testing.F) {
	f.Add([]byte(`[{"name":"db-url","visibility":"private","available":true}]`))
	f.Add([]byte(`[{"name":"../../etc/shadow"}]`))
	f.Add([]byte(`[{"name":".."}]`))
	f.Add([]byte(`[{"name":".new"}]`))
	f.Add([]byte(`[{"name":""}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		params, err := parseParams(b)
		if err != nil {
			return
		}
		for _, p := range params {
			if filepath.Base(p.Name) != p.Name || strings.HasPrefix(p.Name, ".") {
				t.Errorf("%q would leave its directory", p.Name)
			}
		}
		if _, err := json.Marshal(params); err != nil {
			t.Error(err)
		}
	})
}

// A host's refusal is shown to the operator as the host put it.
func TestTheHostsSentenceIsShown(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.payload.DNSNames = nil
	m := newMachine(t, host)
	a := m.agent()
	a.boundary = func(step string) error {
		host.do(func() { host.payload.DNSNames = []string{"db-1.example.org"} })
		return nil
	}
	err := m.run(a)
	if imprint.KindOf(err) != imprint.Denied || !strings.Contains(err.Error(), "names what was not reserved") || imprint.HintOf(err) == "" {
		t.Errorf("Run = %v", err)
	}
	if exitCode(err) != ExitRefused {
		t.Errorf("exit code %d", exitCode(err))
	}
}
