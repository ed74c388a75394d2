package host_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/host"
	"imprint/internal/triton"
)

// withPipes is a host with an instance that declares two pipes, and its serial line.
func withPipes(t *testing.T) (w *world, h *host.Host, id imprint.InstanceID, c *triton.Client) {
	t.Helper()
	w = newWorld(t)
	id = w.reserve("web-1")
	w.change(id, func(i *imprint.Instance) { i.Spec.Pipes = []string{"install", "console"} })
	h, _ = start(t, w, runDir(t))
	return w, h, id, connect(t, h, id, imprint.VirtioSerial)
}

// pour writes a message for the machine.
func pour(t *testing.T, h *host.Host, id imprint.InstanceID, pipe, message string) {
	t.Helper()
	if err := h.WritePipe(id, pipe, "", []byte(message), "operator"); err != nil {
		t.Fatal(err)
	}
}

// drain reads and takes what the machine wrote.
func drain(t *testing.T, h *host.Host, id imprint.InstanceID, pipe string) (got []string) {
	t.Helper()
	for {
		pipes, err := h.Pipes(id)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(pipes, func(p host.Pipe) bool { return p.Name == pipe })
		if pipes[i].FromMachine.Messages == 0 {
			return got
		}
		data, receipt, err := h.ReadPipe(t.Context(), id, pipe)
		if err == nil {
			err = h.TakePipe(id, pipe, receipt, "operator")
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(data))
	}
}

// wantFull fails the test unless the host says this in refusing a message.
func wantFull(t *testing.T, err error, sentence string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), sentence) {
		t.Errorf("got %v, want %q", err, sentence)
	}
}

func TestPipeToTheMachineKeepsAMessageUntilItIsAcknowledged(t *testing.T) {
	t.Parallel()
	_, h, id, c := withPipes(t)
	for _, key := range []string{"imprint:pipe", "imprint:pipe/install"} {
		pipe := strings.TrimPrefix(strings.TrimPrefix(key, "imprint:pipe"), "/")
		if pipe == "" {
			pipe = imprint.DefaultPipe
		}
		if _, err := c.Get(t.Context(), key); imprint.KindOf(err) != imprint.NotFound {
			t.Errorf("empty pipe: %v", err)
		}
		messages := []string{"one of " + pipe, "same", "same", "two"}
		for _, message := range messages {
			pour(t, h, id, pipe, message)
		}
		for _, message := range messages {
			for range 2 { // a reader that died comes back for the same message
				if v, err := c.Get(t.Context(), key); err != nil || string(v) != message {
					t.Errorf("pipe has %q, %v; want %q", v, err, message)
				}
			}
			for range 2 { // a repeated acknowledgement takes nothing else, and no equal message
				if err := c.Delete(t.Context(), key+"/"+string(imprint.DigestOf([]byte(message)))); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := c.Get(t.Context(), key); imprint.KindOf(err) != imprint.NotFound {
			t.Errorf("empty pipe: %v", err)
		}
	}
}

func TestPipeTakesARepeatedMessageForOne(t *testing.T) {
	t.Parallel()
	_, h, id, c := withPipes(t)
	for _, message := range []string{"one", "one", "two"} { // the first reply was lost
		if err := c.Put(t.Context(), "imprint:pipe/console", []byte(message)); err != nil {
			t.Fatal(err)
		}
	}
	if got := drain(t, h, id, "console"); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("received %q", got)
	}
	for _, messageID := range []string{"1", "1", "2", "", ""} {
		if err := h.WritePipe(id, "console", messageID, []byte("tick"), "operator"); err != nil {
			t.Fatal(err)
		}
	}
	if pipes, err := h.Pipes(id); err != nil || pipes[2].ToMachine != (host.Waiting{Messages: 4, Bytes: 16}) {
		t.Errorf("waiting %+v, %v", pipes, err)
	}
}

// A reader takes what it was given and nothing that came after, however often it
// says so.
func TestPipeFromTheMachineLosesNothing(t *testing.T) {
	t.Parallel()
	_, h, id, c := withPipes(t)
	for _, message := range []string{"one", "two"} {
		if err := c.Put(t.Context(), "imprint:pipe", []byte(message)); err != nil {
			t.Fatal(err)
		}
	}
	first, receipt, err := h.ReadPipe(t.Context(), id, imprint.DefaultPipe)
	if again, same, _ := h.ReadPipe(t.Context(), id, imprint.DefaultPipe); err != nil || string(first) != "one" || string(again) != "one" || same != receipt {
		t.Errorf("read %q and %q, %v", first, again, err)
	}
	for range 2 {
		if err := h.TakePipe(id, imprint.DefaultPipe, receipt, "operator"); err != nil {
			t.Fatal(err)
		}
	}
	if got := drain(t, h, id, imprint.DefaultPipe); !slices.Equal(got, []string{"two"}) {
		t.Errorf("then %q", got)
	}
}

func TestPipesAreBoundedAndDeclared(t *testing.T) {
	t.Parallel()
	_, h, id, c := withPipes(t)
	largest := bytes.Repeat([]byte("x"), imprint.MaxMessage)
	if err := c.Put(t.Context(), "imprint:pipe", largest); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < 64; i++ {
		if err := c.Put(t.Context(), "imprint:pipe", fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	wantFull(t, c.Put(t.Context(), "imprint:pipe", []byte("64")), "write message: 64 messages wait to be read")
	wantFull(t, c.Put(t.Context(), "imprint:pipe/install", append(largest, 'x')), "a message has 1 to 8192")
	wantFull(t, c.Put(t.Context(), "imprint:pipe/install", nil), "a message has 1 to 8192")
	for i := range 16 { // 128 KiB
		if err := c.Put(t.Context(), "imprint:pipe/install", append(slices.Clone(largest[1:]), byte(i))); err != nil {
			t.Fatal(err)
		}
	}
	wantFull(t, c.Put(t.Context(), "imprint:pipe/install", largest), "16 messages wait to be read, with 131072 bytes")
	// A full pipe stands in no other's way, and is there again when it was read.
	if err := c.Put(t.Context(), "imprint:pipe/console", []byte("room")); err != nil {
		t.Error(err)
	}
	if got := drain(t, h, id, imprint.DefaultPipe); len(got) != 64 || got[0] != string(largest) || got[63] != "63" {
		t.Errorf("received %d messages", len(got))
	}
	if err := c.Put(t.Context(), "imprint:pipe", []byte("64")); err != nil {
		t.Errorf("with room again: %v", err)
	}

	// A machine makes no pipe by using one.
	if err := c.Put(t.Context(), "imprint:pipe/other", []byte("x")); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("a machine's: %v", err)
	}
	if err := h.WritePipe(id, "other", "", []byte("x"), "operator"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("an operator's: %v", err)
	}
	if pipes, err := h.Pipes(id); err != nil || len(pipes) != 3 {
		t.Errorf("pipes %+v, %v", pipes, err)
	}
	if err := h.WritePipe("nobody", imprint.DefaultPipe, "", []byte("x"), "operator"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("to nobody: %v", err)
	}
}

// A new life begins with empty pipes.
func TestPipesAreEmptyAfterAReinstall(t *testing.T) {
	t.Parallel()
	w, h, id, c := withPipes(t)
	pour(t, h, id, "install", "of the first life")
	if err := c.Put(t.Context(), "imprint:pipe", []byte("of the first life")); err != nil {
		t.Fatal(err)
	}
	w.change(id, func(i *imprint.Instance) { i.Generation++ })
	w.settle(t)
	pipes, err := h.Pipes(id)
	for _, p := range pipes {
		if p.ToMachine.Messages+p.FromMachine.Messages > 0 {
			t.Errorf("%+v waits, %v", p, err)
		}
	}
}

// What goes through a pipe is on the timeline, without contents, and no more often
// than a guest may make its host write.
func TestPipesAreOnTheTimeline(t *testing.T) {
	t.Parallel()
	w, h, id, c := withPipes(t)
	pour(t, h, id, "install", "canary")
	if err := c.Put(t.Context(), "imprint:pipe/console", []byte("canary")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"message pipe install, to the machine: a message of 6 bytes written", "message pipe console, from the machine: a message of 6 bytes written",
	} {
		w.wait(t, want)
	}
	for i := range 50 {
		before := len(w.reported())
		pour(t, h, id, "console", fmt.Sprint("tick ", i))
		for end := time.Now().Add(20 * time.Millisecond); len(w.reported()) == before && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
	}
	reported := w.reported()
	if len(reported) > 30 || strings.Contains(strings.Join(reported, "\n"), "canary") {
		t.Errorf("%d reports: %q", len(reported), reported)
	}
}

// Nor does it get there more often if messages come faster than the control plane
// takes reports.
func TestPipesThatNeverRestAreOnTheTimeline(t *testing.T) {
	t.Parallel()
	w, h, id, _ := withPipes(t)
	pace := make(chan struct{})
	w.paceReports(pace)
	step := func() {
		select {
		case pace <- struct{}{}:
		case <-time.After(20 * time.Millisecond): // nothing is being reported
		}
	}
	for i := range 60 {
		pour(t, h, id, "console", fmt.Sprint("tick ", i))
		step() // a report begins, or the one before ends
	}
	close(pace)
	if got := len(w.reported()); got > 22 {
		t.Errorf("%d reports of 60 messages", got)
	}
}
