package daemon_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"imprint"
	"imprint/api"
	"imprint/internal/daemon"
	"imprint/internal/tap"
	"imprint/test/need"
)

// platformTap makes a tap as a hypervisor's platform does: persistent, up, and
// with a MAC of its own at the host's end; nil is the kernel's choice.
func platformTap(t *testing.T, name string, mac net.HardwareAddr) {
	t.Helper()
	made := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP}
	if err := netlink.LinkAdd(made); err != nil {
		t.Fatal(err)
	}
	for _, f := range made.Fds {
		f.Close()
	}
	link := linkOf(t, name)
	if mac != nil {
		if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}

func linkOf(t *testing.T, name string) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return link
}

func removeTap(t *testing.T, name string) {
	t.Helper()
	if err := netlink.LinkDel(linkOf(t, name)); err != nil {
		t.Fatal(err)
	}
}

// hostEnd is the MAC that libvirt gives the host's end of the instance's tap.
func hostEnd(t *testing.T, nic *imprint.NIC) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(nic.MAC)
	if err != nil {
		t.Fatal(err)
	}
	mac[0] = 0xfe
	return mac
}

// wantForeign fails the test unless the interface is as its platform made it.
func wantForeign(t *testing.T, name string) {
	t.Helper()
	link := linkOf(t, name)
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil || link.Attrs().Flags&net.FlagUp == 0 || slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		return a.IP.Equal(tap.MetadataIPv4.AsSlice()) || a.IP.Equal(tap.MetadataIPv6.AsSlice())
	}) {
		t.Errorf("%s has the flags %s and the addresses %v, %v", name, link.Attrs().Flags, addrs, err)
	}
}

// awaitPort waits until the instance's interface is as ok wants it.
func awaitPort(t *testing.T, server *serving, ref, what string, ok func(api.Port, *imprint.NIC) bool) *api.Description {
	t.Helper()
	var d *api.Description
	until(t, ref+" having "+what, func() bool {
		var err error
		if d, err = server.Describe(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(d.Ports, func(p api.Port) bool { return p.Channel == imprint.LinkLocal })
		return i >= 0 && ok(d.Ports[i], d.Instance.NIC)
	})
	return d
}

func awaitAt(t *testing.T, server *serving, ref, name string) *api.Description {
	t.Helper()
	return awaitPort(t, server, ref, "the interface "+name, func(p api.Port, _ *imprint.NIC) bool {
		return p.Interface == name && p.Connected && p.Problem == ""
	})
}

// wantRefused waits until the instance is not served, for a reason with the text,
// which the timeline has.
func wantRefused(t *testing.T, server *serving, ref, text string) {
	t.Helper()
	awaitPort(t, server, ref, "the problem "+text, func(p api.Port, _ *imprint.NIC) bool { return strings.Contains(p.Problem, text) && !p.Connected })
	until(t, "the reason on the timeline of "+ref+": "+text, func() bool {
		events, err := server.Timeline(t.Context(), ref, 0)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(events, func(e imprint.Event) bool {
			return e.Kind == imprint.EventRefused && strings.Contains(e.Detail["reason"], text) && e.Detail["from"] == "the host"
		})
	})
}

// ganetiHook runs imprint's hook as Ganeti's kvm-ifup does.
func ganetiHook(t *testing.T, instance, name, mac string) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := "#!/bin/sh\n" + childVariable + "=" + childImprint + " exec " + self + ` "$@"` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "imprint"), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), need.Program(t, "bash", "bash"), "-c", ". ../../packaging/ganeti/kvm-ifup-os; echo the rest of kvm-ifup")
	cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "INSTANCE=" + instance, "INTERFACE=" + name, "MODE=routed", "MAC=" + mac}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "the rest of kvm-ifup\n" {
		t.Fatalf("Ganeti's hook: %v\n%s", err, out)
	}
}

// TestAdoptedInterfaces runs a server whose guests have interfaces that somebody
// else makes: known by their MAC, by their name, or asked for.
func TestAdoptedInterfaces(t *testing.T) {
	if !isolated(t) {
		return
	}
	s := newSite(t)
	s.config.Adopt = []daemon.AdoptConfig{
		{Interface: "vnet*", Instance: "mac-1"}, {Interface: "vnet*", Instance: "mac-2"},
		{Interface: "gnt.com.*", Instance: "asked-1"}, {Interface: "gnt.com.*", Instance: "asked-2"},
		{Interface: "vm-name-1", Instance: "rival"}, {Interface: "vm-{name}"},
	}
	server := s.serve(t)
	create := func(name imprint.InstanceName) {
		t.Helper()
		if _, err := server.Create(t.Context(), imprint.Spec{
			Name: name, DNSNames: []string{string(name) + ".lab.internal"}, Channels: []imprint.ChannelKind{imprint.LinkLocal},
		}, nil, false); err != nil {
			t.Fatal(err)
		}
	}
	recorded := func(ref string) *imprint.NIC {
		t.Helper()
		return awaitPort(t, server, ref, "a MAC", func(p api.Port, n *imprint.NIC) bool { return n != nil && p.Adopts != "" && p.Interface == "" }).Instance.NIC
	}
	for _, name := range []imprint.InstanceName{"mac-1", "mac-2", "asked-1", "asked-2", "name-1", "a-very-long-name"} {
		create(name)
	}
	wantRefused(t, server, "a-very-long-name", "a name of 19 letters; 15 are allowed")
	nic := recorded("mac-1")
	if out, err := s.cli("nic", "libvirt", "mac-1"); err != nil || out != "<interface type='ethernet'>\n  <mac address='"+nic.MAC+"'/>\n  <model type='virtio'/>\n</interface>\n" {
		t.Errorf("nic libvirt: %v\n%s", err, out)
	}

	// libvirt makes the interface at the domain's start, beside others.
	platformTap(t, "vnet0", net.HardwareAddr{0xfe, 0x54, 0, 1, 2, 3})
	platformTap(t, "vnet1", hostEnd(t, nic))
	awaitAt(t, server, "mac-1", "vnet1")
	guest := plugIn(t, server, "mac-1")
	guest.want(t, false, "/openstack/latest/meta_data.json", 200, `"name":"mac-1"`)
	wantForeign(t, "vnet0")
	recorded("mac-2") // and has nothing else

	// A second one of that MAC is not believed, and nor is the first any more.
	platformTap(t, "vnet2", hostEnd(t, nic))
	wantRefused(t, server, "mac-1", "vnet1 and vnet2 both are the interface of the guest "+nic.MAC)
	wantForeign(t, "vnet2")
	removeTap(t, "vnet2")
	awaitAt(t, server, "mac-1", "vnet1")
	guest.want(t, false, "/latest/meta-data/local-hostname", 200, "mac-1")

	// The next start brings it back with another name and index, and the old name
	// may be another's.
	removeTap(t, "vnet1")
	recorded("mac-1")
	platformTap(t, "vnet3", hostEnd(t, nic))
	awaitAt(t, server, "mac-1", "vnet3")
	platformTap(t, "vnet1", hostEnd(t, recorded("mac-2")))
	awaitAt(t, server, "mac-2", "vnet1")
	guest = plugIn(t, server, "mac-1")
	other := plugIn(t, server, "mac-2")

	// One interface that two instances are to have is nobody's.
	platformTap(t, "vm-name-1", nil)
	awaitAt(t, server, "name-1", "vm-name-1")
	create("rival")
	for _, ref := range []string{"rival", "name-1"} {
		wantRefused(t, server, ref, "it is the interface of the guests ")
	}
	if err := server.Delete(t.Context(), "rival"); err != nil {
		t.Fatal(err)
	}
	awaitAt(t, server, "name-1", "vm-name-1")
	plugIn(t, server, "name-1").want(t, false, "/nocloud/meta-data", 200, "name-1")

	// Ganeti chose the MAC, and its hook says whose the interface is.
	platformTap(t, "gnt.com.0", nil)
	ganetiHook(t, "asked-1.lab.internal", "gnt.com.0", "52:54:00:0a:0b:0c")
	awaitAt(t, server, "asked-1", "gnt.com.0")
	asked := plugIn(t, server, "asked-1") // at the MAC on record
	asked.want(t, false, "/latest/meta-data/network/interfaces/macs/", 200, "52:54:00:0a:0b:0c")
	if out, err := s.cli("nic", "adopt", "asked-2", "--interface", "gnt.com.0"); err == nil || !strings.Contains(out, "asked for by asked-1.lab.internal already") {
		t.Errorf("a second request: %v\n%s", err, out)
	}
	// The other's MAC is no way to become it.
	platformTap(t, "gnt.com.1", nil)
	ended := make(chan string, 1)
	go func() {
		out, _ := s.cli("nic", "adopt", "asked-2", "--interface", "gnt.com.1", "--mac", "52:54:00:0a:0b:0c")
		ended <- out
	}()
	wantRefused(t, server, "asked-2", "its MAC 52:54:00:0a:0b:0c belongs to the guest at gnt.com.*")
	wantForeign(t, "gnt.com.1")
	asked.want(t, false, "/latest/meta-data/network/interfaces/macs/", 200, "52:54:00:0a:0b:0c")

	// While no server runs, the interfaces are as their platforms made them. The
	// next one finds them all.
	if out := <-ended; !strings.Contains(out, "not served yet") {
		t.Errorf("the request that is refused says %q", out)
	}
	server.stop()
	for _, name := range []string{"vnet1", "vnet3", "vm-name-1", "gnt.com.0"} {
		wantForeign(t, name)
	}
	server = s.serve(t)
	awaitAt(t, server, "mac-1", "vnet3")
	awaitAt(t, server, "mac-2", "vnet1")
	awaitAt(t, server, "name-1", "vm-name-1")
	awaitAt(t, server, "asked-1", "gnt.com.0")
	guest.want(t, false, "/latest/meta-data/local-hostname", 200, "mac-1")
	other.want(t, false, "/latest/meta-data/local-hostname", 200, "mac-2")
	asked.want(t, false, "/latest/meta-data/local-hostname", 200, "asked-1")

	// What was adopted outlives its instance.
	if err := server.Delete(t.Context(), "mac-1"); err != nil {
		t.Fatal(err)
	}
	until(t, "the release of vnet3", func() bool {
		addrs, err := netlink.AddrList(linkOf(t, "vnet3"), netlink.FAMILY_V4)
		return err == nil && len(addrs) == 0
	})
	wantForeign(t, "vnet3")
}

// Entries that cannot work, or that would let one instance have another's
// interface, are refused with a remedy.
func TestAdoptIsChecked(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		adopt []daemon.AdoptConfig
		says  string
	}{
		{[]daemon.AdoptConfig{{}}, "makes no names of interfaces"},
		{[]daemon.AdoptConfig{{Interface: "vnet["}}, "is not a pattern such as vnet*"},
		{[]daemon.AdoptConfig{{Interface: "vm-{name}*"}}, "is not a pattern such as vnet*"},
		{[]daemon.AdoptConfig{{Interface: "vm-{id}"}}, "braces around something else"},
		{[]daemon.AdoptConfig{{Interface: "../{name}"}}, "makes no names of interfaces"},
		{[]daemon.AdoptConfig{{Interface: "vm0"}}, "would be every instance's"},
		{[]daemon.AdoptConfig{{Interface: "{tenant}-{name}"}}, "makes one interface of different instances"},
		{[]daemon.AdoptConfig{{Interface: "vm0", Instance: "nowhere/web-1"}}, `there is no tenant "nowhere"`},
		{[]daemon.AdoptConfig{{Interface: "vm0", Instance: "Web 1"}}, "adopt[0] instance"},
		{[]daemon.AdoptConfig{{Interface: "vnet*"}, {Interface: "vm0", Instance: "web-1"}}, "adopt[0] fits already"},
		{[]daemon.AdoptConfig{{Interface: "vm-{name}"}, {Interface: "vm0", Instance: "default/web-1"}}, "adopt[0] fits already"},
		{[]daemon.AdoptConfig{{Interface: "vm0", Instance: "web-1"}, {Interface: "vm0", Instance: "web-2"}}, `adopt[0] has "vm0" already`},
	} {
		config := daemon.DefaultConfig()
		config.Adopt = c.adopt
		host := daemon.DefaultHostConfig()
		host.Adopt = c.adopt
		_, err := config.Check()
		if imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c.adopt, err)
		}
		if _, err := host.Check(); imprint.KindOf(err) != imprint.Invalid && !strings.Contains(c.says, "tenant") {
			t.Errorf("imprint host, %+v: %v", c.adopt, err)
		}
	}
	config := daemon.DefaultConfig()
	config.Adopt = []daemon.AdoptConfig{
		{Interface: "vm0", Instance: "web-1"}, {Interface: "vm-{name}"},
		{Interface: "vm1", Instance: "00000000-0000-4000-8000-000000000001"}, {Interface: "{tenant}_{name}"},
	}
	if _, err := config.Check(); err != nil {
		t.Error(err)
	}
}
