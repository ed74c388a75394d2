package tap_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint/internal/tap"
)

// Frames as an attacker writes them: every field is what the test says it is,
// and the checksums are right, so that nothing else is a reason to drop them.

func frame(dst, src tap.MAC, ethertype uint16, payload []byte) []byte {
	b := append(append([]byte{}, dst[:]...), src[:]...)
	return append(binary.BigEndian.AppendUint16(b, ethertype), payload...)
}

func arp(op byte, senderMAC tap.MAC, sender netip.Addr, target netip.Addr) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, senderMAC[:]...)
	b = append(append(b, sender.AsSlice()...), make([]byte, 6)...)
	return append(b, target.AsSlice()...)
}

// ipv4 has a header with options, whose length is a multiple of 4, and a first
// fragment's flag if more is true.
func ipv4(src, dst netip.Addr, proto byte, payload, options []byte, more bool) []byte {
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

func ipv6(src, dst netip.Addr, next byte, payload []byte) []byte {
	b := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), next, 255}
	return append(append(append(b, src.AsSlice()...), dst.AsSlice()...), payload...)
}

// syn is a TCP segment that asks for a connection.
func syn(src, dst netip.Addr, port uint16) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b[0:], 40000)
	binary.BigEndian.PutUint16(b[2:], port)
	b[7], b[12], b[13], b[14] = 1, 5<<4, 2, 0x20
	return sealed(b, src, dst, unix.IPPROTO_TCP, 16)
}

func udp(src, dst netip.Addr, from, to uint16, payload string) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return sealed(append(append(b, 0, 0), payload...), src, dst, unix.IPPROTO_UDP, 6)
}

func icmp6(src, dst netip.Addr, kind byte, body ...byte) []byte {
	return sealed(append([]byte{kind, 0, 0, 0}, body...), src, dst, unix.IPPROTO_ICMPV6, 2)
}

func echo() []byte {
	b := []byte{8, 0, 0, 0, 0, 1, 0, 1}
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// sealed writes the checksum of b with its pseudo header (RFC 793, RFC 8200 section 8.1) at offset.
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

// wire is a raw socket on the guest's interface: it sends any frame and hears
// whatever arrives.
type wire struct {
	fd   int
	own  tap.NIC
	host tap.MAC // of the host's end
}

func (g *guest) wire(t *testing.T) *wire {
	t.Helper()
	w := &wire{fd: -1, own: g.nic, host: tap.HostMAC}
	g.Do(t, func() {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			t.Errorf("open a raw socket: %v", err)
			return
		}
		w.fd = fd
		index, err := indexOf("eth1")
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index})
		}
		timeout := unix.NsecToTimeval(int64(patience))
		if err == nil {
			err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
		}
		if err != nil {
			t.Errorf("bind a raw socket: %v", err)
		}
	})
	if w.fd < 0 {
		t.FailNow()
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

func (w *wire) send(t *testing.T, frame []byte) {
	t.Helper()
	if _, err := unix.Write(w.fd, frame); err != nil {
		t.Fatalf("send % x: %v", frame, err)
	}
}

// settle asks the host something that it always answers, and returns what
// arrived before that answer: everything is in order on this wire, so it is all
// that what was sent before can have brought.
func (w *wire) settle(t *testing.T) (arrived [][]byte) {
	t.Helper()
	w.send(t, frame(w.host, w.own.MAC, unix.ETH_P_ARP, arp(1, w.own.MAC, w.own.IPv4, tap.MetadataIPv4)))
	answer := frame(w.own.MAC, w.host, unix.ETH_P_ARP, arp(2, w.host, tap.MetadataIPv4, w.own.IPv4)[:18])
	buffer := make([]byte, 2048)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		n, from, err := unix.Recvfrom(w.fd, buffer, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatalf("wait for the host's answer: %v", err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		got := append([]byte{}, buffer[:n]...)
		if n >= len(answer) && string(got[:len(answer)]) == string(answer) {
			return arrived
		}
		arrived = append(arrived, got)
	}
	t.Fatal("the host does not answer ARP for the metadata address")
	return nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
