//go:build linux

package guest

import (
	"strings"
	"testing"
)

func FuzzResponse(f *testing.F) {
	f.Add("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi")
	f.Add("HTTP/1.1 202 Accepted\r\nRetry-After: 7\r\nConnection: close\r\n\r\n")
	f.Add("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
	f.Add("HTTP/1.0 200\r\nContent-Length: 99999999999999999999\r\n\r\n")
	f.Add("SSH-2.0-OpenSSH\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := readResponse(strings.NewReader(s))
		if err == nil && (r.status < 200 || r.status > 599 || len(r.body) > maxHTTPBody) {
			t.Errorf("status %d, %d bytes", r.status, len(r.body))
		}
	})
}

func TestResponseLimits(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]string{
		"endless head":   "HTTP/1.0 200 OK\r\n" + strings.Repeat("A: b\r\n", maxHTTPHead),
		"endless body":   "HTTP/1.0 200 OK\r\n\r\n" + strings.Repeat("x", maxHTTPBody+1),
		"declared body":  "HTTP/1.0 200 OK\r\nContent-Length: 262145\r\n\r\n",
		"cut body":       "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhi",
		"chunked":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"not HTTP":       "220 smtp ready\r\n\r\n",
		"interim status": "HTTP/1.1 100 Continue\r\n\r\n",
	} {
		if r, err := readResponse(strings.NewReader(s)); err == nil {
			t.Errorf("%s: accepted as %d with %d bytes", name, r.status, len(r.body))
		}
	}
	whole := "HTTP/1.0 200 OK\r\n\r\n" + strings.Repeat("x", maxHTTPBody)
	if r, err := readResponse(strings.NewReader(whole)); err != nil || len(r.body) != maxHTTPBody {
		t.Errorf("the largest body: %v", err)
	}
}
