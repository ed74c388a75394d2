package blank

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/test/need"
)

func file(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "medium")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A file is zeros from its first byte to its last and has its size still, and what
// was a hole is one still.
func TestBlank(t *testing.T) {
	t.Parallel()
	for name, content := range map[string][]byte{
		"empty": nil, "one byte": {1}, "zeros": make([]byte, chunk),
		"odd":   bytes.Repeat([]byte("token"), chunk/3),
		"edges": append(append([]byte{1}, make([]byte, chunk-1)...), 2),
		"tail":  append(make([]byte, 2*chunk), 3),
	} {
		path := file(t, content)
		m, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Blank(t.Context()); err != nil || m.Size() != int64(len(content)) || m.Device() {
			t.Errorf("%s: %v, size %d", name, err, m.Size())
		}
		if got, err := os.ReadFile(path); err != nil || len(got) != len(content) || len(bytes.Trim(got, "\x00")) > 0 {
			t.Errorf("%s: %d bytes, not all zero: %v", name, len(got), err)
		}
		if err := m.Remove(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: it is still there: %v", name, err)
		}
		m.Close()
	}

	sparse := file(t, []byte("token"))
	if err := os.Truncate(sparse, 64<<20); err != nil {
		t.Fatal(err)
	}
	m, err := Open(sparse)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var stat unix.Stat_t
	if err := m.Blank(t.Context()); err != nil {
		t.Error(err)
	}
	if err := unix.Stat(sparse, &stat); err != nil || stat.Blocks*512 > 4*chunk {
		t.Errorf("holes were filled: %d bytes on the disk, %v", stat.Blocks*512, err)
	}
}

// What somebody uses, or is nothing to blank, is refused and left as it is.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, kind := range map[string]imprint.Kind{dir: imprint.Invalid, filepath.Join(dir, "pipe"): imprint.Invalid, "/dev/null": imprint.Invalid, filepath.Join(dir, "absent"): imprint.NotFound} {
		if _, err := Open(path); imprint.KindOf(err) != kind || err == nil {
			t.Errorf("%s: %v, want kind %v", path, err, kind)
		}
	}
	path := file(t, []byte("token"))
	for _, lock := range []int16{unix.F_RDLCK, unix.F_WRLCK} { // QEMU's are on single bytes, from 100 on
		other, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: lock, Whence: io.SeekStart, Start: 100, Len: 1}); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "as QEMU does") {
			t.Errorf("locked by another: %v", err)
		}
		other.Close()
	}
	m, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := Open(path); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("twice: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Blank(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("when it is to end: %v", err)
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove(); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("another file was removed: %v", err)
	}
	if b, err := os.ReadFile(path + ".old"); string(b) != "token" {
		t.Errorf("left %q, %v", b, err)
	}
}

// However a real QEMU was given the file, and though its guest has not begun to
// run, the file is taken for one in use.
func TestOpenRefusesWhatQEMUHas(t *testing.T) {
	t.Parallel()
	qemu := need.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	for name, c := range map[string]struct{ options, device string }{
		"written": {"", "virtio-blk-pci"}, "discarded": {",snapshot=on", "virtio-blk-pci"},
		"read": {",readonly=on", "virtio-blk-pci"}, "CD": {",readonly=on,media=cdrom", "ide-cd"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := file(t, bytes.Repeat([]byte("token"), chunk/5))
			cmd := exec.CommandContext(t.Context(), qemu, "-machine", "q35", "-m", "16", "-S", "-nodefaults", "-display", "none", "-qmp", "stdio",
				"-drive", "if=none,id=d,format=raw,file="+path+c.options, "-device", c.device+",drive=d")
			in, err := cmd.StdinPipe() // its end would be QEMU's
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { in.Close(); cmd.Process.Kill(); cmd.Wait() }()
			if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // its greeting
				t.Fatal(err)
			}
			if _, err := Open(path); imprint.KindOf(err) != imprint.Conflict {
				t.Errorf("got %v", err)
			}
			cmd.Process.Kill()
			cmd.Wait()
			m, err := Open(path)
			if err != nil {
				t.Fatalf("when QEMU has ended: %v", err)
			}
			m.Close()
		})
	}
}

// A disk that takes no more writes is an error, and a file that nobody may change
// is left as it is.
func TestBlankFails(t *testing.T) {
	t.Parallel()
	path := file(t, []byte("token"))
	m, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	m.f.File.Close()
	if m.f.File, err = os.Open(path); err != nil { // for reading only
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Blank(t.Context()); imprint.KindOf(err) != imprint.Unavailable || !errors.Is(err, syscall.EBADF) {
		t.Errorf("a write that fails: %v", err)
	}
	if err := os.Truncate(path, 2); err != nil {
		t.Fatal(err)
	}
	if err := m.Blank(t.Context()); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that became shorter: %v", err)
	}
}

// A block device that is mounted is refused, as is a file that is attached to a
// loop device; else all of the device is blanked.
func TestBlockDevice(t *testing.T) {
	t.Parallel()
	need.Root(t)
	losetup := need.Program(t, "losetup", "mount")
	mke2fs := need.Program(t, "mke2fs", "e2fsprogs")
	path := filepath.Join(t.TempDir(), "disk")
	if out, err := exec.Command(mke2fs, "-q", "-t", "ext4", path, "4M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	out, err := exec.Command(losetup, "--find", "--show", path).Output()
	need.Kernel(t, err == nil, "loop devices")
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command(losetup, "-d", device).Run() })
	if _, err := Open(path); imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "attached to "+device) {
		t.Errorf("attached to a loop device: %v", err)
	}
	at := t.TempDir()
	if err := unix.Mount(device, at, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(device); imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "it is mounted") {
		t.Errorf("a device that is mounted: %v", err)
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	m, err := openSoon(device)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Blank(t.Context()); err != nil || !m.Device() || m.Size() != 4<<20 {
		t.Errorf("size %d: %v", m.Size(), err)
	}
	if err := m.Remove(); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("a device was removed: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || len(b) != 4<<20 || len(bytes.Trim(b, "\x00")) > 0 {
		t.Errorf("%d bytes, not all zero: %v", len(b), err)
	}
}

// openSoon opens a device that udev, if it runs, may look at for a moment.
func openSoon(device string) (m *Medium, err error) {
	for range 100 {
		if m, err = Open(device); err == nil || imprint.KindOf(err) != imprint.Conflict {
			return m, err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return m, err
}
