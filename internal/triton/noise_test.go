package triton_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"imprint"
	"imprint/internal/triton"
)

// noisy damages what passes through a stream, as its plan says: it cuts bytes
// out, doubles them, flips bits in them and puts noise between them. After a
// while the line is clean.
type noisy struct {
	io.ReadWriteCloser
	plan *plan
}

type damage struct {
	At    int // bytes that pass unharmed before it
	What  int // 0 cut, 1 double, 2 flip, 3 insert, 4 end the stream
	Count int
	Text  []byte
}

// plan is the damage that is still to be done, both ways.
type plan struct{ up, down []damage }

func (p *plan) apply(list *[]damage, b []byte) (out []byte, end bool) {
	for len(*list) > 0 {
		d := &(*list)[0]
		if d.At >= len(b) {
			d.At -= len(b)
			break
		}
		out, b = append(out, b[:d.At]...), b[d.At:]
		n := min(d.Count, len(b))
		*list = (*list)[1:]
		switch d.What {
		case 0:
			b = b[n:]
		case 1:
			out = append(out, b[:n]...)
		case 2:
			b = bytes.Clone(b)
			b[0] ^= byte(d.Count)
		case 3:
			out = append(out, d.Text...)
		case 4:
			return out, true
		}
	}
	return append(out, b...), false
}

func (n *noisy) Write(b []byte) (int, error) {
	out, end := n.plan.apply(&n.plan.up, b)
	if len(out) > 0 {
		if _, err := n.ReadWriteCloser.Write(out); err != nil {
			return 0, err
		}
	}
	if end {
		n.Close()
	}
	return len(b), nil
}

func (n *noisy) Read(b []byte) (int, error) {
	for {
		m, err := n.ReadWriteCloser.Read(b[:len(b)/8])
		out, end := n.plan.apply(&n.plan.down, b[:m])
		m = copy(b, bytes.Clone(out))
		if end {
			n.Close()
			return m, io.EOF
		}
		if m > 0 || err != nil {
			return m, err
		}
	}
}

func drawDamage(t *rapid.T, label string) []damage {
	noise := rapid.OneOf(
		rapid.SliceOfN(rapid.Byte(), 0, 100),
		rapid.Map(rapid.SampledFrom([]string{
			ovmf, "\n", "\n\n\n", "\r\n", "V2 ", "V2 17 203d705b 00000001 NOTFOUND\n", vector + "\n",
			"invalid command\n", "V2_OK\n", "NEGOTIATE V2\n", "FAILURE\n", "NOTFOUND\n", "login: ",
		}), func(s string) []byte { return []byte(s) }),
	)
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) damage {
		return damage{
			At:    rapid.IntRange(0, 200).Draw(t, "at"),
			What:  rapid.IntRange(0, 4).Draw(t, "what"),
			Count: rapid.IntRange(1, 60).Draw(t, "count"),
			Text:  noise.Draw(t, "text"),
		}
	}), 0, 12).Draw(t, label)
}

// TestNoiseNeverMakesAWrongValue damages the line between a client and a server
// at random. Every request must end with the right value: the noise is finite.
func TestNoiseNeverMakesAWrongValue(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		p := &plan{up: drawDamage(rt, "up"), down: drawDamage(rt, "down")}
		var failure error
		synctest.Test(t, func(t *testing.T) { failure = exchange(t, p) })
		if failure != nil {
			rt.Fatal(failure)
		}
	})
}

func exchange(t *testing.T, p *plan) error {
	m := newMemory("name", "web-1", "long", string(bytes.Repeat([]byte("0123456789abcdef"), 700)))
	h := &host{t: t, h: m, wrap: func(s io.ReadWriteCloser) io.ReadWriteCloser { return &noisy{s, p} }}
	c := triton.NewClient(h.open, triton.ClientOptions{})
	defer h.served.Wait()
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	for i := range 4 {
		for key, value := range map[string]string{"name": "web-1", "long": string(m.values["long"])} {
			if got, err := c.Get(ctx, key); err != nil || string(got) != value {
				return fmt.Errorf("get %s: %d bytes, %w", key, len(got), errors.Join(err, errors.New("wrong")))
			}
		}
		if _, err := c.Get(ctx, "nope"); imprint.KindOf(err) != imprint.NotFound {
			return fmt.Errorf("get nope: %w", err)
		}
		if err := c.Put(ctx, "put", fmt.Append(nil, i)); err != nil {
			return err
		}
		if got, err := c.Get(ctx, "put"); err != nil || string(got) != fmt.Sprint(i) {
			return fmt.Errorf("get put: %q, %w", got, err)
		}
	}
	return nil
}

// FuzzClient lets the host say anything: the client must not return a value that
// is not in a whole reply to its own request.
func FuzzClient(f *testing.F) {
	f.Add([]byte("invalid command\nV2_OK\n" + vector + "\n"))
	f.Add([]byte("\n\nFAILURE\ninvalid command\ninvalid command\nV2_OK\nV2 \n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		synctest.Test(t, func(t *testing.T) {
			c := triton.NewClient(triton.Once(&parrot{said: said, closed: make(chan struct{})}), triton.ClientOptions{})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			// The client's first request id is random, so no corpus can answer it.
			if v, err := c.Get(ctx, "key"); err == nil {
				t.Errorf("got %q", v)
			}
			c.Close()
		})
	})
}

// parrot says its piece a little at a time, whatever it hears.
type parrot struct {
	said   []byte
	closed chan struct{}
}

func (p *parrot) Read(b []byte) (int, error) {
	select {
	case <-time.After(50 * time.Millisecond):
	case <-p.closed:
		return 0, io.EOF
	}
	if len(p.said) == 0 {
		<-p.closed
		return 0, io.EOF
	}
	n := copy(b, p.said[:min(len(p.said), 7)])
	p.said = p.said[n:]
	return n, nil
}

func (p *parrot) Write(b []byte) (int, error) { return len(b), nil }

func (p *parrot) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}
