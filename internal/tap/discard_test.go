package tap_test

import (
	"testing"

	"github.com/vishvananda/netlink"

	"imprint"
	"imprint/internal/tap"
	"imprint/test/netns"
)

// What an earlier process left is taken away while the guest whose interface it is
// comes up: whichever is first, no guest is served without its rules.
func TestStrayThatIsTakenUpMeanwhileKeepsItsRules(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	network := open(t)
	for range 8 {
		n := nic(1)
		n.Adopt, n.Name = true, "vnet*"
		g := attach(t, network, n)
		g.Namespace = netns.New(t)
		discarded := make(chan error, 1)
		go func() {
			for {
				if err := network.Discard("vnet7"); err != nil {
					discarded <- err
					return
				}
			}
		}()
		g.pair(t, tap.MAC{0xfe, 0, 0, 0, 0, 1})
		next(t, g.served, "life of the interface")
		if err := next(t, discarded, "end of the discarding"); imprint.KindOf(err) != imprint.Conflict {
			t.Fatal(err)
		}
		if _, err := g.Drops(); err != nil {
			t.Errorf("a guest is served: %v", err)
		}
		if _, err := g.dial(t, metadata4, patience); err != nil {
			t.Error(err)
		}
		if err := g.Detach(); err != nil {
			t.Fatal(err)
		}
		link, err := netlink.LinkByName("vnet7")
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
