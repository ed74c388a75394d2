package metadata_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imprint/internal/metadata"
)

// switchboard is a listener in memory whose connections come from chosen ports.
type switchboard struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newSwitchboard() *switchboard {
	return &switchboard{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *switchboard) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *switchboard) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *switchboard) Addr() net.Addr { return &net.TCPAddr{} }

// from is a connection's end with the address of its peer.
type from struct {
	net.Conn
	port int
}

func (c from) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(169, 254, 1, 2), Port: c.port}
}

// dial connects from port.
func (l *switchboard) dial(port int) net.Conn {
	guest, host := net.Pipe()
	l.conns <- from{host, port}
	return guest
}

// listening runs test against a served guest, inside a bubble in which time
// passes only while everybody waits.
func listening(t *testing.T, test func(*testing.T, *world, *switchboard)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, instance(), nil)
		l := newSwitchboard()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.server.Serve(ctx, l) }()
		test(t, w, l)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

// exchange sends text and returns the replies' statuses until the connection ends
// or n came.
func exchange(t *testing.T, conn net.Conn, text string, n int) (statuses []int) {
	t.Helper()
	go io.Copy(conn, strings.NewReader(text)) // ends with the connection
	in := bufio.NewReader(conn)
	for range n {
		reply, err := http.ReadResponse(in, nil)
		if err != nil {
			return statuses
		}
		io.Copy(io.Discard, reply.Body)
		statuses = append(statuses, reply.StatusCode)
	}
	return statuses
}

const hello = "GET /latest/meta-data/hostname HTTP/1.1\r\nHost: 169.254.169.254\r\n"

func TestWhatIsNotARequest(t *testing.T) {
	listening(t, func(t *testing.T, w *world, l *switchboard) {
		for name, c := range map[string]struct {
			text string
			want string
		}{
			"an URL of 64 KiB":      {"GET /" + strings.Repeat("a", 64<<10) + " HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", "[431]"},
			"an URL of 10 KiB":      {"GET /" + strings.Repeat("a/../", 2<<10) + " HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", "[200]"},
			"a huge field":          {hello + "X: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "[431]"},
			"many fields":           {hello + strings.Repeat("X: y\r\n", 16<<10) + "\r\n", "[431]"},
			"two hosts":             {hello + "Host: evil.example\r\n\r\n", "[400]"},
			"no host":               {"GET / HTTP/1.1\r\n\r\n", "[400]"},
			"no protocol":           {"GET /\r\n\r\n", "[400]"},
			"noise":                 {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "[400]"},
			"two lengths":           {"POST " + passwordPath + " HTTP/1.1\r\nHost: 169.254.169.254\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", "[400]"},
			"an odd encoding":       {"POST " + passwordPath + " HTTP/1.1\r\nHost: 169.254.169.254\r\nTransfer-Encoding: gzip\r\n\r\nxx", "[501]"},
			"a bad chunk":           {"POST " + passwordPath + " HTTP/1.1\r\nHost: 169.254.169.254\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", "[400]"},
			"a chunk of 16 EiB":     {"POST " + passwordPath + " HTTP/1.1\r\nHost: 169.254.169.254\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx", "[400]"},
			"a length of 1 TiB":     {"POST " + passwordPath + " HTTP/1.1\r\nHost: 169.254.169.254\r\nContent-Length: 1099511627776\r\n\r\nx", "[400]"},
			"a space in the field":  {hello + "X-Forwarded-For : a\r\n\r\n", "[400]"},
			"a bad escape":          {"GET /%zz HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", "[400]"},
			"the start of HTTP/2":   {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "[403]"},
			"pipelined":             {strings.Repeat(hello+"\r\n", 20), fmt.Sprint(slicesOf(200, 20))},
			"pipelined after a 404": {"GET /none HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n" + hello + "\r\n", "[404 200]"},
		} {
			conn := l.dial(40000)
			if got := fmt.Sprint(exchange(t, conn, c.text, max(1, strings.Count(c.want, " ")+1))); got != c.want {
				t.Errorf("%s: %s, want %s", name, got, c.want)
			}
			conn.Close()
		}
		if w.inst.Enrolment.Password != nil {
			t.Errorf("kept the password %q", w.inst.Enrolment.Password)
		}
	})
}

func slicesOf(status, n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = status
	}
	return s
}

// Who sends slowly, or does not read, is cut off and does not keep anybody else
// from being served.
func TestSlowClientsAreCutOff(t *testing.T) {
	listening(t, func(t *testing.T, w *world, l *switchboard) {
		for name, c := range map[string]struct {
			text  string
			limit time.Duration
		}{
			"nothing":              {"", 6 * time.Second},
			"half a line":          {"GET /la", 6 * time.Second},
			"no end of the header": {hello, 6 * time.Second},
			"half a body":          {"POST " + passwordPath + " HTTP/1.1\r\nHost: 169.254.169.254\r\nContent-Length: 100\r\n\r\nhalf", 21 * time.Second},
			"idle":                 {hello + "\r\n", 61 * time.Second},
		} {
			conn := l.dial(40000)
			start := time.Now()
			go io.WriteString(conn, c.text)
			io.Copy(io.Discard, conn) // until it is closed
			if took := time.Since(start); took > c.limit || took < 4*time.Second {
				t.Errorf("%s: cut off after %s", name, took)
			}
			conn.Close()
		}
		conn := l.dial(40000)
		defer conn.Close()
		go io.Copy(io.Discard, conn)
		start := time.Now()
		for i := range hello { // a byte a second
			if _, err := conn.Write([]byte{hello[i]}); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		if took := time.Since(start); took > 7*time.Second {
			t.Errorf("a byte a second: cut off after %s", took)
		}
	})
}

func TestProcessesCannotShutRootOut(t *testing.T) {
	listening(t, func(t *testing.T, w *world, l *switchboard) {
		for range metadata.MaxConnections {
			defer l.dial(40000).Close()
		}
		start := time.Now()
		one := l.dial(40000)
		if _, err := one.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(start) != 0 {
			t.Errorf("one connection too many: %v after %s", err, time.Since(start))
		}
		root := l.dial(900)
		defer root.Close()
		if got := fmt.Sprint(exchange(t, root, hello+"\r\n", 1)); got != "[200]" {
			t.Errorf("root: %s", got)
		}
		time.Sleep(10 * time.Second) // the others are cut off and make room
		again := l.dial(40001)
		defer again.Close()
		if got := fmt.Sprint(exchange(t, again, hello+"\r\n", 1)); got != "[200]" {
			t.Errorf("later: %s", got)
		}
	})
}

// The end of the server lets what is under way finish, but not for ever.
func TestServeEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, instance(), nil)
		l := newSwitchboard()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.server.Serve(ctx, l) }()
		conn := l.dial(900)
		defer conn.Close()
		go io.WriteString(conn, "GET /ganeti/latest/read HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n")
		time.AfterFunc(3*time.Second, cancel)
		time.AfterFunc(4*time.Second, func() { w.send("default", "at the last moment") })
		reply, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(reply.Body); string(body) != "at the last moment" {
			t.Errorf("got %q", body)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := w.server.Serve(ctx, newSwitchboard()); err != nil {
			t.Errorf("served after the end: %v", err)
		}
	})
	t.Run("listener fails", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, instance(), nil)
		l := newSwitchboard()
		l.Close()
		if err := w.server.Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}
