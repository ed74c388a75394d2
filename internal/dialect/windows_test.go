package dialect_test

import (
	"encoding/xml"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/dialect"
)

// answerFile is what Microsoft's reference of unattended installation allows, as far as
// imprint uses it: the components of a pass, and the settings in each.
var answerFile = map[string]map[string][]string{
	"specialize": {
		"Microsoft-Windows-Shell-Setup": {"ComputerName"},
		"Microsoft-Windows-Deployment":  {"RunSynchronous/RunSynchronousCommand/Order", "RunSynchronous/RunSynchronousCommand/Path", "RunSynchronous/RunSynchronousCommand/Description"},
		"Microsoft-Windows-DNS-Client":  {"DNSDomain", "Interfaces/Interface/Identifier", "Interfaces/Interface/DNSServerSearchOrder/IpAddress"},
		"Microsoft-Windows-TCPIP": {
			"Interfaces/Interface/Identifier", "Interfaces/Interface/Ipv4Settings/DhcpEnabled", "Interfaces/Interface/Ipv6Settings/DhcpEnabled",
			"Interfaces/Interface/UnicastIpAddresses/IpAddress", "Interfaces/Interface/Routes/Route/Identifier",
			"Interfaces/Interface/Routes/Route/Prefix", "Interfaces/Interface/Routes/Route/NextHopAddress",
		},
	},
	"oobeSystem": {
		"Microsoft-Windows-Shell-Setup": {
			"UserAccounts/AdministratorPassword/Value", "UserAccounts/AdministratorPassword/PlainText",
			"UserAccounts/LocalAccounts/LocalAccount/Password/Value", "UserAccounts/LocalAccounts/LocalAccount/Password/PlainText",
			"UserAccounts/LocalAccounts/LocalAccount/DisplayName", "UserAccounts/LocalAccounts/LocalAccount/Group",
			"UserAccounts/LocalAccounts/LocalAccount/Name",
		},
	},
}

// listItems are the elements of which there may be several: each says that it is added.
var listItems = []string{"RunSynchronousCommand", "Interface", "Route", "IpAddress", "LocalAccount"}

// settingsOf returns the settings in an answer file, by their path below the
// component, and fails the test for one that is not where it may be.
func settingsOf(t *testing.T, file string) map[string][]string {
	t.Helper()
	const unattend, state = "urn:schemas-microsoft-com:unattend", "http://schemas.microsoft.com/WMIConfig/2002/State"
	found := map[string][]string{}
	var path []string
	pass, component, seen := "", "", map[string]bool{}
	dec := xml.NewDecoder(strings.NewReader(file))
	for {
		token, err := dec.Token()
		if err == io.EOF {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			attr := map[string]string{}
			for _, a := range e.Attr {
				attr[a.Name.Space+" "+a.Name.Local] = a.Value
			}
			path = append(path, e.Name.Local)
			switch {
			case e.Name.Space != unattend:
				t.Errorf("%s is of %q", e.Name.Local, e.Name.Space)
			case len(path) == 2:
				pass = attr[" pass"]
			case len(path) == 3:
				component = attr[" name"]
				if seen[pass+component] || attr[" processorArchitecture"] != "amd64" || attr[" publicKeyToken"] != "31bf3856ad364e35" || attr[" language"] != "neutral" || attr[" versionScope"] != "nonSxS" {
					t.Errorf("component %s in %s has %v", component, pass, attr)
				}
				seen[pass+component] = true
			case (attr[state+" action"] == "add") != slices.Contains(listItems, e.Name.Local):
				t.Errorf("%s has %v", e.Name.Local, attr)
			}
		case xml.CharData:
			if text := string(e); len(path) > 3 && strings.TrimSpace(text) != "" {
				setting := strings.Join(path[3:], "/")
				if !slices.Contains(answerFile[pass][component], setting) {
					t.Errorf("there is no setting %s of %s in the pass %s", setting, component, pass)
				}
				found[component+" "+setting] = append(found[component+" "+setting], text)
			}
		case xml.EndElement:
			path = path[:len(path)-1]
		}
	}
}

// windows is an instance with a parameter for each fate of a password.
func windows() *imprint.Instance {
	inst := instance()
	inst.Spec.Network = ipv4Network()
	inst.Spec.Params = []imprint.Param{
		{Name: "open", Visibility: imprint.Public, Value: `a ]]>&<"'%é`},
		{Name: "plain", Visibility: imprint.Public, Value: `correct horse, 'battery'; staple`},
		{Name: "broken", Visibility: imprint.Public, Value: "a\r\nb"},
		{Name: "empty", Visibility: imprint.Public},
		{Name: "long", Visibility: imprint.Public, Value: strings.Repeat("x", 128)},
		{Name: "star", Visibility: imprint.Public, Value: "*"},
		{Name: "private", Visibility: imprint.Private},
	}
	return inst
}

func TestAnswerFileIsOne(t *testing.T) {
	t.Parallel()
	const password = "Microsoft-Windows-Shell-Setup UserAccounts/AdministratorPassword/"
	for param, want := range map[string][]string{"": nil, "open": {`a ]]>&<"'%é`}} {
		for _, inst := range []*imprint.Instance{windows(), instance()} {
			if param != "" && inst.Spec.Params[0].Name != param {
				continue
			}
			view, _, err := drive(t, "unattend").Render(inst, facts, dialect.DriveInput{Readers: mediumReaders, AdminPassword: param})
			if err != nil {
				t.Fatal(err)
			}
			found := settingsOf(t, string(view.Values["Unattend.xml"].Data))
			if !slices.Equal(found[password+"Value"], want) || want != nil && !slices.Equal(found[password+"PlainText"], []string{"true"}) {
				t.Errorf("%q: the password is %q", param, found)
			}
			if got := found["Microsoft-Windows-Shell-Setup ComputerName"]; !slices.Equal(got, []string{"web-1"}) {
				t.Errorf("it is called %q", got)
			}
			if string(view.Values["Autounattend.xml"].Data) != string(view.Values["Unattend.xml"].Data) {
				t.Error("Setup gets another file than sysprep")
			}
		}
	}
}

// A password goes into an answer file only if everybody may know it, and only as it is.
func TestPasswordsThatAreRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		dialect, param string
		kind           imprint.Kind
		says           string
	}{
		{"unattend", "private", imprint.Denied, "it is private, and not all who can read the medium may read it"},
		{"sysprep", "private", imprint.Denied, "it is private"},
		{"unattend", "absent", imprint.NotFound, "has none of that name"},
		{"unattend", "broken", imprint.Invalid, "1 to 127 characters that can be printed"},
		{"unattend", "long", imprint.Invalid, "1 to 127 characters that can be printed"},
		{"unattend", "empty", imprint.Invalid, "1 to 127 characters that can be printed"},
		{"sysprep", "open", imprint.Invalid, "no quote, no per cent sign and none but characters of ASCII"},
		{"sysprep", "star", imprint.Invalid, "an asterisk alone means no password there"},
		{"nocloud", "open", imprint.Invalid, "no place for an administrator's password"},
	} {
		view, _, err := drive(t, c.dialect).Render(windows(), facts, dialect.DriveInput{Readers: mediumReaders, AdminPassword: c.param})
		if imprint.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.says) || view != nil {
			t.Errorf("%s as the password in %s: %v", c.param, c.dialect, err)
		}
	}
}

// sections reads an answer file of Windows XP.
func sections(t *testing.T, file string) map[string]map[string]string {
	t.Helper()
	found, in := map[string]map[string]string{}, ""
	for line := range strings.SplitSeq(file, "\r\n") {
		key, value, ok := strings.Cut(line, "=")
		switch {
		case line == "":
		case line[0] == '[' && line[len(line)-1] == ']' && found[line[1:len(line)-1]] == nil:
			in = line[1 : len(line)-1]
			found[in] = map[string]string{}
		case in == "" || !ok || found[in][key] != "" || strings.ContainsAny(line, "\r\n"):
			t.Errorf("the line %q", line)
		default:
			found[in][key] = value
		}
	}
	return found
}

func TestSysprep(t *testing.T) {
	t.Parallel()
	render := func(inst *imprint.Instance, param string) (map[string]map[string]string, error) {
		view, _, err := drive(t, "sysprep").Render(inst, facts, dialect.DriveInput{Readers: mediumReaders, AdminPassword: param})
		if err != nil {
			return nil, err
		}
		return sections(t, string(view.Values["sysprep.inf"].Data)), nil
	}
	file, err := render(windows(), "plain")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range [][3]string{
		{"UserData", "ComputerName", `"web-1"`},
		{"GuiUnattended", "AdminPassword", `"correct horse, 'battery'; staple"`},
		{"NetAdapters", "Adapter2", `"params.Adapter2"`},
		{"params.Adapter1", "NetCardAddress", `"0x525400123456"`},
		{"params.MS_TCPIP", "AdapterSections", `"params.MS_TCPIP.Adapter1","params.MS_TCPIP.Adapter2"`},
		{"params.MS_TCPIP", "DNSSuffixSearchOrder", `"a.example","b.example"`},
		{"params.MS_TCPIP.Adapter1", "SpecificTo", `"Adapter1"`},
		{"params.MS_TCPIP.Adapter1", "IPAddress", `"192.0.2.10","192.0.2.11"`},
		{"params.MS_TCPIP.Adapter1", "SubnetMask", `"255.255.255.0","255.255.255.255"`},
		{"params.MS_TCPIP.Adapter1", "DefaultGateway", `"192.0.2.1"`},
		{"params.MS_TCPIP.Adapter1", "DNSServerSearchOrder", `"192.0.2.53","192.0.2.54"`},
		{"params.MS_TCPIP.Adapter1", "DHCP", `"No"`},
		{"params.MS_TCPIP.Adapter2", "DHCP", `"Yes"`},
	} {
		if got := file[want[0]][want[1]]; got != want[2] {
			t.Errorf("%s in [%s] is %s, want %s", want[1], want[0], got, want[2])
		}
	}
	inst := windows()
	inst.Spec.Network = nil
	file, err = render(inst, "")
	if _, set := file["GuiUnattended"]["AdminPassword"]; err != nil || set || file["NetAdapters"] != nil {
		t.Errorf("without network and password: %v, %v", file, err)
	}

	for says, change := range map[string]func(*imprint.Ethernet){
		"has IPv6":      func(e *imprint.Ethernet) { e.DHCP6 = true },
		"eth0 has IPv6": func(e *imprint.Ethernet) { e.Addresses = []netip.Prefix{netip.MustParsePrefix("2001:db8::1/64")} },
		"a route that is not the default": func(e *imprint.Ethernet) {
			e.Routes = []imprint.Route{{To: "10.0.0.0/8", Via: netip.MustParseAddr("192.0.2.1")}}
		},
		"addresses beside DHCP":              func(e *imprint.Ethernet) { e.DHCP4 = true },
		"an MTU":                             func(e *imprint.Ethernet) { e.MTU = 1400 },
		"no MAC address beside others":       func(e *imprint.Ethernet) { e.MAC = "" },
		"cannot be told there":               func(e *imprint.Ethernet) { e.Nameservers.Addresses = []netip.Addr{netip.MustParseAddr("2001:db8::53")} },
		"its name has 16 characters, and th": nil,
	} {
		inst := windows()
		e := inst.Spec.Network.Ethernets["lan0"]
		if change == nil {
			inst.Spec.Name = "sixteen-letters-"
		} else {
			change(&e)
		}
		ethernets := maps.Clone(inst.Spec.Network.Ethernets)
		delete(ethernets, "lan0")
		ethernets["eth0"] = e
		inst.Spec.Network.Ethernets = ethernets
		if _, err := render(inst, ""); imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
}

// AltCloud's file is user data and nothing else.
func TestAltCloudNeedsUserData(t *testing.T) {
	t.Parallel()
	d, inst := drive(t, "altcloud"), instance()
	if _, _, err := d.Render(inst, facts, dialect.DriveInput{Readers: mediumReaders, Closed: true}); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("after the boot: %v", err)
	}
	inst.Spec.UserData = ""
	if _, _, err := d.Render(inst, facts, dialect.DriveInput{Readers: mediumReaders}); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("without any: %v", err)
	}
	inst.Spec.VendorData = "#cloud-config\n"
	if view, _, err := d.Render(inst, facts, dialect.DriveInput{Readers: mediumReaders, MergeVendor: true}); err != nil || len(view.Values) != 1 {
		t.Errorf("with vendor data alone: %v", err)
	}
}
