package server

import (
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxGroups bounds the supplementary groups of a peer (Linux: NGROUPS_MAX).
const maxGroups = 1 << 16

// peerOf returns who is at the other end of c, as the kernel noted when it connected.
func peerOf(c *net.UnixConn) (peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	var p peer
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			failed = os.NewSyscallError("getsockopt SO_PEERCRED", err)
			return
		}
		p = peer{uid: int(cred.Uid), gid: int(cred.Gid), pid: int(cred.Pid)}
		p.groups, failed = peerGroups(fd)
	})
	if err != nil {
		return peer{}, err
	}
	return p, failed
}

// peerGroups returns the supplementary groups of the peer (Linux 4.13 and later,
// socket(7) SO_PEERGROUPS), for which x/sys has no function.
func peerGroups(fd uintptr) ([]int, error) {
	for n := 32; ; {
		gids := make([]uint32, n)
		size := uint32(n * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&gids[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && int(size) > n*4 && int(size) <= maxGroups*4:
			n = int(size) / 4 // the kernel says how many there are
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
