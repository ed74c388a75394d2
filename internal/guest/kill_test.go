//go:build linux

package guest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/media"
	"imprint/internal/triton"
)

// asAgent in the environment makes the test program an imprint-agent.
const asAgent = "IMPRINT_TEST_AS_AGENT"

// maxKills is more than how often an agent can be killed on its way.
const maxKills = 500

// The agent's process is killed before each system call by which it changes
// something outside itself: a file, or what its host knows. Whenever that is, the
// next process goes on with the same key, and nothing is claimed or issued twice.
func TestResumesAfterAKillAtEverySystemCall(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*testing.T, *machine) (args []string){
		"serial": onSerialPort, "token": withToken, "volume": withVolume,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for at := 1; ; at++ {
				if at > maxKills {
					t.Fatalf("after %d system calls the agent is not done", maxKills)
				}
				if killAndResume(t, name, prepare, at) {
					continue
				}
				if t.Logf("killed at %d places", at-1); at < 50 {
					t.Error("there are more")
				}
				break
			}
		})
	}
}

// killAndResume reports whether a new machine's agent was killed before its
// system call number at, or was done before.
func killAndResume(t *testing.T, name string, prepare func(*testing.T, *machine) []string, at int) (killed bool) {
	t.Helper()
	t.Run(fmt.Sprint(at), func(t *testing.T) {
		// The process has the real clock, which it would move if its host were ahead.
		host := newFakeHostAt(t, time.Now().Truncate(time.Second))
		m := newMachine(t, host)
		m.write("etc/imprint/enrolled.d/10-count", "#!/bin/sh\necho ran >>"+m.root+"/ran\n", 0o700)
		args := append([]string{"run", "--once", "--root", m.root}, prepare(t, m)...)
		var before *ecdsa.PrivateKey
		if killed = m.process(args, at); killed {
			if _, err := os.Stat(m.root + "/etc/imprint/key.pem"); err == nil {
				before = m.key()
			}
			m.process(args, 0)
		}
		if before != nil && !m.key().Equal(before) {
			t.Error("the second process has another key")
		}
		host.do(func() {
			if host.state != imprint.Closed || host.issued != 1 {
				t.Errorf("the host is %s after %d certificates", host.state, host.issued)
			}
			for _, r := range host.requests {
				if !bytes.Equal(r, host.requests[0]) {
					t.Error("a repeated request differs")
				}
			}
		})
		if m.read("ran") == "" || m.read("run/imprint/params/db-url") != "postgres://private-canary" {
			t.Error("enrolled.d did not run, or parameters are missing")
		}
		if _, err := os.Stat(m.root + "/dev/vdb1"); err == nil && !isBlank(m.read("dev/vdb1")) {
			t.Error("the volume that the payload was on is not blank")
		}
		host.do(func() {
			if n := len(host.media); name == "volume" && n == 0 {
				t.Error("nothing is said of the volume")
			}
			for _, end := range host.media {
				if end.State != imprint.MediumTaken {
					t.Errorf("it is said of the volume that it is %+v", end)
				}
			}
		})
		left, err := filepath.Glob(m.root + "/etc/imprint/.*")
		if err != nil || len(left) > 0 {
			t.Errorf("the kill left %v behind", left)
		}
		if t.Failed() {
			t.Logf("the agent said:\n%s", m.said())
		}
	})
	return killed
}

// onSerialPort gives m a serial port with its host at the other end.
func onSerialPort(t *testing.T, m *machine) []string {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		triton.Serve(ctx, master, m.host, triton.Options{Requests: 1e6, Bytes: 1e9})
	}()
	// The slave stays open until the end: without one the master reads EIO, and a
	// read of the master ends in no other way.
	t.Cleanup(func() { stop(); slave.Close(); <-done; master.Close() })
	m.write("dev/.keep", "", 0o600)
	if err := os.Symlink(slave.Name(), m.root+"/dev/ttyS1"); err != nil {
		t.Fatal(err)
	}
	return nil
}

// withToken gives m a payload in a file, with a one-time token.
func withToken(t *testing.T, m *machine) []string {
	t.Helper()
	e := newFakeEndpoint(t, m.host)
	m.host.payload.CheckIn = []string{strings.Replace(e.URL, "127.0.0.1", "localhost", 1)}
	b, err := m.host.payload.Encode()
	if err != nil {
		t.Fatal(err)
	}
	m.write("payload.json", string(b), 0o600)
	return []string{"--payload", m.root + "/payload.json"}
}

// withVolume gives m a payload on a volume, with a one-time token.
func withVolume(t *testing.T, m *machine) []string {
	t.Helper()
	withToken(t, m)
	m.volume("vdb1", map[string][]byte{PayloadName: []byte(m.read("payload.json"))}, media.Floppy)
	return nil
}

// process runs the agent as a process of its own and reports whether it was
// killed before its system call number killAt. An agent that was not has to
// have ended well.
func (m *machine) process(args []string, killAt int) (killed bool) {
	m.t.Helper()
	output, err := os.Create(filepath.Join(m.root, "output"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer output.Close()
	status, err := trace(args, output, killAt)
	said, readErr := os.ReadFile(output.Name())
	m.Write(said)
	if err != nil || readErr != nil {
		m.t.Fatal(err, readErr)
	}
	killed = status.Signaled() && status.Signal() == unix.SIGKILL
	if !killed && status.ExitStatus() != ExitOK {
		m.t.Fatalf("the agent ended with status %d:\n%s", status.ExitStatus(), m.said())
	}
	return killed
}

// trace runs an agent and kills it before its system call number killAt, counting
// those that change something; 0 is never.
func trace(args []string, output *os.File, killAt int) (status unix.WaitStatus, err error) {
	// A process can be traced only by the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	p, err := os.StartProcess(exe, append([]string{exe}, args...), &os.ProcAttr{
		Env: append(os.Environ(), asAgent+"=1", "GOMAXPROCS=1"), Files: []*os.File{nil, output, output}, Sys: &unix.SysProcAttr{Ptrace: true},
	})
	if err != nil {
		return 0, err
	}
	pid := p.Pid
	hang := time.AfterFunc(time.Minute, func() { unix.Kill(pid, unix.SIGKILL) })
	defer hang.Stop()
	defer p.Release() // it is reaped here
	// Only what this thread started: other tests have children too.
	const mine = unix.WALL | unix.WNOTHREAD
	if _, err := unix.Wait4(pid, &status, mine, nil); err != nil {
		return 0, err
	}
	if killAt == 0 {
		if err := unix.PtraceDetach(pid); err != nil {
			return 0, err
		}
		_, err := unix.Wait4(pid, &status, mine, nil)
		return status, err
	}
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL); err != nil {
		return 0, err
	}
	steps := 0
	for thread := pid; ; {
		// A thread that is gone meanwhile cannot be continued, and is waited for below.
		deliver := 0
		switch stop := status.StopSignal(); {
		case stop == unix.SIGTRAP|0x80:
			if changes(thread) {
				if steps++; steps == killAt {
					unix.Kill(pid, unix.SIGKILL)
				}
			}
		case stop == unix.SIGTRAP || stop == unix.SIGSTOP: // an event of tracing, or a new thread
		case status.Stopped():
			deliver = int(stop)
		}
		unix.PtraceSyscall(thread, deliver)
		if thread, err = unix.Wait4(-1, &status, mine, nil); err != nil {
			return 0, err
		}
		for !status.Stopped() {
			if thread == pid {
				return status, nil
			}
			if thread, err = unix.Wait4(-1, &status, mine, nil); err != nil {
				return 0, err
			}
		}
	}
}

// changes reports whether a thread is about to change something by a system call
// (ptrace(2), PTRACE_GET_SYSCALL_INFO).
func changes(thread int) bool {
	const entry = 1
	var info struct {
		op     uint8
		_      [3]uint8
		arch   uint32
		ip, sp uint64
		number uint64
		args   [6]uint64
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(thread),
		unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 || n == 0 || info.op != entry {
		return false
	}
	switch info.number {
	case unix.SYS_WRITE:
		return info.args[0] > 2 // beyond what it says
	case unix.SYS_OPENAT:
		return info.args[2]&(unix.O_CREAT|unix.O_TRUNC) != 0
	case unix.SYS_PWRITE64, unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_FCHMOD, unix.SYS_FCHMODAT,
		unix.SYS_CONNECT:
		return true
	}
	return false
}
