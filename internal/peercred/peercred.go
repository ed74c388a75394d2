// Package peercred tells who is at the other end of a unix socket, on the
// kernel's word.
package peercred

import "slices"

// Peer is the process at the other end, as it was when it connected.
type Peer struct {
	UID, GID, PID int
	Groups        []int // supplementary
}

// In reports whether the peer belongs to group gid, be it its primary one or
// another. Nobody belongs to a negative gid.
func (p Peer) In(gid int) bool {
	return gid >= 0 && (p.GID == gid || slices.Contains(p.Groups, gid))
}
