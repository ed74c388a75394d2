package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"imprint"
	"imprint/internal/peercred"
)

// Timeouts and limits of the listeners.
const (
	headerTimeout   = 5 * time.Second
	writeTimeout    = time.Minute // for a whole answer; streams extend it as they go
	idleTimeout     = 2 * time.Minute
	maxHeader       = 16 << 10
	shutdownTimeout = 10 * time.Second
	maxSocketPath   = 107 // bytes; Linux's sun_path less its final zero
)

// ListenUnix makes the control socket: for root and the server's group, by its
// mode as well as by the peer's credentials. A socket that nobody listens on any
// more is replaced. Kinds: Conflict if a server listens on it or path is
// something else than a socket; Invalid if path is too long; Denied.
func (s *Server) ListenUnix(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, imprint.Errorf(imprint.Invalid, "listen on", path, "a socket's path has at most %d bytes", maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, listenError(path, err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, listenError(path, err)
	}
	// Until the mode is set the peer's credentials alone decide, which is enough.
	mode := fs.FileMode(0o600)
	if s.access.group != noGroup {
		mode, err = 0o660, os.Chown(path, -1, s.access.group)
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		l.Close()
		return nil, listenError(path, err)
	}
	return l, nil
}

// removeStale makes room at path if a socket is there that nobody listens on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return listenError(path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return imprint.Errorf(imprint.Conflict, "listen on", path, "it exists and is not a socket").
			WithHint("move it away, or choose another path with --socket")
	}
	c, err := net.DialTimeout("unix", path, headerTimeout)
	if err == nil {
		c.Close()
		return imprint.Errorf(imprint.Conflict, "listen on", path, "another server listens there").
			WithHint("stop it, or choose another path with --socket")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return listenError(path, err)
	}
	if err := os.Remove(path); err != nil {
		return listenError(path, err)
	}
	return nil
}

func listenError(on string, err error) error {
	var pe *fs.PathError
	var oe *net.OpError
	switch {
	case errors.As(err, &pe):
		err = pe.Err
	case errors.As(err, &oe):
		err = oe.Err
	}
	e := imprint.Errorf(imprint.Unavailable, "listen on", on, "%w", err)
	switch {
	case errors.Is(err, os.ErrPermission):
		e.Kind = imprint.Denied
		return e.WithHint("run the server as root, or choose a place that it may write to")
	case errors.Is(err, syscall.EADDRINUSE):
		e.Kind = imprint.Conflict
		return e.WithHint("stop the program that listens there, or choose another address")
	}
	return e
}

// ListenTCP listens on address. Kinds: Conflict if it is taken, Denied, Unavailable.
func ListenTCP(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, listenError(address, err)
	}
	return l, nil
}

// TLSConfig returns the configuration of the control API over TCP: no connection
// without a client certificate that clientCAs signed.
func TLSConfig(cert tls.Certificate, clientCAs *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    clientCAs,
	}
}

// Listeners are where a server is reached; nil ones are left out.
type Listeners struct {
	Unix     net.Listener // of ListenUnix
	TLS      net.Listener // plain TCP; TLS is put on it with TLSConfig
	TLSConf  *tls.Config  // of TLSConfig
	Operator net.Listener // metrics and health, in the clear: loopback
}

// Serve answers on the listeners until ctx is done or one of them fails, then
// lets running requests finish for a while, ends the streams and closes all
// listeners. It returns nil after ctx was done. It is called once.
func (s *Server) Serve(ctx context.Context, l Listeners) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer s.drain()
	var running sync.WaitGroup
	failures := make(chan error, 3)
	start := func(on net.Listener, h http.Handler, conf *tls.Config) {
		if on == nil {
			return
		}
		hs := s.httpServer(h, conf)
		running.Go(func() {
			serve := func() error { return hs.Serve(on) }
			if conf != nil {
				serve = func() error { return hs.ServeTLS(on, "", "") }
			}
			if err := serve(); !errors.Is(err, http.ErrServerClosed) {
				failures <- listenError(on.Addr().String(), err)
				cancel()
			}
		})
		running.Go(func() {
			<-ctx.Done()
			s.drain()
			deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
			defer cancel()
			if hs.Shutdown(deadline) != nil {
				hs.Close()
			}
		})
	}
	start(l.Unix, s.control, nil)
	start(l.TLS, s.control, l.TLSConf)
	start(l.Operator, s.operator, nil)
	<-ctx.Done()
	running.Wait()
	select {
	case err := <-failures:
		return err
	default:
		return nil
	}
}

func (s *Server) httpServer(h http.Handler, conf *tls.Config) *http.Server {
	return &http.Server{
		Handler:           h,
		TLSConfig:         conf,
		ReadHeaderTimeout: headerTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       s.connContext,
		ErrorLog:          slog.NewLogLogger(s.Logger.Handler(), slog.LevelWarn),
	}
}

// connContext notes who is at the other end of a unix socket.
func (s *Server) connContext(ctx context.Context, c net.Conn) context.Context {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	p, err := peercred.Of(uc)
	if err != nil {
		s.Logger.LogAttrs(ctx, slog.LevelWarn, "peer credentials are not available", slog.Any("error", err))
		return ctx
	}
	return withCaller(ctx, caller{name: fmt.Sprintf("uid %d", p.UID), role: s.access.ofPeer(p, os.Geteuid()), local: true})
}
