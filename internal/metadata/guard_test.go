package metadata_test

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"

	"imprint/internal/metadata"
)

func TestRequestsThatWereForwardedAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	for _, field := range []string{
		"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Anything", "X-Forwarded", "Forwarded", "Via", "Origin",
		"X-Real-IP", "X-Client-IP", "True-Client-IP", "X-Original-URL", "X-Rewrite-URL", "x-forwarded-for",
	} {
		for _, path := range []string{"/latest/user-data", "/imprint/v1/param/token", "/openstack/latest/password", "/"} {
			for _, value := range []string{"", "127.0.0.1"} {
				if status, body := w.do(rootPort, "GET", path, "", field, value); status != 403 || body != "Forbidden\n" {
					t.Errorf("%s: %q with %s: %d %q", path, value, field, status, body)
				}
			}
		}
		if status, _ := w.do(rootPort, "PUT", "/latest/api/token", "", field, "a", "X-aws-ec2-metadata-token-ttl-seconds", "60"); status != 403 {
			t.Errorf("a token with %s: %d", field, status)
		}
		if status, _ := w.do(rootPort, "PUT", "/imprint/v1/request", "csr", field, "a"); status != 403 || len(w.put) != 0 {
			t.Errorf("a request with %s: %d", field, status)
		}
	}
	if r := w.refusals(); len(r) != 20 || r[0] != "the request was forwarded: it has the field X-Forwarded-For" {
		t.Errorf("reported %q", r)
	}
}

func TestOnlyTheDocumentedHostsAreServed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), func(c *metadata.Config) { c.Names = []string{"metadata.example.org."} })
	for host, want := range map[string]int{
		"169.254.169.254": 200, "169.254.169.254:80": 200, "169.254.169.254:8775": 200,
		"[fe80::a9fe:a9fe]": 200, "[fe80::a9fe:a9fe]:80": 200, "[fe80::a9fe:a9fe%25eth0]": 200, "[fe80::a9fe:a9fe%eth0.1]:80": 200,
		"metadata.example.org": 200, "METADATA.example.org:80": 200, "metadata.example.org.": 200,

		"": 403, "evil.example": 403, "169.254.169.254.evil.example": 403, "evil.example:169.254.169.254": 403, "127.0.0.1": 403, "localhost": 403,
		"169.254.169.254:": 403, "169.254.169.254:http": 403, "169.254.169.254:123456": 403, "169.254.169.254:80:80": 403, "169.254.169.2540": 403,
		"fe80::a9fe:a9fe": 403, "[fe80::a9fe:a9fe": 403, "[fe80::a9fe:a9ff]": 403, "[fe80::a9fe:a9fe%]": 403, "[fe80::a9fe:a9fe%25]": 403, "[fe80::a9fe:a9fe%a/b]": 403,
		"[fe80::a9fe:a9fe%eth0": 403, "[fe80::a9fe:a9fe]evil": 403, "[fe80::a9fe:a9fe%25" + strings.Repeat("x", 65) + "]": 403,
		"2852039166": 403, "0xa9fea9fe": 403, "169.254.43518": 403, "xmetadata.example.org": 403, "user@169.254.169.254": 403,
	} {
		if status, _ := w.do(processPort, "GET", "/latest/meta-data/hostname", "", "Host", host); status != want {
			t.Errorf("Host %q: %d, want %d", host, status, want)
		}
	}
}

// A request in absolute form is one to a proxy; its authority counts, whatever
// the Host field says.
func TestAbsoluteForm(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	for line, want := range map[string]int{
		"GET http://169.254.169.254/latest/user-data HTTP/1.1\r\nHost: 169.254.169.254":      200,
		"GET http://169.254.169.254/latest/user-data HTTP/1.1\r\nHost: evil.example":         200, // RFC 9112, 3.2.2
		"GET http://evil.example/latest/user-data HTTP/1.1\r\nHost: 169.254.169.254":         403,
		"GET https://169.254.169.254/latest/user-data HTTP/1.1\r\nHost: 169.254.169.254":     403,
		"GET http://a:b@169.254.169.254/latest/user-data HTTP/1.1\r\nHost: 169.254.169.254":  403,
		"GET http://169.254.169.254@evil.example/latest/ HTTP/1.1\r\nHost: 169.254.169.254":  403,
		"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254":                       403,
		"GET //evil.example/latest/user-data HTTP/1.1\r\nHost: 169.254.169.254":              404,
		"GET /latest/%75ser-data HTTP/1.1\r\nHost: 169.254.169.254":                          200,
		"GET /latest/%2e%2e/%2e%2e/latest%2fuser-data HTTP/1.1\r\nHost: 169.254.169.254":     200,
		"GET /imprint/v1/param/%2e%2e/param/token HTTP/1.1\r\nHost: 169.254.169.254":         404,
		"GET /imprint%2fv1%2fparam%2ftoken HTTP/1.1\r\nHost: 169.254.169.254":                403, // the same path, the same answer
		"GET /latest/..%00/user-data HTTP/1.1\r\nHost: 169.254.169.254":                      404,
		"GET /openstack/latest/user_data?x=/../../imprint HTTP/1.1\r\nHost: 169.254.169.254": 200,
		"GET /latest/user-data#/imprint/v1/param/token HTTP/1.1\r\nHost: 169.254.169.254":    404,
		"GET /latest/user-data;/imprint HTTP/1.1\r\nHost: 169.254.169.254":                   404,
		"GET /latest\\..\\user-data HTTP/1.1\r\nHost: 169.254.169.254":                       404,
		"OPTIONS * HTTP/1.1\r\nHost: 169.254.169.254":                                        404,
		"HEAD /latest/user-data HTTP/1.1\r\nHost: 169.254.169.254":                           200,
		"GET /latest/user-data HTTP/1.0\r\nAccept: */*":                                      403, // without a Host
	} {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(line + "\r\n\r\n")))
		if err != nil {
			t.Errorf("%q: %v", line, err)
			continue
		}
		r.RemoteAddr = processPort
		reply := httptest.NewRecorder()
		w.server.ServeHTTP(reply, r)
		if reply.Code != want {
			t.Errorf("%q: %d %q, want %d", line, reply.Code, reply.Body, want)
		}
	}
}

func TestSessionsOfIMDSv2(t *testing.T) {
	t.Parallel()
	const path, leaf, ttl, token = "/latest/api/token", "/latest/meta-data/instance-id", "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"
	w := newWorld(t, instance(), nil)
	for _, seconds := range []string{"0", "21601", "-1", "", "1.5", "0x10", "99999999999999999999", " 60"} {
		if status, _ := w.do(processPort, "PUT", path, "", ttl, seconds); status != 400 {
			t.Errorf("TTL %q: %d", seconds, status)
		}
	}
	if status, _ := w.do(processPort, "PUT", path, ""); status != 400 {
		t.Errorf("no TTL: %d", status)
	}
	for _, method := range []string{"GET", "POST", "DELETE"} {
		if status, _ := w.do(processPort, method, path, "", ttl, "60"); status != 405 {
			t.Errorf("%s: %d", method, status)
		}
	}
	reply := w.reply(request(processPort, "PUT", path, "", ttl, "60"))
	session := reply.Body.String()
	if reply.Code != 200 || len(session) != 56 || reply.Header().Get(ttl) != "60" {
		t.Fatalf("%d %q, TTL %q", reply.Code, session, reply.Header().Get(ttl))
	}
	other := newWorld(t, instance(), nil)
	_, foreign := other.do(processPort, "PUT", path, "", ttl, "60")
	flipped := "A" + session[1:]
	if session[0] == 'A' {
		flipped = "B" + session[1:]
	}

	for _, only := range []bool{false, true} {
		w.options.TokensOnly = only
		w.render()
		without := 200
		if only {
			without = 401
		}
		for _, p := range []string{leaf, "/", "/ec2/latest/user-data", "/2009-04-04/", "//latest/user-data"} {
			if status, _ := w.get(p); status != without {
				t.Errorf("tokens only %v, %s without: %d", only, p, status)
			}
		}
		for _, bad := range []string{"", "x", foreign, flipped, session + "=", session[:55], strings.Repeat("A", 56), session[:55] + "*"} {
			if status, _ := w.do(processPort, "GET", leaf, "", token, bad); status != 401 {
				t.Errorf("tokens only %v, token %q: %d", only, bad, status)
			}
		}
		if status, body := w.do(processPort, "GET", leaf, "", token, session); status != 200 || body != "i-6b1c2f0e" {
			t.Errorf("tokens only %v, with a session: %d %q", only, status, body)
		}
		// The other dialects know no sessions.
		if status, _ := w.get("/openstack/latest/meta_data.json"); status != 200 {
			t.Errorf("tokens only %v, openstack: %d", only, status)
		}
	}
	if r := w.refusals(); !slices.Contains(r, "EC2 metadata needs a session token (IMDSv2)") {
		t.Errorf("reported %q", r)
	}

	later := w.now
	w.now = later.Add(59e9)
	if status, _ := w.do(processPort, "GET", leaf, "", token, session); status != 200 {
		t.Errorf("before the end: %d", status)
	}
	w.now = later.Add(60e9)
	if status, _ := w.do(processPort, "GET", leaf, "", token, session); status != 401 {
		t.Errorf("after the end: %d", status)
	}
	_, session = w.do(processPort, "PUT", path, "", ttl, "21600")
	w.inst.Generation++
	w.render()
	if status, _ := w.do(processPort, "GET", leaf, "", token, session); status != 401 {
		t.Errorf("in the next generation: %d", status)
	}
}

// Whatever the path, nobody is sent elsewhere: a client that follows would ask
// another server in this one's name.
func TestNobodyIsRedirected(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	for _, path := range []string{
		"/latest", "/latest//meta-data", "//evil.example/latest", "//evil.example//", "/latest/../..//evil.example/x", "/./latest/meta-data",
		"/openstack", "/openstack//latest/", "/openstack/latest/meta_data.json/", "/nocloud", "/nocloud//", "/ganeti/latest", "/imprint", "/imprint//v1/..",
		"/%2f%2fevil.example", `/\evil.example`, "/latest/meta-data/%2e%2e/", "/?next=http://evil.example/", "/none", "/latest/api//token",
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT"} {
			for _, port := range []string{processPort, rootPort} {
				reply := w.reply(request(port, method, path, ""))
				if reply.Code >= 300 && reply.Code < 400 || reply.Header().Get("Location") != "" {
					t.Errorf("%s %s: %d to %q", method, path, reply.Code, reply.Header().Get("Location"))
				}
			}
		}
	}
}

// Sessions are kept by the guest: however many there are, each is good and none
// takes memory here.
func TestThousandsOfSessions(t *testing.T) {
	const sessions, each = 20_000, 64 // bytes, of which a session that is kept takes more
	w := newWorld(t, instance(), nil)
	open := func() string {
		status, session := w.do(processPort, "PUT", "/latest/api/token", "", "X-aws-ec2-metadata-token-ttl-seconds", "21600")
		if status != 200 {
			t.Fatalf("a session: %d", status)
		}
		return session
	}
	heap := func() int64 {
		w.mu.Lock()
		w.accesses = nil
		w.mu.Unlock()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	first, before := open(), heap()
	for range sessions {
		open()
	}
	if grown := heap() - before; grown > sessions*each/2 {
		t.Errorf("%d sessions take %d bytes", sessions, grown)
	}
	for _, session := range []string{first, open()} {
		if status, _ := w.do(processPort, "GET", "/latest/meta-data/instance-id", "", "X-aws-ec2-metadata-token", session); status != 200 {
			t.Errorf("a session among many: %d", status)
		}
	}
}
