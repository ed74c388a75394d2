package host_test

import (
	"bytes"
	"fmt"
	"testing"

	"imprint"
	"imprint/internal/host"
)

func TestPipeDownKeepsAMessageUntilItIsAcknowledged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t))
	c := connect(t, h, id, imprint.VirtioSerial)
	if _, err := c.Get(t.Context(), "imprint:pipe"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("empty pipe: %v", err)
	}
	for _, message := range []string{"one", "two"} {
		if err := h.Send(id, []byte(message)); err != nil {
			t.Fatal(err)
		}
	}
	for _, message := range []string{"one", "two"} {
		for range 2 { // a reader that died comes back for the same message
			if v, err := c.Get(t.Context(), "imprint:pipe"); err != nil || string(v) != message {
				t.Errorf("pipe has %q, %v; want %q", v, err, message)
			}
		}
		for range 2 { // a repeated acknowledgement takes nothing else
			if err := c.Delete(t.Context(), "imprint:pipe/"+string(imprint.DigestOf([]byte(message)))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := c.Get(t.Context(), "imprint:pipe"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("empty pipe: %v", err)
	}
}

func TestPipeTakesARepeatedMessageForOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t))
	c := connect(t, h, id, imprint.VirtioSerial)
	for _, message := range []string{"one", "one", "two"} { // the first reply was lost
		if err := c.Put(t.Context(), "imprint:pipe", []byte(message)); err != nil {
			t.Fatal(err)
		}
	}
	for _, message := range []string{"one", "two"} {
		if v, err := h.Receive(t.Context(), id); err != nil || string(v) != message {
			t.Errorf("received %q, %v; want %q", v, err, message)
		}
		if err := h.Acknowledge(id, imprint.DigestOf([]byte(message))); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPipeUpIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t))
	c := connect(t, h, id, imprint.VirtioSerial)
	largest := bytes.Repeat([]byte("x"), host.MaxMessage)
	if err := c.Put(t.Context(), "imprint:pipe", largest); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < 64; i++ {
		if err := c.Put(t.Context(), "imprint:pipe", fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	wantRefusal(t, c.Put(t.Context(), "imprint:pipe", []byte("64")), "send message: 64 messages wait to be read")
	for range 2 {
		if v, err := h.Receive(t.Context(), id); err != nil || !bytes.Equal(v, largest) {
			t.Errorf("received %d bytes, %v", len(v), err)
		}
	}
	if err := h.Acknowledge(id, imprint.DigestOf(largest)); err != nil {
		t.Fatal(err)
	}
	if v, err := h.Receive(t.Context(), id); err != nil || string(v) != "1" {
		t.Errorf("received %q, %v", v, err)
	}
	if err := c.Put(t.Context(), "imprint:pipe", []byte("64")); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if err := h.Send("nobody", nil); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("send to nobody: %v", err)
	}
}
