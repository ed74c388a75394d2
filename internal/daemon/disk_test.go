package daemon_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/ca"
)

// A full disk of the issuance log: no certificate leaves, the machine is told to
// ask again, the operator sees why, and it gets one when there is room. The log
// is on a small disk in a mount namespace of the server's, which needs root.
func TestIssuanceLogDiskFull(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	site := newSite(t)
	logDir := filepath.Join(site.config.Data, "log")
	if err := os.MkdirAll(logDir, 0o700); err != nil {
		t.Fatal(err)
	}
	server := site.start(t, func(cmd *exec.Cmd) {
		cmd.Args = append([]string{"sh", "-c", `mount -t tmpfs -o size=8m none "$1" && shift && exec "$@"`, "sh", logDir}, cmd.Args...)
		cmd.Path = "/bin/sh"
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	})
	ballast := filepath.Join("/proc", fmt.Sprint(server.cmd.Process.Pid), "root", logDir, "ballast")
	machineOf := func(name string) (*machine, string) {
		created, err := server.Create(t.Context(), serialOnly(name), nil, false)
		if err != nil {
			t.Fatal(err)
		}
		return newMachine(t, site.config.Run, created.Instance.ID), string(created.Instance.ID)
	}
	first, _ := machineOf("web-0")
	if err := first.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	held := map[imprint.Serial]imprint.KeyID{imprint.SerialOf(first.leaf.SerialNumber): first.keyID()}
	logged(t, held, server.Client)
	fillDisk(t, ballast)

	// What is queued has room elsewhere. At one of these the log finds that it cannot follow:
	// its certificate is on record, and stays there until the log has it.
	var refused *machine
	var ref string
	var err error
	for n := 1; err == nil && n < 100; n++ {
		refused, ref = machineOf(fmt.Sprintf("web-%d", n))
		if err = refused.request(t.Context()); err == nil {
			if err := refused.take(t.Context()); err != nil {
				t.Fatal(err)
			}
			held[imprint.SerialOf(refused.leaf.SerialNumber)] = refused.keyID()
		}
	}
	if err == nil || !strings.HasSuffix(err.Error(), "there is no room for this at present; ask again later") {
		t.Fatalf("on a full disk: %v", err)
	}
	if err := refused.take(t.Context()); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("a certificate that is not on the log: %v", err)
	}
	if i, err := server.Get(t.Context(), ref); err != nil || i.Enrolment.State != imprint.Issued {
		t.Errorf("the machine is %+v, %v", i.Enrolment, err)
	}
	next, ref := machineOf("next") // is not even signed for
	if err := next.request(t.Context()); err == nil {
		t.Error("a request is granted on a full disk")
	}
	if i, err := server.Get(t.Context(), ref); err != nil || i.Enrolment.State != imprint.Claimed || i.Enrolment.Certificate != nil {
		t.Errorf("the next machine is %+v, %v", i.Enrolment, err)
	}
	if want := "no space left on device"; !strings.Contains(site.log.String(), want) {
		t.Errorf("the server's log does not say %q", want)
	}

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if err = refused.request(t.Context()); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after making room: %v", err)
		}
	}
	if err := refused.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	held[imprint.SerialOf(refused.leaf.SerialNumber)] = refused.keyID()
	if err := errors.Join(next.request(t.Context()), next.enrol(t.Context())); err != nil {
		t.Fatal(err)
	}
	held[imprint.SerialOf(next.leaf.SerialNumber)] = next.keyID()
	for generation, keys := range logged(t, held, server.Client) {
		if len(keys) != 1 {
			t.Errorf("%s was certified for %d keys", generation, len(keys))
		}
	}
}

// When a machine has its certificate, over whatever channel, everybody who can
// read the issuance log's directory finds it in the tree.
func TestLoggedBeforeItLeaves(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	server := site.serve(t)
	for n := range 20 {
		created := server.create(t, serialOnly(fmt.Sprintf("web-%d", n)), nil)
		m := newMachine(t, site.config.Run, created.ID)
		if err := m.request(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := m.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		found := false
		for e, err := range ca.Entries(os.DirFS(filepath.Join(site.config.Data, "log")), 0) {
			if err != nil {
				t.Fatal(err)
			}
			found = found || e.Serial == imprint.SerialOf(m.leaf.SerialNumber)
		}
		if !found {
			t.Fatalf("machine %d has a certificate that is not in the log", n)
		}
	}
}

// fillDisk writes a file until its disk is full.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 1} { // to the last byte
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// The embedded etcd meets a disk that takes nothing any more, in the middle of a
// running server: the server says so and ends, and what was acknowledged is there
// when it is started again.
func TestEmbeddedStoreDies(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	server := site.start(t, nil)
	created, err := server.Create(t.Context(), serialOnly("enrolled"), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, site.config.Run, created.Instance.ID)
	if err := m.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	// From here on a write to any file fails as on a broken disk.
	if err := unix.Prlimit(server.cmd.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{}, nil); err != nil {
		t.Fatal(err)
	}
	var acknowledged []string
	for n := 0; err == nil && n < 10000; n++ {
		name := fmt.Sprintf("web-%d", n)
		if _, err = server.Create(t.Context(), serialOnly(name), nil, false); err == nil {
			acknowledged = append(acknowledged, name)
		}
	}
	if imprint.KindOf(err) != imprint.Unavailable || err == nil {
		t.Fatalf("a write without a disk: %v", err)
	}
	t.Logf("after %d: %v", len(acknowledged), err)
	select {
	case <-server.ended:
	case <-time.After(patience):
		t.Fatal("the server does not end")
	}
	if code := server.cmd.ProcessState.ExitCode(); code <= 0 || code == 2 {
		t.Errorf("exit code %d", code)
	}
	said := site.log.String()
	for _, want := range []string{"imprint: serve " + site.config.Data + ": the store cannot go on: ", "hint: see to its disk and start the server again"} {
		if !strings.Contains(said, want) {
			t.Errorf("nothing says %q:\n%s", want, said)
		}
	}
	if strings.Contains(said, "panic") {
		t.Errorf("it panicked:\n%s", said)
	}

	server = site.start(t, nil)
	for _, name := range append(acknowledged, "enrolled") {
		if _, err := server.Get(t.Context(), name); err != nil {
			t.Errorf("%s was acknowledged: %v", name, err)
		}
	}
	if i, err := server.Get(t.Context(), "enrolled"); err != nil || i.Enrolment.State != imprint.Closed || i.Enrolment.Claim.Key != m.keyID() {
		t.Errorf("%+v, %v", i, err)
	}
	logged(t, map[imprint.Serial]imprint.KeyID{imprint.SerialOf(m.leaf.SerialNumber): m.keyID()}, server.Client)
	if _, err := server.Create(t.Context(), serialOnly("later"), nil, false); err != nil {
		t.Error(err)
	}
}
