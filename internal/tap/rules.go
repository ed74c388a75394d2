package tap

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rule is a row of a chain: it matches all of its expressions, and the last one
// is the verdict.
type rule []expr.Any

// Ports of DHCPv4, RFC 2131 section 4.1.
const (
	dhcpServerPort = 67
	dhcpClientPort = 68
)

// ICMPv6 types, RFC 4861 section 4.
const (
	neighbourSolicitation  = 135
	neighbourAdvertisement = 136
)

var (
	broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	// The group in which the host hears who asks for its address, RFC 4291 section 2.7.1.
	solicitedNode = netip.MustParseAddr("ff02::1:fffe:a9fe")
)

// inbound is what a guest may send, in the order in which it is tried. A
// packet that is not accepted by name is dropped and counted with a reason: a
// forged source is told apart from an address or a port that it may not reach.
func inbound(nic NIC) []rule {
	var (
		mac   = nic.MAC[:]
		guest = octets(nic.IPv4)
		host  = octets(MetadataIPv4)
	)
	rules := []rule{
		drop(dropMAC, isNot(link, 6, mac)),
	}

	// ARP over Ethernet for IPv4 (RFC 826): who has the host's address, asked and
	// answered with the guest's own; and the probe and the announcement of RFC
	// 5227, which concern the guest's own address.
	const request, reply = 1, 2
	arp := func(op byte, sender []byte, more ...rule) rule {
		r := join(ethertype(unix.ETH_P_ARP),
			is(network, 0, []byte{0, 1, 8, 0, 6, 4, 0, op}), is(network, 8, mac), is(network, 14, sender))
		return accept(append([]rule{r}, more...)...)
	}
	rules = append(rules,
		arp(request, guest, is(network, 24, host)),
		arp(request, guest, is(network, 24, guest)),
		arp(request, octets(netip.IPv4Unspecified()), is(network, 24, guest)),
		arp(reply, guest),
		drop(dropARP, ethertype(unix.ETH_P_ARP)),
	)

	// IPv4. Without options, which could carry a source route, and whole:
	// fragments fill a memory that all guests share.
	ipv4 := func(proto byte, src, dst []byte, more ...rule) rule {
		r := join(ethertype(unix.ETH_P_IP), is(network, 0, []byte{0x45}), masked(network, 6, []byte{0xbf, 0xff}, []byte{0, 0}),
			is(network, 9, []byte{proto}), is(network, 12, src), is(network, 16, dst))
		return accept(append([]rule{r}, more...)...)
	}
	dhcp := join(is(transport, 0, port(dhcpClientPort)), is(transport, 2, port(dhcpServerPort)))
	rules = append(rules,
		ipv4(unix.IPPROTO_UDP, octets(netip.IPv4Unspecified()), octets(broadcast), dhcp),
		ipv4(unix.IPPROTO_UDP, guest, octets(broadcast), dhcp),
		ipv4(unix.IPPROTO_UDP, guest, host, dhcp),
	)
	for _, p := range nic.ports() {
		rules = append(rules, ipv4(unix.IPPROTO_TCP, guest, host, is(transport, 2, port(p))))
	}
	rules = append(rules,
		// A guest without an address says 0.0.0.0 and pretends to be nobody.
		drop(dropSource, ethertype(unix.ETH_P_IP), isNot(network, 12, guest), isNot(network, 12, octets(netip.IPv4Unspecified()))),
		drop(dropDestination, ethertype(unix.ETH_P_IP), isNot(network, 16, host)),
		drop(dropPort, ethertype(unix.ETH_P_IP)),
	)

	// IPv6. The guest makes its own link-local addresses (RFC 4862, RFC 7217) and
	// may have a few; each costs the host an entry in a neighbour table that all
	// guests share, so their number is limited. "::" asks whether an address is
	// free and pretends to be nobody. Extension headers are not accepted.
	six := ethertype(unix.ETH_P_IPV6)
	fe80 := octets(netip.MustParseAddr("fe80::"))[:8]
	rules = append(rules,
		drop(dropSource, six, isNot(network, 8, fe80), isNot(network, 8, octets(netip.IPv6Unspecified()))),
		drop(dropSource, six, is(network, 8, octets(MetadataIPv6))),
		drop(dropDestination, six, isNot(network, 24, octets(MetadataIPv6)), isNot(network, 24, octets(solicitedNode))),
		drop(dropDestination, six, is(network, 8, octets(netip.IPv6Unspecified()))),
		drop(dropSource, six, unknownAndFull()),
		accept(six, is(network, 6, []byte{unix.IPPROTO_ICMPV6}), is(transport, 0, []byte{neighbourSolicitation, 0}), is(transport, 8, octets(MetadataIPv6))),
		accept(six, is(network, 6, []byte{unix.IPPROTO_ICMPV6}), is(transport, 0, []byte{neighbourAdvertisement, 0}), is(network, 24, octets(MetadataIPv6))),
	)
	for _, p := range nic.ports() {
		rules = append(rules, accept(six, is(network, 6, []byte{unix.IPPROTO_TCP}), is(network, 24, octets(MetadataIPv6)), is(transport, 2, port(p))))
	}
	// The host's own broadcasts, which are DHCP's answers, come back to it without a
	// link-layer header, so that no rule can match that reads one. They are nothing
	// that the guest did: the chain's policy drops them, and nobody counts.
	framed := masked(link, 0, []byte{0}, []byte{0})
	return append(rules,
		drop(dropPort, six),
		drop(dropOther, framed),
	)
}

// outbound is what may reach a guest: answers of the metadata and DHCP ports,
// and the search for its MAC. Whatever another interface, another guest or
// another program of the host sends its way is dropped.
func outbound(nic NIC) []rule {
	var (
		guest = octets(nic.IPv4)
		host  = octets(MetadataIPv4)
		four  = ethertype(unix.ETH_P_IP)
		six   = join(ethertype(unix.ETH_P_IPV6), is(network, 8, octets(MetadataIPv6)))
	)
	dhcp := join(is(network, 9, []byte{unix.IPPROTO_UDP}), is(transport, 0, port(dhcpServerPort)), is(transport, 2, port(dhcpClientPort)))
	rules := []rule{
		accept(ethertype(unix.ETH_P_ARP), is(network, 14, host)),
		accept(four, is(network, 16, guest), dhcp),
		accept(four, is(network, 16, octets(broadcast)), dhcp),
		accept(six, is(network, 6, []byte{unix.IPPROTO_ICMPV6}), is(transport, 0, []byte{neighbourSolicitation})),
		accept(six, is(network, 6, []byte{unix.IPPROTO_ICMPV6}), is(transport, 0, []byte{neighbourAdvertisement})),
	}
	for _, p := range nic.ports() {
		rules = append(rules,
			accept(four, is(network, 9, []byte{unix.IPPROTO_TCP}), is(network, 12, host), is(network, 16, guest), is(transport, 0, port(p))),
			accept(six, is(network, 6, []byte{unix.IPPROTO_TCP}), is(transport, 0, port(p))),
		)
	}
	return append(rules, drop(dropOutbound))
}

func join(parts ...rule) (r rule) {
	for _, p := range parts {
		r = append(r, p...)
	}
	return r
}

func accept(matches ...rule) rule {
	return append(join(matches...), &expr.Verdict{Kind: expr.VerdictAccept})
}

func drop(why reason, matches ...rule) rule {
	return append(join(matches...),
		&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: string(why)},
		&expr.Verdict{Kind: expr.VerdictDrop})
}

// Where a field is counted from.
const (
	link      = expr.PayloadBaseLLHeader
	network   = expr.PayloadBaseNetworkHeader
	transport = expr.PayloadBaseTransportHeader
)

func field(base expr.PayloadBase, offset, length int) rule {
	return rule{&expr.Payload{DestRegister: 1, Base: base, Offset: uint32(offset), Len: uint32(length)}}
}

func is(base expr.PayloadBase, offset int, want []byte) rule {
	return append(field(base, offset, len(want)), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: want})
}

func isNot(base expr.PayloadBase, offset int, want []byte) rule {
	return append(field(base, offset, len(want)), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: want})
}

func masked(base expr.PayloadBase, offset int, mask, want []byte) rule {
	return append(field(base, offset, len(want)),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: want})
}

// ethertype is what the frame says. The kernel's own idea of the protocol, in
// contrast, has forgotten a VLAN tag.
func ethertype(proto uint16) rule { return is(link, 12, port(proto)) }

// unknownAndFull matches if the IPv6 source is not among the guest's and there
// is no room to add it.
func unknownAndFull() rule {
	return append(field(network, 8, 16), &expr.Dynset{
		SrcRegKey: 1, SetName: sourcesName, SetID: sourcesID,
		Operation: unix.NFT_DYNSET_OP_UPDATE, Invert: true,
	})
}

func port(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }

func octets(a netip.Addr) []byte { return a.AsSlice() }
