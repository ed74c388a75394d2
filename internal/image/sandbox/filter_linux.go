//go:build amd64 || arm64

package sandbox

import "golang.org/x/sys/unix"

// allowed are the system calls of a Go program that computes, reads and writes what
// is open, and starts threads.
func allowed() []uint32 {
	return append([]uint32{
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_PREAD64, unix.SYS_WRITEV, unix.SYS_LSEEK, unix.SYS_CLOSE, unix.SYS_FSTAT,
		unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_BRK, unix.SYS_MREMAP,
		unix.SYS_FUTEX, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_NANOSLEEP,
		unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_TGKILL, unix.SYS_RESTART_SYSCALL,
		unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETRANDOM, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_MEMBARRIER,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2,
		unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	}, ours()...)
}

// Offsets in struct seccomp_data of linux/seccomp.h. Arguments are of 64 bits, of
// which the lower half is first on the little-endian architectures that are known.
const (
	dataCall = 0
	dataArch = 4
	dataArgs = 16
)

// filter returns a program of seccomp. A call that is not allowed fails with EPERM,
// one of another architecture ends the process.
func filter() []unix.SockFilter {
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		set   = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K

		allow  = unix.SECCOMP_RET_ALLOW
		deny   = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
		absent = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
		kill   = unix.SECCOMP_RET_KILL_PROCESS
	)
	f := []unix.SockFilter{
		{Code: load, K: dataArch}, {Code: equal, K: auditArch, Jt: 1}, {Code: ret, K: kill},
		{Code: load, K: dataCall},
	}
	for _, call := range allowed() {
		f = append(f, unix.SockFilter{Code: equal, K: call, Jf: 1}, unix.SockFilter{Code: ret, K: allow})
	}
	// clone makes threads, not processes. Its flags are in a register, and those of clone3
	// in memory, which no filter can look at: without it, clone is used.
	f = append(f, unix.SockFilter{Code: equal, K: unix.SYS_CLONE3, Jf: 1}, unix.SockFilter{Code: ret, K: absent})
	for _, rule := range []struct {
		call, arg, bits uint32
		with, without   uint32
	}{
		{unix.SYS_CLONE, 0, unix.CLONE_THREAD, allow, deny},
		{unix.SYS_MMAP, 2, unix.PROT_EXEC, deny, allow}, // no new code
		{unix.SYS_MPROTECT, 2, unix.PROT_EXEC, deny, allow},
	} {
		f = append(f, unix.SockFilter{Code: equal, K: rule.call, Jf: 4},
			unix.SockFilter{Code: load, K: dataArgs + 8*rule.arg},
			unix.SockFilter{Code: set, K: rule.bits, Jf: 1},
			unix.SockFilter{Code: ret, K: rule.with}, unix.SockFilter{Code: ret, K: rule.without})
	}
	// fcntl asks for a descriptor's flags, and nothing else.
	f = append(f, unix.SockFilter{Code: equal, K: unix.SYS_FCNTL, Jf: 3},
		unix.SockFilter{Code: load, K: dataArgs + 8}, unix.SockFilter{Code: equal, K: unix.F_GETFL, Jf: 1}, unix.SockFilter{Code: ret, K: allow})
	return append(f, unix.SockFilter{Code: ret, K: deny})
}
