package triton

import (
	"context"
	"errors"
	"io"
	"time"
)

// maxFlush limits how long a reset waits on a line that is never quiet.
const maxFlush = 3 * time.Second

// errSilent means that the stream works but the exchange has to start again
// with a reset.
var errSilent = errors.New("no usable answer")

// link is a client's open stream. A goroutine reads it, so that waiting can have
// a deadline on any kind of stream; everything else belongs to the client.
type link struct {
	conn   io.ReadWriteCloser
	chunks chan []byte   // closed when reading ends
	quit   chan struct{} // closed to stop the reader
	err    error         // why reading ended; valid once chunks is closed

	lines lines
	rest  []byte // received, not yet cut into lines
}

func newLink(conn io.ReadWriteCloser) *link {
	l := &link{conn: conn, chunks: make(chan []byte, 16), quit: make(chan struct{})}
	go l.read()
	return l
}

func (l *link) read() {
	defer close(l.chunks)
	buf := make([]byte, readSize)
	for {
		n, err := l.conn.Read(buf)
		if n > 0 {
			select {
			case l.chunks <- append([]byte(nil), buf[:n]...):
			case <-l.quit:
				return
			}
		}
		if err != nil {
			l.err = err
			return
		}
	}
}

// close ends the stream and waits for the reader.
func (l *link) close() {
	close(l.quit)
	l.conn.Close()
	for range l.chunks {
	}
}

// send writes b. If that takes longer than limit, the stream is of no more use
// and is closed.
func (l *link) send(ctx context.Context, b []byte, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.conn.Close() })
	defer stop()
	_, err := l.conn.Write(b)
	return err
}

// line returns the next line; errSilent after deadline, which whatever arrives
// puts off to extend from then (0: not at all), within reason.
func (l *link) line(ctx context.Context, deadline *time.Timer, extend time.Duration) ([]byte, error) {
	begun := time.Now()
	for {
		line, rest, ok := l.lines.next(l.rest)
		l.rest = rest
		if ok {
			return line, nil
		}
		select {
		case chunk, open := <-l.chunks:
			if !open {
				return nil, l.err
			}
			l.rest = chunk
			if time.Since(begun) < maxReply*extend {
				deadline.Reset(extend)
			}
		case <-deadline.C:
			return nil, errSilent
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// expect waits for exactly the line want and ignores others: late answers to
// earlier questions, echoes, somebody else's messages.
func (l *link) expect(ctx context.Context, want string, limit time.Duration) error {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for {
		line, err := l.line(ctx, deadline, 0)
		if err != nil || string(line) == want {
			return err
		}
	}
}

// flush drops what is received until nothing came for the time of quiet.
func (l *link) flush(ctx context.Context, quiet time.Duration) error {
	l.lines.drop()
	l.rest = nil
	limit := time.NewTimer(maxFlush)
	defer limit.Stop()
	for {
		select {
		case _, open := <-l.chunks:
			if !open {
				return l.err
			}
		case <-time.After(quiet):
			return nil
		case <-limit.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
