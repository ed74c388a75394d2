package dialect_test

import (
	"encoding/xml"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/dialect"
)

// mediumReaders can read a medium: its device, or the platform's storage.
const mediumReaders = imprint.GuestRoot | imprint.PlatformAdmins

func drive(t *testing.T, name string) dialect.Drive {
	t.Helper()
	d, err := dialect.DriveOf(name)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// instanceFor is an instance that d can describe.
func instanceFor(d dialect.Drive) *imprint.Instance {
	inst := instance()
	if d.Name == "sysprep" {
		inst.Spec.Network = ipv4Network()
	}
	return inst
}

// ipv4Network is as much of a network as Windows XP can be told.
func ipv4Network() *imprint.Network {
	return &imprint.Network{Ethernets: map[string]imprint.Ethernet{
		"lan0": {
			MAC: "52:54:00:12:34:56", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24"), netip.MustParsePrefix("192.0.2.11/32")},
			Routes:      []imprint.Route{{To: "default", Via: netip.MustParseAddr("192.0.2.1")}},
			Nameservers: imprint.Nameservers{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("192.0.2.54")}, Search: []string{"a.example", "b.example"}},
		},
		"lan1": {MAC: "52:54:00:12:34:57", DHCP4: true},
	}}
}

func TestDrives(t *testing.T) {
	t.Parallel()
	for _, d := range dialect.Drives() {
		for _, form := range []dialect.Form{dialect.Volume, dialect.Initrd, dialect.Firmware, dialect.FWCfg, dialect.Stub, dialect.System} {
			if !d.Fits(form) {
				continue
			}
			name := "drive-" + d.Name
			if form != dialect.Volume {
				name += "-" + string(form)
			}
			in := dialect.DriveInput{Readers: mediumReaders | d.Readers, Form: form, Payload: []byte("{\"imprint\":1}\n")}
			view, omitted, err := d.Render(instanceFor(d), facts, in)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, view)
			if !slices.Equal(omitted, []string{"token", "disk-key"}) {
				t.Errorf("%s: left out %q", name, omitted)
			}
			for path, v := range view.Values {
				if strings.Contains(string(v.Data), "must not be here") {
					t.Errorf("%s: %s has a value that is not public", name, path)
				}
			}
		}
	}
	if _, err := dialect.DriveOf("azure"); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("an unknown dialect: %v", err)
	}
}

// Once the boot is over, user data is not put on media, and what is not a drive
// without it gets an empty one.
func TestDrivesAfterTheBoot(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]map[string]string{
		"openstack": {},
		"ec2":       {},
		"nocloud":   {"user-data": ""},
	} {
		d, inst := drive(t, name), instance()
		inst.Spec.VendorData = "#cloud-config\n"
		view, omitted, err := d.Render(inst, facts, dialect.DriveInput{Readers: mediumReaders | d.Readers, Closed: true, MergeVendor: true})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(omitted, "user data") {
			t.Errorf("%s: left out %q", name, omitted)
		}
		for path, v := range view.Values {
			if base := path[strings.LastIndexByte(path, '/')+1:]; base != "user_data" && base != "user-data" {
				continue
			}
			if text, ok := want[path]; !ok || text != string(v.Data) {
				t.Errorf("%s: %s is %q", name, path, v.Data)
			}
			delete(want, path)
		}
		if len(want) > 0 {
			t.Errorf("%s has no %q", name, want)
		}
		if v := view.Values["vendor-data"]; name == "nocloud" && string(v.Data) != inst.Spec.VendorData {
			t.Errorf("the vendor data went with the user data")
		}
	}
}

// Nothing at all is put where somebody unknown reads.
func TestDrivesForNobodyInParticular(t *testing.T) {
	t.Parallel()
	for _, d := range dialect.Drives() {
		if view, _, err := d.Render(instanceFor(d), facts, dialect.DriveInput{Payload: []byte("{}")}); err != nil || len(view.Values) > 0 {
			t.Errorf("%s: %d files, %v", d.Name, len(view.Values), err)
		}
	}
}

// A name that the kernel would cut off, or refuse, goes without its domain.
func TestCredentialsNameTheMachine(t *testing.T) {
	t.Parallel()
	for domain, want := range map[string]string{
		strings.Repeat("d", 50) + ".example": "web-1." + strings.Repeat("d", 50) + ".example", // 64 bytes
		strings.Repeat("d", 51) + ".example": "web-1",
	} {
		inst := instance()
		inst.Spec.DNSNames = []string{"web-1." + domain}
		view, _, err := drive(t, "credentials").Render(inst, facts, dialect.DriveInput{Readers: mediumReaders, Form: dialect.Firmware})
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"system.hostname": want, "sysctl.extra": "kernel.hostname=" + want + "\n"} {
			if got := string(view.Values["io.systemd.credentials/"+name].Data); got != text {
				t.Errorf("%s is %q, want %q", name, got, text)
			}
		}
	}
}

func TestSeedLineNeedsAChannel(t *testing.T) {
	t.Parallel()
	inst := instance()
	inst.Spec.Channels = []imprint.ChannelKind{imprint.Serial2, imprint.NetworkEST}
	_, _, err := drive(t, "nocloud-net").Render(inst, facts, dialect.DriveInput{Readers: mediumReaders})
	if imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), "of its channels (serial, est) none serves NoCloud") {
		t.Errorf("without one: %v", err)
	}
}

func TestAnswerFile(t *testing.T) {
	t.Parallel()
	d := drive(t, "unattend")
	inst := instance()
	inst.Spec.Name = "sixteen-letters-"
	_, _, err := d.Render(inst, facts, dialect.DriveInput{Readers: mediumReaders})
	if imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), "16 characters, and that of a Windows computer at most 15") {
		t.Errorf("a long name: %v", err)
	}
	// Whatever is in a value stays a value.
	inst = instance()
	inst.Spec.Name = "win-1"
	eth := inst.Spec.Network.Ethernets["eth1"]
	delete(inst.Spec.Network.Ethernets, "eth1")
	inst.Spec.Network.Ethernets[`"]]><&'`] = eth
	view, _, err := d.Render(inst, facts, dialect.DriveInput{Readers: mediumReaders})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	dec := xml.NewDecoder(strings.NewReader(string(view.Values["Unattend.xml"].Data)))
	for in := ""; ; {
		token, err := dec.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			in = e.Name.Local
			if e.Name.Space != "urn:schemas-microsoft-com:unattend" {
				t.Errorf("%s is of %q", in, e.Name.Space)
			}
		case xml.CharData:
			if text := strings.TrimSpace(string(e)); text != "" && (in == "Identifier" || in == "ComputerName") {
				names = append(names, text)
			}
		}
	}
	for _, want := range []string{"win-1", `"]]><&'`, "52-54-00-12-34-56"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %q among %q", want, names)
		}
	}
}

// Vendor data is merged into user data, and into nothing else; and nobody misses
// user data that would not have been there.
func TestUserDataIsWhereItBelongs(t *testing.T) {
	t.Parallel()
	inst := windows()
	inst.Spec.UserData, inst.Spec.VendorData = "#cloud-config\n", "#cloud-config\n"
	has := map[string]bool{"openstack": true, "nocloud": true, "ec2": true, "altcloud": true}
	for _, d := range dialect.Drives() {
		in := dialect.DriveInput{Readers: mediumReaders, MergeVendor: true, Seed: make([]byte, dialect.SeedSize), Payload: []byte("{}"), Form: d.Forms[0]}
		_, _, err := d.Render(inst, facts, in)
		if refused := err != nil && strings.Contains(err.Error(), "it has no user data, into which vendor data could be put"); refused == has[d.Name] {
			t.Errorf("%s with vendor data: %v", d.Name, err)
		}
		in.MergeVendor, in.Closed = false, true
		_, omitted, err := d.Render(inst, facts, in)
		if err == nil && slices.Contains(omitted, "user data") != has[d.Name] {
			t.Errorf("%s after the boot leaves out %q", d.Name, omitted)
		}
	}
}
