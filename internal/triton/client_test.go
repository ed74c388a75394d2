package triton_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imprint"
	"imprint/internal/triton"
)

// host serves h on new pipes, one after the other, like a socket does.
type host struct {
	t       *testing.T
	h       triton.Handler
	wrap    func(io.ReadWriteCloser) io.ReadWriteCloser // the guest's end
	opened  int
	current io.Closer // the host's end
	served  sync.WaitGroup
}

func (h *host) open(context.Context) (io.ReadWriteCloser, error) {
	guest, server := net.Pipe()
	h.opened++
	h.current = server
	h.served.Go(func() { triton.Serve(h.t.Context(), server, h.h, triton.Options{}) })
	if h.wrap != nil {
		return h.wrap(guest), nil
	}
	return guest, nil
}

func TestClientAndServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &host{t: t, h: newMemory("sdc:uuid", "u", "name", "web-1", "list", "[]")}
		c := triton.NewClient(h.open, triton.ClientOptions{})
		ctx := t.Context()

		if v, err := c.Get(ctx, "name"); err != nil || string(v) != "web-1" {
			t.Errorf("get name: %q, %v", v, err)
		}
		if _, err := c.Get(ctx, "nope"); imprint.KindOf(err) != imprint.NotFound {
			t.Errorf("get nope: %v", err)
		}
		var refusal triton.Failure
		if err := c.Put(ctx, "sdc:uuid", nil); imprint.KindOf(err) != imprint.Denied || !errors.As(err, &refusal) {
			t.Errorf("put sdc:uuid: %v", err)
		}
		binary := append(bytes.Repeat([]byte{0, '\n', 0xff}, 2000), 1)
		if err := c.Put(ctx, "binary", binary); err != nil {
			t.Error(err)
		}
		if v, err := c.Get(ctx, "binary"); err != nil || !bytes.Equal(v, binary) {
			t.Errorf("get binary: %d bytes, %v", len(v), err)
		}
		if err := c.Put(ctx, "empty", nil); err != nil {
			t.Error(err)
		}
		if v, err := c.Get(ctx, "empty"); err != nil || len(v) != 0 {
			t.Errorf("get empty: %q, %v", v, err)
		}
		if err := c.Put(ctx, "big", make([]byte, triton.MaxPut)); imprint.KindOf(err) != imprint.Exhausted {
			t.Errorf("put too much: %v", err)
		}
		if _, err := c.Get(ctx, "no spaces"); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("get with a bad key: %v", err)
		}
		if err := c.Delete(ctx, "name"); err != nil {
			t.Error(err)
		}
		if keys, err := c.Keys(ctx); err != nil || !slices.Equal(keys, []string{"binary", "empty", "list"}) {
			t.Errorf("keys: %q, %v", keys, err)
		}
		if h.opened != 1 {
			t.Errorf("the stream was opened %d times", h.opened)
		}
		c.Close()
		h.served.Wait()
	})
}

func TestClientSurvivesAHostThatRestarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &host{t: t, h: newMemory("name", "web-1")}
		down := 0
		open := func(ctx context.Context) (io.ReadWriteCloser, error) {
			if down > 0 {
				down--
				return nil, imprint.Errorf(imprint.Unavailable, "open", "port", "%w", os.ErrNotExist)
			}
			return h.open(ctx)
		}
		c := triton.NewClient(open, triton.ClientOptions{})
		for range 3 {
			if v, err := c.Get(t.Context(), "name"); err != nil || string(v) != "web-1" {
				t.Fatalf("get name: %q, %v", v, err)
			}
			h.current.Close()
			down = 5
		}
		if h.opened != 3 {
			t.Errorf("the stream was opened %d times", h.opened)
		}
		c.Close()
		h.served.Wait()
	})
}

func TestClientGivesUpWhenTheStreamCannotBeOpenedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		guest, server := net.Pipe()
		server.Close()
		c := triton.NewClient(triton.Once(guest), triton.ClientOptions{})
		if _, err := c.Get(t.Context(), "name"); imprint.KindOf(err) != imprint.Conflict {
			t.Errorf("get: %v", err)
		}
	})
}

func TestClientWaitsForASilentHostUntilItsContextEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		guest, server := net.Pipe()
		var heard bytes.Buffer
		done := make(chan struct{})
		go func() { defer close(done); io.Copy(&heard, server) }()
		c := triton.NewClient(triton.Once(guest), triton.ClientOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := c.Get(ctx, "name")
		if imprint.KindOf(err) != imprint.Unavailable || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("get: %v", err)
		}
		c.Close()
		<-done
		if heard.String() != "\n\n\n\n\n" {
			t.Errorf("the guest said %q; want a reset every 2.1 s", heard.String())
		}
	})
}

// script plays the host's part by hand: it reads a line and writes answers.
func script(t *testing.T, steps ...func(line string) (say string)) triton.Opener {
	guest, server := net.Pipe()
	go func() {
		defer server.Close()
		buf := make([]byte, triton.MaxLine+1)
		for _, step := range steps {
			n := 0
			for n == 0 || buf[n-1] != '\n' {
				m, err := server.Read(buf[n : n+1])
				if err != nil {
					return
				}
				n += m
			}
			if say := step(string(buf[:n-1])); say != "" {
				io.WriteString(server, say)
			}
		}
		io.Copy(io.Discard, server)
	}()
	return triton.Once(guest)
}

// on returns a step that expects a line and answers it.
func on(t *testing.T, line, say string) func(string) string {
	return func(got string) string {
		if got != line {
			t.Errorf("the guest said %q, want %q", got, line)
		}
		return say
	}
}

func TestClientAsksAgainAfterALostOrDamagedReply(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var ids []uint32
		reply := func(line string) string {
			f, ok := triton.DecodeFrame([]byte(line), nil)
			if !ok {
				t.Errorf("request %q", line)
			}
			ids = append(ids, f.ID)
			return frame(t, f.ID, triton.Success, "right")
		}
		damaged := func(line string) string { return strings.Replace(reply(line), "SUCCESS c", "SUCCESS d", 1) }
		lost := func(line string) string { reply(line); return "" }
		stale := func(line string) string {
			good := reply(line)
			return "[ 1.0] noise\n" + frame(t, ids[0]-1, triton.Success, "wrong") + "invalid command\n" + good + good
		}
		reset := func(say string) func(string) string { return on(t, "", say) }
		negotiate := func(say string) func(string) string { return on(t, "NEGOTIATE V2", say) }
		c := triton.NewClient(script(t,
			reset("invalid command\n"), negotiate("V2_OK\n"), damaged,
			reset("FAILURE\n"), reset("invalid command\n"), negotiate("invalid command\nV2_OK\n"), lost,
			reset("invalid command\n"), negotiate(""), reset("invalid command\n"), negotiate("V2_OK\n"), stale,
		), triton.ClientOptions{})
		if v, err := c.Get(t.Context(), "key"); err != nil || string(v) != "right" {
			t.Errorf("get: %q, %v", v, err)
		}
		if len(ids) != 3 || ids[0] == ids[1] || ids[1] == ids[2] {
			t.Errorf("request ids %x; want a new one each time", ids)
		}
		c.Close()
	})
}

func TestClientPassesTheHostsSentenceOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fail := func(line string) string {
			f, _ := triton.DecodeFrame([]byte(line), nil)
			return frame(t, f.ID, triton.Failed, "an operator has to approve first")
		}
		c := triton.NewClient(script(t, on(t, "", "invalid command\n"), on(t, "NEGOTIATE V2", "V2_OK\n"), fail), triton.ClientOptions{})
		_, err := c.Get(t.Context(), "key")
		if err == nil || err.Error() != "get key: an operator has to approve first" {
			t.Errorf("get: %v", err)
		}
		c.Close()
	})
}
