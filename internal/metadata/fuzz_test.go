package metadata_test

import (
	"bufio"
	"bytes"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"imprint"
	"imprint/internal/metadata"
)

// Whatever bytes a process sends: no private value and no closed user data come
// back, nothing that needs root is done, and the status is one of a few.
func FuzzRequest(f *testing.F) {
	for _, path := range append([]string{"/imprint/v1/param/token", "/imprint/v1/request", "/ganeti/latest/read", "/ganeti/latest/os/parameters.json", "/%2e%2e/imprint/v1/pipe"}, userDataPaths...) {
		f.Add([]byte("GET " + path + " HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"))
	}
	f.Add([]byte("POST /imprint/v1/request HTTP/1.1\r\nHost: 169.254.169.254\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ncsr\r\n0\r\n\r\n"))
	f.Add([]byte("PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n"))
	f.Add([]byte("GET http://169.254.169.254/openstack/latest/ HTTP/1.1\r\nHost: x\r\n\r\n"))
	inst := instance()
	inst.Enrolment.State = imprint.Closed
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		w := newWorld(t, inst, nil)
		r.RemoteAddr = processPort
		reply := httptest.NewRecorder()
		w.server.ServeHTTP(reply, r)
		body := reply.Body.String()
		if strings.Contains(body, "value of token") || strings.Contains(body, "nginx") {
			t.Errorf("%q", body)
		}
		if len(w.put) != 0 || len(w.up) != 0 {
			t.Errorf("done: %q, %q", w.put, w.up)
		}
		if !slices.Contains([]int{200, 400, 401, 403, 404, 405, 409, 411, 500, 503}, reply.Code) {
			t.Errorf("status %d", reply.Code)
		}
		for _, a := range w.accesses {
			if len(a.Name) > 128 || strings.ContainsFunc(a.Name, func(c rune) bool { return c < ' ' || c > '~' }) {
				t.Errorf("reported as %q", a.Name)
			}
		}
	})
}

// A path leads where its POSIX normal form leads, and nowhere else.
func FuzzPath(f *testing.F) {
	for _, p := range []string{"/latest/meta-data/../../openstack", "//", "/.", "/a/./b//c/..", "latest", "", "/ec2/../ec2/1.0/", "/openstack/latest/./user_data/"} {
		f.Add(p)
	}
	w := newWorld(f, instance(), nil)
	f.Fuzz(func(t *testing.T, p string) {
		status, body := w.get(p)
		again, same := w.get(path.Clean("/" + p))
		strict := strings.HasPrefix(path.Clean("/"+p)+"/", "/ganeti/") || strings.HasPrefix(path.Clean("/"+p)+"/", "/imprint/")
		if i := strings.IndexByte(p, '?'); i >= 0 || strict {
			return
		}
		if status != again || body != same {
			t.Errorf("%q: %d %q, and in its normal form %d %q", p, status, body, again, same)
		}
	})
}

func FuzzHost(f *testing.F) {
	for _, host := range []string{"169.254.169.254", "169.254.169.254:80", "[fe80::a9fe:a9fe%25eth0]:80", "[fe80::a9fe:a9fe]", "evil.example", "169.254.169.254.evil", ":", "]:", "["} {
		f.Add(host)
	}
	w := newWorld(f, instance(), nil)
	f.Fuzz(func(t *testing.T, host string) {
		status, _ := w.do(processPort, "GET", "/", "", "Host", host)
		v4, v6 := strings.HasPrefix(host, "169.254.169.254"), strings.HasPrefix(host, "[fe80::a9fe:a9fe")
		rest := strings.TrimPrefix(strings.TrimPrefix(host, "169.254.169.254"), "[fe80::a9fe:a9fe")
		if status == 200 && (!v4 && !v6 || v4 && strings.ContainsFunc(rest, func(c rune) bool { return c != ':' && (c < '0' || c > '9') }) || strings.ContainsAny(rest, "/@ \\#?")) {
			t.Errorf("%q was served", host)
		}
	})
}

func FuzzPassword(f *testing.F) {
	f.Add([]byte("QUJD"))
	f.Add([]byte(""))
	f.Add([]byte("\xff"))
	f.Add(bytes.Repeat([]byte("x"), metadata.MaxPassword+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWorld(t, instance(), nil)
		status, _ := w.do(processPort, "POST", passwordPath, string(b))
		fits := len(b) <= metadata.MaxPassword && utf8.Valid(b)
		if (status == 200) != fits || status != 200 && status != 400 {
			t.Errorf("status %d", status)
		}
		want := ""
		if fits {
			want = string(b)
		}
		if status, got := w.get(passwordPath); status != 200 || got != want {
			t.Errorf("then %d %q", status, got)
		}
	})
}

func FuzzSessionFields(f *testing.F) {
	const ttlField, tokenField = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "X-Aws-Ec2-Metadata-Token"
	w := newWorld(f, instance(), nil)
	_, session := w.do(processPort, "PUT", "/latest/api/token", "", ttlField, "60")
	f.Add("60", session[:55]+"A")
	f.Add("21600", "")
	f.Add("21601", strings.Repeat("A", 56))
	f.Add("-0", strings.Repeat("=", 56))
	f.Fuzz(func(t *testing.T, ttl, token string) {
		status, _ := w.do(processPort, "PUT", "/latest/api/token", "", ttlField, ttl)
		n, err := strconv.Atoi(ttl)
		if good := err == nil && n >= 1 && n <= 21600; status == 200 && !good || status != 200 && status != 400 {
			t.Errorf("TTL %q: %d", ttl, status)
		}
		if status, _ := w.do(processPort, "GET", "/latest/user-data", "", tokenField, token); status != 401 && token != session {
			t.Errorf("token %q: %d", token, status)
		}
	})
}
