package cli

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// A terminal that is closed ends a command as an interrupt does, so that it takes
// away what it made.
func TestHangUp(t *testing.T) {
	if socket := os.Getenv("HANGUP_SOCKET"); socket != "" {
		os.Exit(Main([]string{"--socket", socket, "describe", "web-1"}, os.Stdin, os.Stdout, os.Stderr))
	}
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHangUp$")
	cmd.Env = append(os.Environ(), "HANGUP_SOCKET="+socket)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.Accept() // it waits for an answer
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if state := cmd.ProcessState; !state.Exited() || state.ExitCode() == 0 {
		t.Errorf("it ended with %v", state)
	}
}
