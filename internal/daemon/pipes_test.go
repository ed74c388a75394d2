package daemon_test

import (
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/api"
)

// exchange sends messages both ways through a pipe of web-1, which its machine
// knows under key.
func exchange(t *testing.T, server *api.Client, m *machine, key, pipe string) {
	t.Helper()
	ctx := t.Context()
	for range 2 { // the first reply was lost
		if err := server.WritePipe(ctx, "web-1", pipe, "1", []byte("down")); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := m.Get(ctx, key); err != nil || string(b) != "down" {
		t.Errorf("the message is %q, %v", b, err)
	}
	if message, receipt, err := server.ReadPipe(ctx, "web-1", pipe, 3); err != nil || receipt != "" { // longer than one call to a hypervisor
		t.Errorf("an empty pipe: %q, %v", message, err)
	}
	if err := m.Put(ctx, key, []byte("up")); err != nil {
		t.Fatal(err)
	}
	var receipt string
	for range 2 { // a reader that died comes back for the same message
		var message []byte
		var err error
		if message, receipt, err = server.ReadPipe(ctx, "web-1", pipe, 0); err != nil || string(message) != "up" || receipt == "" {
			t.Fatalf("the message is %q, %v", message, err)
		}
	}
	waiting := func(want api.Pipe) {
		t.Helper()
		list, err := server.Pipes(ctx, "web-1")
		found := false
		for _, one := range list {
			found = found || one == want
		}
		if err != nil || !found {
			t.Errorf("the pipes are %+v, %v; want %+v", list, err, want)
		}
	}
	waiting(api.Pipe{Name: pipe, ToMachine: api.Waiting{Messages: 1, Bytes: 4}, FromMachine: api.Waiting{Messages: 1, Bytes: 2}})
	for range 2 {
		if err := server.TakePipe(ctx, "web-1", pipe, receipt); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Delete(ctx, key+"/"+string(imprint.DigestOf([]byte("down")))); err != nil {
		t.Fatal(err)
	}
	waiting(api.Pipe{Name: pipe})
	if err := server.WritePipe(ctx, "web-1", "other", "", []byte("x")); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("a pipe that was not declared: %v", err)
	}
	onTimeline(t, server, "web-1",
		"message pipe "+pipe+", to the machine: a message of 4 bytes written", "message pipe "+pipe+", from the machine: a message of 2 bytes written",
		"message pipe "+pipe+", to the machine: a message of 4 bytes taken", "message pipe "+pipe+", from the machine: a message of 2 bytes taken")
}

// onTimeline waits until the timeline of an instance has lines that begin so.
func onTimeline(t *testing.T, server *api.Client, ref string, lines ...string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		d, err := server.Describe(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		text := "\n"
		for _, e := range d.Timeline {
			text += string(e.Kind) + " " + e.Detail["what"] + e.Detail["reason"] + " from " + e.Detail["from"] + "\n"
		}
		missing := ""
		for _, line := range lines {
			if !strings.Contains(text, "\n"+line) {
				missing = line
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the timeline lacks %q:%s", missing, text)
		}
	}
}
