package helpervm

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/platform/qemu"
)

// HelperUser is whom QEMU runs as if root starts it and the user exists; otherwise
// it is nobody.
const HelperUser = "imprint-helper"

const (
	// stopGrace is how long QEMU has to end by itself once the result is there.
	stopGrace = 5 * time.Second
	// maxComplaint is how many bytes of QEMU's complaints an error quotes.
	maxComplaint = 2 << 10
	// maxFiles is how many descriptors QEMU may have, and maxSlack how many MiB of
	// address space beside the VM's memory.
	maxFiles = 128
	maxSlack = 4096
)

// process is QEMU in its cage.
type process struct {
	cmd       *exec.Cmd
	begin     time.Time
	complaint *tail
	done      chan struct{} // closed when err is set
	err       error         // how it ended
}

// content is a file that QEMU reads by a path, under which nobody else sees it.
type content struct {
	name string
	path string // where everybody may read it; otherwise it is made of data
	data []byte
}

// file is what everybody may read, at path or else in memory.
func file(name, path string) (content, error) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o004 != 0 {
		return content{name: name, path: path}, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return content{}, openError(path, err)
	}
	return content{name: name, data: data}, nil
}

// launch starts QEMU for v, whose kernel and initrd it names, in a cage: as a user
// without rights, in namespaces of its own and with a root that has QEMU, its libraries
// and the two files, and nothing else. It is told what it needs of the host by the
// descriptors in files, which are 3, 4 and so on there.
//
// The cage is that of one thread of this program, which starts QEMU and ends with it. So
// no other program is in between, and should this one be killed the kernel kills QEMU.
func launch(program string, v *vm, files []*os.File, g *cgroup, kernel, initrd content) (*process, error) {
	p := &process{complaint: &tail{limit: maxComplaint}, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread is of no use to others
		defer close(p.done)
		err := p.start(program, v, files, g, kernel, initrd)
		started <- err
		if err != nil {
			return
		}
		p.err = p.cmd.Wait()
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, err
	}
	return p, nil
}

// start runs on the thread that is the cage.
func (p *process) start(program string, v *vm, files []*os.File, g *cgroup, kernel, initrd content) error {
	fault := func(err error) error {
		var known *imprint.Error
		if errors.As(err, &known) {
			return err
		}
		return imprint.Errorf(imprint.Internal, "start", program, "%w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fault(err)
	}
	defer null.Close()
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if os.Geteuid() == 0 {
		attr.Credential = credential(v.accel)
	}
	g.apply(attr)
	inside, err := enter(program, v, []content{kernel, initrd})
	if err != nil {
		return fault(err)
	}
	if inside {
		v.kernel, v.initrd = "/"+kernel.name, "/"+initrd.name
		attr.Cloneflags = unix.CLONE_NEWPID
	} else {
		for _, c := range []struct {
			content
			path *string
		}{{kernel, &v.kernel}, {initrd, &v.initrd}} {
			f, err := c.content.open()
			if err != nil {
				return fault(err)
			}
			defer f.Close()
			*c.path = "/proc/self/fd/" + strconv.Itoa(3+len(files))
			files = append(files, f)
		}
		attr.Cloneflags, attr.UidMappings, attr.GidMappings = unprivileged(v.network)
	}
	run := func() error {
		p.cmd = &exec.Cmd{
			Path: program, Args: append([]string{filepath.Base(program)}, v.args()...), Env: []string{"PATH=/usr/bin", "HOME=/", "LC_ALL=C"}, Dir: "/",
			Stdin: null, Stdout: null, Stderr: p.complaint, ExtraFiles: files, SysProcAttr: attr, WaitDelay: stopGrace,
		}
		p.begin = time.Now()
		return p.cmd.Start()
	}
	err = run()
	if err != nil && !inside && attr.Cloneflags != 0 && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC)) {
		attr.Cloneflags, attr.UidMappings, attr.GidMappings = 0, nil, nil // not every host lets its users have namespaces
		err = run()
	}
	if err != nil {
		return fault(err)
	}
	limit(p.cmd.Process.Pid, v)
	return nil
}

// credential is the user without rights.
func credential(accel qemu.Accel) *syscall.Credential {
	const nobody = 65534
	c := &syscall.Credential{Uid: nobody, Gid: nobody}
	for _, name := range []string{HelperUser, "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errU := strconv.ParseUint(u.Uid, 10, 32)
		gid, errG := strconv.ParseUint(u.Gid, 10, 32)
		if errU == nil && errG == nil && uid != 0 && gid != 0 {
			c.Uid, c.Gid = uint32(uid), uint32(gid)
			break
		}
	}
	if accel == qemu.KVM {
		var st unix.Stat_t
		if unix.Stat("/dev/kvm", &st) == nil && st.Gid != 0 {
			c.Groups = []uint32{st.Gid}
		}
	}
	return c
}

// unprivileged is what a caller without rights may still ask of the kernel.
func unprivileged(network bool) (flags uintptr, uids, gids []syscall.SysProcIDMap) {
	if os.Geteuid() == 0 {
		return 0, nil, nil
	}
	flags = unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWIPC
	if !network {
		flags |= unix.CLONE_NEWNET
	}
	return flags, []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}, []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
}

// enter puts the calling thread into namespaces and a root of its own, and reports
// whether it did: that takes rights which not even every root has.
func enter(program string, v *vm, files []content) (inside bool, err error) {
	flags := unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	if !v.network {
		flags |= unix.CLONE_NEWNET
	}
	if os.Geteuid() != 0 {
		return false, nil
	}
	if err := unix.Unshare(flags); err != nil {
		if errors.Is(err, unix.EPERM) {
			return false, nil
		}
		return false, os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return false, os.NewSyscallError("mount", err)
	}
	first := top(program)
	base, taken := "", []string{first}
	for _, c := range files {
		taken = append(taken, top(c.path))
	}
	for _, dir := range []string{"run", "tmp", "var", "mnt"} { // any that is there, and covers nothing that is needed
		if _, err := os.Stat("/" + dir); err == nil && !slices.Contains(taken, dir) {
			base = "/" + dir
			break
		}
	}
	if err := unix.Mount("tmpfs", base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return false, os.NewSyscallError("mount", err)
	}
	for _, c := range files {
		at := filepath.Join(base, c.name)
		if c.path != "" {
			err = show(c.path, at)
		} else {
			err = os.WriteFile(at, c.data, 0o444)
		}
		if err != nil {
			return false, err
		}
	}
	dirs := []string{"usr", "lib", "lib32", "lib64", "libx32", "bin", "sbin"}
	for _, name := range append(dirs, first, "etc/ld.so.cache", "dev/null", "dev/urandom", "dev/kvm", "etc/resolv.conf") {
		switch {
		case name == "dev/kvm" && v.accel != qemu.KVM, name == "etc/resolv.conf" && !v.network:
		default:
			if err := show("/"+name, filepath.Join(base, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return false, err
			}
		}
	}
	if err := unix.Chdir(base); err != nil {
		return false, os.NewSyscallError("chdir", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return false, os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return false, os.NewSyscallError("umount", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return false, os.NewSyscallError("chdir", err)
	}
	return true, os.NewSyscallError("mount", unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""))
}

// top is the first directory of an absolute path.
func top(path string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return first
}

// show makes a file, directory or link of the host seen at another place, for reading.
func show(from, to string) error {
	if _, err := os.Lstat(to); err == nil {
		return nil
	}
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	device := false
	switch {
	case info.Mode().Type() == fs.ModeSymlink && strings.Count(from, "/") == 1:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case info.IsDir():
		err = os.Mkdir(to, 0o755)
	default:
		device = info.Mode()&fs.ModeDevice != 0
		err = os.WriteFile(to, nil, 0o444)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return &fs.PathError{Op: "mount", Path: from, Err: err}
	}
	if device {
		return nil
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	err = unix.MountSetattr(unix.AT_FDCWD, to, unix.AT_RECURSIVE, &attr)
	if errors.Is(err, unix.ENOSYS) { // before Linux 5.12
		err = unix.Mount("", to, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
	}
	if err != nil {
		return &fs.PathError{Op: "protect", Path: from, Err: err}
	}
	return nil
}

// open returns the file, which exists in memory only unless it has a path.
func (c content) open() (*os.File, error) {
	if c.path != "" {
		return os.Open(c.path)
	}
	fd, err := unix.MemfdCreate(c.name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), c.name)
	if _, err := f.Write(c.data); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// limit bounds what QEMU takes, before a guest runs in it. What the kernel refuses is
// no reason to stop: the limits are one wall of several.
func limit(pid int, v *vm) {
	for resource, n := range map[int]uint64{
		unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: maxFiles, unix.RLIMIT_AS: uint64(v.memory+tbSize+maxSlack) << 20, unix.RLIMIT_MEMLOCK: 0,
	} {
		unix.Prlimit(pid, resource, &unix.Rlimit{Cur: n, Max: n}, nil)
	}
}

// stop has QEMU end, at once if it does not within the grace, and returns when it has.
func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopGrace):
		p.kill()
	}
}

// kill ends QEMU as a power cut would, and returns when it has.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// tail keeps the last limit bytes written to it.
type tail struct {
	limit int
	b     []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - t.limit; over > 0 {
		t.b = t.b[over:]
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.b)) }
