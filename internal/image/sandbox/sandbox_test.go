package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint/internal/image/sandbox"
	"imprint/test/need"
)

// What a process in the sandbox tries. Each returns what the kernel says.
func tries() map[string]func() error {
	return map[string]func() error{
		"open a file":            func() error { _, err := os.Open("/etc/passwd"); return err },
		"open a device":          func() error { _, err := os.OpenFile("/dev/null", os.O_WRONLY, 0); return err },
		"open by openat2":        func() error { _, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{}); return err },
		"make a file":            func() error { return os.WriteFile("/tmp/imprint-sandbox-was-here", nil, 0o600) },
		"make a TCP socket":      func() error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); return err },
		"make a netlink socket":  func() error { _, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0); return err },
		"make a pair of sockets": func() error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
		"dial":                   func() error { _, err := net.Dial("tcp", "127.0.0.1:22"); return err },
		"run a program":          func() error { return unix.Exec("/bin/true", []string{"true"}, nil) },
		"make a process":         func() error { return errnoOf(unix.Syscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)) },
		"make a process anew":    func() error { return errnoOf(unix.Syscall(unix.SYS_CLONE3, 0, 0, 0)) },
		"make a namespace":       func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"signal the parent":      func() error { return unix.Kill(os.Getppid(), 0) },
		"trace the parent":       func() error { return unix.PtraceAttach(os.Getppid()) },
		"read a process":         func() error { return errnoOf(unix.Syscall(unix.SYS_PROCESS_VM_READV, 1, 0, 0)) },
		"mount":                  func() error { return unix.Mount("none", "/", "tmpfs", 0, "") },
		"make code": func() error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
			return err
		},
		"use io_uring":     func() error { return errnoOf(unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0)) },
		"load a program":   func() error { return errnoOf(unix.Syscall(unix.SYS_BPF, 0, 0, 0)) },
		"raise its limits": func() error { return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 17, Max: 17}) },
		"become root":      func() error { return syscall.Setresuid(0, 0, 0) },
	}
}

func errnoOf(_, _ uintptr, errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// inBetween is a parent that starts a sandbox, says which process it is, and waits.
func inBetween() {
	runtime.LockOSThread()
	c := sandbox.Command(context.Background(), "sandbox-sleep")
	out, err := c.StdoutPipe()
	if err == nil {
		err = sandbox.Start(c)
	}
	if err == nil {
		_, err = io.ReadFull(out, make([]byte, 5))
	}
	fmt.Println(c.Process.Pid, err)
	select {}
}

// TestMain is the test or, as its child, what is in the sandbox.
func TestMain(m *testing.M) {
	if len(os.Args) != 2 || !strings.HasPrefix(os.Args[1], "sandbox-") {
		os.Exit(m.Run())
	}
	if os.Args[1] == "sandbox-parent" {
		go func() { time.Sleep(time.Minute); os.Exit(1) }() // whatever becomes of the test
		inBetween()
	}
	err := sandbox.Enter(sandbox.Limits{Memory: 256 << 20, CPU: time.Second})
	if err != nil {
		fmt.Fprintln(os.Stderr, "enter:", err)
		os.Exit(1)
	}
	switch os.Args[1] {
	case "sandbox-try":
		for name, try := range tries() {
			// ENOENT, say, would mean that the kernel looked.
			if err := try(); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSYS) {
				fmt.Printf("%s: %v\n", name, err)
			}
		}
		fmt.Println("tried")
	case "sandbox-wait": // with some threads, until the parent has looked
		for range 4 {
			go func() { runtime.LockOSThread(); select {} }()
		}
		fmt.Println("here")
		io.Copy(io.Discard, os.Stdin)
	case "sandbox-sleep":
		fmt.Println("here")
		for {
			time.Sleep(time.Hour)
		}
	case "sandbox-read":
		b := make([]byte, 5)
		_, err := os.NewFile(3, "file").ReadAt(b, 1)
		fmt.Printf("%s %v\n", b, err)
	case "sandbox-write":
		_, err := os.NewFile(3, "file").Write([]byte("x"))
		fmt.Println(err)
	case "sandbox-grow":
		var all [][]byte
		for range 1024 {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			all = append(all, b)
		}
		fmt.Println("had", len(all))
	case "sandbox-spin":
		for n := 0; ; n++ {
			runtime.KeepAlive(n)
		}
	}
	os.Exit(0)
}

// child runs this test in the sandbox, as root if the test is root, or as somebody else.
func child(t *testing.T, what string, root bool) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	c := sandbox.Command(ctx, "sandbox-"+what)
	if !root && os.Geteuid() == 0 {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: 12345, Gid: 12345}
		c.SysProcAttr.Cloneflags = 0
	}
	return c
}

// everyone runs a test as root, if that can be, and as somebody else.
func everyone(t *testing.T, test func(t *testing.T, root bool)) {
	t.Run("root", func(t *testing.T) { need.Root(t); test(t, true) })
	t.Run("user", func(t *testing.T) { test(t, false) })
}

func run(t *testing.T, c *exec.Cmd) (out string, err error) {
	t.Helper()
	var b, errs bytes.Buffer
	c.Stdout, c.Stderr = &b, &errs
	if err = sandbox.Start(c); err != nil {
		t.Fatal(err)
	}
	err = c.Wait()
	if errs.Len() > 0 && !strings.Contains(errs.String(), "out of memory") && !strings.Contains(errs.String(), "cannot allocate memory") {
		t.Fatalf("%s", errs.String())
	}
	return b.String(), err
}

// Nothing that opens, connects, starts or changes anything gets through to the kernel.
func TestDenied(t *testing.T) {
	everyone(t, func(t *testing.T, root bool) {
		out, err := run(t, child(t, "try", root))
		if err != nil || out != "tried\n" {
			t.Errorf("it was not denied everything: %v\n%s", err, out)
		}
	})
}

// What is open stays usable, as it was opened.
func TestKeepsWhatIsOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("hello, world"), 0o600); err != nil {
		t.Fatal(err)
	}
	everyone(t, func(t *testing.T, root bool) {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for what, want := range map[string]string{"read": "ello, <nil>\n", "write": "bad file descriptor"} {
			c := child(t, what, root)
			c.ExtraFiles = []*os.File{f}
			if out, err := run(t, c); err != nil || !strings.Contains(out, want) {
				t.Errorf("%s: %q, %v; want %q", what, out, err, want)
			}
		}
	})
}

// The kernel itself says of every thread what it may.
func TestEveryThreadIsConfined(t *testing.T) {
	everyone(t, func(t *testing.T, root bool) {
		c := child(t, "wait", root)
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := sandbox.Start(c); err != nil {
			t.Fatal(err)
		}
		defer c.Wait()
		defer in.Close()
		if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", c.Process.Pid))
		if err != nil || len(threads) < 5 {
			t.Fatalf("%d threads, %v", len(threads), err)
		}
		user := map[bool]string{true: "65534", false: fmt.Sprint(os.Getuid())}[root]
		if !root && os.Geteuid() == 0 {
			user = "12345"
		}
		want := map[string]string{
			"Seccomp": "2", "NoNewPrivs": "1", "CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapAmb": "0000000000000000",
			"Uid": strings.Join(slices.Repeat([]string{user}, 4), "\t"), "Groups": "",
		}
		for _, thread := range threads {
			b, err := os.ReadFile(thread)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(b)) {
				name, value, _ := strings.Cut(line, ":")
				if w, is := want[name]; is && strings.TrimSpace(value) != w {
					t.Errorf("%s: %s is %q; want %q", thread, name, strings.TrimSpace(value), w)
				}
			}
		}
		if !root {
			return
		}
		// The test is root, and sees where the child is.
		mine, _ := os.Readlink("/proc/self/ns/net")
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", c.Process.Pid))
		if err != nil || its == mine {
			t.Errorf("it is in the network %s of %s, %v", its, mine, err)
		}
		if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/root", c.Process.Pid)); err != nil || !strings.HasSuffix(dir, "(deleted)") {
			t.Errorf("its root directory is %s, %v", dir, err)
		}
	})
}

// Whoever wants more memory or time than there is ends.
func TestLimits(t *testing.T) {
	everyone(t, func(t *testing.T, root bool) {
		for _, what := range []string{"grow", "spin"} {
			if out, err := run(t, child(t, what, root)); err == nil {
				t.Errorf("%s: it went on to its end: %s", what, out)
			}
		}
	})
}

// A sandbox does not outlive who needs it, even if that is killed.
func TestEndsWithItsParent(t *testing.T) {
	c := exec.Command(os.Args[0], "sandbox-parent")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	var pid int
	var said string
	if _, err := fmt.Fscanln(out, &pid, &said); err != nil || said != "<nil>" {
		t.Fatalf("process %d: %s, %v", pid, said, err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	c.Process.Kill()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 30_000); n != 1 {
		t.Errorf("it is still there: %v", err)
		unix.Kill(pid, unix.SIGKILL)
	}
}
