package tap_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"imprint/internal/tap"
	"imprint/test/attack"
	"imprint/test/netns"
)

// Nothing passes between a guest and what is behind its host, in neither
// direction, on a host that forwards.
func TestNothingIsForwarded(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	if err := netns.Sysctl("ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	// A neighbouring host, which routes 169.254.1.1 by this one.
	outside := &guest{nic: tap.NIC{MAC: tap.MAC{2, 0, 0, 0, 1, 1}, IPv4: netip.MustParseAddr("10.9.9.2")}, Namespace: netns.New(t)}
	lan := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}, Mode: netlink.TUNTAP_MODE_TAP}
	if err := netlink.LinkAdd(lan); err != nil {
		t.Fatal(err)
	}
	for _, f := range lan.Fds {
		f.Close()
	}
	link, err := netlink.LinkByName("lan0")
	if err == nil {
		err = netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: attack.HostIPv4.AsSlice(), Mask: net.CIDRMask(24, 32)}})
	}
	if err != nil {
		t.Fatal(err)
	}
	netns.SetUp(t, "lan0")
	outside.Guest(t, "lan0", "eth1", outside.nic.MAC[:])
	lanMAC := tap.MAC(link.Attrs().HardwareAddr)
	outside.Do(t, func() { configureGuest(t, outside.nic.IPv4, lanMAC) })

	network := open(t)
	inside := join(t, network, 1)
	wire := inside.wire(t)
	wire.settle(t)
	before, err := inside.Drops()
	if err != nil {
		t.Fatal(err)
	}

	// From outside: a connection to the guest, and one that pretends to come from the host.
	outsideWire := outside.wire(t)
	outsideWire.host = lanMAC
	for _, source := range []netip.Addr{outside.nic.IPv4, tap.MetadataIPv4} {
		segment := attack.IPv4(source, inside.nic.IPv4, unix.IPPROTO_TCP, attack.SYN(source, inside.nic.IPv4, 80), nil, false)
		outsideWire.send(t, attack.Frame(lanMAC, outside.nic.MAC, unix.ETH_P_IP, segment))
	}
	outsideWire.settle(t)
	// And from the host's own programs, to the guest's ports.
	conn, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: inside.nic.IPv4.AsSlice(), Port: 2222})
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("x")) // the filter may say so, or not
	conn.Close()
	for _, f := range wire.settle(t) {
		t.Errorf("the guest got % x", f)
	}
	if now, err := inside.Drops(); err != nil || now.Outbound < before.Outbound+2 {
		t.Errorf("counted %+v, %v; before %+v", now, err, before)
	}

	// From inside, to the neighbouring host.
	segment := attack.IPv4(inside.nic.IPv4, outside.nic.IPv4, unix.IPPROTO_TCP, attack.SYN(inside.nic.IPv4, outside.nic.IPv4, 80), nil, false)
	wire.send(t, attack.Frame(tap.HostMAC, inside.nic.MAC, unix.ETH_P_IP, segment))
	wire.settle(t)
	for _, f := range outsideWire.settle(t) {
		if !attack.Chatter(f) {
			t.Errorf("the neighbouring host got % x", f)
		}
	}
	if now, err := inside.Drops(); err != nil || now.Destination == before.Destination {
		t.Errorf("counted %+v, %v", now, err)
	}
}

// A guest that speaks from ever more IPv6 addresses fills no table of its host's.
func TestIPv6SourcesAreLimited(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	network := open(t)
	g := join(t, network, 1)
	w := g.wire(t)
	w.settle(t)
	const tried = 100
	for n := range tried {
		source := netip.MustParseAddr("fe80::1").As16()
		binary.BigEndian.PutUint16(source[12:], uint16(n+1))
		from := netip.AddrFrom16(source)
		// The search for the host, which tells it the guest's MAC, and so makes an entry.
		body := append(make([]byte, 4), tap.MetadataIPv6.AsSlice()...)
		body = append(append(body, 1, 1), g.nic.MAC[:]...)
		w.send(t, attack.Frame(tap.HostMAC, g.nic.MAC, unix.ETH_P_IPV6, attack.IPv6(from, tap.MetadataIPv6, unix.IPPROTO_ICMPV6, attack.ICMPv6(from, tap.MetadataIPv6, 135, body...))))
	}
	w.settle(t)
	index, err := indexOf(g.nic.Name)
	if err != nil {
		t.Fatal(err)
	}
	neighbours, err := netlink.NeighList(index, netlink.FAMILY_V6)
	if err != nil {
		t.Fatal(err)
	}
	known := 0
	for _, n := range neighbours {
		if n.IP.IsLinkLocalUnicast() {
			known++
		}
	}
	drops, err := g.Drops()
	if known == 0 || known > 8 || err != nil || drops.Source != tried-8 {
		t.Errorf("the host knows %d addresses, and dropped %+v, %v; want 8, and the rest for their source", known, drops, err)
	}
}

// With a hop limit of 1 an answer goes no further than the guest.
func TestHopLimit(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	g := join(t, open(t), 1)
	w := g.wire(t)
	for _, address := range []string{metadata4, metadata6} { // the listeners have a limit of 1
		if _, err := g.dial(t, address, patience); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[uint16]int{}
	for _, f := range w.settle(t) {
		switch kind := binary.BigEndian.Uint16(f[12:]); {
		case kind == unix.ETH_P_IP && f[23] == unix.IPPROTO_TCP:
			seen[kind]++
			if f[22] != 1 {
				t.Errorf("a time to live of %d: % x", f[22], f)
			}
		case kind == unix.ETH_P_IPV6 && f[20] == unix.IPPROTO_TCP:
			seen[kind]++
			if f[21] != 1 {
				t.Errorf("a hop limit of %d: % x", f[21], f)
			}
		}
	}
	if seen[unix.ETH_P_IP] < 3 || seen[unix.ETH_P_IPV6] < 3 {
		t.Errorf("saw %v segments; want at least three of each family", seen)
	}
}

// Port 443 is closed unless it is asked for.
func TestPortsThatAreAskedFor(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	server, err := net.Listen("tcp", ":443")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	network := open(t)
	closed, opened := nic(1), nic(2)
	opened.Ports = []uint16{80, 443}
	for _, n := range []tap.NIC{closed, opened} {
		g := attach(t, network, n)
		g.Namespace = netns.New(t)
		g.Guest(t, n.Name, "eth1", n.MAC[:])
		g.Do(t, func() { configureGuest(t, n.IPv4, tap.HostMAC) })
		w := g.wire(t)
		w.settle(t)
		for _, p := range []uint16{443, 80} {
			w.send(t, attack.Frame(tap.HostMAC, n.MAC, unix.ETH_P_IP, attack.IPv4(n.IPv4, tap.MetadataIPv4, unix.IPPROTO_TCP, attack.SYN(n.IPv4, tap.MetadataIPv4, p), nil, false)))
		}
		answers := map[uint16]bool{}
		for _, f := range w.settle(t) {
			if len(f) > 36 && f[23] == unix.IPPROTO_TCP {
				answers[binary.BigEndian.Uint16(f[34:])] = true
			}
		}
		if !answers[80] || answers[443] != (n.Name == opened.Name) {
			t.Errorf("with ports %v, %v answer", n.Ports, answers)
		}
	}
}
