package signer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"log/slog"
	"net"
	"sync"
	"time"

	"imprint"
)

// Limits of a server.
const (
	maxConns     = 64              // connections at a time
	idleTimeout  = 5 * time.Minute // until the next request
	writeTimeout = 5 * time.Second // to send a reply
)

// Config configures [Serve].
type Config struct {
	Keys   []crypto.Signer // ECDSA; at most 64
	GID    int             // a group whose members may connect; negative is none
	Logger *slog.Logger
}

// Serve answers requests that come over l until ctx ends, and returns when all
// connections are closed; it closes l. It fails with kind [imprint.Invalid] if
// cfg's keys cannot be served, and [imprint.Unavailable] if l fails.
func Serve(ctx context.Context, l *net.UnixListener, cfg Config) error {
	defer l.Close()
	s := &server{keys: make(map[imprint.KeyID]crypto.Signer), gid: cfg.GID, logger: cfg.Logger, conns: make(map[*net.UnixConn]bool)}
	if len(cfg.Keys) == 0 || len(cfg.Keys) > maxKeys {
		return imprint.Errorf(imprint.Invalid, "serve", "keys", "%d; there must be 1 to %d", len(cfg.Keys), maxKeys)
	}
	for _, key := range cfg.Keys {
		if _, ok := key.Public().(*ecdsa.PublicKey); !ok {
			return imprint.Errorf(imprint.Invalid, "serve", "key", "a %T; the signer serves ECDSA keys", key.Public())
		}
		spki, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return imprint.Errorf(imprint.Invalid, "serve", "key", "%w", err)
		}
		if _, dup := s.keys[imprint.KeyIDOf(spki)]; !dup {
			s.list = appendKey(s.list, spki)
		}
		s.keys[imprint.KeyIDOf(spki)] = key
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	err := s.accept(ctx, l)
	s.closeAll()
	s.done.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return imprint.Errorf(imprint.Unavailable, "serve", "signer socket", "%w", err)
}

type server struct {
	keys   map[imprint.KeyID]crypto.Signer // read only
	list   []byte                          // the reply to opList; read only
	gid    int
	logger *slog.Logger
	done   sync.WaitGroup // of connections

	mu     sync.Mutex
	conns  map[*net.UnixConn]bool // guarded by mu
	closed bool                   // guarded by mu
}

func (s *server) accept(ctx context.Context, l *net.UnixListener) error {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		if err := admit(conn, s.gid); err != nil {
			s.logger.WarnContext(ctx, "peer refused", "error", err)
			conn.Close()
			continue
		}
		if !s.keep(conn) {
			s.logger.WarnContext(ctx, "connection refused: too many", "limit", maxConns)
			conn.Close()
			continue
		}
		s.done.Go(func() {
			defer s.drop(conn)
			if err := s.serve(conn); err != nil {
				s.logger.WarnContext(ctx, "connection ended", "error", err)
			}
		})
	}
}

// keep notes a connection unless there are too many.
func (s *server) keep(conn *net.UnixConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.conns) >= maxConns {
		return false
	}
	s.conns[conn] = true
	return true
}

func (s *server) drop(conn *net.UnixConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
	conn.Close()
}

func (s *server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
}

// serve answers the requests of one connection, one after the other. That the
// client left, fell silent or was cut off at the end is no error.
func (s *server) serve(conn net.Conn) error {
	for {
		if err := conn.SetReadDeadline(time.Now().Add(idleTimeout)); err != nil {
			return nil
		}
		frame, err := readFrame(conn, maxRequest)
		if err != nil && imprint.KindOf(err) != imprint.Invalid {
			return nil
		}
		var answer reply
		if err == nil {
			answer, err = s.answer(frame)
		} else {
			answer = reply{statusBadRequest, []byte(err.Error())}
		}
		if e := conn.SetWriteDeadline(time.Now().Add(writeTimeout)); e != nil {
			return nil
		}
		if _, e := conn.Write(answer.append(nil)); e != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// answer returns the reply to one request. With an error the connection ends
// after the reply.
func (s *server) answer(frame []byte) (reply, error) {
	r, err := parseRequest(frame)
	if err != nil {
		return reply{statusBadRequest, []byte(err.Error())}, err
	}
	if r.Op == opList {
		return reply{statusOK, s.list}, nil
	}
	key, ok := s.keys[r.Key]
	if !ok {
		return reply{statusUnknownKey, []byte("no key " + string(r.Key))}, nil
	}
	signature, err := key.Sign(nil, r.Digest, r.Hash) // no random source: RFC 6979
	if err != nil {
		s.logger.Error("key does not sign", "key", r.Key, "error", err)
		return reply{statusFailed, []byte("the signer could not sign; its log says why")}, nil
	}
	s.logger.Debug("signed", "key", r.Key)
	return reply{statusOK, signature}, nil
}
