package qemu

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/test/need"
)

// idle is a kernel whose first instruction, wherever it is entered, is to jump to itself.
func idle(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "idle")
	code := bytes.Repeat([]byte{0xeb, 0xfe}, 32<<10)
	code[0x1f1] = 1 // sectors of real mode code (Documentation/arch/x86/boot.rst)
	if err := os.WriteFile(path, code, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// openBy reports whether the process has path open.
func openBy(t *testing.T, pid int, path string) bool {
	t.Helper()
	fds, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "fd", "*"))
	if err != nil || len(fds) == 0 {
		t.Fatalf("the descriptors of %d: %v", pid, err)
	}
	for _, fd := range fds {
		if name, _ := os.Readlink(fd); name == path {
			return true
		}
	}
	return false
}

// A real QEMU lets go of its medium, in every drive of every machine type, and its
// guest runs on. The guest has no say: this one never looks at the drive.
func TestTakeAway(t *testing.T) {
	t.Parallel()
	need.Program(t, Program, "qemu-system-x86")
	kernel := idle(t)
	for _, c := range []struct {
		machine Type
		drive   Drive
		how     string
	}{
		{Q35, CDDrive, "CD ejected"}, {Q35, DiskDrive, "disk unplugged"}, {Q35, FloppyDrive, "floppy ejected"},
		{PC, CDDrive, "CD ejected"}, {PC, DiskDrive, "disk unplugged"}, {PC, FloppyDrive, "floppy ejected"},
		{Microvm, CDDrive, "CD ejected"}, {Microvm, DiskDrive, "disk unplugged"},
	} {
		t.Run(string(c.machine)+"/"+string(c.drive), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "medium, of a kind")
			if err := os.WriteFile(path, make([]byte, 1474560), 0o600); err != nil {
				t.Fatal(err)
			}
			m := Machine{Type: c.machine, MemoryMiB: 64, Kernel: kernel, Medium: &Medium{c.drive, path}, Control: true}
			p, err := m.Start(t.Context(), Run{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { p.Kill(); <-p.Done() }()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if used, err := p.control.uses(ctx, path); !used || err != nil {
				t.Fatalf("before: in use %v, %v", used, err)
			}
			if !openBy(t, p.PID(), path) {
				t.Fatal("before: QEMU does not have the file open")
			}
			how, err := p.control.takeAway(ctx, m.Medium)
			if how != c.how || err != nil {
				t.Errorf("got %q, %v; want %q", how, err, c.how)
			}
			if openBy(t, p.PID(), path) {
				t.Error("QEMU still has the file open")
			}
			var status struct{ Running bool }
			if err := p.control.execute(ctx, "query-status", nil, &status); err != nil || !status.Running {
				t.Errorf("the machine runs: %v, %v", status.Running, err)
			}
			if how, err := p.TakeAway(ctx); how != c.how || err != nil {
				t.Errorf("once more: %q, %v", how, err)
			}
			if err := p.control.execute(ctx, "query-status", nil, nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("QEMU can still be asked, and has somebody to tell things that nobody reads: %v", err)
			}
			select {
			case <-p.Done():
				t.Error("the machine ended")
			default:
			}
		})
	}
}

// A guest that closes its drive again and again keeps nothing. Here another monitor
// does what such a guest has QEMU do.
func TestTakeAwayFromGuestThatClosesItsDrive(t *testing.T) {
	t.Parallel()
	program := need.Program(t, Program, "qemu-system-x86")
	for _, drive := range []Drive{CDDrive, FloppyDrive} {
		dir := t.TempDir()
		path, socket := filepath.Join(dir, "medium"), filepath.Join(dir, "guest")
		if err := os.WriteFile(path, make([]byte, 1474560), 0o600); err != nil {
			t.Fatal(err)
		}
		m := Machine{MemoryMiB: 64, Kernel: idle(t), Medium: &Medium{drive, path}, Control: true}
		args, err := m.Args()
		if err != nil {
			t.Fatal(err)
		}
		control, theirs, err := openMonitor()
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.Close()
		args = append(args, "-chardev", "socket,id=guest,server=on,wait=off,path="+socket, "-mon", "chardev=guest,mode=control")
		p, err := start(t.Context(), Run{}, program, args, control, theirs)
		if err != nil {
			t.Fatal(err)
		}
		p.medium = m.Medium
		defer func() { p.Kill(); <-p.Done() }()
		if _, err := control.uses(t.Context(), path); err != nil { // it is up
			t.Fatal(err)
		}
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		guest, closed, ended := newMonitor(conn), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			var said *refusal
			for n := 0; ; n++ {
				if err := guest.execute(t.Context(), "blockdev-close-tray", map[string]string{"id": mediumID}, nil); err != nil && !errors.As(err, &said) {
					return
				}
				if n == 10 {
					close(closed)
				}
			}
		}()
		select {
		case <-closed:
		case <-ended:
			t.Fatal("QEMU has ended")
		}
		if _, err := p.TakeAway(t.Context()); err != nil {
			t.Errorf("%s: %v", drive, err)
		}
		if openBy(t, p.PID(), path) {
			t.Errorf("%s: QEMU still has the file open", drive)
		}
		conn.Close()
		<-ended
	}
}

// What cannot be done, and a QEMU that hangs or has gone, is an error in time.
func TestTakeAwayFails(t *testing.T) {
	t.Parallel()
	need.Program(t, Program, "qemu-system-x86")
	path := filepath.Join(t.TempDir(), "medium")
	if err := os.WriteFile(path, make([]byte, 1474560), 0o600); err != nil {
		t.Fatal(err)
	}
	none, err := (&Machine{Kernel: idle(t), Control: true}).Start(t.Context(), Run{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { none.Kill(); <-none.Done() }()
	if _, err := none.TakeAway(t.Context()); imprint.KindOf(err) != imprint.Unavailable {
		t.Errorf("without a medium: %v", err)
	}
	var said *refusal
	if err := none.control.execute(t.Context(), "eject", map[string]string{"id": "x"}, nil); !errors.As(err, &said) {
		t.Errorf("QEMU refused with %v", err)
	}

	m := Machine{Kernel: idle(t), Medium: &Medium{CDDrive, path}, Control: true}
	p, err := m.Start(t.Context(), Run{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { p.Kill(); <-p.Done() }()
	if err := p.control.execute(t.Context(), "query-status", nil, nil); err != nil { // it is up
		t.Fatal(err)
	}
	if err := unix.Kill(p.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := p.TakeAway(ctx); imprint.KindOf(err) != imprint.Unavailable || !strings.Contains(err.Error(), "it did not answer eject in time") {
		t.Errorf("a QEMU that is stopped: %v", err)
	}
	p.Kill()
	<-p.Done()
	if _, err := p.TakeAway(t.Context()); imprint.KindOf(err) != imprint.Unavailable {
		t.Errorf("a QEMU that has ended: %v", err)
	}
}

// FuzzMonitor feeds the client of the monitor what a QEMU that its guest has taken
// over may say: it ends, and takes nothing for a reply that is none.
func FuzzMonitor(f *testing.F) {
	f.Add([]byte(`{"QMP": {"version": {}}}` + "\n" + `{"return": {}, "id": 1}` + "\n" + `{"event": "RESUME"}` + "\n" + `{"return": [{"file": "x"}], "id": 2}` + "\n"))
	f.Add([]byte(`{"return": {}, "id": 1}` + "\n" + `{"error": {"class": "GenericError", "desc": "no"}, "id": 2}` + "\n"))
	f.Add([]byte(`{"id": 1}` + "\n" + `[]` + "\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := net.Pipe()
		go func() {
			go io.Copy(io.Discard, theirs)
			theirs.Write(said)
			theirs.Close()
		}()
		m := newMonitor(ours)
		defer ours.Close()
		var nodes []struct{ File string }
		err := m.execute(t.Context(), "query-named-block-nodes", nil, &nodes)
		if err == nil && !bytes.Contains(said, []byte("return")) {
			t.Errorf("took %q for a reply", said)
		}
	})
}
