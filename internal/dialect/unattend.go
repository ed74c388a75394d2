package dialect

import (
	"encoding/xml"
	"maps"
	"slices"
	"strings"

	"imprint"
)

// maxComputerName is how long the name of a Windows computer may be: NetBIOS has
// fifteen characters and no more, and Setup does not go on with a longer one.
const maxComputerName = 15

// agentCommand starts the agent, if the image has it, and does not hold Setup up if not.
const agentCommand = `cmd.exe /c if exist "%ProgramFiles%\imprint\imprint-agent.exe" "%ProgramFiles%\imprint\imprint-agent.exe" run --once`

// unattendDrive renders the answer file of Windows Setup under both names that it
// is looked for: by Setup itself, and by what starts after sysprep. It sets no
// password of its own accord: an answer file is kept on the disk, where all can read it.
func unattendDrive(v values, inst *imprint.Instance, _ Facts, in DriveInput) error {
	spec := &inst.Spec
	if err := checkComputerName(inst); err != nil {
		return err
	}
	secret, err := password(inst, in.AdminPassword, in.Readers)
	if err != nil {
		return err
	}
	users, err := accounts(inst, in)
	if err != nil {
		return err
	}
	specialize := []component{
		{Name: "Microsoft-Windows-Shell-Setup", Computer: string(spec.Name)},
		{Name: "Microsoft-Windows-Deployment", Commands: &commands{[]command{{"add", 1, agentCommand, "imprint-agent"}}}},
	}
	if d := domain(spec); d != "" {
		specialize = append(specialize, component{Name: "Microsoft-Windows-DNS-Client", Domain: d})
	}
	if n := spec.Network; n != nil {
		specialize = withNetwork(specialize, n)
	}
	passes := []settings{{"specialize", specialize}}
	if secret != "" || users != nil {
		shell := component{Name: "Microsoft-Windows-Shell-Setup", Accounts: users}
		if secret != "" {
			shell.Password = &plainPassword{secret, true}
		}
		passes = append(passes, settings{"oobeSystem", []component{shell}})
	}
	for _, p := range passes {
		for i := range p.Components {
			c := &p.Components[i]
			c.Architecture, c.Token, c.Language, c.Scope = "amd64", "31bf3856ad364e35", "neutral", "nonSxS"
		}
	}
	b, err := xml.MarshalIndent(unattend{Settings: passes}, "", "  ")
	if err != nil {
		return imprint.Errorf(imprint.Internal, "render answer file for", inst.Ref(), "%w", err)
	}
	file := xml.Header + string(b) + "\n"
	for _, name := range []string{"Autounattend.xml", "Unattend.xml"} {
		v.put(name, imprint.Public, file)
	}
	return nil
}

// checkComputerName fails if inst has a name that no Windows computer can have.
func checkComputerName(inst *imprint.Instance) error {
	if n := len(inst.Spec.Name); n > maxComputerName {
		return imprint.Errorf(imprint.Invalid, "render answer file for", inst.Ref(), "its name has %d characters, and that of a Windows computer at most %d", n, maxComputerName).
			WithHint("create the instance under a shorter name")
	}
	return nil
}

// The parts of an answer file that imprint has (urn:schemas-microsoft-com:unattend).
// encoding/xml escapes all values.
type (
	unattend struct {
		XMLName  xml.Name   `xml:"urn:schemas-microsoft-com:unattend unattend"`
		Settings []settings `xml:"settings"`
	}
	settings struct {
		Pass       string      `xml:"pass,attr"`
		Components []component `xml:"component"`
	}
	component struct {
		Name         string         `xml:"name,attr"`
		Architecture string         `xml:"processorArchitecture,attr"`
		Token        string         `xml:"publicKeyToken,attr"`
		Language     string         `xml:"language,attr"`
		Scope        string         `xml:"versionScope,attr"`
		Computer     string         `xml:"ComputerName,omitempty"`
		Domain       string         `xml:"DNSDomain,omitempty"`
		Commands     *commands      `xml:"RunSynchronous"`
		Interfaces   *interfaces    `xml:"Interfaces"`
		Password     *plainPassword `xml:"UserAccounts>AdministratorPassword"`
		Accounts     *localAccounts `xml:"UserAccounts>LocalAccounts"`
	}
	plainPassword struct {
		Value string `xml:"Value"`
		Plain bool   `xml:"PlainText"`
	}
	localAccounts struct {
		List []localAccount `xml:"LocalAccount"`
	}
	localAccount struct {
		Action   string        `xml:"http://schemas.microsoft.com/WMIConfig/2002/State action,attr"`
		Password plainPassword `xml:"Password"`
		FullName string        `xml:"DisplayName,omitempty"`
		Groups   string        `xml:"Group"` // between semicolons
		Name     string        `xml:"Name"`
	}
	commands struct {
		List []command `xml:"RunSynchronousCommand"`
	}
	command struct {
		Action      string `xml:"http://schemas.microsoft.com/WMIConfig/2002/State action,attr"`
		Order       int    `xml:"Order"`
		Path        string `xml:"Path"`
		Description string `xml:"Description"`
	}
	interfaces struct {
		List []winInterface `xml:"Interface"`
	}
	winInterface struct {
		Action     string        `xml:"http://schemas.microsoft.com/WMIConfig/2002/State action,attr"`
		Identifier string        `xml:"Identifier"`
		IPv4       *winFamily    `xml:"Ipv4Settings"`
		IPv6       *winFamily    `xml:"Ipv6Settings"`
		Addresses  *winAddresses `xml:"UnicastIpAddresses"`
		Routes     *winRoutes    `xml:"Routes"`
		Servers    *winAddresses `xml:"DNSServerSearchOrder"`
	}
	winFamily struct {
		DHCP bool `xml:"DhcpEnabled"`
	}
	winAddresses struct {
		List []winAddress `xml:"IpAddress"`
	}
	winAddress struct {
		Action string `xml:"http://schemas.microsoft.com/WMIConfig/2002/State action,attr"`
		Key    int    `xml:"http://schemas.microsoft.com/WMIConfig/2002/State keyValue,attr"`
		Value  string `xml:",chardata"`
	}
	winRoutes struct {
		List []winRoute `xml:"Route"`
	}
	winRoute struct {
		Action  string `xml:"http://schemas.microsoft.com/WMIConfig/2002/State action,attr"`
		ID      int    `xml:"Identifier"`
		Prefix  string `xml:"Prefix"`
		NextHop string `xml:"NextHopAddress"`
	}
)

// withNetwork adds what configures the interfaces: one component has addresses and
// routes, another the resolvers.
func withNetwork(list []component, n *imprint.Network) []component {
	var tcpip, dns []winInterface
	for _, name := range slices.Sorted(maps.Keys(n.Ethernets)) {
		e := n.Ethernets[name]
		id := name
		if e.MAC != "" {
			id = strings.ToUpper(strings.ReplaceAll(e.MAC, ":", "-"))
		}
		i := winInterface{Action: "add", Identifier: id, IPv4: &winFamily{e.DHCP4}, IPv6: &winFamily{e.DHCP6}}
		for _, a := range e.Addresses {
			i.Addresses = appendAddress(i.Addresses, a.String())
		}
		for _, r := range e.Routes {
			if i.Routes == nil {
				i.Routes = &winRoutes{}
			}
			to := r.To
			if isDefault(to) {
				to = "::/0"
				if r.Via.Is4() {
					to = "0.0.0.0/0"
				}
			}
			i.Routes.List = append(i.Routes.List, winRoute{"add", len(i.Routes.List) + 1, to, r.Via.String()})
		}
		tcpip = append(tcpip, i)
		var servers *winAddresses
		for _, a := range e.Nameservers.Addresses {
			servers = appendAddress(servers, a.String())
		}
		if servers != nil {
			dns = append(dns, winInterface{Action: "add", Identifier: id, Servers: servers})
		}
	}
	list = append(list, component{Name: "Microsoft-Windows-TCPIP", Interfaces: &interfaces{tcpip}})
	if dns == nil {
		return list
	}
	if i := slices.IndexFunc(list, func(c component) bool { return c.Name == "Microsoft-Windows-DNS-Client" }); i >= 0 {
		list[i].Interfaces = &interfaces{dns}
		return list
	}
	return append(list, component{Name: "Microsoft-Windows-DNS-Client", Interfaces: &interfaces{dns}})
}

func appendAddress(list *winAddresses, value string) *winAddresses {
	if list == nil {
		list = &winAddresses{}
	}
	list.List = append(list.List, winAddress{"add", len(list.List) + 1, value})
	return list
}

// Limits on a local account (its Name and Group in Microsoft's reference of unattended
// installation; lmcons.h has the shorter one for names).
const (
	maxAccountName  = 20
	maxAccountGroup = 256
)

// takenAccounts are accounts that Windows has, and a name that it reserves.
var takenAccounts = []string{"administrator", "guest", "defaultaccount", "wdagutilityaccount", "system", "none"}

// accounts returns the users for whom in names a password; nil if there are none.
func accounts(inst *imprint.Instance, in DriveInput) (*localAccounts, error) {
	var list []localAccount
	found := 0
	for i := range inst.Spec.Users {
		u := &inst.Spec.Users[i]
		param, ok := in.UserPasswords[u.Name]
		if !ok {
			continue
		}
		found++
		cannot := func(format string, args ...any) (*localAccounts, error) {
			return nil, imprint.Errorf(imprint.Invalid, "render answer file for", inst.Ref()+", user "+u.Name, format, args...).
				WithHint("give it another name in the manifest, or leave its password out")
		}
		secret, err := password(inst, param, in.Readers)
		groups := []string{"Users"}
		if u.Admin {
			groups[0] = "Administrators"
		}
		joined := strings.Join(append(groups, u.Groups...), ";")
		switch {
		case err != nil:
			return nil, err
		case secret == "":
			return cannot("no parameter is named for its password")
		case len(u.Name) > maxAccountName:
			return cannot("the name has %d characters, and one of Windows' at most %d", len(u.Name), maxAccountName)
		case slices.Contains(takenAccounts, u.Name), strings.EqualFold(u.Name, string(inst.Spec.Name)):
			return cannot("Windows has an account or a computer of that name")
		case len(joined) > maxAccountGroup:
			return cannot("the names of its groups have %d characters together, and Setup reads %d", len(joined), maxAccountGroup)
		}
		list = append(list, localAccount{"add", plainPassword{secret, true}, u.Gecos, joined, u.Name})
	}
	if found < len(in.UserPasswords) {
		return nil, imprint.Errorf(imprint.NotFound, "render answer file for", inst.Ref(), "of the %d users who are to have a password it has %d", len(in.UserPasswords), found).
			WithHint("users are declared in the manifest")
	}
	if list == nil {
		return nil, nil
	}
	return &localAccounts{list}, nil
}
