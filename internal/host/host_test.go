package host_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"imprint"
	"imprint/internal/host"
)

// knock connects to a socket by hand.
func knock(t *testing.T, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// wantAnswer fails the test unless the host answers a reset on conn.
func wantAnswer(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, "\n"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len("invalid command\n"))
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "invalid command\n" {
		t.Errorf("host said %q, %v", buf, err)
	}
}

func TestSocketsComeAndGoWithTheirInstance(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := runDir(t)
	h, _ := start(t, w, dir)
	id := w.reserve("web-1")
	w.settle(t)
	conn := knock(t, h.Socket(id, imprint.Serial2))
	wantAnswer(t, conn)

	w.change(id, func(i *imprint.Instance) { i.Spec.Channels = []imprint.ChannelKind{imprint.VirtioSerial} })
	w.settle(t)
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a session on a channel that was taken away: %v", err)
	}
	if _, err := os.Lstat(h.Socket(id, imprint.Serial2)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket of a channel that was taken away: %v", err)
	}

	wantAnswer(t, knock(t, h.Socket(id, imprint.VirtioSerial)))
	w.delete(id)
	w.settle(t)
	if _, err := os.Lstat(filepath.Join(dir, string(id))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory of a deleted instance: %v", err)
	}
	if err := h.Serve(t.Context(), id, imprint.Serial2, conn); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("serve a deleted instance: %v", err)
	}
}

func TestAttachedStreamIsRefusedOnceItsChannelIsTakenAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t))
	c := attach(t, h, id, 0)
	if _, err := c.Get(t.Context(), "sdc:uuid"); err != nil {
		t.Fatal(err)
	}
	w.change(id, func(i *imprint.Instance) { i.Spec.Channels = []imprint.ChannelKind{imprint.VirtioSerial} })
	w.settle(t)
	_, err := c.Get(t.Context(), "sdc:uuid")
	wantRefusal(t, err, "the instance does not have this channel any more")
}

func TestGuestSurvivesARestartOfTheHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := runDir(t)
	id, gone := w.reserve("web-1"), w.reserve("web-2")
	h, stop := start(t, w, dir, withSecret(t, id))
	m := newMachine(t, connect(t, h, id, imprint.VirtioSerial))
	if err := m.claim(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := os.Lstat(h.Socket(id, imprint.VirtioSerial)); err != nil {
		t.Errorf("the socket went with the process: %v", err)
	}
	confirmed := make(chan error, 1)
	go func() { confirmed <- m.confirm(t.Context()) }() // asks while nobody is there
	w.mu.Lock()
	delete(w.instances, gone) // unseen by any host
	w.mu.Unlock()
	h, _ = start(t, w, dir, withSecret(t, id))
	if err := <-confirmed; err != nil {
		t.Fatal(err)
	}
	if v, err := m.sealed(t.Context(), "disk-key"); err != nil || v != "secret of web-1" {
		t.Errorf("sealed disk-key after a restart: %q, %v", v, err)
	}
	if _, err := os.Lstat(h.Socket(gone, imprint.VirtioSerial)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket of an instance that was deleted meanwhile: %v", err)
	}
}

func TestSocketsAreBoundBeforeTheNewsArriveAndSilent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := runDir(t)
	id := w.reserve("web-1")
	h, stop := start(t, w, dir)
	stop()

	slow := &slowNews{world: w, asked: make(chan struct{}), open: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- hostOver(t, slow, dir).Run(ctx) }()
	defer func() { cancel(); <-done }()
	<-slow.asked
	conn := knock(t, h.Socket(id, imprint.Serial2))
	if _, err := io.WriteString(conn, "\n"); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 64)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("before the record has arrived the host said %d bytes, %v", n, err)
	}
	close(slow.open)
	buf := make([]byte, len("invalid command\n"))
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(conn, buf); err != nil {
		t.Errorf("after the record has arrived: %v", err)
	}
}

func TestNewestConnectionHasThePort(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t))
	var last net.Conn
	for range 3 {
		conn := knock(t, h.Socket(id, imprint.Serial2))
		wantAnswer(t, conn)
		if last != nil {
			if _, err := last.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("the connection before: %v", err)
			}
		}
		last = conn
	}
	wantAnswer(t, knock(t, h.Socket(id, imprint.VirtioSerial))) // another port
	wantAnswer(t, last)
}

// dialling makes a host dial path for the serial port of every instance.
func dialling(path string) func(*host.Config) {
	return func(c *host.Config) {
		c.Dial = func(_ *imprint.Instance, kind imprint.ChannelKind) string {
			if kind == imprint.Serial2 {
				return path
			}
			return ""
		}
	}
}

// waitPort returns the instance's serial port once it is as wanted.
func waitPort(t *testing.T, h *host.Host, id imprint.InstanceID, wanted func(host.Port) bool) {
	t.Helper()
	var last []host.Port
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		last = h.Ports(id)
		if len(last) > 0 && last[0].Channel == imprint.Serial2 && wanted(last[0]) {
			return
		}
	}
	t.Fatalf("the ports are %+v", last)
}

func TestHostDialsAHypervisorThatListens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	dir := runDir(t)
	path := filepath.Join(runDir(t), "qemu.sock")
	before, stop := start(t, w, dir) // a host that listened, whose socket is left
	stop()
	h, _ := start(t, w, dir, dialling(path))
	waitPort(t, h, id, func(p host.Port) bool {
		return p.Dialled && p.Socket == path && !p.Connected && p.Problem == "dial "+path+": nobody listens there yet"
	})
	if _, err := os.Lstat(before.Socket(id, imprint.Serial2)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the channel has a second way in: %v", err)
	}
	wantAnswer(t, knock(t, h.Socket(id, imprint.VirtioSerial))) // which is not dialled
	var conn net.Conn
	for range 2 { // the hypervisor starts, and starts again
		if conn != nil {
			conn.Close()
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if conn, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		wantAnswer(t, conn)
		waitPort(t, h, id, func(p host.Port) bool { return p.Connected && p.Problem == "" })
		l.Close()
	}
	w.change(id, func(i *imprint.Instance) { i.Spec.Channels = []imprint.ChannelKind{imprint.VirtioSerial} })
	w.settle(t)
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a session on a channel that was taken away: %v", err)
	}
	if ports := h.Ports(id); len(ports) != 1 || ports[0].Channel != imprint.VirtioSerial || ports[0].Dialled {
		t.Errorf("the ports are %+v", ports)
	}
}

// The socket is the identity: it is never two instances'.
func TestDialledSocketIsOneInstances(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path := filepath.Join(runDir(t), "qemu.sock")
	h, _ := start(t, w, runDir(t), dialling(path))
	first := w.reserve("web-1")
	waitPort(t, h, first, func(p host.Port) bool { return p.Problem != "" })
	second := w.reserve("web-2")
	taken := "dial " + path + ": it is the channel serial of instance " + string(first) + " already"
	waitPort(t, h, second, func(p host.Port) bool { return p.Problem == taken })
	w.delete(first)
	waitPort(t, h, second, func(p host.Port) bool { return p.Problem == "dial "+path+": nobody listens there yet" })
}

func TestServeRefusesAChannelThatTheInstanceLacks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	w.change(id, func(i *imprint.Instance) { i.Spec.Channels = []imprint.ChannelKind{imprint.VirtioSerial} })
	h, _ := start(t, w, runDir(t))
	for kind, want := range map[imprint.ChannelKind]imprint.Kind{
		imprint.Serial2: imprint.Denied, imprint.NetworkEST: imprint.Denied, imprint.File: imprint.Invalid, "carrier pigeon": imprint.Invalid,
	} {
		guest, end := net.Pipe()
		if err := h.Serve(t.Context(), id, kind, end); imprint.KindOf(err) != want {
			t.Errorf("serve %s: %v", kind, err)
		}
		if _, err := guest.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("serve %s left the stream open: %v", kind, err)
		}
	}
}

func TestOccupiedSocketDoesNotStopTheHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	dir := runDir(t)
	path := filepath.Join(dir, string(id), "serial.sock")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	h, _ := start(t, w, dir)
	c := connect(t, h, id, imprint.VirtioSerial)
	if _, err := c.Get(t.Context(), "sdc:uuid"); err != nil {
		t.Errorf("the other channel: %v", err)
	}
	if b, err := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file in the way has %q, %v", b, err)
	}
}
