package triton

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"imprint"
)

// Opener opens the stream to the host. A [Client] calls it at first use and
// whenever the stream has ended, as it does while the host restarts. An error of
// kind [imprint.Unavailable] means that it is worth trying again; any other ends
// the request. Closing the stream must make a blocked Read or Write return.
type Opener func(ctx context.Context) (io.ReadWriteCloser, error)

// Once returns an Opener for a stream that cannot be opened again.
func Once(conn io.ReadWriteCloser) Opener {
	used := false
	return func(context.Context) (io.ReadWriteCloser, error) {
		if used {
			return nil, imprint.Errorf(imprint.Conflict, "open", "stream", "it has ended and cannot be opened again")
		}
		used = true
		return conn, nil
	}
}

// ClientOptions tunes a [Client]; the zero value is good for a serial port.
type ClientOptions struct {
	Logger *slog.Logger // nil discards
	// Quiet is how long nothing may come before the line counts as flushed; 0 is 100 ms.
	Quiet time.Duration
	// Hello is how long to wait for the answer to a reset or a negotiation; 0 is 2 s.
	Hello time.Duration
	// Reply is how long a reply may keep silent before the request is sent
	// again; 0 is 8 s. A slow line is not silent, and a host that thinks for
	// longer finds the request repeated, which costs nothing.
	Reply time.Duration
	// Pause is how long to wait before opening the stream again; it doubles up
	// to [maxPause] while that fails. 0 is 100 ms.
	Pause time.Duration
}

// maxReply limits for how long a line that is not silent may keep from replying,
// in multiples of [ClientOptions.Reply].
const maxReply = 5

// maxPause limits the pause between two attempts to open the stream.
const maxPause = time.Second

func (o ClientOptions) withDefaults() ClientOptions {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&o.Quiet, 100 * time.Millisecond}, {&o.Hello, 2 * time.Second},
		{&o.Reply, 8 * time.Second}, {&o.Pause, 100 * time.Millisecond},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	return o
}

// Client asks the host. It keeps asking until there is an answer or the context
// ends: a lost or damaged reply, a silent host and a stream that ends all lead
// to a new reset, a new negotiation and the same request under a new id.
// Its methods may be called from several goroutines; requests take turns.
type Client struct {
	open Opener
	o    ClientOptions
	turn chan struct{} // holds one token; its holder owns the fields below

	link  *link // nil while there is no stream
	ready bool  // version 2 was negotiated on link
	id    uint32
	buf   []byte // reused for encoding
}

// NewClient returns a client of the host that open reaches.
func NewClient(open Opener, o ClientOptions) *Client {
	c := &Client{open: open, o: o.withDefaults(), turn: make(chan struct{}, 1), id: rand.Uint32()}
	c.turn <- struct{}{}
	return c
}

// Get returns the value of key. It fails with kind [imprint.Invalid] if key is
// not one, [imprint.NotFound] if the host has no value for it, [imprint.Denied] if the host refuses, with the host's sentence
// as a [Failure] in the chain, [imprint.Unavailable] with the context's error if
// that ends first, and with the Opener's error if that is final.
func (c *Client) Get(ctx context.Context, key string) ([]byte, error) {
	return c.do(ctx, Get, key, []byte(key))
}

// Put sets key. Besides [Client.Get]'s errors it fails with kind
// [imprint.Exhausted] if key and value exceed [MaxPut].
func (c *Client) Put(ctx context.Context, key string, value []byte) error {
	if len(key)+len(value) > MaxPut {
		return imprint.Errorf(imprint.Exhausted, "put", key, "%d bytes with the key; the limit is %d", len(key)+len(value), MaxPut)
	}
	_, err := c.do(ctx, Put, key, AppendPut(nil, key, value))
	return err
}

// Delete removes key; it is no error if there is none.
func (c *Client) Delete(ctx context.Context, key string) error {
	_, err := c.do(ctx, Delete, key, []byte(key))
	return err
}

// Keys returns the names of the keys that have a value, without those that only
// the host sets.
func (c *Client) Keys(ctx context.Context) ([]string, error) {
	value, err := c.do(ctx, Keys, "", nil)
	if err != nil || len(value) == 0 {
		return nil, err
	}
	return strings.Split(string(value), "\n"), nil
}

// Close ends the stream, if there is one. The client can be used again.
func (c *Client) Close() error {
	<-c.turn
	defer func() { c.turn <- struct{}{} }()
	c.hangUp()
	return nil
}

func (c *Client) do(ctx context.Context, code Code, key string, payload []byte) ([]byte, error) {
	op := strings.ToLower(string(code))
	if err := checkKey(key); err != nil && code != Keys {
		return nil, imprint.Errorf(imprint.Invalid, op, key, "%w", err)
	}
	select {
	case <-c.turn:
		defer func() { c.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, imprint.Errorf(imprint.Unavailable, op, key, "%w", context.Cause(ctx))
	}
	pause := c.o.Pause
	for {
		reply, err := c.attempt(ctx, code, payload)
		if err == nil {
			return outcome(reply, op, key)
		}
		c.ready = false // whatever comes now belongs to an earlier request
		var fatal *openError
		switch {
		case ctx.Err() != nil:
			return nil, imprint.Errorf(imprint.Unavailable, op, key, "the host did not answer: %w", context.Cause(ctx))
		case errors.As(err, &fatal) && imprint.KindOf(fatal.err) != imprint.Unavailable:
			return nil, fatal.err
		}
		c.o.Logger.DebugContext(ctx, "asking the host again", "code", code, "key", key, "because", err)
		if errors.Is(err, errSilent) {
			continue
		}
		c.hangUp()
		select {
		case <-time.After(pause):
			pause = min(2*pause, maxPause)
		case <-ctx.Done():
		}
	}
}

// openError is an [Opener]'s failure.
type openError struct{ err error }

func (e *openError) Error() string { return "open the stream: " + e.err.Error() }

// attempt sends the request once, on a stream that it makes ready if need be.
func (c *Client) attempt(ctx context.Context, code Code, payload []byte) (Frame, error) {
	if c.link == nil {
		conn, err := c.open(ctx)
		if err != nil {
			return Frame{}, &openError{err}
		}
		c.link = newLink(conn)
	}
	if !c.ready {
		if err := c.hello(ctx); err != nil {
			return Frame{}, err
		}
		c.ready = true
	}
	c.id++
	line, err := AppendFrame(c.buf[:0], Frame{ID: c.id, Code: code, Payload: payload})
	if err != nil {
		return Frame{}, err
	}
	c.buf = line
	err = c.link.send(ctx, line, c.o.Reply)
	clear(line) // a request may hold a private value, too
	if err != nil {
		return Frame{}, err
	}
	silence := time.NewTimer(c.o.Reply)
	defer silence.Stop()
	for {
		line, err := c.link.line(ctx, silence, c.o.Reply)
		if err != nil {
			return Frame{}, err
		}
		reply, ok := DecodeFrame(line, nil)
		switch {
		case ok && reply.ID == c.id:
			return reply, nil
		case !ok && bytes.Contains(line, []byte(marker)):
			return Frame{}, errSilent // the reply, damaged: nothing else will come
		}
	}
}

// hello brings both ends to the start of a line and agrees on version 2.
func (c *Client) hello(ctx context.Context) error {
	if err := c.link.flush(ctx, c.o.Quiet); err != nil {
		return err
	}
	for _, step := range [...]struct{ say, hear string }{
		{lineReset, lineInvalid},
		{lineV2, lineV2OK},
	} {
		if err := c.link.send(ctx, []byte(step.say+"\n"), c.o.Hello); err != nil {
			return err
		}
		if err := c.link.expect(ctx, step.hear, c.o.Hello); err != nil {
			return err
		}
	}
	return nil
}

// hangUp closes the stream; the next attempt opens it again.
func (c *Client) hangUp() {
	if c.link != nil {
		c.link.close()
		c.link, c.ready = nil, false
	}
}

func outcome(reply Frame, op, key string) ([]byte, error) {
	switch reply.Code {
	case Success:
		return reply.Payload, nil
	case NotFound:
		return nil, imprint.Errorf(imprint.NotFound, op, key, "the host has no such key")
	}
	sentence := "the host refused without saying why"
	if len(reply.Payload) > 0 {
		sentence = strings.ToValidUTF8(string(reply.Payload), "?")
	}
	return nil, imprint.Errorf(imprint.Denied, op, key, "%w", Failure(sentence))
}
