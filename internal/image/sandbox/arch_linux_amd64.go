package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// ours are allowed on this architecture only.
func ours() []uint32 { return []uint32{unix.SYS_ARCH_PRCTL} }
