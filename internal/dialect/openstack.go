package dialect

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"imprint"
)

// The versions of Nova's metadata at which something was added
// (nova/api/metadata/base.py).
const (
	grizzly   = "2013-04-04" // random_seed, password
	havana    = "2013-10-17" // vendor_data.json
	liberty   = "2015-10-15" // project_id, network_data.json
	newtonOne = "2016-06-30" // devices
	newtonTwo = "2016-10-06" // vendor_data2.json
	victoria  = "2020-10-14" // dedicated_cpus
)

// Latest is the name by which every versioned dialect serves its newest version.
const Latest = "latest"

// OpenStackVersions returns the dated versions that Nova serves, oldest first,
// and [Latest].
func OpenStackVersions() []string {
	return []string{"2012-08-10", grizzly, havana, liberty, newtonOne, newtonTwo, "2017-02-22", "2018-08-27", victoria, "2025-04-04", Latest}
}

// SeedSize is how many random bytes Nova gives a guest.
const SeedSize = 512

// OpenStackHasPassword reports whether a guest may post its password under version.
func OpenStackHasPassword(version string) bool { return version >= grizzly }

// OpenStack renders what Nova's metadata service and its config drive hold, in
// every version: "openstack/VERSION/meta_data.json" and its neighbours. The
// password that a guest posts is not among them: it is live.
//
// seed is for the guest's random number generator, [SeedSize] bytes that the
// caller has drawn for this rendering; nil leaves it out. Nova draws it for each
// request; it is mixed in without being trusted either way.
//
// Metadata and public parameters are "meta", without "admin_pass", which would be
// a password in the clear. What makes the users is in vendor_data.json, before what the
// operator gave for it; vendor_data2.json has that alone. network_data.json has every address of an interface
// as a network of its own, where Nova has one of each family.
func OpenStack(inst *imprint.Instance, facts Facts, seed []byte) *imprint.View {
	spec := &inst.Spec
	v := values{NetworkReaders, map[string]imprint.Value{}}
	user := userData(spec)
	declared := networkOf(inst)
	if inst.NIC != nil && (declared == nil || len(declared.Ethernets) == 0) {
		// From an empty one cloud-init concludes that nothing is to be configured.
		declared = &imprint.Network{Ethernets: ownEthernet(inst.NIC)}
	}
	network := public(compact(openStackNetwork(declared)))
	static := jsonVendorData(spec.VendorData)
	vendor, vendor2 := public(openStackVendorData(inst)), public(compact(map[string]json.RawMessage{"static": json.RawMessage(static)}))
	meta := openStackMeta(inst, facts)
	var metaData imprint.Value
	for _, version := range OpenStackVersions() {
		dir := "openstack/" + version + "/"
		if version >= grizzly && seed != nil {
			meta.RandomSeed = base64.StdEncoding.EncodeToString(seed)
		}
		if version >= liberty {
			meta.ProjectID = string(spec.Tenant)
		}
		if version >= newtonOne {
			meta.Devices = &[]struct{}{}
		}
		if version >= victoria {
			meta.DedicatedCPUs = &[]int{}
		}
		if m := compact(meta); m != string(metaData.Data) {
			metaData = public(m) // versions that say the same share their bytes
		}
		v.putValue(dir+"meta_data.json", metaData)
		if spec.UserData != "" {
			v.putValue(dir+"user_data", user)
		}
		v.putValue(dir+"network_data.json", network) // Nova lists it from liberty, and serves it always
		if version >= havana {
			v.putValue(dir+"vendor_data.json", vendor)
		}
		if version >= newtonTwo {
			v.putValue(dir+"vendor_data2.json", vendor2)
		}
	}
	return v.view(inst)
}

// novaMeta is meta_data.json; the order of fields is Nova's.
type novaMeta struct {
	UUID             imprint.InstanceID `json:"uuid"`
	Meta             map[string]string  `json:"meta,omitempty"`
	PublicKeys       map[string]string  `json:"public_keys,omitempty"`
	Keys             []novaKey          `json:"keys,omitempty"`
	Hostname         string             `json:"hostname"`
	Name             string             `json:"name"`
	LaunchIndex      int                `json:"launch_index"`
	AvailabilityZone string             `json:"availability_zone"`
	RandomSeed       string             `json:"random_seed,omitempty"`
	ProjectID        string             `json:"project_id,omitempty"`
	Devices          *[]struct{}        `json:"devices,omitempty"`
	DedicatedCPUs    *[]int             `json:"dedicated_cpus,omitempty"`
}

type novaKey struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Data string `json:"data"`
}

// openStackMeta is the oldest version of meta_data.json.
func openStackMeta(inst *imprint.Instance, facts Facts) novaMeta {
	spec := &inst.Spec
	m := novaMeta{
		UUID: inst.ID, Meta: publicFacts(spec), PublicKeys: map[string]string{},
		Hostname: fqdn(spec), Name: string(spec.Name), AvailabilityZone: zone(spec, facts),
	}
	delete(m.Meta, "admin_pass")
	for i, key := range spec.SSHKeys {
		m.PublicKeys[keyName(i)] = key
		m.Keys = append(m.Keys, novaKey{keyName(i), "ssh", key})
	}
	return m
}

// jsonVendorData returns what the operator gave if that is JSON; and otherwise
// an object from which cloud-init takes it (sources.convert_vendordata).
func jsonVendorData(data string) string {
	switch {
	case data == "":
		return "{}"
	case json.Valid([]byte(data)):
		return data
	}
	return compact(map[string]string{"cloud-init": data})
}

// openStackVendorData is vendor_data.json with what makes the users. What else is in
// the operator's object stays there, for others.
func openStackVendorData(inst *imprint.Instance) string {
	given := inst.Spec.VendorData
	with := withUsers(inst, given)
	if with == inst {
		return jsonVendorData(given)
	}
	var object map[string]json.RawMessage
	if json.Unmarshal([]byte(given), &object) != nil || object == nil {
		object = map[string]json.RawMessage{}
	}
	object["cloud-init"] = json.RawMessage(compact(with.Spec.VendorData))
	return compact(object)
}

// The parts of network_data.json; the order of fields is that of
// nova/virt/netutils.py.
type (
	novaNetworkData struct {
		Links    []novaLink    `json:"links"`
		Networks []novaNetwork `json:"networks"`
		Services []novaService `json:"services"`
	}
	novaLink struct {
		ID    string  `json:"id"`
		VIF   string  `json:"vif_id"`
		Type  string  `json:"type"`
		MTU   *int    `json:"mtu"`
		MAC   *string `json:"ethernet_mac_address"`
		Named string  `json:"name,omitempty"` // not Nova's: cloud-init finds a link without MAC by it
	}
	novaNetwork struct {
		ID      string         `json:"id"`
		Type    string         `json:"type"`
		Link    string         `json:"link"`
		Address string         `json:"ip_address,omitempty"`
		Netmask string         `json:"netmask,omitempty"`
		Routes  *[]novaHop     `json:"routes,omitempty"` // absent with DHCP
		Network string         `json:"network_id"`
		DNS     *[]novaService `json:"services,omitempty"`
	}
	novaHop struct {
		Network string     `json:"network"`
		Netmask string     `json:"netmask"`
		Gateway netip.Addr `json:"gateway"`
	}
	novaService struct {
		Type    string     `json:"type"`
		Address netip.Addr `json:"address"`
	}
)

// openStackNetwork translates the network. Without one it is empty, and the
// guest's software does what it does by default.
func openStackNetwork(n *imprint.Network) any {
	if n == nil || len(n.Ethernets) == 0 {
		return struct{}{}
	}
	data := novaNetworkData{Links: []novaLink{}, Networks: []novaNetwork{}, Services: []novaService{}}
	for _, name := range slices.Sorted(maps.Keys(n.Ethernets)) {
		e := n.Ethernets[name]
		link := novaLink{ID: name, VIF: name, Type: "phy"}
		if e.MAC != "" {
			link.MAC = &e.MAC
		} else {
			link.Named = name
		}
		if e.MTU != 0 && !e.DHCP4 && !e.DHCP6 { // with DHCP the server tells it
			link.MTU = &e.MTU
		}
		data.Links = append(data.Links, link)
		add := func(net novaNetwork) {
			net.ID, net.Link, net.Network = fmt.Sprintf("network%d", len(data.Networks)), name, name
			data.Networks = append(data.Networks, net)
		}
		if e.DHCP4 {
			add(novaNetwork{Type: "ipv4_dhcp"})
		}
		if e.DHCP6 {
			add(novaNetwork{Type: "ipv6_dhcp"})
		}
		for _, net := range openStackStatic(e) {
			add(net)
		}
		for _, a := range e.Nameservers.Addresses {
			if s := (novaService{"dns", a}); !slices.Contains(data.Services, s) {
				data.Services = append(data.Services, s)
			}
		}
	}
	return data
}

// openStackStatic returns a network for each static address. The routes and
// resolvers of a family go with its first address: once is enough.
func openStackStatic(e imprint.Ethernet) []novaNetwork {
	var networks []novaNetwork
	seen := map[bool]bool{}
	for _, a := range e.Addresses {
		v4 := a.Addr().Is4()
		net := novaNetwork{Type: "ipv6", Address: a.Addr().String(), Netmask: netmask(a), Routes: &[]novaHop{}, DNS: &[]novaService{}}
		if v4 {
			net.Type = "ipv4"
		}
		if !seen[v4] {
			seen[v4] = true
			*net.Routes = hops(e.Routes, v4)
			for _, dns := range e.Nameservers.Addresses {
				if dns.Is4() == v4 {
					*net.DNS = append(*net.DNS, novaService{"dns", dns})
				}
			}
		}
		networks = append(networks, net)
	}
	return networks
}

// hops translates the routes of one family, the default route first.
func hops(routes []imprint.Route, v4 bool) []novaHop {
	list := []novaHop{}
	for _, r := range routes {
		if r.Via.Is4() != v4 {
			continue
		}
		if isDefault(r.To) {
			all := netip.PrefixFrom(r.Via, 0).Masked()
			list = slices.Insert(list, 0, novaHop{all.Addr().String(), netmask(all), r.Via})
		} else if to, err := netip.ParsePrefix(r.To); err == nil { // a checked spec has no other
			list = append(list, novaHop{to.Addr().String(), netmask(to), r.Via})
		}
	}
	return list
}

// netmask is p's length as a mask in the notation of its family.
func netmask(p netip.Prefix) string {
	return net.IP(net.CIDRMask(p.Bits(), p.Addr().BitLen())).String()
}
