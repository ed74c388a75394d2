package daemon_test

import (
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"imprint"
	"imprint/internal/daemon"
	"imprint/test/need"
)

// A server that somebody else runs in /tmp must not be told values.
func TestDefaultSocketIsOurOwn(t *testing.T) {
	need.Root(t)
	t.Setenv("XDG_RUNTIME_DIR", "")
	dir := filepath.Join(os.TempDir(), "imprint-65533")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	check := func() error {
		errs := make(chan error)
		go func() {
			runtime.LockOSThread() // for good: the thread ends with its user
			if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, 65533, 65533, 65533); errno != 0 {
				errs <- errno
				return
			}
			errs <- daemon.CheckDefaultSocket()
		}()
		return <-errs
	}
	if err := check(); imprint.KindOf(err) != imprint.Denied {
		t.Errorf("another user's directory: %v", err)
	}
	if err := os.Chown(dir, 65533, -1); err != nil {
		t.Fatal(err)
	}
	if err := check(); err != nil {
		t.Errorf("the user's own directory: %v", err)
	}
}

// Whoever can exchange the key file owns all that is sealed with it from then on.
func TestOthersMayNotChangeTheData(t *testing.T) {
	t.Parallel()
	need.Root(t)
	for name, spoil := range map[string]func(dir string) error{
		"mode":  func(dir string) error { return os.Chmod(dir, 0o770) },
		"owner": func(dir string) error { return os.Chown(dir, 65534, -1) },
	} {
		s := newSite(t)
		if err := os.Mkdir(s.config.Data, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := spoil(s.config.Data); err != nil {
			t.Fatal(err)
		}
		d, err := daemon.Open(t.Context(), s.settings(t), daemon.Options{})
		if err == nil {
			d.Close()
		}
		if imprint.KindOf(err) != imprint.Denied || imprint.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
