package tap_test

import (
	"testing"

	"imprint/test/netns"
)

// Two guests reach the same addresses, and each is told apart by its interface,
// on a host whose own settings are as unkind as distributions make them.
func TestGuestsReachTheirHost(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	for path, value := range map[string]string{
		"ipv4/conf/all/rp_filter": "1", "ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
		"ipv6/conf/default/accept_ra": "2",
	} {
		if err := netns.Sysctl(path, value); err != nil {
			t.Fatal(err)
		}
	}
	network := open(t)
	for n := byte(1); n <= 2; n++ {
		g := join(t, network, n)
		for _, address := range []string{metadata4, metadata6} {
			answer, err := g.dial(t, address, patience)
			if err != nil || answer != g.nic.Name {
				t.Errorf("guest %d at %s: answer %q, %v; want %q", n, address, answer, err, g.nic.Name)
			}
		}
		if from := next(t, g.heard, "connection"); from != g.nic.IPv4.String() {
			t.Errorf("guest %d came from %s", n, from)
		}
		drops, err := g.Drops()
		if err != nil || drops.Forged() != 0 || drops.Port != 0 {
			t.Errorf("guest %d did nothing wrong, and was counted %+v, %v", n, drops, err)
		}
	}
}

// Where IPv6 is off and may not be turned on, IPv4 is served.
func TestWithoutIPv6(t *testing.T) {
	if !netns.IsolateWith(t, ownMounts) {
		return
	}
	if err := netns.Sysctl("ipv6/conf/default/disable_ipv6", "1"); err != nil {
		t.Fatal(err)
	}
	freezeSysctls(t)
	g := join(t, open(t), 1)
	if networks := g.link.Networks(); len(networks) != 1 || networks[0] != "tcp4" {
		t.Errorf("listens on %v", networks)
	}
	if answer, err := g.dial(t, metadata4, patience); err != nil || answer != g.nic.Name {
		t.Errorf("answer %q, %v", answer, err)
	}
}
