package metadata_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/metadata"
)

const sharedSecret = "0123456789abcdef"

// nova is a cloud with one instance.
type nova struct {
	t      *testing.T
	server *metadata.Server
	id     string
	err    error
}

func (n nova) Proxied(_ context.Context, instance, project string) (*metadata.Server, error) {
	if n.err != nil {
		return nil, n.err
	}
	if instance != n.id || project != "project" {
		return nil, imprint.Errorf(imprint.NotFound, "find", instance, "no such instance")
	}
	return n.server, nil
}

func newProxy(t *testing.T, guests metadata.ProxiedGuests) *metadata.Proxy {
	t.Helper()
	p, err := metadata.NewProxy(metadata.ProxyConfig{
		Secret: imprint.NewSecret([]byte(sharedSecret)), Guests: guests, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func sign(secret, instance string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(instance))
	return hex.EncodeToString(mac.Sum(nil))
}

// agent sends what Neutron's agent does.
func agent(p http.Handler, method, path, body, instance, project, signature string, more ...string) *httptest.ResponseRecorder {
	r := request("10.0.0.5:700", method, path, body, more...)
	r.Host = "controller:8775"
	r.Header.Set("X-Forwarded-For", "192.0.2.10")
	for field, value := range map[string]string{"X-Instance-ID": instance, "X-Tenant-ID": project, "X-Instance-ID-Signature": signature} {
		if value != "" {
			r.Header.Set(field, value)
		}
	}
	reply := httptest.NewRecorder()
	p.ServeHTTP(reply, r)
	return reply
}

func proxied(c *metadata.Config) { c.Proxied, c.SourcePorts = true, false }

func TestNeutronSaysWhoAsksAndProvesIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), proxied)
	const id, leaf = "6b1c2f0e-4a57-4d6e-9d0a-0f2f6f3b8a11", "/latest/meta-data/hostname"
	p := newProxy(t, nova{t, w.server, id, nil})
	good := sign(sharedSecret, id)
	for name, c := range map[string]struct {
		path, instance, project, signature string
		want                               int
		text                               string
	}{
		"as it should be":        {leaf, id, "project", good, 200, "web-1.example.org"},
		"upper case":             {leaf, id, "project", strings.ToUpper(good), 200, "web-1.example.org"},
		"no instance":            {leaf, "", "project", good, 400, "X-Instance-ID header is missing from request.\n"},
		"no signature":           {leaf, id, "project", "", 400, "X-Instance-ID-Signature header is missing from request.\n"},
		"no project":             {leaf, id, "", good, 400, "X-Tenant-ID header is missing from request.\n"},
		"another secret":         {leaf, id, "project", sign("another secret!!", id), 403, "Invalid proxy request signature.\n"},
		"another's signature":    {leaf, "other", "project", good, 403, "Invalid proxy request signature.\n"},
		"not a signature":        {leaf, id, "project", "zz", 403, "Invalid proxy request signature.\n"},
		"a piece of it":          {leaf, id, "project", good[:62], 403, "Invalid proxy request signature.\n"},
		"an unknown instance":    {leaf, "other", "project", sign(sharedSecret, "other"), 404, "Not Found\n"},
		"another project":        {leaf, id, "evil", good, 404, "Not Found\n"},
		"the versions, nameless": {"/x/..//", "", "", "", 200, "1.0\n2007-01-19\n2007-03-01\n2007-08-29\n2007-10-10\n2007-12-15\n2008-02-01\n2008-09-01\n2009-04-04\nlatest"},
		"the rest, nameless":     {"/openstack", "", "", "", 400, "X-Instance-ID header is missing from request.\n"},
	} {
		if reply := agent(p, "GET", c.path, "", c.instance, c.project, c.signature); reply.Code != c.want || reply.Body.String() != c.text {
			t.Errorf("%s: %d %q", name, reply.Code, reply.Body)
		}
	}
	for _, field := range []string{"X-Instance-ID", "X-Tenant-ID", "X-Instance-ID-Signature"} {
		r := request("10.0.0.5:700", "GET", leaf, "", "X-Instance-ID", id, "X-Tenant-ID", "project", "X-Instance-ID-Signature", good, field, "second")
		reply := httptest.NewRecorder()
		if p.ServeHTTP(reply, r); reply.Code != 400 {
			t.Errorf("two %s: %d", field, reply.Code)
		}
	}
}

// Whatever is asked, the reply is one that the agent passes on, and nothing that
// an unprivileged process may not read.
func TestRepliesSurviveNeutronsAgent(t *testing.T) {
	t.Parallel()
	inst := instance()
	inst.Spec.Params = append(inst.Spec.Params, imprint.Param{Name: "os-install-package", Visibility: imprint.Public, Value: "debian"})
	w := newWorld(t, inst, proxied)
	id := string(w.inst.ID)
	p := newProxy(t, nova{t, w.server, id, nil})
	passed := map[int]bool{200: true, 400: true, 403: true, 404: true, 409: true, 500: true, 502: true, 503: true, 504: true}
	paths := []string{
		"/openstack/latest/meta_data.json", "/openstack/latest/password", "/latest/api/token", "/latest/user-data", "/nocloud/meta-data", "/imprint/v1/payload",
		"/imprint/v1/param/token", "/imprint/v1/request", "/imprint/v1/time", "/imprint/v1/state", "/imprint/v1/pipe", "/ganeti/latest/read", "/ganeti/latest/write",
		"/ganeti/latest/os/os-install-package", "/ganeti/latest/os/parameters.json", "/none", "/imprint/v1/phone-home",
	}
	for _, only := range []bool{false, true} {
		w.options.TokensOnly = only
		w.render()
		for _, path := range paths {
			for _, method := range []string{"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"} {
				reply := agent(p, method, path, "x", id, "project", sign(sharedSecret, id))
				kind := reply.Header().Get("Content-Type")
				if !passed[reply.Code] || kind != "application/json" && kind != "text/plain; charset=UTF-8" {
					t.Errorf("%s %s: %d %s", method, path, reply.Code, kind)
				}
				if body := reply.Body.String(); strings.Contains(body, "value of token") || strings.Contains(body, "archive") {
					t.Errorf("%s %s: %q", method, path, body)
				}
			}
		}
	}
	if len(w.put) != 0 || len(w.up) != 0 {
		t.Errorf("arrived %q, %q", w.put, w.up)
	}
	if reply := agent(p, "POST", passwordPath, "", id, "project", sign(sharedSecret, id)); reply.Code != 409 { // "x" was posted above
		t.Errorf("a second password: %d", reply.Code)
	}
}

// An agent reads a request in one piece and may lose the body: that must not
// look like success to the guest.
func TestPasswordThatTheAgentLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), proxied)
	id := string(w.inst.ID)
	p := newProxy(t, nova{t, w.server, id, nil})
	if reply := agent(p, "POST", passwordPath, "", id, "project", sign(sharedSecret, id)); reply.Code != 400 {
		t.Errorf("%d %q", reply.Code, reply.Body)
	}
}

// The agent drops a form's type and cuts its end off: that a guest phoned home is
// clear all the same, and ends its user data.
func TestPhoneHomeThroughTheAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), proxied)
	id := string(w.inst.ID)
	p := newProxy(t, nova{t, w.server, id, nil})
	const userData = "/openstack/latest/user_data"
	if reply := agent(p, "GET", userData, "", id, "project", sign(sharedSecret, id)); reply.Code != 200 {
		t.Fatalf("user data: %d", reply.Code)
	}
	if reply := agent(p, "POST", phoneHome, "hostname=web-1&pub_key_rsa=ssh-rsa%2", id, "project", sign(sharedSecret, id)); reply.Code != 200 {
		t.Errorf("phone home: %d %q", reply.Code, reply.Body)
	}
	if reply := agent(p, "GET", userData, "", id, "project", sign(sharedSecret, id)); reply.Code != 404 {
		t.Errorf("user data afterwards: %d", reply.Code)
	}
}

func TestProxyThatCannotFindOut(t *testing.T) {
	t.Parallel()
	const id = "id"
	direct := newWorld(t, instance(), nil)
	for want, guests := range map[int]nova{
		503: {t, nil, id, imprint.Errorf(imprint.Unavailable, "find", id, "canary")},
		500: {t, direct.server, id, nil}, // a server that would trust the agent's own address and port
	} {
		reply := agent(newProxy(t, guests), "GET", "/latest/meta-data/hostname", "", id, "project", sign(sharedSecret, id))
		if reply.Code != want || strings.Contains(reply.Body.String(), "canary") {
			t.Errorf("%d %q, want %d", reply.Code, reply.Body, want)
		}
	}
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	bad := w.config
	bad.Proxied = true
	for name, c := range map[string]metadata.Config{"nothing": {}, "ports behind a proxy": bad} {
		if _, err := metadata.New(c); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, secret := range []string{"", "short"} {
		_, err := metadata.NewProxy(metadata.ProxyConfig{Secret: imprint.NewSecret([]byte(secret)), Guests: nova{}, Logger: slog.New(slog.DiscardHandler)})
		if imprint.KindOf(err) != imprint.Invalid || imprint.HintOf(err) == "" {
			t.Errorf("secret %q: %v", secret, err)
		}
	}
}

// With mutual TLS nobody without the agent's certificate gets as far as a reply.
func TestProxyOverTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), proxied)
	id := string(w.inst.ID)
	p := newProxy(t, nova{t, w.server, id, nil})
	ca, caKey := certificate(t, "ca", nil, nil)
	server, _ := certificate(t, "controller", ca, caKey)
	client, _ := certificate(t, "neutron", ca, caKey)
	stranger, _ := certificate(t, "neutron", nil, nil)
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, tls.NewListener(ln, metadata.ProxyTLS(*server, pool))) }()
	defer func() { cancel(); <-done }()
	for name, c := range map[string]struct {
		certificates []tls.Certificate
		served       bool
	}{"neutron": {[]tls.Certificate{*client}, true}, "nobody": {nil, false}, "a stranger": {[]tls.Certificate{*stranger}, false}} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: c.certificates, ServerName: "controller"}}
		req, err := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("https://%s/latest/meta-data/hostname", ln.Addr()), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Instance-ID", id)
		req.Header.Set("X-Tenant-ID", "project")
		req.Header.Set("X-Instance-ID-Signature", sign(sharedSecret, id))
		reply, err := transport.RoundTrip(req)
		if served := err == nil && reply.StatusCode == 200; served != c.served {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			reply.Body.Close()
		}
		transport.CloseIdleConnections()
	}
}

// certificate makes one, of the issuer or of itself.
func certificate(t *testing.T, name string, issuer *tls.Certificate, issuerKey *ecdsa.PrivateKey) (*tls.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := template, key
	if issuer != nil {
		parent, signer = issuer.Leaf, issuerKey
	} else {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, key
}
