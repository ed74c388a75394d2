package confine

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// x32 marks the numbers of the other ABI of 64-bit processes (asm/unistd.h).
const x32 = 0x40000000

func deniedHere() []uint32 {
	return []uint32{unix.SYS_IOPERM, unix.SYS_IOPL, unix.SYS_MODIFY_LDT, unix.SYS_USELIB, unix.SYS__SYSCTL}
}

// otherABI refuses system calls that have a second number.
func otherABI(jump func(how uint16, k uint32, yes, no uint8) unix.SockFilter, refuse unix.SockFilter) []unix.SockFilter {
	return []unix.SockFilter{jump(unix.BPF_JGE, x32, 0, 1), refuse}
}
