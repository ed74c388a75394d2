package tap_test

import (
	"net/netip"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/tap"
)

func TestChooseIsDeterministic(t *testing.T) {
	var none tap.Taken
	first, err := none.Choose("web-1/1")
	if err != nil {
		t.Fatal(err)
	}
	again, err := new(tap.Taken).Choose("web-1/1")
	if err != nil || again != first {
		t.Errorf("the second time %+v, %v; want %+v", again, err, first)
	}
	if first.MAC[0] != 0x02 {
		t.Errorf("MAC %s is not locally administered", first.MAC)
	}
	// What the holder has itself is not in its way; what another has is.
	var taken tap.Taken
	if err := taken.Take(first); err != nil {
		t.Fatal(err)
	}
	if again, err := taken.Choose("web-1/1"); err != nil || again != first {
		t.Errorf("with its own taken %+v, %v; want %+v", again, err, first)
	}
	theirs := first
	theirs.Holder = "web-2/1"
	var other tap.Taken
	if err := other.Take(theirs); err != nil {
		t.Fatal(err)
	}
	if l, err := other.Choose("web-1/1"); err != nil || l.MAC == first.MAC || l.IPv4 == first.IPv4 {
		t.Errorf("chose %+v, %v, which web-2 has", l, err)
	}
}

// The last free address of a full host is found, wherever it is, and those that
// are not for guests are never handed out.
func TestChooseOnAFullHost(t *testing.T) {
	var taken tap.Taken
	n := 0
	for a := netip.MustParseAddr("169.254.1.0"); a.Less(netip.MustParseAddr("169.254.255.0")); a = a.Next() {
		b := a.As4()
		if b[2] == 169 || b[2] == 170 || a == netip.MustParseAddr("169.254.20.10") {
			continue
		}
		n++
		if err := taken.Take(tap.Lease{Holder: "old", MAC: tap.MAC{0x52, 0, 0, 0, byte(n >> 8), byte(n)}, IPv4: a}); err != nil {
			t.Fatal(err)
		}
	}
	if l, err := taken.Choose("new"); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("on a full host: %+v, %v", l, err)
	}
	for _, free := range []string{"169.254.1.0", "169.254.254.255", "169.254.168.255", "169.254.171.0"} {
		lease := tap.Lease{Holder: "old", MAC: tap.MAC{0x52, 1}, IPv4: netip.MustParseAddr(free)}
		taken.GiveBack(lease)
		if l, err := taken.Choose("new"); err != nil || l.IPv4 != lease.IPv4 {
			t.Errorf("with only %s free: %+v, %v", free, l, err)
		}
		if err := taken.Take(lease); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTakeRefusesASecondHolder(t *testing.T) {
	mac, addr := tap.MAC{0x52, 0x54, 0, 1, 2, 3}, netip.MustParseAddr("169.254.1.1")
	var taken tap.Taken
	held := tap.Lease{Holder: "web-1", MAC: mac, IPv4: addr}
	if err := taken.Take(held); err != nil {
		t.Fatal(err)
	}
	if err := taken.Take(held); err != nil {
		t.Errorf("its own lease again: %v", err)
	}
	err := taken.Take(tap.Lease{Holder: "web-2", MAC: mac, IPv4: addr.Next()})
	if imprint.KindOf(err) != imprint.Conflict || err.Error() != "take MAC 52:54:00:01:02:03: web-1 has it on this host, so web-2 cannot" || imprint.HintOf(err) == "" {
		t.Errorf("one MAC for two: %v (%s)", err, imprint.HintOf(err))
	}
	err = taken.Take(tap.Lease{Holder: "web-2", MAC: tap.MAC{0x52}, IPv4: addr})
	if imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "web-1 has it") {
		t.Errorf("one address for two: %v", err)
	}
	taken.GiveBack(tap.Lease{Holder: "web-2", MAC: mac, IPv4: addr}) // not web-2's to give
	if err := taken.Take(tap.Lease{Holder: "web-2", MAC: mac, IPv4: addr}); err == nil {
		t.Error("web-2 gave back what web-1 holds")
	}
	taken.GiveBack(held)
	if err := taken.Take(tap.Lease{Holder: "web-2", MAC: mac, IPv4: addr}); err != nil {
		t.Errorf("after it was given back: %v", err)
	}
}

func TestTakeRefusesWhatNobodyCanHave(t *testing.T) {
	mac, addr := tap.MAC{0x52, 0x54, 0, 1, 2, 3}, netip.MustParseAddr("169.254.1.1")
	for _, l := range []tap.Lease{
		{"", mac, addr},
		{"web-1", tap.MAC{}, addr},
		{"web-1", tap.MAC{0x53, 0x54, 0, 1, 2, 3}, addr}, // a group address
		{"web-1", tap.HostMAC, addr},
		{"web-1", mac, netip.Addr{}},
		{"web-1", mac, netip.MustParseAddr("10.0.0.1")},
		{"web-1", mac, netip.MustParseAddr("fe80::1")},
		{"web-1", mac, netip.MustParseAddr("::ffff:169.254.1.1")},
		{"web-1", mac, tap.MetadataIPv4},
		{"web-1", mac, netip.MustParseAddr("169.254.255.255")},
	} {
		if err := new(tap.Taken).Take(l); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

func TestParseMAC(t *testing.T) {
	m, err := tap.ParseMAC("52-54-00-AB-CD-EF")
	if err != nil || m.String() != "52:54:00:ab:cd:ef" {
		t.Errorf("%v, %v", m, err)
	}
	for _, s := range []string{"", "52:54:00", "01:00:5e:00:00:01", "00:00:00:00:00:00", "52:54:00:12:34:56:78:9a"} {
		if _, err := tap.ParseMAC(s); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestNameOf(t *testing.T) {
	a, b := tap.NameOf("web-1"), tap.NameOf("web-2")
	if a == b || len(a) != 15 || a != tap.NameOf("web-1") {
		t.Errorf("names %q and %q", a, b)
	}
}
