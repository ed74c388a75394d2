package metadata

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"imprint"
)

// Serve answers the guest's requests on ln, which it closes, until ctx ends; then
// it lets those under way finish and returns nil.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	return serve(ctx, &boundedListener{Listener: ln, limits: [2]int32{MaxConnections, MaxRootConnections}}, s, s.c.Logger)
}

// Serve answers Neutron's agents on ln, which it closes, until ctx ends. Wrap ln
// with [tls.NewListener] and [ProxyTLS] unless it is on a network of its own.
func (p *Proxy) Serve(ctx context.Context, ln net.Listener) error {
	return serve(ctx, &boundedListener{Listener: ln, limits: [2]int32{maxProxyConnections, maxProxyConnections}}, p, p.c.Logger)
}

func serve(ctx context.Context, ln net.Listener, h http.Handler, log *slog.Logger) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	base := context.WithoutCancel(ctx)
	srv := &http.Server{
		Handler:                      h,
		Protocols:                    &protocols,
		ReadHeaderTimeout:            headerTime,
		ReadTimeout:                  requestTime,
		WriteTimeout:                 replyTime,
		IdleTimeout:                  idleTime,
		MaxHeaderBytes:               MaxHeader,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelDebug), // what guests do wrong
		BaseContext:                  func(net.Listener) context.Context { return base },
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { // an idle guest is one goroutine
		defer close(stopped)
		grace, cancel := context.WithTimeout(base, shutdownTime)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(ln)
	if stop() {
		return err // ctx has not ended
	}
	<-stopped
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// boundedListener bounds open connections. Those from ports that any
// process may use are counted apart, so that a process cannot shut root out; one
// connection too many is closed at once.
type boundedListener struct {
	net.Listener
	limits [2]int32 // by whether root connected
	open   [2]atomic.Int32
}

// Accept implements [net.Listener].
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		root := 0
		if addr, ok := conn.RemoteAddr().(*net.TCPAddr); ok && imprint.PortReaders(uint16(addr.Port)).Within(imprint.GuestRoot) {
			root = 1
		}
		count := &l.open[root]
		if count.Add(1) > l.limits[root] {
			count.Add(-1)
			conn.Close()
			continue
		}
		return &boundedConn{Conn: conn, leave: sync.OnceFunc(func() { count.Add(-1) })}, nil
	}
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
