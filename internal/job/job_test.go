package job

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"imprint"
)

// pipe returns two connected ends.
func pipe(t *testing.T) (a, b net.Conn) {
	a, b = net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// A job arrives as it was sent, with its secrets, which nothing shows on the way.
func TestJobTravels(t *testing.T) {
	t.Parallel()
	host, guest := pipe(t)
	sent := &Job{Version: Version, Nonce: "n", Tasks: []Task{{Zero: &Zero{}}, {Name: "second", Unpack: &Unpack{Package: 1}}}, Secrets: map[string]imprint.Secret{
		"password": imprint.NewSecret([]byte("\x00correct horse\xff")), "other": imprint.NewSecret([]byte("x")),
	}}
	failed := make(chan error, 1)
	go func() { failed <- SendJob(NewConn(host), sent) }()
	got, err := ReceiveJob(NewConn(guest))
	if err != nil || <-failed != nil {
		t.Fatal(err)
	}
	if len(got.Tasks) != 2 || got.Tasks[0].String() != "zero" || got.Tasks[1].String() != "second" || got.Tasks[1].Unpack.Package != 1 || got.Nonce != "n" {
		t.Errorf("got %+v", got)
	}
	for name, s := range sent.Secrets {
		if !s.Equal(got.Secrets[name]) {
			t.Errorf("the secret %s is another", name)
		}
	}
	b, _ := json.Marshal(sent)
	for _, text := range []string{string(b), fmt.Sprintf("%v %+v", sent, got), fmt.Sprintf("%v %+v", SecretFrame{"n", []byte("correct horse")}, &SecretFrame{"n", []byte("correct horse")})} {
		if strings.Contains(text, "correct horse") || strings.Contains(text, "99 111 114") {
			t.Errorf("the secret is in %s", text)
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for name, j := range map[string]*Job{
		"no kind":         {Tasks: []Task{{Name: "x"}}},
		"two kinds":       {Tasks: []Task{{Zero: &Zero{}, Unpack: &Unpack{}}}},
		"many tasks":      {Tasks: make([]Task, MaxTasks+1)},
		"a large secret":  {Secrets: map[string]imprint.Secret{"s": imprint.NewSecret(make([]byte, MaxSecret+1))}},
		"another version": nil,
	} {
		if j == nil {
			continue
		}
		if err := j.Check(); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	host, guest := pipe(t)
	go SendJob(NewConn(host), &Job{Version: Version + 1})
	if _, err := ReceiveJob(NewConn(guest)); err == nil {
		t.Error("a job of another version was taken")
	}
}

func frame(body string) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(len(body)))) + body
}

func TestWhatIsNoMessage(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]string{
		"within a length":  "\x00\x00",
		"within a body":    "\x00\x00\x00\x09{}",
		"too large":        "\x7f\xff\xff\xff",
		"no JSON":          frame("hello"),
		"nothing":          frame("{}"),
		"two at once":      frame(`{"hello":{"version":1},"log":{"line":"x"}}`),
		"an unknown field": frame(`{"hello":{"version":1,"more":2}}`),
		"more behind":      frame(`{"hello":{"version":1}} {}`),
		"no UTF-8":         frame("{\"log\":{\"line\":\"\xff\"}}"),
	} {
		r := NewConn(readWriter{strings.NewReader(in), io.Discard})
		if m, err := r.Receive(); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	large := NewConn(readWriter{io.MultiReader(strings.NewReader("\x00\x10\x00\x01"), strings.NewReader(frame(`{}`))), io.Discard})
	if _, err := large.Receive(); err == nil || !strings.Contains(err.Error(), "a frame of 1048577 bytes; 1048576 are allowed") {
		t.Errorf("a frame too large: %v", err)
	}
	if _, err := NewConn(readWriter{strings.NewReader(""), io.Discard}).Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

type readWriter struct {
	io.Reader
	io.Writer
}

func TestFaultKeepsTheError(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("task: %w", imprint.Errorf(imprint.Exhausted, "write", "file x", "no space").WithHint("make room"))
	b, _ := json.Marshal(NewFault(err))
	var f Fault
	if json.Unmarshal(b, &f) != nil {
		t.Fatal(string(b))
	}
	if got := f.Err(); imprint.KindOf(got) != imprint.Exhausted || got.Error() != "write file x: no space" || imprint.HintOf(got) != "make room" {
		t.Errorf("%v", got)
	}
	if NewFault(nil).Err() != nil {
		t.Error("no fault is one")
	}
}

func TestStream(t *testing.T) {
	t.Parallel()
	a, b := pipe(t)
	text := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	go func() {
		s := NewStream(a)
		s.Write(text)
		s.Close()
	}()
	s := NewStream(b)
	got, err := io.ReadAll(iotest.OneByteReader(s))
	if err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for name, in := range map[string]string{"within a chunk": "\x00\x00\x00\x05abc", "between two": "\x00\x00\x00\x01a", "nothing": ""} {
		if _, err := io.ReadAll(NewStream(readWriter{strings.NewReader(in), io.Discard})); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := io.ReadAll(NewStream(readWriter{strings.NewReader("\xff\x00\x00\x00"), io.Discard})); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("a chunk too large: %v", err)
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	if got := Printable([]byte("a\tü\x1b[2J\xff\u202e\r")); got != "a\tü\uFFFD[2J\uFFFD\uFFFD" {
		t.Errorf("%q", got)
	}
}

// Whatever comes: no more memory than its bytes, and what is taken can be sent again.
func FuzzReceive(f *testing.F) {
	f.Add([]byte(frame(`{"hello":{"version":1}}`) + frame(`{"log":{"task":"t","line":"l"}}`)))
	f.Add([]byte(frame(`{"result":{"nonce":"n","tasks":[{"name":"zero","took":1}],"fault":{"kind":"internal","op":"o"}}}`)))
	f.Add([]byte(frame(`{"job":{"version":1,"nonce":"","tasks":[{"zero":{}}]}}`) + frame(`{"secret":{"name":"a","value":"AAEC"}}`) + frame(`{"start":{}}`)))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := NewConn(readWriter{bytes.NewReader(in), io.Discard})
		for {
			m, err := c.Receive()
			if err != nil {
				break
			}
			if m.Result != nil {
				_ = m.Result.Fault.Err()
			}
			var again bytes.Buffer
			if err := NewConn(readWriter{nil, &again}).Send(m); err != nil {
				continue // what grows in being escaped may be too large
			}
			if _, err := NewConn(readWriter{&again, nil}).Receive(); err != nil {
				t.Fatalf("%q: %v", in, err)
			}
		}
		if j, err := ReceiveJob(NewConn(readWriter{bytes.NewReader(in), io.Discard})); err == nil {
			_ = j.Needs()
			for i := range j.Tasks {
				_ = j.Tasks[i].String()
			}
		}
		io.Copy(io.Discard, NewStream(readWriter{bytes.NewReader(in), io.Discard}))
	})
}
