package dialect

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"imprint"
)

// sysprepDrive renders the answer file of Mini-Setup in Windows XP and Server 2003,
// which it looks for on the floppy drive ("sysprep.inf" in Microsoft's ref.chm). They
// have one address family and no command of imprint's.
func sysprepDrive(v values, inst *imprint.Instance, _ Facts, in DriveInput) error {
	if err := checkComputerName(inst); err != nil {
		return err
	}
	secret, err := password(inst, in.AdminPassword, in.Readers)
	if err != nil {
		return err
	}
	if strings.IndexFunc(secret, func(c rune) bool { return c > '~' || c == '"' || c == '%' }) >= 0 {
		return imprint.Errorf(imprint.Invalid, "put", "parameter "+in.AdminPassword+" into sysprep.inf", "a password there has no quote, no per cent sign and none but characters of ASCII").
			WithHint("give the parameter another value, or leave the password out")
	}
	if secret == "*" { // quotes make no difference to Setup
		return imprint.Errorf(imprint.Invalid, "put", "parameter "+in.AdminPassword+" into sysprep.inf", "an asterisk alone means no password there")
	}
	var f inf
	f.section("Unattended", "OemSkipEula", "Yes")
	f.section("GuiUnattended", "OemSkipWelcome", "1", "OEMSkipRegional", "1")
	if secret != "" {
		f.line("AdminPassword", secret)
	}
	f.section("UserData", "ComputerName", string(inst.Spec.Name), "FullName", string(inst.Spec.Tenant), "OrgName", string(inst.Spec.Tenant))
	f.section("Identification", "JoinWorkgroup", "WORKGROUP")
	if n := inst.Spec.Network; n != nil && len(n.Ethernets) > 0 {
		if err := f.network(inst); err != nil {
			return err
		}
	}
	v.put("sysprep.inf", imprint.Public, f.String())
	return nil
}

// inf collects a file of sections.
type inf struct{ strings.Builder }

func (f *inf) section(name string, pairs ...string) {
	if f.Len() > 0 {
		f.WriteString("\r\n")
	}
	fmt.Fprintf(f, "[%s]\r\n", name)
	for i := 0; i < len(pairs); i += 2 {
		f.line(pairs[i], pairs[i+1])
	}
}

// line writes a value in quotes, which none has in it.
func (f *inf) line(key, value string) { fmt.Fprintf(f, "%s=\"%s\"\r\n", key, value) }

// list writes several values, each in quotes.
func (f *inf) list(key string, values []string) {
	if len(values) > 0 {
		fmt.Fprintf(f, "%s=\"%s\"\r\n", key, strings.Join(values, `","`))
	}
}

// network writes what configures the interfaces.
func (f *inf) network(inst *imprint.Instance) error {
	ethernets := inst.Spec.Network.Ethernets
	names := slices.Sorted(maps.Keys(ethernets))
	f.section("Networking", "InstallDefaultComponents", "Yes")
	f.section("NetAdapters")
	for i := range names {
		f.line(fmt.Sprintf("Adapter%d", i+1), fmt.Sprintf("params.Adapter%d", i+1))
	}
	var all []string
	for i, name := range names {
		e := ethernets[name]
		if err := checkSysprep(inst, name, e, len(names)); err != nil {
			return err
		}
		f.section(fmt.Sprintf("params.Adapter%d", i+1), "INFID", "*")
		if e.MAC != "" {
			f.line("NetCardAddress", "0x"+strings.ToUpper(strings.ReplaceAll(e.MAC, ":", "")))
		}
		all = append(all, fmt.Sprintf("params.MS_TCPIP.Adapter%d", i+1))
	}
	f.section("NetProtocols", "MS_TCPIP", "params.MS_TCPIP")
	f.section("params.MS_TCPIP")
	f.list("AdapterSections", all)
	var search []string
	for _, name := range names {
		for _, d := range ethernets[name].Nameservers.Search {
			if !slices.Contains(search, d) {
				search = append(search, d)
			}
		}
	}
	f.list("DNSSuffixSearchOrder", search)
	for i, name := range names {
		e := ethernets[name]
		f.section(all[i], "SpecificTo", fmt.Sprintf("Adapter%d", i+1), "DHCP", map[bool]string{true: "Yes", false: "No"}[e.DHCP4])
		if d := domain(&inst.Spec); d != "" {
			f.line("DNSDomain", d)
		}
		var addresses, masks, gateways, servers []string
		for _, a := range e.Addresses {
			addresses, masks = append(addresses, a.Addr().String()), append(masks, netmask(a))
		}
		for _, r := range e.Routes {
			gateways = append(gateways, r.Via.String())
		}
		for _, a := range e.Nameservers.Addresses {
			servers = append(servers, a.String())
		}
		f.list("IPAddress", addresses)
		f.list("SubnetMask", masks)
		f.list("DefaultGateway", gateways)
		f.list("DNSServerSearchOrder", servers)
	}
	return nil
}

// checkSysprep fails if an interface, one of so many, is more than the file can say.
func checkSysprep(inst *imprint.Instance, name string, e imprint.Ethernet, of int) error {
	cannot := func(what string) error {
		return imprint.Errorf(imprint.Invalid, "render sysprep.inf for", inst.Ref(), "its interface %s has %s, which Windows XP and Server 2003 cannot be told there", name, what).
			WithHint("leave it out of the manifest, or configure the interface in the image")
	}
	v6 := func(a netip.Addr) bool { return !a.Is4() }
	switch {
	case e.MAC == "" && of > 1:
		return cannot("no MAC address beside others")
	case e.DHCP6, slices.ContainsFunc(e.Addresses, func(p netip.Prefix) bool { return v6(p.Addr()) }), slices.ContainsFunc(e.Nameservers.Addresses, v6):
		return cannot("IPv6")
	case slices.ContainsFunc(e.Routes, func(r imprint.Route) bool { return v6(r.Via) || !isDefault(r.To) }):
		return cannot("a route that is not the default")
	case e.DHCP4 && len(e.Addresses) > 0:
		return cannot("addresses beside DHCP")
	case e.MTU != 0:
		return cannot("an MTU")
	}
	return nil
}
