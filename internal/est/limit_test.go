package est_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"imprint/internal/est"
)

func TestRates(t *testing.T) {
	t.Parallel()
	limits := est.Limits{Rate: 1, Burst: 3, TotalRate: 10, TotalBurst: 6, Addresses: 4}
	start := time.Unix(1_700_000_000, 0)
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	allowed := func(r *est.Rates, addr netip.Addr, at time.Time, n int) (ok int) {
		for range n {
			if r.Take(addr, at) == 0 {
				ok++
			}
		}
		return ok
	}
	t.Run("address", func(t *testing.T) {
		t.Parallel()
		r := est.NewRates(limits)
		if n := allowed(r, a, start, 10); n != 3 {
			t.Errorf("%d of a burst", n)
		}
		if n := allowed(r, b, start, 1); n != 1 {
			t.Error("one address used up another's share")
		}
		if n := allowed(r, a, start.Add(2*time.Second), 10); n != 2 {
			t.Errorf("%d after two seconds", n)
		}
		if d := r.Take(a, start.Add(2*time.Second)); d != time.Second {
			t.Errorf("told to wait %v", d)
		}
	})
	t.Run("total", func(t *testing.T) {
		t.Parallel()
		r := est.NewRates(limits)
		if n := allowed(r, a, start, 3) + allowed(r, b, start, 3) + allowed(r, c, start, 3); n != 6 {
			t.Errorf("%d in total", n)
		}
	})
	t.Run("IPv6 network", func(t *testing.T) {
		t.Parallel()
		r := est.NewRates(limits)
		for i := range byte(10) {
			one := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: i})
			if ok := r.Take(one, start) == 0; ok != (i < 3) {
				t.Errorf("request %d from one /64: allowed %v", i, ok)
			}
		}
		mapped := netip.MustParseAddr("::ffff:192.0.2.9")
		if n := allowed(r, mapped, start, 3); n != 3 {
			t.Error("a mapped IPv4 address is its own peer")
		}
	})
	t.Run("bounded", func(t *testing.T) {
		t.Parallel()
		big := limits
		big.TotalBurst = 1 << 20
		r := est.NewRates(big)
		allowed(r, a, start, 3)
		for i := range uint32(10_000) {
			var addr [4]byte
			binary.BigEndian.PutUint32(addr[:], 10<<24+i)
			r.Take(netip.AddrFrom4(addr), start)
			if i%2 == 0 {
				if r.Take(a, start) == 0 { // seen all the time, so never forgotten
					t.Fatal("a busy address got a new burst")
				}
			}
		}
		if n := r.Known(); n != 4 {
			t.Errorf("%d addresses remembered", n)
		}
	})
	t.Run("unlimited", func(t *testing.T) {
		t.Parallel()
		all := limits
		all.Rate, all.TotalRate = 0, 0
		if r := est.NewRates(all); allowed(r, a, start, 10) != 10 {
			t.Error("a rate of 0 is no limit")
		}
	})
}

func TestTooManyRequests(t *testing.T) {
	t.Parallel()
	s := newSite(t, "default")
	var mu sync.Mutex
	seen := map[string]int{}
	e := serve(t, s, func(cfg *est.Config) {
		cfg.Limits.Rate, cfg.Limits.Burst = 0.25, 2
		cfg.Observe = func(route string, status int, took time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			seen[route+" "+strconv.Itoa(status)]++
		}
	})
	c := e.client(t, "default", nil)
	for i := range 3 {
		r := get(t, c, "default", "/.well-known/est/cacerts")
		want := http.StatusOK
		if i == 2 {
			want = http.StatusTooManyRequests
		}
		if r.status != want || (r.header.Get("Retry-After") == "4") != (i == 2) {
			t.Errorf("request %d: status %d, Retry-After %q", i, r.status, r.header.Get("Retry-After"))
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if seen["GET /.well-known/est/cacerts 200"] != 2 || seen[" 429"] != 1 {
		t.Errorf("observed %v", seen)
	}
}

// TestConnections: one peer cannot take more than its share of connections, and
// at the total others wait for a place instead of being refused.
func TestConnections(t *testing.T) {
	t.Parallel()
	dial := func(t *testing.T, e *endpoint, from string) *tls.Conn {
		d := tls.Dialer{
			NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}},
			Config:    &tls.Config{ServerName: names("default")[0], RootCAs: e.cas["default"].pool()},
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		conn, err := d.DialContext(ctx, "tcp", e.addr)
		if err != nil {
			return nil
		}
		t.Cleanup(func() { conn.Close() })
		return conn.(*tls.Conn)
	}
	t.Run("of one peer", func(t *testing.T) {
		t.Parallel()
		e := serve(t, newSite(t, "default"), func(cfg *est.Config) { cfg.Limits.ConnectionsPerAddress = 2 })
		first, second := dial(t, e, "127.0.0.1"), dial(t, e, "127.0.0.1")
		if first == nil || second == nil {
			t.Fatal("not even its share")
		}
		if dial(t, e, "127.0.0.1") != nil {
			t.Error("a third connection was served")
		}
		if dial(t, e, "127.0.0.2") == nil {
			t.Error("another peer was cut off")
		}
		first.Close()
		for dial(t, e, "127.0.0.1") == nil { // the server sees the end soon
		}
	})
	t.Run("in total", func(t *testing.T) {
		t.Parallel()
		e := serve(t, newSite(t, "default"), func(cfg *est.Config) { cfg.Limits.Connections = 1 })
		first := dial(t, e, "127.0.0.1")
		waiting := make(chan *tls.Conn)
		go func() { waiting <- dial(t, e, "127.0.0.2") }()
		first.Close()
		if <-waiting == nil {
			t.Error("the place that became free was not given on")
		}
	})
}

// arrivals is a listener to which somebody connects from each address in turn.
type arrivals chan string

func (a arrivals) Accept() (net.Conn, error) {
	from, ok := <-a
	if !ok {
		return nil, net.ErrClosed
	}
	here, there := net.Pipe()
	there.Close()
	return arrival{here, from}, nil
}

func (a arrivals) Close() error   { return nil }
func (a arrivals) Addr() net.Addr { return nil }

type arrival struct {
	net.Conn
	from string
}

func (a arrival) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(a.from), 1))
}

// TestNetworkCannotHaveAllConnections: whoever has a whole IPv6 network, and so
// any number of peers, gets its share and leaves the rest to others.
func TestNetworkCannotHaveAllConnections(t *testing.T) {
	t.Parallel()
	limits := est.DefaultLimits()
	if limits.ConnectionsPerNetwork > limits.Connections/2 {
		t.Errorf("one network may have %d of %d connections", limits.ConnectionsPerNetwork, limits.Connections)
	}
	limits.Connections, limits.ConnectionsPerAddress, limits.ConnectionsPerNetwork = 100, 2, 6
	coming := make(arrivals, 1000)
	ln := est.NewBoundedListener(coming, limits)
	accept := func() string {
		t.Helper()
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn.RemoteAddr().(*net.TCPAddr).IP.String()
	}
	var got []string
	for n := range 200 {
		coming <- fmt.Sprintf("2001:db8:1:%x::1", n) // another peer each time
	}
	for n := range 3 {
		coming <- fmt.Sprintf("2001:db8:2:%x::1", n)
		coming <- fmt.Sprintf("192.0.2.%d", n)
		coming <- fmt.Sprintf("::ffff:192.0.3.%d", n)
	}
	for range 6 + 9 {
		got = append(got, accept())
	}
	if greedy := slices.DeleteFunc(slices.Clone(got), func(a string) bool { return !strings.HasPrefix(a, "2001:db8:1:") }); len(greedy) != 6 {
		t.Errorf("the greedy network has %d of 6: %v", len(greedy), got)
	}
	coming <- "2001:db8:1:ffff::1"
	close(coming)
	if _, err := ln.Accept(); err == nil {
		t.Error("one more than its share")
	}
}

// TestNetworkGetsItsPlacesBack: the count goes down when a connection ends.
func TestNetworkGetsItsPlacesBack(t *testing.T) {
	t.Parallel()
	limits := est.DefaultLimits()
	limits.ConnectionsPerNetwork = 1
	coming := make(arrivals, 10)
	ln := est.NewBoundedListener(coming, limits)
	for n := range 5 {
		coming <- fmt.Sprintf("2001:db8:1:%x::1", n)
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		conn.Close() // once is enough
	}
}

// TestSlowClients: whoever sends its handshake, header or body in drops, or
// nothing at all, is cut off by the one limit that is short.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	const head = "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: default.est.example\r\nAuthorization: Basic YTpi\r\n"
	const short = 200 * time.Millisecond
	for name, test := range map[string]struct {
		limit func(*est.Limits)
		plain bool
		send  string
	}{
		"handshake": {func(l *est.Limits) { l.HandshakeTimeout = short }, true, "\x16\x03"},
		"header":    {func(l *est.Limits) { l.HandshakeTimeout = short }, false, head},
		"body":      {func(l *est.Limits) { l.ReadTimeout = short }, false, head + "Content-Length: 10\r\n\r\nMII"},
		"idle": {
			func(l *est.Limits) { l.IdleTimeout = short }, false,
			"GET / HTTP/1.1\r\nHost: default.est.example\r\n\r\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := serve(t, newSite(t, "default"), func(cfg *est.Config) {
				l := &cfg.Limits
				l.HandshakeTimeout, l.ReadTimeout, l.IdleTimeout = time.Minute, time.Minute, time.Minute
				test.limit(l)
			})
			conn, err := net.Dial("tcp", e.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if !test.plain {
				conn = tls.Client(conn, &tls.Config{ServerName: names("default")[0], RootCAs: e.cas["default"].pool()})
			}
			if _, err := io.WriteString(conn, test.send); err != nil {
				t.Fatal(err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(io.Discard, conn)
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Error("still connected after 5 s")
			}
		})
	}
}
