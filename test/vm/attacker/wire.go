//go:build linux

package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"imprint/internal/tap"
	"imprint/test/attack"
)

// bufferSize is what a raw socket holds until it is read: more than all frames of
// a conversation, each of which counts for 2 KiB or so.
const bufferSize = 4 << 20

// patience is how long the host may take to answer ARP.
const patience = 20 * time.Second

// configure gives the interface its address, and sends everything out by it. The
// host's MAC is known for all of to, so that the kernel never asks: see [wire.bring].
func configure(own netip.Addr, to ...netip.Addr) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	host := func(a netip.Addr) *net.IPNet { return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)} }
	err = errors.Join(
		netlink.LinkSetUp(link),
		netlink.AddrReplace(link, &netlink.Addr{IPNet: host(own)}),
		netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}}),
		// The kernel's own connections have other ports than the attacks.
		os.WriteFile("/proc/sys/net/ipv4/ip_local_reserved_ports", fmt.Append(nil, attack.Port), 0),
	)
	for _, a := range append(to, tap.MetadataIPv4) {
		err = errors.Join(err, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: tap.HostMAC[:],
		}))
	}
	return err
}

// reuse lets a port be used again while an old connection of it is waited for.
func reuse(_, _ string, c syscall.RawConn) (err error) {
	if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }); cerr != nil {
		return cerr
	}
	return err
}

// wire is a raw socket on the interface: it sends any frame and hears whatever
// arrives, whomever it is for.
type wire struct{ fd int }

func open() (*wire, error) {
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
		return nil, err
	}
	return &wire{fd}, errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferSize),
		unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(link.Index), Type: unix.PACKET_MR_PROMISC}),
	)
}

// next returns the next frame that arrives, or nil if none does until the
// deadline; a zero one is never.
func (w *wire) next(deadline time.Time) ([]byte, error) {
	buffer := make([]byte, 2048)
	for {
		var limit unix.Timeval
		if !deadline.IsZero() {
			left := time.Until(deadline)
			if left <= 0 {
				return nil, nil
			}
			limit = unix.NsecToTimeval(int64(max(left, time.Millisecond)))
		}
		if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return nil, err
		}
		n, from, err := unix.Recvfrom(w.fd, buffer, 0)
		switch ll, ok := from.(*unix.SockaddrLinklayer); {
		case err == unix.EINTR, err == unix.EAGAIN:
		case err != nil:
			return nil, err
		case ok && ll.Pkttype != unix.PACKET_OUTGOING:
			return buffer[:n], nil
		}
	}
}

// bring sends frames, then asks the host something that it always answers, and
// returns what arrived before that answer and is not the guest's own business:
// everything is in order on this wire, so it is what the frames can have brought.
func (w *wire) bring(own tap.NIC, frames ...[]byte) (arrived [][]byte, err error) {
	everybody := tap.MAC{255, 255, 255, 255, 255, 255}
	question := attack.Frame(everybody, own.MAC, unix.ETH_P_ARP, attack.ARP(1, own.MAC, own.IPv4, tap.MetadataIPv4))
	for _, f := range append(frames, question) {
		if _, err := unix.Write(w.fd, f); err != nil {
			return nil, fmt.Errorf("send %x: %w", f, err)
		}
	}
	answer := attack.Frame(own.MAC, tap.HostMAC, unix.ETH_P_ARP, attack.ARP(2, tap.HostMAC, tap.MetadataIPv4, own.IPv4)[:18])
	for deadline := time.Now().Add(patience); ; {
		f, err := w.next(deadline)
		switch {
		case err != nil:
			return arrived, err
		case f == nil:
			return arrived, fmt.Errorf("the host does not answer ARP for %s after %x", tap.MetadataIPv4, frames)
		case bytes.HasPrefix(f, answer):
			return arrived, nil
		case !attack.Chatter(f) && !ordinary(f):
			arrived = append(arrived, f)
		}
	}
}

// ordinary reports whether f is part of a conversation that the guest's own
// kernel has with the host: over TCP, from another port than the attacks', or
// about the host's MAC.
func ordinary(f []byte) bool {
	const header = 14
	if len(f) < header+40 || !bytes.Equal(f[6:12], tap.HostMAC[:]) {
		return false
	}
	p := f[header:]
	switch {
	case f[12] == 8 && f[13] == 0 && p[0] == 0x45 && p[9] == ipTCP:
		return netip.AddrFrom4([4]byte(p[12:16])) == tap.MetadataIPv4 && port(p[20:]) == tap.MetadataPort && port(p[22:]) != attack.Port
	case f[12] == 0x86 && f[13] == 0xdd:
		return p[6] == unix.IPPROTO_ICMPV6 && p[40] == 136
	}
	return false
}

func port(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }

// watch says what arrives that the host does not send to this guest itself.
func watch() error {
	w, err := open()
	if err != nil {
		return err
	}
	fmt.Println("guest: watching")
	for {
		f, err := w.next(time.Time{})
		if err != nil {
			return err
		}
		if !fromHost(f) {
			fmt.Printf("guest: GOT unasked: %s\n", hex.EncodeToString(f))
		}
	}
}

// fromHost reports whether f is the host's, by its MAC and its address.
func fromHost(f []byte) bool {
	host4, host6 := tap.MetadataIPv4.AsSlice(), tap.MetadataIPv6.AsSlice()
	switch {
	case len(f) < 42 || !bytes.Equal(f[6:12], tap.HostMAC[:]):
		return false
	case f[12] == 8 && f[13] == 6:
		return bytes.Equal(f[28:32], host4)
	case f[12] == 8 && f[13] == 0:
		return bytes.Equal(f[26:30], host4)
	}
	return f[12] == 0x86 && f[13] == 0xdd && bytes.Equal(f[22:38], host6)
}
