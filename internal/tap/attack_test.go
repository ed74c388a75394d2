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
	"imprint/test/attack"
	"imprint/test/netns"
)

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
	for _, one := range attack.List(a.nic, b.nic) {
		want, err := a.Drops()
		if err != nil {
			t.Fatal(err)
		}
		*counted(&want, one.Reason)++

		wireA.send(t, one.Frame)
		if got := wireA.settle(t); len(got) > 0 {
			t.Errorf("%s: the host answered % x", one.Name, got)
		}
		if got := wireB.settle(t); len(got) > 0 {
			t.Errorf("%s: the neighbour got % x", one.Name, got)
		}
		got, err := a.Drops()
		if got.Destination > want.Destination { // the guest's own kernel says MLD (RFC 3810) now and then
			got.Destination = want.Destination
		}
		got.Outbound, want.Outbound = 0, 0 // and the host's
		if err != nil || got != want {
			t.Errorf("%s: counted %+v, %v; want %+v", one.Name, got, err, want)
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

// counted is where d counts why.
func counted(d *tap.Drops, why attack.Reason) *uint64 {
	switch why {
	case attack.MAC:
		return &d.MAC
	case attack.ARPs:
		return &d.ARP
	case attack.Source:
		return &d.Source
	case attack.Destination:
		return &d.Destination
	case attack.Ports:
		return &d.Port
	}
	return &d.Other
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
	for _, g := range []*guest{a, b} {
		conn.DelTable(&nftables.Table{Name: "imprint." + g.nic.Name, Family: nftables.TableFamilyNetdev})
	}
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
	for _, one := range attack.List(a.nic, b.nic) {
		wireA.send(t, one.Frame)
		got := append(wireA.settle(t), wireB.settle(t)...)
		worked := false
		for _, f := range got {
			worked = worked || !attack.Chatter(f)
		}
		if worked != one.Works {
			t.Errorf("%s: worked is %t, brought % x", one.Name, worked, got)
		}
	}
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
	for _, a := range []netip.Addr{attack.HostIPv4, attack.HostIPv6} {
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}); err != nil {
			t.Fatal(err)
		}
	}
	server, err := net.ListenTCP("tcp", &net.TCPAddr{Port: attack.HostPort})
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
