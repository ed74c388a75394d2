package attack

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"imprint/internal/tap"
)

// Port is where an attacker's own TCP segments come from.
const Port = 40000

// Frame is an Ethernet frame.
func Frame(dst, src tap.MAC, ethertype uint16, payload []byte) []byte {
	b := append(append([]byte{}, dst[:]...), src[:]...)
	return append(binary.BigEndian.AppendUint16(b, ethertype), payload...)
}

// ARP is a packet of RFC 826 for IPv4: op 1 asks, 2 answers.
func ARP(op byte, senderMAC tap.MAC, sender netip.Addr, target netip.Addr) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, senderMAC[:]...)
	b = append(append(b, sender.AsSlice()...), make([]byte, 6)...)
	return append(b, target.AsSlice()...)
}

// IPv4 is a packet whose header has options, of a length that is a multiple of 4,
// and a first fragment's flag if more is true.
func IPv4(src, dst netip.Addr, proto byte, payload, options []byte, more bool) []byte {
	b := make([]byte, 20, 20+len(options)+len(payload))
	b[0] = 0x40 | byte(5+len(options)/4)
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(options)+len(payload)))
	if more {
		b[6] = 0x20
	}
	b[8], b[9] = 64, proto
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	b = append(b, options...)
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	return append(b, payload...)
}

// IPv6 is a packet, next being the type of what follows the header.
func IPv6(src, dst netip.Addr, next byte, payload []byte) []byte {
	b := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), next, 255}
	return append(append(append(b, src.AsSlice()...), dst.AsSlice()...), payload...)
}

// SYN is a TCP segment that asks for a connection, from [Port].
func SYN(src, dst netip.Addr, port uint16) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b[0:], Port)
	binary.BigEndian.PutUint16(b[2:], port)
	b[7], b[12], b[13], b[14] = 1, 5<<4, 2, 0x20
	return sealed(b, src, dst, unix.IPPROTO_TCP, 16)
}

// UDP is a datagram, with the checksum of IPv4 or IPv6.
func UDP(src, dst netip.Addr, from, to uint16, payload string) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return sealed(append(append(b, 0, 0), payload...), src, dst, unix.IPPROTO_UDP, 6)
}

// ICMPv6 is a message of RFC 4443, with code 0.
func ICMPv6(src, dst netip.Addr, kind byte, body ...byte) []byte {
	return sealed(append([]byte{kind, 0, 0, 0}, body...), src, dst, unix.IPPROTO_ICMPV6, 2)
}

// Echo is an ICMP echo request.
func Echo() []byte {
	b := []byte{8, 0, 0, 0, 0, 1, 0, 1}
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// sealed writes the checksum of b with its pseudo header (RFC 793, RFC 8200
// section 8.1) at offset.
func sealed(b []byte, src, dst netip.Addr, proto byte, offset int) []byte {
	pseudo := append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...)
	pseudo = append(pseudo, 0, proto, byte(len(b)>>8), byte(len(b)))
	binary.BigEndian.PutUint16(b[offset:], checksum(append(pseudo, b...)))
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		sum += uint32(c) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
