//go:build linux

package peercred_test

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"imprint/internal/peercred"
)

func TestOf(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	p, err := peercred.Of(far.(*net.UnixConn))
	if err != nil {
		t.Fatal(err)
	}
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	if p.UID != os.Getuid() || p.GID != os.Getgid() || p.PID != os.Getpid() || !slices.Equal(sorted(p.Groups), sorted(groups)) {
		t.Errorf("got %+v, want uid %d gid %d pid %d groups %v", p, os.Getuid(), os.Getgid(), os.Getpid(), groups)
	}
}

func sorted(s []int) []int {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

// childSocket tells a child process which socket to connect to.
const childSocket = "IMPRINT_TEST_SOCKET"

func TestMain(m *testing.M) {
	path := os.Getenv(childSocket)
	if path == "" {
		os.Exit(m.Run())
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		os.Exit(1)
	}
	io.Copy(io.Discard, conn) // until the test has seen enough
}

// A process that has a group besides its primary one is in it. Making one needs root.
func TestSupplementaryGroup(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("choosing groups needs root")
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = []string{childSocket + "=" + l.Addr().String()}
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Gid: 4241, Groups: []uint32{4242, 4243}}}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p, err := peercred.Of(conn.(*net.UnixConn))
	if err != nil || !p.In(4241) || !p.In(4242) || !p.In(4243) || p.In(4244) || p.In(0) {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestIn(t *testing.T) {
	t.Parallel()
	p := peercred.Peer{UID: 27, GID: 1000, Groups: []int{4, 27}}
	for gid, want := range map[int]bool{1000: true, 4: true, 27: true, 0: false, 500: false, -1: false} {
		if p.In(gid) != want {
			t.Errorf("in group %d: %v", gid, !want)
		}
	}
	if none := (peercred.Peer{GID: -1, Groups: []int{-1}}); none.In(-1) {
		t.Error("somebody is in no group")
	}
}
