package daemon_test

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/api"
	"imprint/internal/tap"
	"imprint/test/need"
	"imprint/test/netns"
)

// isolated puts the test into a namespace of its own in which guests can have
// interfaces; false in the process that only makes it.
func isolated(t *testing.T) bool {
	t.Helper()
	if !netns.Isolate(t) {
		return false
	}
	network, err := tap.Open(tap.Options{})
	need.Kernel(t, imprint.KindOf(err) != imprint.Unavailable, "nftables, netdev family")
	if err != nil {
		t.Fatal(err)
	}
	network.Close()
	netns.SetUp(t, "lo")
	return true
}

// onLinkLocal runs a server in a namespace of the test's own; ok is false in the
// process that only makes it.
func onLinkLocal(t *testing.T) (s *site, server *serving, ok bool) {
	t.Helper()
	if !isolated(t) {
		return nil, nil, false
	}
	s = newSite(t)
	s.config.Operator = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	return s, s.serve(t), true
}

// raw sends a request as root and returns the connection, of which nothing was read.
func (g *plugged) raw(t *testing.T, path string) net.Conn {
	t.Helper()
	var conn net.Conn
	var err error
	g.Do(t, func() {
		for port := 1000; port > 600; port-- {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: g.address.AsSlice(), Port: port}, Timeout: patience}
			if conn, err = d.DialContext(t.Context(), "tcp4", "169.254.169.254:80"); err == nil {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestLinkLocalPipes: an operator and Ganeti's guest software exchange messages
// through named pipes, and nothing is lost when a reader dies, only root takes
// part, and what was promised about a restart holds.
func TestLinkLocalPipes(t *testing.T) {
	s, server, ok := onLinkLocal(t)
	if !ok {
		return
	}
	ctx := t.Context()
	for _, name := range []imprint.InstanceName{"web-1", "web-2"} {
		spec := imprint.Spec{Name: name, Channels: []imprint.ChannelKind{imprint.LinkLocal}}
		if name == "web-1" {
			spec.Pipes = []string{"install"}
		}
		if _, err := server.Create(ctx, spec, nil, false); err != nil {
			t.Fatal(err)
		}
	}
	one, two := plugIn(t, server, "web-1"), plugIn(t, server, "web-2")
	const read, write = "/ganeti/latest/read/install", "/ganeti/latest/write/install"

	// Only root, only what was declared, and each guest its own.
	one.want(t, false, read+"?wait=0", 403, "")
	if status, _ := one.ask(t, false, "POST", write, "x"); status != 403 {
		t.Errorf("any process writes: %d", status)
	}
	one.want(t, true, "/ganeti/latest/read/other?wait=0", 404, "")
	if status, _ := one.ask(t, true, "POST", "/ganeti/latest/write/other", "x"); status != 404 {
		t.Errorf("a guest makes a pipe: %d", status)
	}
	two.want(t, true, read+"?wait=0", 404, "")

	// To the machine. One reader dies with the message on its way, one with it in
	// its hands; the third gets it, and says so.
	for _, message := range []string{"same\n", "same\n", "last\n"} {
		if err := server.WritePipe(ctx, "web-1", "install", "", []byte(message)); err != nil {
			t.Fatal(err)
		}
	}
	one.raw(t, read).Close()
	dying := one.raw(t, read)
	if _, err := io.ReadFull(dying, make([]byte, 16)); err != nil {
		t.Error(err)
	}
	dying.Close()
	after := ""
	for _, want := range []string{"same\n", "same\n", "last\n", ""} {
		receipt := ""
		for range 2 { // the first reply was lost
			status, header, body := one.request(t, true, "GET", read+"?wait=0"+after, "")
			if status != 200 || body != want {
				t.Errorf("read %d %q with %q, want %q", status, body, after, want)
			}
			receipt = header.Get("X-Imprint-Message")
		}
		after = "&after=" + receipt
	}

	// From the machine, as it comes.
	type result struct {
		message string
		err     error
	}
	late := make(chan result, 1)
	go func() {
		message, _, err := server.ReadPipe(ctx, "web-1", "install", 15)
		late <- result{string(message), err}
	}()
	for _, body := range []string{"progress 1", "progress 2"} {
		for range 2 {
			if status, text := one.ask(t, true, "POST", write+"?id="+strings.ReplaceAll(body, " ", "-"), body); status != 200 {
				t.Errorf("write: %d %s", status, text)
			}
		}
	}
	if got := <-late; got.err != nil || got.message != "progress 1" {
		t.Errorf("the one who waited read %q, %v", got.message, got.err)
	}
	for _, want := range []string{"progress 1", "progress 2"} {
		message, receipt, err := server.ReadPipe(ctx, "web-1", "install", 0)
		if err == nil {
			err = server.TakePipe(ctx, "web-1", "install", receipt)
		}
		if err != nil || string(message) != want {
			t.Errorf("read %q, %v; want %q", message, err, want)
		}
	}
	onTimeline(t, server.Client, "web-1", "refused ganeti/latest/read/install: it needs a source port below 1024 from any process")
	throughPipe(t, server.Client, "web-1", map[string]int{
		"to the machine: written from uid 0": 3, "to the machine: taken from root of the machine": 3,
		"from the machine: written from root of the machine": 2, "from the machine: taken from uid 0": 2,
	})

	// What waits is in memory: it does not outlive the host's process.
	if err := server.WritePipe(ctx, "web-1", "install", "", []byte("before the restart")); err != nil {
		t.Fatal(err)
	}
	server.stop()
	server = s.serve(t)
	interfaceOf(t, server, "web-1")
	one.want(t, true, read+"?wait=0", 200, "")
	if list, err := server.Pipes(ctx, "web-1"); err != nil || len(list) != 2 || list[1].Name != "install" || list[1].ToMachine.Messages != 0 {
		t.Errorf("after a restart the pipes are %+v, %v", list, err)
	}
}

// throughPipe waits until so many messages have gone through an instance's pipes,
// each way, by its timeline, which counts together what comes in one moment.
func throughPipe(t *testing.T, server *api.Client, ref string, want map[string]int) {
	t.Helper()
	line := regexp.MustCompile(`^pipe [^,]+, ([^:]+): (?:a message of|(\d+) messages with) \d+ bytes (written|taken)$`)
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		d, err := server.Describe(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int{}
		for _, e := range d.Timeline {
			if m := line.FindStringSubmatch(e.Detail["what"]); m != nil {
				n, err := strconv.Atoi(cmp.Or(m[2], "1"))
				if err != nil {
					t.Fatal(err)
				}
				got[m[1]+": "+m[3]+" from "+e.Detail["from"]] += n
			}
		}
		if maps.Equal(got, want) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the timeline has %v; want %v", got, want)
		}
	}
}
