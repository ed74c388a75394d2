//go:build vm

package vm_test

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"

	"imprint"
	"imprint/test/need"
)

// The agent for 64-bit ARM enrols over its serial port.
func TestARM64Agent(t *testing.T) {
	qemu := need.Program(t, "qemu-aarch64-static", "qemu-user-static")
	agent := buildAgent(t, "linux", "arm64")
	s := newServer(t)
	private := canary("private")
	id := s.create("name: arm-1\ndnsNames: [arm-1.lab.internal]\nparams: {private: {db-password: {env: DB_PASSWORD}}}\n", "DB_PASSWORD="+private)
	root, err := os.MkdirTemp("/dev/shm", "imprint-vm-") // parameters go nowhere but into memory
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	if err := os.Mkdir(filepath.Join(root, "dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(terminal(t, s.socket(id, imprint.Serial2)), filepath.Join(root, "dev/ttyS1")); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), qemu, agent, "run", "--root", root, "--once", "--wait", "30s").CombinedOutput()
	if err != nil {
		t.Fatalf("the agent ended with %v:\n%s", err, out)
	}
	d := s.describe("arm-1")
	expectInOrder(t, d, imprint.EventDelivered, imprint.EventClaimed, imprint.EventIssued, imprint.EventConfirmed, imprint.EventRead, imprint.EventClosed)
	if c := d.Instance.Enrolment.Claim; c == nil || c.Tier != imprint.TierHost {
		t.Errorf("claim %+v; want tier 3", c)
	}
	value, err := os.ReadFile(filepath.Join(root, "run/imprint/params/db-password"))
	if err != nil || string(value) != private {
		t.Errorf("the parameter is %q, %v", value, err)
	}
	for name, mode := range map[string]os.FileMode{"key.pem": 0o600, "cert.pem": 0o644, "ca.pem": 0o644} {
		info, err := os.Stat(filepath.Join(root, "etc/imprint", name))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v; want %v", name, info, err, mode)
		}
	}
}

// buildAgent builds the agent for another system and returns its path. It is the
// build of the size budget's test, so that one of the two finds it made.
func buildAgent(t *testing.T, goos, goarch string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "imprint-agent")
	if goos == "windows" {
		path += ".exe"
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "imprint/cmd/imprint-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+goos, "GOARCH="+goarch)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	return path
}

// terminal returns a terminal at whose other end the server listens on socket,
// until the test ends.
func terminal(t *testing.T, socket string) string {
	t.Helper()
	// The host binds it a moment after the reservation.
	conn, err := net.Dial("unix", socket)
	for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); conn, err = net.Dial("unix", socket) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	// Nothing may be echoed before the agent has set the line up by itself.
	if _, err := term.MakeRaw(int(slave.Fd())); err != nil {
		t.Fatal(err)
	}
	copied := make(chan error, 2)
	go func() { _, err := io.Copy(master, conn); copied <- err }()
	go func() { _, err := io.Copy(conn, master); copied <- err }()
	// The slave stays open until the end: without one the master reads EIO, and a
	// read of the master ends in no other way.
	t.Cleanup(func() {
		err := errors.Join(conn.Close(), slave.Close())
		<-copied
		<-copied
		if err := errors.Join(err, master.Close()); err != nil {
			t.Error(err)
		}
	})
	return slave.Name()
}
