package est

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// shutdownTime is how long requests that are under way may take to end.
const shutdownTime = 5 * time.Second

// Serve answers requests on ln, which it closes, until ctx ends; then it lets
// those under way finish and returns nil.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	srv := &http.Server{
		Handler:           s,
		Protocols:         &protocols,
		ReadHeaderTimeout: s.limits.HandshakeTimeout,
		ReadTimeout:       s.limits.ReadTimeout,
		WriteTimeout:      s.limits.WriteTimeout,
		IdleTimeout:       s.limits.IdleTimeout,
		MaxHeaderBytes:    maxHeader,
		// Failed handshakes are what scanners do all day.
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	bounded := newBoundedListener(ln, s.limits)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(tls.NewListener(bounded, s.TLSConfig())) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		srv.Close()
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// boundedListener bounds open connections. At the total the next connection
// waits in the kernel's queue, so that a rush is served late rather than not at
// all; a single peer or network above its own bound is cut off, so that it cannot
// make the others wait.
type boundedListener struct {
	net.Listener
	limits Limits
	slots  chan struct{} // one element an open connection
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex           // guards open
	open map[netip.Prefix]int // by peer and by network, which differ in length
}

func newBoundedListener(ln net.Listener, limits Limits) *boundedListener {
	return &boundedListener{
		Listener: ln, limits: limits,
		slots: make(chan struct{}, limits.Connections), closed: make(chan struct{}), open: map[netip.Prefix]int{},
	}
}

// Accept implements [net.Listener].
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		select {
		case l.slots <- struct{}{}:
		case <-l.closed:
			return nil, net.ErrClosed
		}
		conn, err := l.Listener.Accept()
		if err != nil {
			<-l.slots
			return nil, err
		}
		from := addressOf(conn)
		if !l.enter(from) {
			conn.Close()
			<-l.slots
			continue
		}
		return &boundedConn{Conn: conn, leave: sync.OnceFunc(func() { l.leave(from) })}, nil
	}
}

// Close implements [net.Listener].
func (l *boundedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

func (l *boundedListener) enter(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := peer(a)
	n, shared := network(a)
	if l.open[p] >= l.limits.ConnectionsPerAddress || shared && l.open[n] >= l.limits.ConnectionsPerNetwork {
		return false
	}
	l.open[p]++
	if shared {
		l.open[n]++
	}
	return true
}

func (l *boundedListener) leave(a netip.Addr) {
	l.mu.Lock()
	l.drop(peer(a))
	if n, shared := network(a); shared {
		l.drop(n)
	}
	l.mu.Unlock()
	<-l.slots
}

// drop counts one connection less; mu is held.
func (l *boundedListener) drop(p netip.Prefix) {
	if l.open[p]--; l.open[p] == 0 {
		delete(l.open, p)
	}
}

// addressOf returns where conn comes from, or the zero address.
func addressOf(conn net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr()
}

type boundedConn struct {
	net.Conn
	leave func()
}

// Close implements [net.Conn].
func (c *boundedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
