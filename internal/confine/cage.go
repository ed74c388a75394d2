package confine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// The descriptors of the process that builds the cage; those of the program follow.
const (
	specFD   = 3
	reportFD = 4
	firstFD  = 5
)

// tmpSize is how large /tmp and /run may grow, in bytes each.
const tmpSize = 256 << 20

// Main does the work inside the cage, and does not return, if this process was
// started to do that; otherwise it does nothing. It has to be called first in main.
func Main() {
	if len(os.Args) != 1 || os.Args[0] != name || os.Getpid() != 1 {
		return
	}
	r := build()
	out := os.NewFile(reportFD, "report")
	json.NewEncoder(out).Encode(r)
	os.Exit(0) // and with PID 1 everything of its namespace ends
}

// build builds the cage, and runs the program in it to its end.
func build() (r report) {
	fail := func(doing string, err error) report { return report{Failed: fmt.Sprintf("%s: %v", doing, err)} }
	// Other threads of this process keep their rights. So that nobody takes it over by
	// /proc/1/mem, or reports in its place, what it is belongs to the machine's root.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fail("close itself off", err)
	}
	unix.CloseOnExec(specFD)
	unix.CloseOnExec(reportFD)
	var s spec
	in := os.NewFile(specFD, "spec")
	if err := json.NewDecoder(in).Decode(&s); err != nil {
		return fail("read what to run", err)
	}
	in.Close()
	if err := s.mounts(); err != nil {
		return fail("prepare the root directory", err)
	}
	unix.Sethostname([]byte("localhost"))
	// From here on this thread has what the program may have, and starts it.
	runtime.LockOSThread()
	if err := s.limits(); err != nil {
		return fail("set limits", err)
	}
	var files []*os.File
	for i := range s.Files {
		unix.CloseOnExec(firstFD + i)
		files = append(files, os.NewFile(uintptr(firstFD+i), "file"))
	}
	if err := s.drop(); err != nil {
		return fail("give up rights", err)
	}
	cmd := &exec.Cmd{
		Path: s.Path, Args: append([]string{s.Path}, s.Args...), Env: s.Env, Dir: s.Dir,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, ExtraFiles: files,
		SysProcAttr: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: s.UID, Gid: s.GID}, Setpgid: true},
	}
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	if err := cmd.Start(); err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return fail("start it", err)
	}
	for _, f := range append(files, os.Stdin, os.Stdout, os.Stderr) {
		f.Close()
	}
	return reap(cmd.Process.Pid)
}

// reap waits for the program, and for all orphans on the way, as PID 1 has to.
func reap(pid int) report {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return report{Failed: "wait for it: " + err.Error()}
		case got == pid && status.Signaled():
			return report{Signal: status.Signal()}
		case got == pid && status.Exited():
			return report{Status: status.ExitStatus()}
		}
	}
}

// mounts makes the root directory. What the root itself has may be anybody's: so
// sources are taken before it is entered, and targets are looked up after that.
func (s *spec) mounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	type clone struct {
		fd     int
		target string
	}
	var clones []clone
	for _, name := range slices.Concat([]string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}, s.Devices) {
		fd, err := take(name, 0)
		if err != nil {
			return err
		}
		clones = append(clones, clone{fd, name})
	}
	devices := len(clones)
	for _, m := range s.Mounts {
		attr := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
		if !m.Writable {
			attr |= unix.MOUNT_ATTR_RDONLY
		}
		fd, err := take(m.Source, attr)
		if err != nil {
			return err
		}
		clones = append(clones, clone{fd, m.Target})
	}
	if err := s.enter(); err != nil {
		return err
	}
	if err := overlay(); err != nil {
		return err
	}
	for i, c := range clones {
		if i < devices {
			if err := os.MkdirAll(filepath.Dir(c.target), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(c.target, nil, 0o600); err != nil {
				return err
			}
		}
		if err := unix.MoveMount(c.fd, "", unix.AT_FDCWD, c.target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return &fs.PathError{Op: "mount", Path: c.target, Err: err}
		}
		unix.Close(c.fd)
	}
	return unix.Mount("", "/dev", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC, "")
}

// take returns a mount of what is at path, and all below, that is nowhere yet.
func take(path string, attr uint64) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err == nil && attr != 0 {
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attr})
	}
	if err != nil {
		return 0, &fs.PathError{Op: "take", Path: path, Err: err}
	}
	return fd, nil
}

// enter makes the program's root this process's.
func (s *spec) enter() error {
	if s.Root == "" {
		return os.NewSyscallError("mount_setattr", unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
	}
	if err := unix.Mount(s.Root, s.Root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return &fs.PathError{Op: "mount", Path: s.Root, Err: err}
	}
	if err := unix.Chdir(s.Root); err != nil {
		return &fs.PathError{Op: "enter", Path: s.Root, Err: err}
	}
	err := unix.PivotRoot(".", ".")
	switch {
	case err == nil:
		err = unix.Unmount(".", unix.MNT_DETACH)
	case errors.Is(err, unix.EINVAL):
		// The first root of a kernel cannot be put away, only covered, as switch_root(8) does.
		for _, at := range []string{"/dev", "/sys", "/proc"} {
			unix.Unmount(at, unix.MNT_DETACH)
		}
		if err = unix.Mount(".", "/", "", unix.MS_MOVE, ""); err == nil {
			err = unix.Chroot(".")
		}
	}
	if err == nil {
		err = unix.Chdir("/")
	}
	return os.NewSyscallError("pivot_root", err)
}

// overlay mounts what every program expects, where the root has a place for it.
func overlay() error {
	const closed = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	small := fmt.Sprintf("size=%d,nr_inodes=100000,mode=", tmpSize)
	for _, m := range []struct {
		kind, at string
		flags    uintptr
		data     string
	}{
		{"proc", "/proc", closed, ""},
		{"sysfs", "/sys", closed | unix.MS_RDONLY, ""},
		{"tmpfs", "/dev", unix.MS_NOSUID | unix.MS_NOEXEC, "size=1m,mode=755"},
		{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, small + "1777"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, small + "755"},
	} {
		err := unix.Mount(m.kind, m.at, m.kind, m.flags, m.data)
		if errors.Is(err, unix.ENOENT) && m.at != "/dev" {
			continue
		}
		if errors.Is(err, unix.EBUSY) && m.kind == "sysfs" {
			continue // the caller's root has the very same there, which enter made read-only
		}
		if err != nil {
			return &fs.PathError{Op: "mount", Path: m.at, Err: err}
		}
	}
	// What of /proc belongs to the machine needs no capability, only root's name.
	for _, name := range []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi", "/proc/kcore", "/proc/kmsg"} {
		err := unix.Mount(name, name, "", unix.MS_BIND, "")
		if err == nil {
			err = unix.Mount("", name, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|closed, "")
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return &fs.PathError{Op: "protect", Path: name, Err: err}
		}
	}
	for _, m := range []struct{ kind, at, data string }{
		{"devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=620"}, {"tmpfs", "/dev/shm", small + "1777"},
	} {
		if err := os.Mkdir(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, unix.MS_NOSUID|unix.MS_NOEXEC, m.data); err != nil && !errors.Is(err, unix.ENODEV) {
			return &fs.PathError{Op: "mount", Path: m.at, Err: err}
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"} {
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return err
		}
	}
	return nil
}

// limits sets those of each process; the program inherits them.
func (s *spec) limits() error {
	set := func(resource int, n uint64) error {
		return os.NewSyscallError("setrlimit", unix.Setrlimit(resource, &unix.Rlimit{Cur: n, Max: n}))
	}
	l := s.Limits
	err := errors.Join(set(unix.RLIMIT_CORE, 0), set(unix.RLIMIT_NOFILE, uint64(l.OpenFiles)), set(unix.RLIMIT_MEMLOCK, 64<<10), set(unix.RLIMIT_MSGQUEUE, 64<<10))
	if l.FileSize > 0 {
		err = errors.Join(err, set(unix.RLIMIT_FSIZE, uint64(l.FileSize)))
	}
	if !s.Cgroup {
		if s.UID != 0 { // root's are not counted
			err = errors.Join(err, set(unix.RLIMIT_NPROC, uint64(l.Processes)))
		}
		if l.Memory > 0 {
			err = errors.Join(err, set(unix.RLIMIT_DATA, uint64(l.Memory)))
		}
	}
	return err
}

// kept are the capabilities that let root be root among the files of its root, and
// nothing else.
func kept() []int {
	return []int{
		unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL, unix.CAP_SETGID, unix.CAP_SETUID,
		unix.CAP_SETPCAP, unix.CAP_SETFCAP, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT,
	}
}

// drop gives up, for the calling thread and what it starts, every other capability,
// the way to get any back, and the system calls of [filter].
func (s *spec) drop() error {
	keep := append(kept(), s.Capabilities...)
	var mask uint64
	for c := range unix.CAP_LAST_CAP + 1 {
		if slices.Contains(keep, c) {
			mask |= 1 << c
		} else if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return os.NewSyscallError("prctl", err)
		}
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(mask), Permitted: uint32(mask)},
		{Effective: uint32(mask >> 32), Permitted: uint32(mask >> 32)},
	}
	if err := unix.Capset(&head, &data[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	return s.seccomp()
}
