package tap_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"imprint"
	"imprint/internal/tap"
	"imprint/test/netns"
)

// The MAC of a macvtap is what its guest says, so a guest cannot become another
// by taking on the MAC of the other's host end.
func TestMACOfTheGuestsOwnChoiceIsNoIdentity(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	network := open(t)
	victim := nic(1)
	victim.Adopt, victim.Name = true, "*"
	g := attach(t, network, victim)
	peer := victim.MAC
	peer[0] = 0xfe
	// Like a macvtap, it is no tap and no veth; this kernel may lack macvtap.
	forged := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "forged0", HardwareAddr: peer[:]}}
	if err := netlink.LinkAdd(forged); err != nil {
		t.Fatal(err)
	}
	netns.SetUp(t, "forged0")
	// Nor is that of a tap which a user may open: whoever has it open sets the MAC,
	// without any capability.
	users := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "users0"}, Mode: netlink.TUNTAP_MODE_TAP, Owner: 65534}
	if err := netlink.LinkAdd(users); err != nil {
		t.Fatal(err)
	}
	for _, f := range users.Fds {
		f.Close()
	}
	if err := netlink.LinkSetHardwareAddr(users, peer[:]); err != nil {
		t.Fatal(err)
	}
	netns.SetUp(t, "users0")
	// Its own, which comes later in the kernel's order, is found, and is the only one.
	g.Namespace = netns.New(t)
	g.pair(t, peer)
	if l := next(t, g.served, "life of the interface"); l.NIC.Name != "vnet7" {
		t.Errorf("adopted %s", l.NIC.Name)
	}
}

// A name that libvirt gives to another guest's interface is the other's: the one
// that had it before takes nothing away from it when it goes.
func TestNameIsUsedAgain(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	network := open(t)
	var guests [2]*guest
	for i := range guests {
		n := nic(byte(i + 1))
		n.Adopt, n.Name = true, "vnet*"
		guests[i] = attach(t, network, n)
		guests[i].Namespace = netns.New(t)
	}
	first, second := guests[0], guests[1]
	first.pair(t, tap.MAC{0xfe, 0, 0, 0, 0, 1})
	l := next(t, first.served, "life of the first guest's interface")
	link, err := netlink.LinkByIndex(l.Index)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	second.pair(t, tap.MAC{0xfe, 0, 0, 0, 0, 2})
	next(t, second.served, "life of the second guest's interface")
	if err := first.Detach(); err != nil {
		t.Fatal(err)
	}
	if answer, err := second.dial(t, metadata4, patience); err != nil || answer != "vnet*" {
		t.Errorf("%q, %v", answer, err)
	}
	if drops, err := second.Drops(); err != nil || drops.MAC != 0 {
		t.Errorf("drops %+v, %v", drops, err)
	}
}

// A request is refused where it would take an interface from somebody.
func TestRequestIsRefused(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	network := open(t)
	own := attach(t, network, nic(1))
	other := nic(2)
	other.Adopt, other.Name = true, "vnet*"
	known := attach(t, network, other)
	known.Namespace = netns.New(t)
	known.pair(t, tap.MAC{0xfe, 0, 0, 0, 0, 2}) // its MAC says whose it is
	served := next(t, known.served, "life of the interface that is known by its MAC").NIC.Name
	for _, name := range []string{"foreign0", "asked0"} {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	for name, alias := range map[string]string{"foreign0": "uplink", "asked0": "imprint:web-1"} {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetAlias(link, alias)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		label string
		kind  imprint.Kind
		says  string
	}{
		"nowhere0":   {"web-1", imprint.NotFound, "no such interface"},
		"../x":       {"web-1", imprint.Invalid, "not the name of an interface"},
		"asked0":     {"web-2", imprint.Conflict, "asked for by web-1 already"},
		"foreign0":   {"web-1", imprint.Conflict, `has the alias "uplink"`},
		own.nic.Name: {"web-1", imprint.Conflict, "imprint made"},
		served:       {"web-1", imprint.Conflict, "it is served already"},
		"lo":         {"two words", imprint.Invalid, "names no instance"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := tap.Request(ctx, name, c.label, tap.MAC{})
		cancel()
		if imprint.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s for %s: %v", name, c.label, err)
		}
	}
}
