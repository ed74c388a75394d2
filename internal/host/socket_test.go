package host

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/test/need"
)

// shortDir returns a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "imprint")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestBindMakesPrivateSocket(t *testing.T) {
	old := syscall.Umask(0) // the mode must not depend on it
	defer syscall.Umask(old)
	path := filepath.Join(shortDir(t), "id", "serial.sock")
	l, err := bind(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	wantMode(t, path, 0o600)
	wantMode(t, filepath.Dir(path), 0o700)
}

// keepCapability leaves this thread root with one capability and nothing else.
func keepCapability(one int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return err
	}
	have[0].Effective, have[1].Effective = 1<<one, 0
	return unix.Capset(&header, &have[0])
}

// As the packaged service the host is root with CAP_CHOWN and nothing else, and
// may not even connect to the sockets that it gave away before its restart.
func TestBindTakesBackWhatItGave(t *testing.T) {
	need.Root(t)
	path := filepath.Join(shortDir(t), "id", "serial.sock")
	owner := &Owner{UID: 64055, GID: 108}
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its capabilities
		errs <- func() error {
			if err := keepCapability(unix.CAP_CHOWN); err != nil {
				return err
			}
			first, err := bind(path, owner)
			if err != nil {
				return err
			}
			if l, err := bind(path, owner); err == nil {
				l.Close()
				t.Error("took the socket of a program that listens")
			}
			first.Close()
			second, err := bind(path, owner)
			if err != nil {
				return err
			}
			return second.Close()
		}()
	}()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 64055 {
		t.Errorf("the socket belongs to %d", uid)
	}
}

func TestBindGivesSocketToItsOwner(t *testing.T) {
	need.Root(t)
	path := filepath.Join(shortDir(t), "id", "serial.sock")
	l, err := bind(path, &Owner{UID: 64055, GID: 108})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	wantMode(t, path, 0o600)
	wantMode(t, filepath.Dir(path), 0o710)
	for path, owner := range map[string]Owner{path: {64055, 108}, filepath.Dir(path): {0, 108}} {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if s := info.Sys().(*syscall.Stat_t); (Owner{int(s.Uid), int(s.Gid)}) != owner {
			t.Errorf("%s belongs to %d:%d, want %+v", filepath.Base(path), s.Uid, s.Gid, owner)
		}
	}
}

func TestBindOnAPathThatExists(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := filepath.Join(dir, "id", "serial.sock")
	first, err := bind(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = bind(path, nil)
	if imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "another program listens there") || imprint.HintOf(err) == "" {
		t.Errorf("bind on a live socket: %v", err)
	}
	first.Close() // its file stays
	again, err := bind(path, nil)
	if err != nil {
		t.Fatalf("bind on a stale socket: %v", err)
	}
	again.Close()
	os.Remove(path)

	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, occupy := range map[string]func() error{
		"a file":      func() error { return os.WriteFile(path, nil, 0o600) },
		"a directory": func() error { return os.Mkdir(path, 0o700) },
		"a link":      func() error { return os.Symlink(victim, path) },
	} {
		if err := occupy(); err != nil {
			t.Fatal(err)
		}
		_, err := bind(path, nil)
		if imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), path) {
			t.Errorf("bind on %s: %v", name, err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s is gone: %v", name, err)
		}
		os.Remove(path)
	}
	if b, err := os.ReadFile(victim); string(b) != "precious" {
		t.Errorf("the link's target has %q, %v", b, err)
	}
}

func TestBindRefusesDirectoryThatOthersCanChange(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(shortDir(t), "id")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := bind(filepath.Join(dir, "serial.sock"), nil); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("bind: %v", err)
	}
}

func TestRunDirectoryNameIsLimited(t *testing.T) {
	t.Parallel()
	longest := "/" + strings.Repeat("d", maxRunDir-1)
	if _, err := New(Config{RunDir: longest}); err != nil {
		t.Errorf("the longest name: %v", err)
	}
	if n := len(socketPath(longest, imprint.NewInstanceID(), imprint.VirtioSerial)); n != MaxSocketPath {
		t.Errorf("its socket's path has %d bytes", n)
	}
	for _, dir := range []string{longest + "d", "relative"} {
		if _, err := New(Config{RunDir: dir}); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("run directory %q: %v", dir, err)
		}
	}
}

func TestRunDirectoryHasOneHost(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	unlock, err := lockRunDir(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(Config{RunDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Run(t.Context()); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("a second host: %v", err)
	}
	unlock()
	unlock, err = lockRunDir(dir, nil)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	unlock()
}

func wantMode(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Perm() != mode {
		t.Errorf("%s has mode %v, %v; want %v", filepath.Base(path), info.Mode().Perm(), err, mode)
	}
}
