// Package attack has what a guest on the link-local network may not send, frame by
// frame, for tests that send it from a namespace and from a machine. Every field is
// what the attack says it is, and the checksums are right, so that nothing else is a
// reason to drop a frame.
package attack

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"imprint/internal/tap"
	"imprint/test/netns"
)

// The host's other addresses, and the port of a server of the host's that listens
// on all of them.
var (
	HostIPv4 = netip.MustParseAddr("10.9.9.1")
	HostIPv6 = netip.MustParseAddr("fd00::1")
)

// HostPort is where that server listens.
const HostPort = 2222

// Addresses of others.
var (
	stranger6    = netip.MustParseAddr("2001:db8::1")
	allNodes     = netip.MustParseAddr("ff02::1")
	broadcast    = netip.MustParseAddr("255.255.255.255")
	broadcastMAC = tap.MAC{255, 255, 255, 255, 255, 255}
)

// Reason is what the filter counts a frame for, as it names its counters.
type Reason string

// The reasons.
const (
	MAC         Reason = "mac"
	ARPs        Reason = "arp"
	Source      Reason = "source"
	Destination Reason = "destination"
	Ports       Reason = "port"
	Other       Reason = "other"
)

// Attack is a frame that a guest may not send.
type Attack struct {
	Name   string
	Frame  []byte
	Reason Reason
	// Works says that without the filter it has an effect that can be seen.
	Works bool
}

// List returns what the guest a may not send, with b as its neighbour, on a host
// with the addresses [HostIPv4] and [HostIPv6] that listens at [HostPort].
func List(a, b tap.NIC) []Attack {
	md, md6 := tap.MetadataIPv4, tap.MetadataIPv6
	attacker6, b6 := netns.LinkLocal(a.MAC[:]), netns.LinkLocal(b.MAC[:])

	arp := func(payload []byte) []byte { return Frame(broadcastMAC, a.MAC, unix.ETH_P_ARP, payload) }
	four := func(payload []byte) []byte { return Frame(tap.HostMAC, a.MAC, unix.ETH_P_IP, payload) }
	six := func(payload []byte) []byte { return Frame(tap.HostMAC, a.MAC, unix.ETH_P_IPV6, payload) }
	syn4 := func(src, dst netip.Addr, p uint16) []byte {
		return IPv4(src, dst, unix.IPPROTO_TCP, SYN(src, dst, p), nil, false)
	}
	syn6 := func(src, dst netip.Addr, p uint16) []byte {
		return IPv6(src, dst, unix.IPPROTO_TCP, SYN(src, dst, p))
	}
	return []Attack{
		{"a neighbour's MAC", Frame(tap.HostMAC, b.MAC, unix.ETH_P_IP, syn4(a.IPv4, md, 80)), MAC, true},
		{"a neighbour's MAC and address", Frame(tap.HostMAC, b.MAC, unix.ETH_P_IP, syn4(b.IPv4, md, 80)), MAC, false}, // the host asks first where that is
		{"ARP with a neighbour's MAC", Frame(broadcastMAC, b.MAC, unix.ETH_P_ARP, ARP(1, b.MAC, b.IPv4, md)), MAC, true},

		{"ARP that claims a neighbour's address", arp(ARP(2, a.MAC, b.IPv4, md)), ARPs, false},
		{"ARP that claims the host's address", arp(ARP(1, a.MAC, md, md)), ARPs, false},
		{"ARP with another MAC within", arp(ARP(1, b.MAC, a.IPv4, md)), ARPs, true},
		{"ARP for a neighbour", arp(ARP(1, a.MAC, a.IPv4, b.IPv4)), ARPs, false},
		{"ARP for another address of the host", arp(ARP(1, a.MAC, a.IPv4, HostIPv4)), ARPs, true},
		{"half of an ARP packet", arp(ARP(1, a.MAC, a.IPv4, md)[:12]), ARPs, false},

		{"a neighbour's address", four(syn4(b.IPv4, md, 80)), Source, true},
		{"the host's address", four(syn4(md, md, 80)), Source, false},
		{"a public address", four(syn4(netip.MustParseAddr("192.0.2.1"), md, 80)), Source, false},
		{"to a neighbour", four(syn4(a.IPv4, b.IPv4, 80)), Destination, true},
		{"to another address of the host", four(syn4(a.IPv4, HostIPv4, HostPort)), Destination, true},
		{"to everybody", Frame(broadcastMAC, a.MAC, unix.ETH_P_IP, IPv4(a.IPv4, broadcast, unix.IPPROTO_UDP, UDP(a.IPv4, broadcast, 68, HostPort, "x"), nil, false)), Destination, false},
		{"an answer as a DHCP server", Frame(broadcastMAC, a.MAC, unix.ETH_P_IP, IPv4(a.IPv4, broadcast, unix.IPPROTO_UDP, UDP(a.IPv4, broadcast, 67, 68, "x"), nil, false)), Destination, false},
		{"to another port of the host", four(syn4(a.IPv4, md, HostPort)), Ports, true},
		{"to a UDP port of the host", four(IPv4(a.IPv4, md, unix.IPPROTO_UDP, UDP(a.IPv4, md, 68, 53, "x"), nil, false)), Ports, true},
		{"an echo request", four(IPv4(a.IPv4, md, unix.IPPROTO_ICMP, Echo(), nil, false)), Ports, true},
		{"IP options", four(IPv4(a.IPv4, md, unix.IPPROTO_TCP, SYN(a.IPv4, md, 80), []byte{1, 1, 1, 0}, false)), Ports, true},
		{"a first fragment", four(IPv4(a.IPv4, md, unix.IPPROTO_TCP, SYN(a.IPv4, md, 80), nil, true)), Ports, false},
		{"half of an IP header", four(syn4(a.IPv4, md, 80)[:14]), Ports, false},

		{"the host's IPv6 address", six(syn6(md6, md6, 80)), Source, false},
		{"a public IPv6 address", six(syn6(stranger6, md6, 80)), Source, false},
		{"to a neighbour's IPv6 address", six(syn6(attacker6, b6, 80)), Destination, true},
		{"to another IPv6 address of the host", six(syn6(attacker6, HostIPv6, HostPort)), Destination, true},
		{"a router advertisement", Frame(tap.MAC{0x33, 0x33, 0, 0, 0, 1}, a.MAC, unix.ETH_P_IPV6, IPv6(attacker6, allNodes, unix.IPPROTO_ICMPV6, ICMPv6(attacker6, allNodes, 134, make([]byte, 12)...))), Destination, false},
		{"to another port over IPv6", six(syn6(attacker6, md6, HostPort)), Ports, true},
		{"an IPv6 echo request", six(IPv6(attacker6, md6, unix.IPPROTO_ICMPV6, ICMPv6(attacker6, md6, 128, 0, 1, 0, 1))), Ports, true},
		{"an IPv6 redirect", six(IPv6(attacker6, md6, unix.IPPROTO_ICMPV6, ICMPv6(attacker6, md6, 137, make([]byte, 36)...))), Ports, false},
		{"an IPv6 extension header", six(IPv6(attacker6, md6, 60, append([]byte{unix.IPPROTO_TCP, 0, 1, 4, 0, 0, 0, 0}, SYN(attacker6, md6, 80)...))), Ports, true},

		{"a VLAN tag", Frame(tap.HostMAC, a.MAC, 0x8100, append([]byte{0, 0, 8, 0}, syn4(a.IPv4, md, 80)...)), Other, true},
		{"LLDP", Frame(tap.MAC{1, 0x80, 0xc2, 0, 0, 0x0e}, a.MAC, 0x88cc, make([]byte, 46)), Other, false},
		{"IEEE 802.3", Frame(tap.MAC{1, 0x80, 0xc2, 0, 0, 0}, a.MAC, 38, make([]byte, 46)), Other, false},
	}
}

// Chatter reports whether frame is what a host says unasked: MLD (RFC 3810), the
// search for a neighbour, and retransmissions of answers to earlier attacks.
func Chatter(f []byte) bool {
	if len(f) < 55 || f[12] != 0x86 || f[13] != 0xdd {
		return len(f) > 21 && f[12] == 8 && f[13] == 6 && f[21] == 1
	}
	return f[20] == 0 || f[20] == unix.IPPROTO_ICMPV6 && f[54] == 135
}
