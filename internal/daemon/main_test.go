package daemon_test

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/klog/v2"

	"imprint/internal/cli"
	"imprint/internal/guest"
)

// childVariable names, in the environment, which program this process is to be.
const childVariable = "IMPRINT_DAEMON_TEST_CHILD"

// The programs that this test starts are this test again.
const (
	childImprint = "imprint"
	childEtcd    = "etcd"
	childAgent   = "agent"
	childIdle    = "idle" // waits for the signal that ends it
)

func TestMain(m *testing.M) {
	switch os.Getenv(childVariable) {
	case childImprint:
		os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	case childAgent:
		os.Exit(guest.Command(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	case childEtcd:
		etcdmain.Main(os.Args)
		return
	case childIdle:
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		os.Stdout.WriteString("ready\n")
		<-c
		return
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// child returns a command that runs one of the programs. The environment has
// nothing of the test's own but what a program needs.
func child(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = []string{childVariable + "=" + program, "PATH=" + os.Getenv("PATH"), "HOME=/nowhere"}
	return cmd
}
