package signer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"imprint"
)

// Limits of a client.
const (
	// callTimeout bounds one request, its connection included; a signature takes
	// well under a millisecond.
	callTimeout = 5 * time.Second
	// maxCalls is how many requests of one client are under way at a time, each on
	// a connection; the others wait. It leaves the signer room for other clients.
	maxCalls = 16
)

// Client uses the keys of a signer. It is safe for concurrent use: each request
// has a connection for itself, taken from those that are idle, and a connection
// that the signer closed meanwhile is replaced.
type Client struct {
	path  string
	calls chan struct{} // has one element for each request under way

	mu     sync.Mutex
	idle   []net.Conn // guarded by mu
	closed bool       // guarded by mu
}

// NewClient returns a client of the signer at path. It does not connect yet.
func NewClient(path string) *Client {
	return &Client{path: path, calls: make(chan struct{}, maxCalls)}
}

// Close closes the idle connections; requests fail from now on.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, conn := range c.idle {
		conn.Close()
	}
	c.idle = nil
	return nil
}

// Keys asks for the keys that the signer holds. It fails with kind
// [imprint.Unavailable] if there is no signer, [imprint.Denied] if this user may
// not connect, and [imprint.Invalid] if what answers is no signer.
func (c *Client) Keys(ctx context.Context) ([]*Key, error) {
	r, err := c.call(ctx, request{Op: opList})
	if err != nil {
		return nil, err
	}
	list, err := parseKeys(r)
	if err != nil {
		return nil, err
	}
	keys := make([]*Key, 0, len(list))
	for _, spki := range list {
		pub, err := x509.ParsePKIXPublicKey(spki)
		if err != nil {
			return nil, imprint.Errorf(imprint.Invalid, "list", "signer's keys", "%w", err)
		}
		ec, ok := pub.(*ecdsa.PublicKey)
		if !ok {
			return nil, imprint.Errorf(imprint.Invalid, "list", "signer's keys", "a %T", pub)
		}
		keys = append(keys, &Key{client: c, id: imprint.KeyIDOf(spki), public: ec})
	}
	return keys, nil
}

// Key returns the signer's key for pub, without asking it whether it has it: the
// server can start while the signer is away, and its first signature will tell.
func (c *Client) Key(pub *ecdsa.PublicKey) (*Key, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "use", "signer key", "%w", err)
	}
	return &Key{client: c, id: imprint.KeyIDOf(spki), public: pub}, nil
}

// Key is a key that another process holds. It implements [crypto.Signer].
type Key struct {
	client *Client
	id     imprint.KeyID
	public *ecdsa.PublicKey
}

// ID returns the key's identifier.
func (k *Key) ID() imprint.KeyID { return k.id }

// Public returns the [*ecdsa.PublicKey].
func (k *Key) Public() crypto.PublicKey { return k.public }

// Sign signs a SHA-256, SHA-384 or SHA-512 digest, deterministically: the random
// source is not used. It takes at most five seconds and fails as [Client.Keys]
// does, and with kind [imprint.NotFound] if the signer does not hold the key.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.client.call(context.Background(), request{Op: opSign, Key: k.id, Hash: opts.HashFunc(), Digest: digest})
}

// call sends one request and returns the body of its reply. A request may be
// sent twice: asking again gives the same answer.
func (c *Client) call(ctx context.Context, r request) ([]byte, error) {
	frame, err := r.append(nil)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	select {
	case c.calls <- struct{}{}:
		defer func() { <-c.calls }()
	case <-ctx.Done():
		return nil, c.unavailable(ctx.Err())
	}
	for {
		conn, reused, err := c.take(ctx)
		if err != nil {
			return nil, c.unavailable(err)
		}
		body, err := exchange(ctx, conn, frame)
		if err != nil {
			conn.Close()
			if reused && ctx.Err() == nil && imprint.KindOf(err) != imprint.Invalid {
				continue // the signer was restarted, or closed the connection as idle
			}
			return nil, c.unavailable(err)
		}
		answer, err := parseReply(body)
		if err != nil {
			conn.Close()
			return nil, err
		}
		c.put(conn, answer.Status)
		return result(answer)
	}
}

// result is the body of a reply, or the error that it stands for.
func result(r reply) ([]byte, error) {
	switch r.Status {
	case statusOK:
		return r.Body, nil
	case statusUnknownKey:
		return nil, imprint.Errorf(imprint.NotFound, "sign", "digest", "the signer says: %q", r.Body).
			WithHint("give the signer this tenant's keys and start it again")
	case statusBadRequest:
		return nil, imprint.Errorf(imprint.Invalid, "sign", "digest", "the signer says: %q", r.Body)
	}
	return nil, imprint.Errorf(imprint.Unavailable, "sign", "digest", "the signer says: %q", r.Body)
}

// exchange writes a request and reads the reply's frame.
func exchange(ctx context.Context, conn net.Conn, frame []byte) ([]byte, error) {
	deadline, _ := ctx.Deadline() // call has set one
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	_, err := conn.Write(frame)
	var body []byte
	if err == nil {
		body, err = readFrame(conn, maxReply)
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return body, err
}

// take returns an idle connection, or a new one.
func (c *Client) take(ctx context.Context) (conn net.Conn, reused bool, err error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, false, net.ErrClosed
	}
	if n := len(c.idle); n > 0 {
		conn, c.idle = c.idle[n-1], c.idle[:n-1]
		c.mu.Unlock()
		return conn, true, nil
	}
	c.mu.Unlock()
	conn, err = (&net.Dialer{}).DialContext(ctx, "unix", c.path)
	return conn, false, err
}

// put keeps a connection for the next request. After a bad request the signer
// closes it.
func (c *Client) put(conn net.Conn, s status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || s == statusBadRequest {
		conn.Close()
		return
	}
	c.idle = append(c.idle, conn)
}

// unavailable says what is wrong with the connection to the signer, and the remedy.
func (c *Client) unavailable(err error) error {
	operand := "signer at " + c.path
	switch {
	case imprint.KindOf(err) == imprint.Invalid:
		return imprint.Errorf(imprint.Invalid, "ask", operand, "%w", err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return imprint.Errorf(imprint.Unavailable, "ask", operand, "nobody serves this socket").
			WithHint("start it with: imprint sign --keys DIR --listen %s", c.path)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return imprint.Errorf(imprint.Unavailable, "ask", operand, "no answer within %s", callTimeout).
			WithHint("see whether the signer is overloaded or stopped")
	case errors.Is(err, fs.ErrPermission):
		return imprint.Errorf(imprint.Denied, "ask", operand, "%w", err).
			WithHint("run the server as the signer's user, or give its group to: imprint sign --group")
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return imprint.Errorf(imprint.Unavailable, "ask", operand, "it closed the connection").
			WithHint("see the signer's log: this user may not be allowed, or there are too many connections")
	}
	return imprint.Errorf(imprint.Unavailable, "ask", operand, "%w", err)
}
