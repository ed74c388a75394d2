package triton

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"

	"imprint"
)

// Handler answers what a guest asks. One session calls it from one goroutine,
// one request after the other. A guest that missed a reply repeats its request
// under a new id, so that every method may be called again for the same thing.
//
// An error of kind [imprint.NotFound] becomes NOTFOUND. A [Failure] becomes
// FAILURE with its text; any other error becomes FAILURE with a fixed sentence,
// so that nothing of the host's inside reaches a guest by accident.
type Handler interface {
	// Get returns the value of key, at most [MaxValue] bytes.
	Get(ctx context.Context, key string) ([]byte, error)
	// Put sets key, replacing what was there.
	Put(ctx context.Context, key string, value []byte) error
	// Delete removes key; one that is not there is no error.
	Delete(ctx context.Context, key string) error
	// Keys returns the names that have a value.
	Keys(ctx context.Context) ([]string, error)
}

// AskAgain is how the sentence of a [Failure] ends if the same request may
// succeed later. FAILURE has no code that could say so.
const AskAgain = "ask again later"

// Failure is an error whose text, one sentence, is meant for the other end's operator.
type Failure string

func (f Failure) Error() string { return string(f) }

// maxFailure is the length limit of a failure's sentence in bytes.
const maxFailure = 512

// readOnly is the prefix of the keys that only the host sets and KEYS does not list.
const readOnly = "sdc:"

const (
	lineReset     = "" // an empty line
	lineInvalid   = "invalid command"
	lineNegotiate = "NEGOTIATE "
	lineV2        = "NEGOTIATE V2"
	lineV2OK      = "V2_OK"
)

const (
	// stale is after how long without a byte an unfinished line is given up: its
	// writer died or was firmware. The slowest line sends a byte every 10 ms.
	stale = time.Second
	// settle is how long after foreign text an empty line is foreign text too.
	// Every client listens for 100 ms before it sends the empty line.
	settle = 50 * time.Millisecond
	// readSize is the size of a session's read buffer.
	readSize = 4 << 10
)

// Options tunes [Serve]; the zero value is good for a guest.
type Options struct {
	Logger *slog.Logger // nil discards
	// Requests and Bytes limit what a session may ask a second, with a burst of
	// two seconds' worth. A guest beyond them is slowed down, never refused.
	// 0 is 100 requests and 256 KiB.
	Requests rate.Limit
	Bytes    rate.Limit
	// Timeout limits one call of the Handler; 0 is 30 s, which is less than the
	// 45 s after which mdata-client gives up waiting.
	Timeout time.Duration
	// Now is the clock for pauses in the stream; nil is [time.Now].
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Requests == 0 {
		o.Requests = 100
	}
	if o.Bytes == 0 {
		o.Bytes = 256 << 10
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// session is one stream's state; only Serve's goroutine touches it.
type session struct {
	Options
	conn     io.Writer
	handler  Handler
	requests *rate.Limiter
	bytes    *rate.Limiter
	lines    lines
	heard    time.Time // when the last byte came
	noise    time.Time // when the last foreign text came
	large    bool      // a value that does not fit was logged
	payload  []byte    // reused for decoding
	out      []byte    // reused for encoding
}

// Serve answers the guest on conn until the stream ends, which is no error, or
// ctx does, and closes conn. Closing conn must make a blocked Read or Write
// return.
func Serve(ctx context.Context, conn io.ReadWriteCloser, h Handler, o Options) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	o = o.withDefaults()
	s := &session{
		Options: o, conn: conn, handler: h,
		requests: rate.NewLimiter(o.Requests, burst(o.Requests, 1)),
		bytes:    rate.NewLimiter(o.Bytes, burst(o.Bytes, readSize)),
	}
	buf := make([]byte, readSize)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if err := s.receive(ctx, buf[:n]); err != nil {
				return ended(ctx, err)
			}
		}
		if err != nil {
			return ended(ctx, err)
		}
	}
}

func burst(per rate.Limit, least int) int {
	if per == rate.Inf {
		return 0 // unused: nothing waits
	}
	return max(int(2*per), least)
}

// ended returns why a session is over; nil if the other end hung up.
func ended(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrClosedPipe):
		return nil
	}
	return imprint.Errorf(imprint.Unavailable, "serve", "guest", "%w", err)
}

// receive takes what was read at one moment.
func (s *session) receive(ctx context.Context, chunk []byte) error {
	if err := s.bytes.WaitN(ctx, len(chunk)); err != nil {
		return err
	}
	now := s.Now()
	if now.Sub(s.heard) >= stale && len(s.lines.partial) > 0 {
		s.lines.drop()
		s.noise = s.heard
	}
	s.heard = now
	for {
		line, rest, ok := s.lines.next(chunk)
		if !ok {
			return nil
		}
		if err := s.line(ctx, line); err != nil {
			return err
		}
		chunk = rest
	}
}

// line answers one line, or not.
//
// What to say to a line that is no message is a choice. The specification says
// "invalid command" to any of them, for the sake of version 1 clients. But UEFI
// firmware and boot loaders use every serial port as their console: their text
// arrives here, and what is sent back are keystrokes to them. "invalid command"
// has a "c", which drops GRUB into its command line for ever. Stock clients
// (cloud-init, mdata-client) depend on the answer for the empty line and for
// NEGOTIATE only, so everything else is met with silence. For the same reason an
// empty line counts only as LF by itself: firmware ends lines in CR LF, and a
// line feed in the same breath as foreign text belongs to that text.
func (s *session) line(ctx context.Context, line []byte) error {
	switch {
	case string(line) == lineReset:
		if s.heard.Sub(s.noise) < settle {
			return nil
		}
		return s.say(ctx, lineInvalid)
	case bytes.HasPrefix(line, []byte(lineNegotiate)):
		if string(bytes.TrimSuffix(line, []byte("\r"))) == lineV2 {
			return s.say(ctx, lineV2OK)
		}
		return s.say(ctx, lineInvalid)
	}
	request, ok := DecodeFrame(line, s.payload)
	if !ok {
		// A frame that was damaged on the way gets no answer either: its sender
		// repeats it, whereas stock clients take an error for "no such key".
		if !bytes.HasPrefix(line, []byte(marker)) {
			s.noise = s.heard
		}
		s.Logger.DebugContext(ctx, "dropped a line", "bytes", len(line))
		return nil
	}
	s.payload = request.Payload[:0]
	if err := s.requests.Wait(ctx); err != nil {
		return err
	}
	return s.reply(ctx, s.answer(ctx, request))
}

func (s *session) say(ctx context.Context, text string) error {
	if err := s.requests.Wait(ctx); err != nil {
		return err
	}
	_, err := io.WriteString(s.conn, text+"\n")
	return err
}

func (s *session) reply(ctx context.Context, f Frame) error {
	out, err := AppendFrame(s.out[:0], f)
	if err != nil {
		level := slog.LevelDebug // from the second time on: a guest must not fill the log
		if !s.large {
			s.large, level = true, slog.LevelWarn
		}
		s.Logger.Log(ctx, level, "reply does not fit a frame", "bytes", len(f.Payload))
		out, err = AppendFrame(s.out[:0], Frame{ID: f.ID, Code: Failed, Payload: []byte("the value is too large for this channel")})
		if err != nil {
			return err
		}
	}
	_, err = s.conn.Write(out)
	clear(out) // it may have been a private value
	s.out = out
	return err
}

// answer runs one request and turns its outcome into a reply.
func (s *session) answer(ctx context.Context, request Frame) Frame {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	value, err := s.run(ctx, request)
	reply := Frame{ID: request.ID, Code: Success, Payload: value}
	if err == nil {
		return reply
	}
	if imprint.KindOf(err) == imprint.NotFound {
		reply.Code, reply.Payload = NotFound, nil
		return reply
	}
	sentence := "the host could not do this"
	var failure Failure
	if errors.As(err, &failure) {
		sentence = string(failure)
	} else {
		s.Logger.ErrorContext(ctx, "request went wrong", "code", request.Code, "error", err)
	}
	reply.Code, reply.Payload = Failed, []byte(sentence[:min(len(sentence), maxFailure)])
	return reply
}

func (s *session) run(ctx context.Context, request Frame) ([]byte, error) {
	switch request.Code {
	case Get:
		key := string(request.Payload)
		if err := checkKey(key); err != nil {
			return nil, err
		}
		return s.handler.Get(ctx, key)
	case Put:
		key, value, ok := ParsePut(request.Payload)
		if !ok {
			return nil, Failure("a PUT carries a key and a value, each in base64")
		}
		if err := checkWritable(key); err != nil {
			return nil, err
		}
		return nil, s.handler.Put(ctx, key, value)
	case Delete:
		key := string(request.Payload)
		if err := checkWritable(key); err != nil {
			return nil, err
		}
		if err := s.handler.Delete(ctx, key); err != nil && imprint.KindOf(err) != imprint.NotFound {
			return nil, err
		}
		return nil, nil
	case Keys:
		keys, err := s.handler.Keys(ctx)
		if err != nil {
			return nil, err
		}
		keys = slices.DeleteFunc(keys, func(k string) bool { return strings.HasPrefix(k, readOnly) })
		return []byte(strings.Join(keys, "\n")), nil
	}
	return nil, Failure("this command is not known; GET, PUT, DELETE and KEYS are")
}

func checkWritable(key string) error {
	if strings.HasPrefix(key, readOnly) {
		return Failure("keys that start with " + readOnly + " are read-only")
	}
	return checkKey(key)
}

// checkKey refuses keys that KEYS could not list or a terminal should not show.
func checkKey(key string) error {
	bad := func(r rune) bool { return r <= ' ' || r == 0x7f }
	if key == "" || len(key) > MaxKey || !utf8.ValidString(key) || strings.ContainsFunc(key, bad) {
		return Failure("a key has 1 to 256 bytes of UTF-8 without spaces and control characters")
	}
	return nil
}
