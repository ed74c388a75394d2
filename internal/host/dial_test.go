package host

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/test/need"
)

// stranger is a user who is neither root nor the one who runs this test.
const stranger = 64123

// listenAt listens at path for the length of the test.
func listenAt(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// wantDial fails the test unless an attempt to dial path ends with kind; "" is success.
func wantDial(t *testing.T, path string, owner *Owner, kind imprint.Kind, sentence string) {
	t.Helper()
	conn, err := dialSocket(t.Context(), path, owner)
	if err == nil {
		conn.Close()
	}
	if sentence == "" && err == nil {
		return
	}
	if err == nil || imprint.KindOf(err) != kind || !strings.Contains(err.Error(), sentence) {
		t.Errorf("dial %s: %v (%v); want %q (%v)", path, err, imprint.KindOf(err), sentence, kind)
	}
}

func TestDialSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	wantDial(t, "/"+strings.Repeat("d", MaxSocketPath), nil, imprint.Invalid, "108 bytes; a socket's path holds 107")
	wantDial(t, filepath.Join(dir, "later", "sock"), nil, imprint.Unavailable, "nobody listens there yet")
	left := filepath.Join(dir, "left")
	l, err := net.Listen("unix", left)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	wantDial(t, left, nil, imprint.Unavailable, "nobody listens there yet")
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantDial(t, file, nil, imprint.Conflict, "it is not a socket")
}

// The listener is taken for the machine, so that nobody else may be able to
// become it.
func TestDialRefusesAPathThatOthersCanChange(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	open, sticky := filepath.Join(dir, "open"), filepath.Join(dir, "sticky")
	for path, mode := range map[string]os.FileMode{open: 0o777, sticky: 0o777 | os.ModeSticky, filepath.Join(open, "inner"): 0o700} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		listenAt(t, filepath.Join(path, "sock"))
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(sticky, link); err != nil {
		t.Fatal(err)
	}
	wantDial(t, filepath.Join(sticky, "sock"), nil, 0, "")
	replaceable := "others can replace what is in " + open
	wantDial(t, filepath.Join(open, "sock"), nil, imprint.Conflict, replaceable)
	wantDial(t, filepath.Join(open, "inner", "sock"), nil, imprint.Conflict, replaceable)
	wantDial(t, filepath.Join(link, "sock"), nil, imprint.Conflict, link+" is a symbolic link")
}

func TestDialRefusesAStranger(t *testing.T) {
	t.Parallel()
	need.Root(t)
	hypervisor := &Owner{UID: stranger, GID: stranger}
	dir := shortDir(t)
	path := filepath.Join(dir, "sock")
	give := func(path string, uid, gid int) {
		t.Helper()
		if err := os.Chown(path, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	give(dir, stranger, stranger)

	// Who listens is what the kernel noted when it began, whoever owns the file now.
	listening := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		keep := ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, stranger, keep); errno != 0 {
			listening <- errno
			return
		}
		l, err := net.Listen("unix", path)
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		listening <- err
	}()
	if err := <-listening; err != nil {
		t.Fatal(err)
	}

	wantDial(t, path, hypervisor, 0, "")
	wantDial(t, path, nil, imprint.Conflict, dir+" does not belong to root")
	give(dir, 0, stranger)
	if err := os.Chmod(dir, 0o770); err != nil {
		t.Fatal(err)
	}
	wantDial(t, path, nil, imprint.Conflict, "others can replace what is in "+dir)
	give(dir, 0, 0)
	wantDial(t, path, nil, imprint.Conflict, path+" does not belong to root")
	give(path, 0, 0)
	wantDial(t, path, nil, imprint.Conflict, fmt.Sprintf("user %d listens there", stranger))
	wantDial(t, path, hypervisor, 0, "")
}

// The packaged service may not pass over file modes; a group helps it.
func TestDialSaysThatItMayNotConnect(t *testing.T) {
	t.Parallel()
	need.Root(t)
	path := filepath.Join(shortDir(t), "sock")
	listenAt(t, path)
	if err := errors.Join(os.Chown(path, stranger, 0), os.Chmod(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	dial := func() error {
		errs := make(chan error)
		go func() {
			runtime.LockOSThread() // for good: the thread ends with its capabilities
			err := keepCapability(unix.CAP_CHOWN)
			if err == nil {
				var conn net.Conn
				if conn, err = dialSocket(t.Context(), path, &Owner{UID: stranger, GID: stranger}); err == nil {
					conn.Close()
				}
			}
			errs <- err
		}()
		return <-errs
	}
	if err := dial(); imprint.KindOf(err) != imprint.Denied || !strings.Contains(imprint.HintOf(err), "add imprint to the group") {
		t.Errorf("dial a socket that only its owner may write to: %v, hint %q", err, imprint.HintOf(err))
	}
	if err := os.Chmod(path, 0o775); err != nil { // root is in its group
		t.Fatal(err)
	}
	if err := dial(); err != nil {
		t.Errorf("dial a socket that the group may write to: %v", err)
	}
}
