package est_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/est"
)

func TestTenantsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t, "default", "blue")
	ca := s.cas["default"]
	good := func() []est.Tenant {
		return []est.Tenant{
			{Name: "default", Names: []string{"a.example"}, Certificate: ca.server(t, "a.example"), Trust: ca.pool()},
			{Name: "blue", Names: []string{"b.example"}, Certificate: ca.server(t, "b.example"), Trust: ca.pool()},
		}
	}
	for name, test := range map[string]struct {
		change func(ts []est.Tenant)
		want   []string
	}{
		"fine":               {func([]est.Tenant) {}, nil},
		"one name twice":     {func(ts []est.Tenant) { ts[1].Names = ts[0].Names }, []string{"blue", "default", "a.example"}},
		"its own name twice": {func(ts []est.Tenant) { ts[1].Names = []string{"b.example", "b.example"} }, nil},
		"one tenant twice":   {func(ts []est.Tenant) { ts[1].Name = "default" }, []string{"default", "twice"}},
		"not in its certificate": {
			func(ts []est.Tenant) { ts[1].Names = []string{"c.example"} }, []string{"blue", "c.example"},
		},
		"not a name":     {func(ts []est.Tenant) { ts[1].Names = []string{"B.example"} }, []string{"B.example"}},
		"no certificate": {func(ts []est.Tenant) { ts[1].Certificate = tls.Certificate{} }, []string{"blue", "certificate"}},
		"no trust":       {func(ts []est.Tenant) { ts[1].Trust = nil }, []string{"blue", "trust"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := s.config(t, io.Discard)
			cfg.Tenants = good()
			test.change(cfg.Tenants)
			_, err := est.New(cfg)
			if (err == nil) != (test.want == nil) {
				t.Fatalf("error %v", err)
			}
			for _, w := range test.want {
				if !strings.Contains(err.Error(), w) || imprint.KindOf(err) != imprint.Invalid {
					t.Errorf("%v (%s) does not name %q", err, imprint.KindOf(err), w)
				}
			}
		})
	}
}

// TestHandshake shows which context a connection gets.
func TestHandshake(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default", "blue"), nil)
	_, cert := e.enrol(t, "default", "web-1", nil)
	for _, test := range []struct {
		name, serverName string
		issuer           imprint.TenantName // of the server's certificate
		cert             *tls.Certificate
		maxVersion       uint16
		alert            string
	}{
		{name: "by name", serverName: "blue.est.example", issuer: "blue"},
		{name: "by name in capitals", serverName: "BLUE.est.example", issuer: "blue"},
		{name: "by address", serverName: "", issuer: "default"},
		{name: "TLS 1.2", serverName: "default.est.example", issuer: "default", maxVersion: tls.VersionTLS12},
		{name: "TLS 1.1", serverName: "default.est.example", maxVersion: tls.VersionTLS11, alert: "protocol version"},
		{name: "unknown name", serverName: "red.est.example", alert: "unrecognized name"},
		{name: "own certificate", serverName: "default.est.example", issuer: "default", cert: cert},
		{name: "another tenant's certificate", serverName: "blue.est.example", cert: cert, alert: "unknown certificate authority"},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			if test.maxVersion != 0 {
				version = test.maxVersion
			}
			conn, err := tls.Dial("tcp", e.addr, &tls.Config{
				ServerName: test.serverName, InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: version,
				// Shown whether or not the server would accept its issuer.
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if test.cert == nil {
						return &tls.Certificate{}, nil
					}
					return test.cert, nil
				},
			})
			if err == nil {
				// In TLS 1.3 the server judges the client's certificate after the
				// client's side of the handshake is done.
				_, err = io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
				if err == nil {
					_, err = conn.Read(make([]byte, 1))
				}
				defer conn.Close()
			}
			if test.alert != "" {
				if err == nil || !strings.Contains(err.Error(), test.alert) {
					t.Errorf("%s, %s: error %v, want alert %q", test.name, tls.VersionName(version), err, test.alert)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s, %s: %v", test.name, tls.VersionName(version), err)
				continue
			}
			if err := conn.ConnectionState().PeerCertificates[0].CheckSignatureFrom(e.cas[test.issuer].cert); err != nil {
				t.Errorf("%s: certificate not of tenant %s", test.name, test.issuer)
			}
		}
	}
}

// TestNoResumption: a session that carries a client identity ends with its
// connection; it cannot be taken to another tenant, or past a revocation.
func TestNoResumption(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default", "blue"), nil)
	_, cert := e.enrol(t, "default", "web-1", nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		sessions := tls.NewLRUClientSessionCache(8)
		for i, name := range []string{"default.est.example", "default.est.example", "blue.est.example"} {
			cfg := &tls.Config{
				ServerName: name, InsecureSkipVerify: true, MaxVersion: version,
				// One cache key for both names, as a hostile client would have it.
				ClientSessionCache: oneKey{sessions},
			}
			if i < 2 {
				cfg.Certificates = []tls.Certificate{*cert}
			}
			c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: cfg}}
			resp, err := c.Get("https://" + e.addr + own + "state")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.TLS.DidResume {
				t.Errorf("%s: a session was resumed at %s", tls.VersionName(version), name)
			}
			if i == 2 && resp.StatusCode == http.StatusOK {
				t.Error("an identity travelled between tenants")
			}
		}
	}
}

// oneKey is a session cache that offers every session to every server.
type oneKey struct{ tls.ClientSessionCache }

func (c oneKey) Get(string) (*tls.ClientSessionState, bool) { return c.ClientSessionCache.Get("") }
func (c oneKey) Put(_ string, s *tls.ClientSessionState)    { c.ClientSessionCache.Put("", s) }

func TestMisdirected(t *testing.T) {
	t.Parallel()
	s := newSite(t, "default", "blue")
	e := serve(t, s, nil)
	for _, test := range []struct {
		name, serverName, host string
		want                   int
	}{
		{"same", "blue.est.example", "blue.est.example", 200},
		{"with port, capitals and dot", "blue.est.example", "BLUE.est.example.:8443", 200},
		{"another tenant", "blue.est.example", "default.est.example", 421},
		{"the default tenant's to another", "default.est.example", "blue.est.example", 421},
		{"nobody", "blue.est.example", "red.est.example", 421},
		{"by address", "", "127.0.0.1:8443", 200},
		{"by address, v6", "", "[::1]:8443", 200},
		{"by address, default name", "", "default.est.example", 200},
		{"by address, another tenant", "", "blue.est.example", 421},
	} {
		c := &http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{ServerName: test.serverName, InsecureSkipVerify: true},
		}}
		if test.serverName == "" {
			c.Transport.(*http.Transport).TLSClientConfig.ServerName = "127.0.0.1" // sends no name
		}
		req, err := http.NewRequest("GET", "https://"+e.addr+"/.well-known/est/cacerts", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = test.host
		if r := do(t, c, req); r.status != test.want {
			t.Errorf("%s: status %d, want %d", test.name, r.status, test.want)
		}
	}
}

// TestSetTenants: a renewed certificate and a removed tenant take effect at the
// next handshake; a bad set changes nothing.
func TestSetTenants(t *testing.T) {
	t.Parallel()
	s := newSite(t, "default", "blue")
	e := serve(t, s, nil)
	serial := func(tenant imprint.TenantName) (string, error) {
		conn, err := tls.Dial("tcp", e.addr, &tls.Config{ServerName: names(tenant)[0], RootCAs: s.cas[tenant].pool()})
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return string(conn.ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo), nil
	}
	before, err := serial("default")
	if err != nil {
		t.Fatal(err)
	}
	kept := e.client(t, "blue", nil)
	get(t, kept, "blue", "/.well-known/est/cacerts")

	ca := s.cas["default"]
	next := est.Tenant{Name: "default", Names: names("default"), Certificate: ca.server(t, names("default")...), Trust: ca.pool()}
	if err := e.server.SetTenants([]est.Tenant{next, next}); err == nil {
		t.Error("a bad set was taken")
	}
	if same, err := serial("default"); err != nil || same != before {
		t.Errorf("a bad set changed something: %v", err)
	}
	if err := e.server.SetTenants([]est.Tenant{next}); err != nil {
		t.Fatal(err)
	}
	if after, err := serial("default"); err != nil || after == before {
		t.Errorf("still the old certificate (%v)", err)
	}
	if _, err := serial("blue"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("removed tenant: %v", err)
	}
	if r := get(t, kept, "blue", "/.well-known/est/cacerts"); r.status != http.StatusMisdirectedRequest {
		t.Errorf("removed tenant on a kept connection: status %d", r.status)
	}
}
