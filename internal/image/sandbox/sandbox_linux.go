package sandbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nobody is the user and group that own nothing.
const nobody = 65534

// Limits on a sandbox.
type Limits struct {
	Memory uint64        // bytes
	CPU    time.Duration // of all processors together; whole seconds
}

// Command returns a command that runs this program again with args. The process has
// an empty environment and no network, and ends with the thread that starts it: so a
// goroutine that calls [Start] has to be locked to its thread until the process ended.
func Command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, "/proc/self/exe", args...)
	c.Args[0] = "imprint"
	c.Env = []string{"GOTRACEBACK=none"}
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		c.SysProcAttr.Cloneflags = unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	}
	return c
}

// Start starts a command of [Command], without namespaces where they are not to be
// had, as for root in many containers.
func Start(c *exec.Cmd) error {
	err := c.Start()
	if c.SysProcAttr.Cloneflags != 0 && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL)) {
		c.SysProcAttr.Cloneflags = 0
		c.Process, c.Err = nil, nil
		return c.Start()
	}
	return err
}

// Enter locks this process up for good. After an error it must do nothing more.
func Enter(l Limits) error {
	runtime.LockOSThread() // until the filter holds for all threads
	defer runtime.UnlockOSThread()
	debug.SetMemoryLimit(int64(l.Memory) * 3 / 4)
	for what, n := range map[int]uint64{
		unix.RLIMIT_DATA:   l.Memory, // not RLIMIT_AS: Go reserves more than it uses
		unix.RLIMIT_CPU:    uint64(l.CPU / time.Second),
		unix.RLIMIT_CORE:   0,
		unix.RLIMIT_FSIZE:  0,
		unix.RLIMIT_NOFILE: 16,
	} {
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("limit resource %d: %w", what, err)
		}
	}
	if os.Geteuid() == 0 {
		if err := abandon(); err != nil {
			return err
		}
		// The kernel forgets this when a process becomes another user's.
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return fmt.Errorf("end with the parent: %w", err)
		}
	}
	// That no program may raise its privileges is what the kernel wants before a filter.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keep other processes out: %w", err)
	}
	if err := dropCapabilities(); err != nil {
		return err
	}
	if err := landlock(); err != nil {
		return err
	}
	return install(filter())
}

// abandon gives up root's rights: the process sees an empty directory that is
// removed already, and is nobody.
func abandon() error {
	dir, err := os.MkdirTemp("", "imprint-empty-")
	if err != nil {
		return err
	}
	err = unix.Chdir(dir)
	if err := errors.Join(err, os.Remove(dir)); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil && !errors.Is(err, unix.EPERM) { // as in a container without that right
		return fmt.Errorf("leave the file system: %w", err)
	}
	// Those of package syscall are for all threads.
	err = syscall.Setgroups(nil)
	if err == nil {
		err = syscall.Setresgid(nobody, nobody, nobody)
	}
	if err == nil {
		err = syscall.Setresuid(nobody, nobody, nobody)
	}
	if err != nil {
		return fmt.Errorf("become nobody: %w", err)
	}
	return nil
}

// everywhere makes a system call on all threads. In a program that is linked with C,
// as tests are, only on this one.
func everywhere(call, a, b, c uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall(call, a, b, c)
	if errno == syscall.ENOTSUP {
		_, _, errno = syscall.RawSyscall(call, a, b, c)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// dropCapabilities empties the sets. Root's are empty already.
func dropCapabilities() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := everywhere(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&none[0])), 0); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// landlock denies all of the file system, where the kernel has Landlock.
func landlock() error {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return nil
	}
	rules := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1} // what version 1 knows
	if abi >= 2 {
		rules.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		rules.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 4 {
		rules.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if abi >= 5 {
		rules.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if abi >= 6 {
		rules.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rules)), unsafe.Sizeof(rules), 0)
	if errno != 0 {
		return fmt.Errorf("deny the file system: %w", errno)
	}
	defer unix.Close(int(fd))
	// Landlock as well wants no new privileges, of each thread.
	if err := everywhere(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	if err := everywhere(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); err != nil {
		return fmt.Errorf("deny the file system: %w", err)
	}
	return nil
}

// install lets a filter hold for all threads, those to come as well.
func install(f []unix.SockFilter) error {
	if len(f) == 0 {
		return fmt.Errorf("filter system calls: not on %s", runtime.GOARCH)
	}
	if len(f) > math.MaxUint16 {
		return errors.New("filter system calls: too many")
	}
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("filter system calls: %w", errno)
	}
	if thread != 0 {
		return fmt.Errorf("filter system calls: thread %d has another filter", thread)
	}
	return nil
}
