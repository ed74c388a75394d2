package peercred

import (
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxGroups bounds the supplementary groups of a peer (Linux: NGROUPS_MAX).
const maxGroups = 1 << 16

// Of returns the peer of c. A kernel that does not tell supplementary groups,
// before Linux 4.13, leaves them out.
func Of(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var p Peer
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			failed = os.NewSyscallError("getsockopt SO_PEERCRED", err)
			return
		}
		p = Peer{UID: int(cred.Uid), GID: int(cred.Gid), PID: int(cred.Pid)}
		p.Groups, failed = groups(fd)
	})
	if err != nil {
		return Peer{}, err
	}
	return p, failed
}

// groups asks for SO_PEERGROUPS (socket(7)), for which x/sys has no function.
func groups(fd uintptr) ([]int, error) {
	for n := 32; ; {
		gids := make([]uint32, n)
		size := uint32(n * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&gids[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && int(size) > n*4 && int(size) <= maxGroups*4:
			n = int(size) / 4 // the kernel says how many there are
		case errno == unix.ENOPROTOOPT:
			return nil, nil
		case errno != 0:
			return nil, os.NewSyscallError("getsockopt SO_PEERGROUPS", errno)
		default:
			var groups []int
			for _, gid := range gids[:size/4] {
				groups = append(groups, int(gid))
			}
			return groups, nil
		}
	}
}
