//go:build vm

package vm_test

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"imprint"
	"imprint/api"
	"imprint/demo/guest"
	"imprint/internal/platform/qemu"
	"imprint/internal/tap"
	"imprint/test/attack"
	"imprint/test/netns"
)

// One machine attacks its host and its neighbour, as root and with every frame
// that it likes, from before the neighbour boots until after it has ended. The
// neighbour gets its lease, enrols and reads its metadata as if it were alone; the
// attacker gets nothing but what is its own, and the host knows who did what.
func TestOneGuestAttacksAnother(t *testing.T) {
	needQEMU(t)
	if _, err := guest.FetchKernel(t.Context(), cache); err != nil { // while there is a network
		t.Fatal(err)
	}
	if !netns.Isolate(t) {
		return
	}
	unkindHost(t)
	s := newServer(t)
	const manifest = "name: %[1]s\ndnsNames: [%[1]s.lab.internal]\nchannels: [nic]\nparams: {private: {db-password: {env: DB_PASSWORD}}}\nuserData: \"#cloud-config\\nfqdn: %[1]s\"\n"
	private := canary("private")
	id := s.create(fmt.Sprintf(manifest, "victim"), "DB_PASSWORD="+private)
	s.create(fmt.Sprintf(manifest, "attacker"), "DB_PASSWORD="+canary("other"))
	attackerNIC, victimNIC := s.nic("attacker"), s.nic("victim")
	own, neighbour := s.describe("attacker").Instance.NIC, s.describe("victim").Instance.NIC

	attacking := boot(t, attackMachine(t, attackerNIC, fmt.Appendf(nil, "#!/bin/sh\nexec attacker -own %s,%s -neighbour %s,%s -neighbour-id %s attack\n",
		own.MAC, own.IPv4, neighbour.MAC, neighbour.IPv4, id)), stockLimit)
	attacking.says("guest: round 1\n")
	before := rounds(attacking)
	console := boot(t, attackMachine(t, victimNIC, script(t, "victim.sh")), stockLimit).poweredOff()
	if rounds(attacking) == before {
		t.Error("the neighbour was up for less than a round of attacks")
	}
	attacking.process.Kill()
	<-attacking.process.Done()

	// The neighbour is as if it were alone.
	expectConsole(t, console, "guest: watching", fmt.Sprintf("guest: leased %s/32; 169.254.169.254/32 0.0.0.0; router \n", neighbour.IPv4),
		"guest: enrolled, and reads "+private)
	const read = `guest: asked for /latest/meta-data/local-hostname with "": 200 "victim.lab.internal"`
	if n := strings.Count(console, read); n != 300 {
		t.Errorf("the neighbour read its name %d times; want 300", n)
	}
	for _, trouble := range []string{"guest: GOT", "guest: no lease", " ended: "} {
		if strings.Contains(console, trouble) {
			t.Errorf("the neighbour says %q:\n%s", trouble, grep(console, trouble))
		}
	}
	// The attacker got its own, and nothing else.
	said := attacking.text()
	expectConsole(t, said, `guest: asked for /latest/meta-data/local-hostname with "": 200 "attacker.lab.internal"`)
	for _, leak := range []string{"guest: GOT", "victim", private, " ended: "} {
		if strings.Contains(said, leak) {
			t.Errorf("the attacker says %q:\n%s", leak, grep(said, leak))
		}
	}
	expectView(t, s.describe("victim"), s.describe("attacker"))

	// The host counted each frame for what it is, at the interface that it came by.
	ofAttacker, ofVictim := dropped(t, attackerNIC.Tap), dropped(t, victimNIC.Tap)
	sent := map[attack.Reason]uint64{}
	for _, one := range attack.List(tap.NIC{}, tap.NIC{}) {
		sent[one.Reason] += uint64(rounds(attacking))
	}
	for reason, n := range sent {
		if got := ofAttacker[string(reason)]; got < n {
			t.Errorf("the host counted %d frames of the attacker's for their %s; it sent %d", got, reason, n)
		}
		if got := ofVictim[string(reason)]; got > 0 && reason != attack.Destination { // where a kernel says MLD
			t.Errorf("the host counted %d frames of the neighbour's for their %s", got, reason)
		}
	}
}

// expectView fails the test unless the host has on record that the victim did
// what it did, and that the attacker did nothing but ask for its own.
func expectView(t *testing.T, victim, attacker api.Description) {
	t.Helper()
	expectInOrder(t, victim, imprint.EventReserved, imprint.EventDelivered, imprint.EventClaimed, imprint.EventIssued,
		imprint.EventConfirmed, imprint.EventClosed)
	if c := victim.Instance.Enrolment.Claim; c == nil || c.Tier != imprint.TierHost || c.Channel != imprint.LinkLocal {
		t.Errorf("the neighbour's claim is %+v; want tier 3 over its interface", c)
	}
	if slices.ContainsFunc(victim.Timeline, func(e imprint.Event) bool { return e.Kind == imprint.EventRefused }) {
		t.Errorf("something was refused to the neighbour: %q", onRecord(victim))
	}
	lines := onRecord(attacker)
	if !slices.Contains(lines, "served latest/user-data to root") {
		t.Errorf("the attacker read its own user data, which is not on its timeline: %q", lines)
	}
	if !slices.ContainsFunc(lines, func(line string) bool {
		return strings.Contains(line, "it has the field X-Forwarded-For")
	}) {
		t.Errorf("the attacker asked as a proxy would, which is not on its timeline: %q", lines)
	}
	if slices.Contains(kinds(attacker), imprint.EventClaimed) {
		t.Errorf("the attacker has enrolled: %q", kinds(attacker))
	}
}

// attackMachine is a machine that runs script and has nothing but nic.
func attackMachine(t *testing.T, nic qemu.NIC, script []byte) qemu.Machine {
	t.Helper()
	img, err := guest.Build(t.Context(), guest.Config{
		Cache: cache, Out: filepath.Join(t.TempDir(), "guest.cpio"), Agent: program("imprint-agent"), Script: script,
		Programs: []string{program("attacker")}, Modules: []string{"virtio_net"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return qemu.Machine{MemoryMiB: 256, Kernel: img.Kernel, Initrd: img.Initrd, Append: guest.Append, NICs: []qemu.NIC{nic}}
}

// unkindHost makes a host of the test's namespace that forwards, has other
// addresses, and listens on all of them.
func unkindHost(t *testing.T) {
	t.Helper()
	for _, path := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := netns.Sysctl(path, "1"); err != nil {
			t.Fatal(err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []net.IP{attack.HostIPv4.AsSlice(), attack.HostIPv6.AsSlice()} {
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: a, Mask: net.CIDRMask(8*len(a), 8*len(a))}}); err != nil {
			t.Fatal(err)
		}
	}
	server, err := net.ListenTCP("tcp", &net.TCPAddr{Port: attack.HostPort})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
}

// rounds is how many rounds an attacker has ended.
func rounds(v *vm) int { return strings.Count(v.text(), "guest: round ") }

// grep returns a few of the lines of console that have text.
func grep(console, text string) string {
	const few = 10
	var found []string
	for line := range strings.Lines(console) {
		if strings.Contains(line, text) && len(found) < few {
			found = append(found, line)
		}
	}
	return strings.Join(found, "")
}

// dropped reads what the host's filter has counted at an interface, by reason.
func dropped(t *testing.T, name string) map[string]uint64 {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := conn.GetNamedObjects(&nftables.Table{Name: "imprint." + name, Family: nftables.TableFamilyNetdev})
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]uint64{}
	for _, o := range objects {
		if named, ok := o.(*nftables.NamedObj); ok {
			if c, ok := named.Obj.(*expr.Counter); ok {
				counts[named.Name] = c.Packets
			}
		}
	}
	return counts
}
