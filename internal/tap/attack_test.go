package tap_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"imprint/internal/tap"
	"imprint/test/netns"
)

// Addresses in the attacks: the host's own on another interface, somebody
// else's, and the attacker's.
var (
	hostOther4   = netip.MustParseAddr("10.9.9.1")
	hostOther6   = netip.MustParseAddr("fd00::1")
	stranger6    = netip.MustParseAddr("2001:db8::1")
	attacker6    = netip.MustParseAddr("fe80::ff:fe00:1") // what the kernel makes of its MAC
	allNodes     = netip.MustParseAddr("ff02::1")
	broadcast    = netip.MustParseAddr("255.255.255.255")
	broadcastMAC = tap.MAC{255, 255, 255, 255, 255, 255}
)

const hostPort = 2222 // of a server of the host's that listens on all addresses

type attack struct {
	name  string
	frame []byte
	want  func(*tap.Drops) *uint64 // what counts it
	// works says that without the filter it has an effect that can be seen.
	works bool
}

func attacks(a, b tap.NIC) []attack {
	md, md6 := tap.MetadataIPv4, tap.MetadataIPv6
	b6 := netip.MustParseAddr("fe80::ff:fe00:2")
	mac := func(d *tap.Drops) *uint64 { return &d.MAC }
	arps := func(d *tap.Drops) *uint64 { return &d.ARP }
	source := func(d *tap.Drops) *uint64 { return &d.Source }
	destination := func(d *tap.Drops) *uint64 { return &d.Destination }
	port := func(d *tap.Drops) *uint64 { return &d.Port }
	other := func(d *tap.Drops) *uint64 { return &d.Other }

	arpFrame := func(payload []byte) []byte { return frame(broadcastMAC, a.MAC, unix.ETH_P_ARP, payload) }
	four := func(payload []byte) []byte { return frame(tap.HostMAC, a.MAC, unix.ETH_P_IP, payload) }
	six := func(payload []byte) []byte { return frame(tap.HostMAC, a.MAC, unix.ETH_P_IPV6, payload) }
	syn4 := func(src, dst netip.Addr, p uint16) []byte {
		return ipv4(src, dst, unix.IPPROTO_TCP, syn(src, dst, p), nil, false)
	}
	syn6 := func(src, dst netip.Addr, p uint16) []byte {
		return ipv6(src, dst, unix.IPPROTO_TCP, syn(src, dst, p))
	}
	return []attack{
		{"a neighbour's MAC", frame(tap.HostMAC, b.MAC, unix.ETH_P_IP, syn4(a.IPv4, md, 80)), mac, true},
		{"a neighbour's MAC and address", frame(tap.HostMAC, b.MAC, unix.ETH_P_IP, syn4(b.IPv4, md, 80)), mac, false}, // the host asks first where that is
		{"ARP with a neighbour's MAC", frame(broadcastMAC, b.MAC, unix.ETH_P_ARP, arp(1, b.MAC, b.IPv4, md)), mac, true},

		{"ARP that claims a neighbour's address", arpFrame(arp(2, a.MAC, b.IPv4, md)), arps, false},
		{"ARP that claims the host's address", arpFrame(arp(1, a.MAC, md, md)), arps, false},
		{"ARP with another MAC within", arpFrame(arp(1, b.MAC, a.IPv4, md)), arps, true},
		{"ARP for a neighbour", arpFrame(arp(1, a.MAC, a.IPv4, b.IPv4)), arps, false},
		{"ARP for another address of the host", arpFrame(arp(1, a.MAC, a.IPv4, hostOther4)), arps, true},
		{"half of an ARP packet", arpFrame(arp(1, a.MAC, a.IPv4, md)[:12]), arps, false},

		{"a neighbour's address", four(syn4(b.IPv4, md, 80)), source, true},
		{"the host's address", four(syn4(md, md, 80)), source, false},
		{"a public address", four(syn4(netip.MustParseAddr("192.0.2.1"), md, 80)), source, false},
		{"to a neighbour", four(syn4(a.IPv4, b.IPv4, 80)), destination, true},
		{"to another address of the host", four(syn4(a.IPv4, hostOther4, hostPort)), destination, true},
		{"to everybody", frame(broadcastMAC, a.MAC, unix.ETH_P_IP, ipv4(a.IPv4, broadcast, unix.IPPROTO_UDP, udp(a.IPv4, broadcast, 68, hostPort, "x"), nil, false)), destination, false},
		{"an answer as a DHCP server", frame(broadcastMAC, a.MAC, unix.ETH_P_IP, ipv4(a.IPv4, broadcast, unix.IPPROTO_UDP, udp(a.IPv4, broadcast, 67, 68, "x"), nil, false)), destination, false},
		{"to another port of the host", four(syn4(a.IPv4, md, hostPort)), port, true},
		{"to a UDP port of the host", four(ipv4(a.IPv4, md, unix.IPPROTO_UDP, udp(a.IPv4, md, 68, 53, "x"), nil, false)), port, true},
		{"an echo request", four(ipv4(a.IPv4, md, unix.IPPROTO_ICMP, echo(), nil, false)), port, true},
		{"IP options", four(ipv4(a.IPv4, md, unix.IPPROTO_TCP, syn(a.IPv4, md, 80), []byte{1, 1, 1, 0}, false)), port, true},
		{"a first fragment", four(ipv4(a.IPv4, md, unix.IPPROTO_TCP, syn(a.IPv4, md, 80), nil, true)), port, false},
		{"half of an IP header", four(syn4(a.IPv4, md, 80)[:14]), port, false},

		{"the host's IPv6 address", six(syn6(md6, md6, 80)), source, false},
		{"a public IPv6 address", six(syn6(stranger6, md6, 80)), source, false},
		{"to a neighbour's IPv6 address", six(syn6(attacker6, b6, 80)), destination, true},
		{"to another IPv6 address of the host", six(syn6(attacker6, hostOther6, hostPort)), destination, true},
		{"a router advertisement", frame(tap.MAC{0x33, 0x33, 0, 0, 0, 1}, a.MAC, unix.ETH_P_IPV6, ipv6(attacker6, allNodes, unix.IPPROTO_ICMPV6, icmp6(attacker6, allNodes, 134, make([]byte, 12)...))), destination, false},
		{"to another port over IPv6", six(syn6(attacker6, md6, hostPort)), port, true},
		{"an IPv6 echo request", six(ipv6(attacker6, md6, unix.IPPROTO_ICMPV6, icmp6(attacker6, md6, 128, 0, 1, 0, 1))), port, true},
		{"an IPv6 redirect", six(ipv6(attacker6, md6, unix.IPPROTO_ICMPV6, icmp6(attacker6, md6, 137, make([]byte, 36)...))), port, false},
		{"an IPv6 extension header", six(ipv6(attacker6, md6, 60, append([]byte{unix.IPPROTO_TCP, 0, 1, 4, 0, 0, 0, 0}, syn(attacker6, md6, 80)...))), port, true},

		{"a VLAN tag", frame(tap.HostMAC, a.MAC, 0x8100, append([]byte{0, 0, 8, 0}, syn4(a.IPv4, md, 80)...)), other, true},
		{"LLDP", frame(tap.MAC{1, 0x80, 0xc2, 0, 0, 0x0e}, a.MAC, 0x88cc, make([]byte, 46)), other, false},
		{"IEEE 802.3", frame(tap.MAC{1, 0x80, 0xc2, 0, 0, 0}, a.MAC, 38, make([]byte, 46)), other, false},
	}
}

// A guest that attacks its host and its neighbour gets nothing and reaches
// nobody, and each packet is counted for what it is.
func TestAttacksReachNobody(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	attackNobody(t)
}

// The rules do it alone, where a service may not change sysctls.
func TestAttacksReachNobodyWithReadOnlySysctls(t *testing.T) {
	if !netns.IsolateWith(t, ownMounts) {
		return
	}
	for _, path := range unkindSysctls {
		if err := netns.Sysctl(path, "1"); err != nil {
			t.Fatal(err)
		}
	}
	freezeSysctls(t)
	attackNobody(t)
}

// freezeSysctls makes them read-only, as a hardened service sees them.
func freezeSysctls(t *testing.T) {
	t.Helper()
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""),
		unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := netns.Sysctl(unkindSysctls[0], "0"); err == nil {
		t.Fatal("sysctls are not read-only")
	}
}

func attackNobody(t *testing.T) {
	t.Helper()
	network := open(t)
	a, b := unkindHost(t, network)
	wireA, wireB := a.wire(t), b.wire(t)
	wireA.settle(t)
	wireB.settle(t)
	for _, attack := range attacks(a.nic, b.nic) {
		want, err := a.Drops()
		if err != nil {
			t.Fatal(err)
		}
		*attack.want(&want)++

		wireA.send(t, attack.frame)
		if got := wireA.settle(t); len(got) > 0 {
			t.Errorf("%s: the host answered % x", attack.name, got)
		}
		if got := wireB.settle(t); len(got) > 0 {
			t.Errorf("%s: the neighbour got % x", attack.name, got)
		}
		got, err := a.Drops()
		if got.Destination > want.Destination { // the guest's own kernel says MLD (RFC 3810) now and then
			got.Destination = want.Destination
		}
		got.Outbound, want.Outbound = 0, 0 // and the host's
		if err != nil || got != want {
			t.Errorf("%s: counted %+v, %v; want %+v", attack.name, got, err, want)
		}
	}
	if drops, err := b.Drops(); err != nil || drops.Forged()+drops.Port != 0 {
		t.Errorf("the neighbour was counted %+v, %v", drops, err)
	}
	// And after all that both are served, each as itself.
	for _, g := range []*guest{a, b} {
		for _, address := range []string{metadata4, metadata6} {
			if answer, err := g.dial(t, address, patience); err != nil || answer != g.nic.Name {
				t.Errorf("after the attacks %s answers %q, %v", address, answer, err)
			}
		}
	}
}

// The attacks are real: on the same host without the rules, those that can be
// seen to work do.
func TestAttacksWorkWithoutRules(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	network := open(t)
	a, b := unkindHost(t, network)
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	conn.DelTable(&nftables.Table{Name: "imprint", Family: nftables.TableFamilyNetdev})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	for path, value := range map[string]string{
		a.nic.Name + "/forwarding": "1", a.nic.Name + "/arp_ignore": "0", a.nic.Name + "/rp_filter": "0", "all/rp_filter": "0",
	} {
		if err := netns.Sysctl("ipv4/conf/"+path, value); err != nil {
			t.Fatal(err)
		}
	}
	wireA, wireB := a.wire(t), b.wire(t)
	wireA.settle(t)
	wireB.settle(t)
	for _, attack := range attacks(a.nic, b.nic) {
		wireA.send(t, attack.frame)
		got := append(wireA.settle(t), wireB.settle(t)...)
		worked := false
		for _, f := range got {
			worked = worked || !chatter(f)
		}
		if worked != attack.works {
			t.Errorf("%s: worked is %t, brought % x", attack.name, worked, got)
		}
	}
}

// chatter reports whether f is what a host says unasked: MLD (RFC 3810), the
// search for a neighbour, and retransmissions of answers to earlier attacks.
func chatter(f []byte) bool {
	if len(f) < 55 || f[12] != 0x86 || f[13] != 0xdd {
		return len(f) > 21 && f[12] == 8 && f[13] == 6 && f[21] == 1
	}
	return f[20] == 0 || f[20] == unix.IPPROTO_ICMPV6 && f[54] == 135
}

// unkindSysctls are 1 on hosts that forward, and on some distributions.
var unkindSysctls = [...]string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/conf/all/rp_filter"}

// unkindHost is a host that forwards, has other addresses and listens on all of
// them, with an attacker and its victim.
func unkindHost(t *testing.T, network *tap.Network) (attacker, victim *guest) {
	t.Helper()
	for _, path := range unkindSysctls {
		if err := netns.Sysctl(path, "1"); err != nil && !errors.Is(err, unix.EROFS) {
			t.Fatal(err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{hostOther4, hostOther6} {
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}); err != nil {
			t.Fatal(err)
		}
	}
	server, err := net.ListenTCP("tcp", &net.TCPAddr{Port: hostPort})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	attacker, victim = join(t, network, 1), join(t, network, 2)
	for _, g := range []*guest{attacker, victim} {
		if _, err := g.dial(t, metadata6, patience); err != nil { // now the host knows where to answer
			t.Fatal(err)
		}
	}
	return attacker, victim
}

func indexOf(name string) (int, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}
