package triton_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"imprint/internal/triton"
)

const ms = time.Millisecond

// ovmf is console text as OVMF writes it to every serial port.
const ovmf = "\x1b[2J\x1b[01;01H\x1b[=3h\x1b[2J\x1b[01;01HBdsDxe: loading Boot0001 \"UEFI Misc Device\"\r\n" +
	"BdsDxe: starting Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x3,0x0)\r\n\r\n\n"

func TestServerAnswers(t *testing.T) {
	t.Parallel()
	get := frame(t, 7, triton.Get, "name")
	value := frame(t, 7, triton.Success, "web-1")
	for name, tc := range map[string]struct {
		in   []chunk
		want string
	}{
		"reset":                {[]chunk{{0, "\n"}}, "invalid command\n"},
		"negotiation":          {[]chunk{{0, "NEGOTIATE V2\n"}}, "V2_OK\n"},
		"negotiation with CR":  {[]chunk{{0, "NEGOTIATE V2\r\n"}}, "V2_OK\n"},
		"another version":      {[]chunk{{0, "NEGOTIATE V3\n"}}, "invalid command\n"},
		"get":                  {[]chunk{{0, get}}, value},
		"get before all else":  {[]chunk{{0, get + "\nNEGOTIATE V2\n" + get}}, value + "invalid command\nV2_OK\n" + value},
		"byte by byte":         {bytewise("\nNEGOTIATE V2\n" + get), "invalid command\nV2_OK\n" + value},
		"unknown key":          {[]chunk{{0, frame(t, 8, triton.Get, "nope")}}, frame(t, 8, triton.NotFound, "")},
		"empty value":          {[]chunk{{0, frame(t, 8, triton.Get, "empty")}}, frame(t, 8, triton.Success, "")},
		"keys without sdc":     {[]chunk{{0, frame(t, 9, triton.Keys, "")}}, frame(t, 9, triton.Success, "empty\nname")},
		"delete what is not":   {[]chunk{{0, frame(t, 9, triton.Delete, "nope")}}, frame(t, 9, triton.Success, "")},
		"sdc is read-only":     {[]chunk{{0, put(t, "sdc:uuid", "x")}}, frame(t, 1, triton.Failed, "keys that start with sdc: are read-only")},
		"sdc stays":            {[]chunk{{0, frame(t, 1, triton.Delete, "sdc:uuid")}}, frame(t, 1, triton.Failed, "keys that start with sdc: are read-only")},
		"malformed put":        {[]chunk{{0, frame(t, 1, triton.Put, "x")}}, frame(t, 1, triton.Failed, "a PUT carries a key and a value, each in base64")},
		"key with a line feed": {[]chunk{{0, put(t, "a\nb", "x")}}, frame(t, 1, triton.Failed, "a key has 1 to 256 bytes of UTF-8 without spaces and control characters")},
		"unknown code":         {[]chunk{{0, frame(t, 1, "STAT", "")}}, frame(t, 1, triton.Failed, "this command is not known; GET, PUT, DELETE and KEYS are")},

		"firmware text":                 {[]chunk{{0, ovmf}}, ""},
		"firmware text, line by line":   {[]chunk{{0, "BdsDxe: starting\r\n"}, {20 * ms, "\r\n"}, {20 * ms, "\n"}}, ""},
		"version 1 request":             {[]chunk{{0, "GET name\n"}}, ""},
		"reset after firmware":          {[]chunk{{0, ovmf}, {200 * ms, "\n"}}, "invalid command\n"},
		"reset after unfinished text":   {[]chunk{{0, "login: "}, {2 * time.Second, "\n"}}, "invalid command\n"},
		"second reset after a cut line": {[]chunk{{0, get[:12]}, {200 * ms, "\n"}, {2 * time.Second, "\n"}}, "invalid command\n"},
		"reset soon after a cut frame":  {[]chunk{{0, get[:12] + "\n"}, {1 * ms, "\n"}}, "invalid command\n"},
		"frame after a dead writer":     {[]chunk{{0, get[:12]}, {2 * time.Second, get}}, value},
		"frame behind kernel text":      {[]chunk{{0, "[    1.234567] tty: " + get}}, value},
		"corrupt frame":                 {[]chunk{{0, strings.Replace(get, "GET", "GOT", 1)}}, ""},
		"oversize frame, then a good one": {
			[]chunk{{0, "V2 70000 00000000 " + strings.Repeat("A", 70000) + "\n"}, {0, get}}, value},
		"frame behind too much": {[]chunk{{0, strings.Repeat("A", triton.MaxLine) + get}}, ""},
		"NUL and high bytes":    {[]chunk{{0, "\x00\xff\xfe\n"}, {100 * ms, get}}, value},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newMemory("name", "web-1", "empty", "", "sdc:uuid", "u")
			if got := play(t, h, tc.in...); got != tc.want {
				t.Errorf("server said %q, want %q", got, tc.want)
			}
			if _, err := h.Get(t.Context(), "sdc:uuid"); err != nil {
				t.Error("sdc:uuid is gone")
			}
		})
	}
}

func TestServerPutIsSeenByGet(t *testing.T) {
	t.Parallel()
	h := newMemory()
	got := play(t, h, chunk{0, put(t, "a", "one")}, chunk{0, put(t, "a", "two")}, chunk{0, frame(t, 2, triton.Get, "a")})
	if want := frame(t, 1, triton.Success, "") + frame(t, 1, triton.Success, "") + frame(t, 2, triton.Success, "two"); got != want {
		t.Errorf("server said %q, want %q", got, want)
	}
}

// failing fails every request with err.
type failing struct {
	*memory
	err error
}

func (f failing) Get(context.Context, string) ([]byte, error) { return nil, f.err }

func TestServerHidesErrorsThatAreNotForTheGuest(t *testing.T) {
	t.Parallel()
	get := frame(t, 3, triton.Get, "k")
	if got, want := play(t, failing{newMemory(), errors.New("etcd at 10.0.0.1: refused")}, chunk{0, get}), frame(t, 3, triton.Failed, "the host could not do this"); got != want {
		t.Errorf("server said %q, want %q", got, want)
	}
	if got, want := play(t, failing{newMemory(), triton.Failure("not yet")}, chunk{0, get}), frame(t, 3, triton.Failed, "not yet"); got != want {
		t.Errorf("server said %q, want %q", got, want)
	}
}

func TestServerRefusesValueThatExceedsAFrame(t *testing.T) {
	t.Parallel()
	h := newMemory("big", strings.Repeat("x", triton.MaxValue+1))
	want := frame(t, 3, triton.Failed, "the value is too large for this channel")
	if got := play(t, h, chunk{0, frame(t, 3, triton.Get, "big")}); got != want {
		t.Errorf("server said %q, want %q", got, want)
	}
}

func TestServerSlowsAFloodDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		guest, host := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- triton.Serve(t.Context(), host, newMemory(), triton.Options{Requests: 10}) }()
		start := time.Now()
		go func() {
			for range 120 {
				io.WriteString(guest, "\n")
			}
		}()
		if _, err := io.ReadFull(guest, make([]byte, 120*len("invalid command\n"))); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("120 requests at 10 a second with a burst of 20 took %v", took)
		}
		guest.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestServerEndsWithItsContext(t *testing.T) {
	t.Parallel()
	guest, host := net.Pipe()
	defer guest.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- triton.Serve(ctx, host, newMemory(), triton.Options{}) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v", err)
	}
	if _, err := guest.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the stream stayed open: %v", err)
	}
}

func FuzzServe(f *testing.F) {
	f.Add([]byte("\nNEGOTIATE V2\n"), uint8(7))
	f.Add([]byte(ovmf+"\n\n\n"), uint8(1))
	f.Add([]byte(frame(f, 7, triton.Get, "name")), uint8(3))
	f.Add([]byte(frame(f, 7, triton.Put, "YQ== Yg==")+frame(f, 8, triton.Keys, "")), uint8(255))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		var chunks []chunk
		for b := in; len(b) > 0; {
			n := min(len(b), int(step)+1)
			chunks = append(chunks, chunk{time.Duration(step) * ms, string(b[:n])})
			b = b[n:]
		}
		out := play(t, newMemory("name", "web-1"), chunks...)
		asked := strings.Count(string(in), "\n")
		answers := strings.Split(out, "\n")
		if len(answers)-1 > asked {
			t.Fatalf("%d answers to %d lines", len(answers)-1, asked)
		}
		for _, line := range answers[:len(answers)-1] {
			if _, ok := triton.DecodeFrame([]byte(line), nil); !ok && line != "invalid command" && line != "V2_OK" {
				t.Fatalf("server said %q", line)
			}
		}
	})
}

func put(t testing.TB, key, value string) string {
	t.Helper()
	return frame(t, 1, triton.Put, string(triton.AppendPut(nil, key, []byte(value))))
}

func bytewise(s string) (chunks []chunk) {
	for _, c := range []byte(s) {
		chunks = append(chunks, chunk{ms, string(c)})
	}
	return chunks
}
