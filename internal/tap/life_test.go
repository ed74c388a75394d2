package tap_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/tap"
	"imprint/test/attack"
	"imprint/test/netns"
)

// rules counts those of imprint's, and its tables.
func rules(t *testing.T) (count, tables int) {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	list, err := conn.ListTablesOfFamily(nftables.TableFamilyNetdev)
	if err != nil {
		t.Fatal(err)
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chains {
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			t.Fatal(err)
		}
		count += len(rules)
	}
	return count, len(list)
}

// A process that comes next finds taps and rules as the one before left them,
// does not double them, goes on counting, and takes them away when it ends.
func TestRestart(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	first := open(t)
	g := join(t, first, 1)
	attach(t, first, nic(2)) // of an instance that is deleted while nobody runs
	forged := attack.Frame(tap.HostMAC, tap.MAC{2, 9}, unix.ETH_P_IP, make([]byte, 20))
	w := g.wire(t)
	w.send(t, forged)
	w.settle(t)
	before, _ := rules(t)
	first.Leave()

	// Nobody serves, and the rules are still there.
	w.send(t, forged)
	w.settle(t)
	if after, tables := rules(t); after != before || tables != 2 {
		t.Fatalf("after Leave %d rules of %d, in %d tables; want one for each interface", after, before, tables)
	}
	second := open(t)
	strays, err := second.Strays()
	if err != nil || len(strays) != 2 {
		t.Errorf("strays %v, %v; want both", strays, err)
	}
	again := attach(t, second, g.nic)
	next(t, again.served, "life of the interface")
	if answer, err := g.dial(t, metadata4, patience); err != nil || answer != g.nic.Name {
		t.Errorf("after the restart: %q, %v", answer, err)
	}
	if strays, err = second.Strays(); err != nil || len(strays) != 1 || strays[0] != nic(2).Name {
		t.Errorf("strays %v, %v; want the second guest's", strays, err)
	}
	if err := second.Discard(nic(2).Name); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(nic(2).Name); err == nil {
		t.Error("the stray's tap is still there")
	}
	if after, _ := rules(t); after != before/2 {
		t.Errorf("%d rules, want half of %d", after, before)
	}
	if drops, err := again.Drops(); err != nil || drops.MAC != 2 {
		t.Errorf("counted %+v, %v; want both forged packets", drops, err)
	}
	if err := second.Discard(g.nic.Name); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("discarded one that is attached: %v", err)
	}

	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if _, tables := rules(t); tables != 0 {
		t.Errorf("%d tables are still there", tables)
	}
	l, err := netlink.LinkByName(g.nic.Name)
	if err != nil || l.Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("without rules, the tap that a hypervisor has open is %v, %v", l, err)
	}

	third := open(t)
	last := attach(t, third, g.nic)
	next(t, last.served, "life of the interface")
	if answer, err := g.dial(t, metadata4, patience); err != nil || answer != g.nic.Name {
		t.Errorf("after Close and another start: %q, %v", answer, err)
	}
	if err := last.Detach(); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(g.nic.Name); err == nil {
		t.Error("the tap outlives its instance")
	}
	if left, tables := rules(t); left != 0 || tables != 0 {
		t.Errorf("%d rules and %d tables outlive their instance", left, tables)
	}
	if _, err := last.Drops(); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("counts outlive their instance: %v", err)
	}
}

// pair makes a veth pair: the host's end, as another program would make it, and
// the guest's in a namespace.
func (g *guest) pair(t *testing.T, hostMAC tap.MAC) {
	t.Helper()
	name := "vnet7"
	ends := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: hostMAC[:]}, PeerName: "eth1", PeerHardwareAddr: g.nic.MAC[:]}
	if err := netlink.LinkAdd(ends); err != nil {
		t.Fatal(err)
	}
	peer, err := netlink.LinkByName("eth1")
	if err == nil {
		err = netlink.LinkSetNsFd(peer, g.FD())
	}
	if err != nil {
		t.Fatal(err)
	}
	g.Do(t, func() {
		netns.SetUp(t, "eth1")
		configureGuest(t, g.nic.IPv4, hostMAC)
	})
	netns.SetUp(t, name)
}

// An interface of libvirt's is served from when it is there; it may vanish and
// return with another index.
func TestAdoptedInterfaceReturns(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	network := open(t)
	adopted := nic(1)
	adopted.Adopt, adopted.Name = true, "vnet*"
	g := attach(t, network, adopted)
	g.Namespace = netns.New(t)
	if state := g.State(); state.Link != nil || state.Err != nil {
		t.Errorf("waited for: %+v", state)
	}
	// Another's, which the pattern fits too.
	neighbour := nic(2)
	neighbour.Adopt, neighbour.Name = true, "vnet*"
	other := attach(t, network, neighbour)
	stranger := &guest{Namespace: netns.New(t), nic: nic(3)}
	stranger.pair(t, tap.MAC{0xfe, 0, 0, 0, 0, 3})
	renamed, err := netlink.LinkByName("vnet7")
	if err == nil {
		err = netlink.LinkSetName(renamed, "vnet6")
	}
	if err != nil {
		t.Fatal(err)
	}

	var index [2]int
	for life := range index {
		g.pair(t, tap.MAC{0xfe, 0, 0, 0, 0, 1})
		l := next(t, g.served, "life of the interface")
		index[life] = l.Index
		if l.NIC.Name != "vnet7" {
			t.Fatalf("adopted %s", l.NIC.Name)
		}
		if answer, err := g.dial(t, metadata4, patience); err != nil || answer != "vnet*" {
			t.Errorf("life %d: %q, %v", life, answer, err)
		}
		before, err := g.Drops()
		if err != nil {
			t.Fatal(err)
		}
		w := g.wire(t)
		w.host = tap.MAC{0xfe, 0, 0, 0, 0, 1}
		w.send(t, attack.Frame(w.host, tap.MAC{2, 9}, unix.ETH_P_IP, make([]byte, 20)))
		w.settle(t)
		if drops, err := g.Drops(); err != nil || drops.MAC != before.MAC+1 {
			t.Errorf("life %d: a forged packet made of %+v %+v, %v", life, before, drops, err)
		}
		link, err := netlink.LinkByIndex(l.Index)
		if err != nil {
			t.Fatal(err)
		}
		if life == 0 {
			if err := netlink.LinkDel(link); err != nil {
				t.Fatal(err)
			}
		}
	}
	if index[0] == index[1] {
		t.Errorf("both lives had index %d", index[0])
	}
	if state := other.State(); state.Link != nil {
		t.Errorf("the neighbour has %+v", state.Link)
	}
	if err := g.Detach(); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName("vnet7")
	if err != nil {
		t.Fatalf("an interface of somebody else's was deleted: %v", err)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil || slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		return a.IP.Equal(tap.MetadataIPv4.AsSlice()) || a.IP.Equal(tap.MetadataIPv6.AsSlice())
	}) {
		t.Errorf("it keeps %v, %v", addrs, err)
	}
	if neighbours, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4); err != nil || len(neighbours) != 0 {
		t.Errorf("it keeps the neighbours %v, %v", neighbours, err)
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil || len(routes) != 0 {
		t.Errorf("it keeps the routes %v, %v", routes, err)
	}
	if left, tables := rules(t); left != 0 || tables != 0 {
		t.Errorf("%d rules and %d tables stay", left, tables)
	}
}

// An interface that becomes the port of a bridge leads to more than one guest,
// and is served no more.
func TestBridgedInterfaceIsLeft(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	network := open(t)
	g := attach(t, network, nic(1))
	next(t, g.served, "life of the interface")
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := netlink.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(g.nic.Name)
	if err == nil {
		err = netlink.LinkSetMaster(link, bridge)
	}
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		state := g.State()
		if state.Link == nil && imprint.KindOf(state.Err) == imprint.Conflict {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("state %+v", state)
		}
	}
	if err := netlink.LinkSetNoMaster(link); err != nil {
		t.Fatal(err)
	}
	next(t, g.served, "life of the interface when it is nobody's port")
}

// A tap that somebody deletes is made again, for the next start of its guest.
func TestDeletedTapReturns(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	network := open(t)
	g := attach(t, network, nic(1))
	old := next(t, g.served, "life of the interface")
	link, err := netlink.LinkByIndex(old.Index)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	if now := next(t, g.served, "second life"); now.Index == old.Index {
		t.Errorf("both lives had index %d", now.Index)
	}
	g.Namespace = netns.New(t)
	g.Guest(t, g.nic.Name, "eth1", g.nic.MAC[:])
	g.Do(t, func() { configureGuest(t, g.nic.IPv4, tap.HostMAC) })
	for _, address := range []string{metadata4, metadata6} {
		if answer, err := g.dial(t, address, patience); err != nil || answer != g.nic.Name {
			t.Errorf("at %s: %q, %v", address, answer, err)
		}
	}
}

func TestAttachRefuses(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	network := open(t)
	attach(t, network, nic(1))
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	ends := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "port0"}, PeerName: "port1"}
	for _, err := range []error{netlink.LinkAdd(bridge), netlink.LinkAdd(ends), netlink.LinkSetMaster(ends, bridge)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	change := func(f func(*tap.NIC)) tap.NIC { n := nic(2); f(&n); return n }
	for name, c := range map[string]struct {
		nic  tap.NIC
		kind imprint.Kind
		says string
	}{
		"attached already":  {nic(1), imprint.Conflict, "attached already"},
		"another's MAC":     {change(func(n *tap.NIC) { n.MAC = nic(1).MAC }), imprint.Conflict, nic(1).MAC.String() + " belongs to the guest at " + nic(1).Name},
		"another's address": {change(func(n *tap.NIC) { n.IPv4 = nic(1).IPv4 }), imprint.Conflict, "169.254.1.1 belongs to the guest at"},
		"a path":            {change(func(n *tap.NIC) { n.Name = "../../x" }), imprint.Invalid, "not the name of an interface"},
		"a number":          {change(func(n *tap.NIC) { n.Name = "7" }), imprint.Invalid, "not the name of an interface"},
		"a long name":       {change(func(n *tap.NIC) { n.Name = strings.Repeat("a", 16) }), imprint.Invalid, "not the name of an interface"},
		"a pattern to make": {change(func(n *tap.NIC) { n.Name = "tap*" }), imprint.Invalid, "adopt"},
		"a broken pattern":  {change(func(n *tap.NIC) { n.Name, n.Adopt = "tap[", true }), imprint.Invalid, "pattern"},
		"port 0":            {change(func(n *tap.NIC) { n.Ports = []uint16{0} }), imprint.Invalid, "ports"},
		"somebody's":        {change(func(n *tap.NIC) { n.Name = "br0" }), imprint.Conflict, "imprint did not make"},
		"a bridge's port":   {change(func(n *tap.NIC) { n.Name, n.Adopt = "port0", true }), imprint.Conflict, "port of a bridge"},
		"loopback":          {change(func(n *tap.NIC) { n.Name, n.Adopt = "lo", true }), imprint.Conflict, "not an Ethernet"},
		"another owner":     {change(func(n *tap.NIC) { n.Owner = &tap.Owner{UID: -1} }), imprint.Invalid, "cannot own it"},
	} {
		_, err := network.Attach(c.nic, func(context.Context, *tap.Link) error { return nil })
		if imprint.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Another program on the port is an error that says so, and the port is taken
// when it is free.
func TestPortInUse(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	other, err := net.Listen("tcp4", ":80")
	if err != nil {
		t.Fatal(err)
	}
	network := open(t)
	failed := make(chan error, 16)
	g := &guest{nic: nic(1), heard: make(chan string, 1), served: make(chan *tap.Link, 1)}
	a, err := network.Attach(g.nic, func(ctx context.Context, l *tap.Link) error {
		err := g.serve(ctx, l)
		failed <- err
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = next(t, failed, "refusal")
	if imprint.KindOf(err) != imprint.Conflict || !strings.Contains(imprint.HintOf(err), "another program has that port") {
		t.Errorf("%v (%s)", err, imprint.HintOf(err))
	}
	other.Close()
	next(t, g.served, "life of the interface")
	if state := a.State(); state.Err != nil || state.Link == nil {
		t.Errorf("state %+v", state)
	}
}

// nobody and stranger are users without rights.
const nobody, stranger = 65534, 65533

// Only the owner may open a tap by its name.
func TestTapHasOneOwner(t *testing.T) {
	if os.Getenv("IMPRINT_TEST_OPEN_TAP") != "" {
		if _, err := netns.OpenTap(os.Getenv("IMPRINT_TEST_OPEN_TAP")); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !netns.IsolateWith(t, ownMounts) {
		return
	}
	allowTun(t)
	network := open(t)
	owned, mine := nic(1), nic(2)
	owned.Owner = &tap.Owner{UID: nobody}
	attach(t, network, owned)
	attach(t, network, mine)
	for _, c := range []struct {
		uid  uint32
		name string
		may  bool
	}{{nobody, owned.Name, true}, {stranger, owned.Name, false}, {nobody, mine.Name, false}} {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestTapHasOneOwner$")
		cmd.Env = append(os.Environ(), "IMPRINT_TEST_OPEN_TAP="+c.name)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.uid}}
		out, err := cmd.CombinedOutput()
		if may := err == nil; may != c.may {
			t.Errorf("user %d opens %s: %t, want %t\n%s", c.uid, c.name, may, c.may, out)
		}
	}
}

// Everything works for a user who has three capabilities and nothing else.
func TestWithoutRoot(t *testing.T) {
	const stage = "IMPRINT_TEST_STAGE"
	if os.Getenv(stage) == "" {
		if !netns.IsolateWith(t, ownMounts) {
			return
		}
		allowTun(t)
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestWithoutRoot$", "-test.v")
		cmd.Env = append(os.Environ(), stage+"=unprivileged")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential:  &syscall.Credential{Uid: nobody, Gid: nobody},
			AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_NET_BIND_SERVICE},
		}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestWithoutRoot") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil || os.Geteuid() != nobody || !strings.Contains(string(status), "CapEff:\t0000000000003400\n") {
		t.Fatalf("not the process that is tested: user %d\n%s", os.Geteuid(), status)
	}
	network, err := tap.Open(tap.Options{})
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan error, 1)
	a, err := network.Attach(nic(1), func(ctx context.Context, l *tap.Link) error {
		conn, err := l.ListenDHCP(ctx)
		if err == nil {
			conn.Close()
			for _, network := range l.Networks() {
				var listener net.Listener
				if listener, err = l.Listen(ctx, network, 80); err != nil {
					break
				}
				listener.Close()
			}
		}
		heard <- err
		<-ctx.Done()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := next(t, heard, "listeners"); err != nil {
		t.Error(err)
	}
	if drops, err := a.Drops(); err != nil {
		t.Errorf("drops %+v, %v", drops, err)
	}
	tun, err := netns.OpenTap(nic(1).Name) // as its owner
	if err != nil {
		t.Errorf("open the tap: %v", err)
	} else {
		tun.Close()
	}
	if err := network.Close(); err != nil {
		t.Error(err)
	}
}

// ownMounts gives an isolated test a mount namespace of its own.
func ownMounts(cmd *exec.Cmd) { cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNS }

// allowTun lets every user open /dev/net/tun, as distributions do.
func allowTun(t *testing.T) {
	t.Helper()
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, "mode=0755"),
		unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))),
		os.Chmod("/dev/net/tun", 0o666),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}
