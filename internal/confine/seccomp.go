package confine

import (
	"errors"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// denied are system calls that the program does without: what administers a machine,
// and what in the kernel is most often broken into. Whoever has a capability for one of
// the former by [Command.Capabilities] needs it.
func denied() []uint32 {
	return append(deniedHere(),
		unix.SYS_ACCT, unix.SYS_ADD_KEY, unix.SYS_BPF, unix.SYS_CLOCK_ADJTIME, unix.SYS_CLOCK_SETTIME, unix.SYS_DELETE_MODULE,
		unix.SYS_FANOTIFY_INIT, unix.SYS_FINIT_MODULE, unix.SYS_INIT_MODULE, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
		unix.SYS_IO_URING_SETUP, unix.SYS_KCMP, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_KEXEC_LOAD, unix.SYS_KEYCTL, unix.SYS_LOOKUP_DCOOKIE,
		unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_PERF_EVENT_OPEN, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PTRACE,
		unix.SYS_QUOTACTL, unix.SYS_REBOOT, unix.SYS_REQUEST_KEY, unix.SYS_SETTIMEOFDAY, unix.SYS_SWAPOFF, unix.SYS_SWAPON,
		unix.SYS_SYSLOG, unix.SYS_USERFAULTFD, unix.SYS_VHANGUP,
	)
}

// families are the kinds of sockets that the program may make.
func families() []uint32 { return []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK} }

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	offNumber = 0
	offArch   = 4
	offArg0   = 16 // its lower half, on the little-endian machines that we are built for
)

// filter is a program for seccomp(2) that refuses what is denied as if the caller had
// no right, and says of clone3, whose flags it cannot see, that there is none.
func filter(admin bool) []unix.SockFilter {
	const (
		allow = unix.SECCOMP_RET_ALLOW
		eperm = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
		nosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
		kill  = unix.SECCOMP_RET_KILL_PROCESS
		// The namespaces that a process could make by clone or unshare, and be root in.
		namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	)
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	ret := func(v uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v} }
	jump := func(how uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | how | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	// equal runs body if what is loaded is k, and behind it otherwise.
	equal := func(k uint32, body ...unix.SockFilter) []unix.SockFilter {
		return append([]unix.SockFilter{jump(unix.BPF_JEQ, k, 0, uint8(len(body)))}, body...)
	}
	p := slices.Concat(
		[]unix.SockFilter{load(offArch), jump(unix.BPF_JEQ, auditArch, 1, 0), ret(kill), load(offNumber)},
		otherABI(jump, ret(nosys)),
	)
	for _, n := range denied() {
		p = append(p, equal(n, ret(eperm))...)
	}
	if !admin {
		p = append(p, equal(unix.SYS_CLONE3, ret(nosys))...)
		for _, n := range []uint32{unix.SYS_SETNS, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN} {
			p = append(p, equal(n, ret(eperm))...)
		}
		for _, n := range []uint32{unix.SYS_CLONE, unix.SYS_UNSHARE} {
			p = append(p, equal(n, load(offArg0), jump(unix.BPF_JSET, namespaces, 0, 1), ret(eperm), ret(allow))...)
		}
	}
	var socket []unix.SockFilter
	for _, f := range families() {
		socket = append(socket, equal(f, ret(allow))...)
	}
	p = append(p, equal(unix.SYS_SOCKET, slices.Concat([]unix.SockFilter{load(offArg0)}, socket, []unix.SockFilter{ret(eperm)})...)...)
	return append(p, ret(allow))
}

// seccomp installs the filter for the calling thread and what it starts. A kernel
// without seccomp has none; the capabilities are gone there all the same.
func (s *spec) seccomp() error {
	p := filter(slices.Contains(s.Capabilities, unix.CAP_SYS_ADMIN))
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return os.NewSyscallError("seccomp", err)
}
