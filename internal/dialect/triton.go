package dialect

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"imprint"
)

// TritonReaders are who reads the values of stock keys. The channel itself is
// for the guest's root, but cloud-init writes every value that it asks for into
// /var/log/cloud-init.log, which any process could read up to Debian 12, and
// keeps copies below /var/lib/cloud. So stock keys carry public values only.
const TritonReaders = imprint.GuestProcesses | imprint.GuestRoot

// vendorData takes the place of vendor data that the operator did not give.
// Without any, cloud-init installs a boothook that runs scripts from the
// metadata as root at every boot; and its built-in configuration for this
// platform formats a blank /dev/vdb as ephemeral0, which an empty list undoes.
// Vendor data that the operator gives is passed on untouched: its author
// decides about fs_setup.
const vendorData = "#cloud-config\nfs_setup: []\n"

// Triton renders the keys that software for the Triton metadata protocol asks
// for: cloud-init's SmartOS datasource, mdata-get. User data is among them; it
// is public, because cloud-init logs it. What makes the users is in sdc:vendor-data,
// before what the operator gave for it.
//
// The operator's metadata and public parameters follow under their own names,
// the former first, except for names that steer stock software ([TritonSteers]).
func Triton(inst *imprint.Instance, facts Facts) *imprint.View {
	inst = withUsers(inst, cmp.Or(inst.Spec.VendorData, vendorData))
	spec := &inst.Spec
	v := values{TritonReaders, map[string]imprint.Value{}}
	public := func(key, data string) {
		if data != "" { // to stock software an empty value is none
			v.put(key, imprint.Public, data)
		}
	}

	public("sdc:uuid", string(inst.ID)) // the datasource cannot do without
	public("hostname", string(spec.Name))
	public("sdc:hostname", string(spec.Name))
	public("sdc:dns_domain", domain(spec))
	public("sdc:datacenter_name", cmp.Or(facts.Datacenter, string(spec.Host)))
	public("root_authorized_keys", strings.Join(spec.SSHKeys, "\n"))
	public("cloud-init:user-data", spec.UserData)
	public("sdc:vendor-data", cmp.Or(spec.VendorData, vendorData))
	nics, resolvers, routes := tritonNetwork(spec.Network)
	public("sdc:nics", toJSON(nics))
	public("sdc:resolvers", toJSON(resolvers))
	public("sdc:routes", toJSON(routes))

	for key, value := range spec.Metadata {
		if !TritonSteers(key) {
			public(key, value)
		}
	}
	for _, p := range spec.Params {
		if !TritonSteers(p.Name) {
			v.put(p.Name, p.Visibility, p.Value)
		}
	}
	return v.view(inst)
}

// TritonSteers reports whether stock software changes its behaviour by key: it
// runs the value, lets people in by it, or reads other values differently
// because of it. Only the fields of a spec that are made for it set such a key.
// In particular a guest may not: whoever can write to the port, which on many
// systems includes a group of users, would otherwise become root at the next boot.
func TritonSteers(key string) bool {
	switch key {
	case "hostname", "root_authorized_keys", "user-script", "user-data",
		"iptables_disable", "motd_sys_info", "base64_all", "base64_keys":
		return true
	}
	for _, prefix := range []string{"sdc:", "cloud-init:", "b64-", "imprint:"} {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// domain is what follows the instance's name in its first fully qualified name,
// or its first search domain.
func domain(spec *imprint.Spec) string {
	for _, name := range spec.DNSNames {
		if rest, ok := strings.CutPrefix(name, string(spec.Name)+"."); ok {
			return rest
		}
	}
	if spec.Network != nil {
		for _, name := range slices.Sorted(maps.Keys(spec.Network.Ethernets)) {
			if search := spec.Network.Ethernets[name].Nameservers.Search; len(search) > 0 {
				return search[0]
			}
		}
	}
	return ""
}

// nic is an entry of sdc:nics.
type nic struct {
	MAC       string       `json:"mac,omitempty"`
	Interface string       `json:"interface"`
	IPs       []string     `json:"ips"` // prefixes, or "dhcp"
	Primary   bool         `json:"primary,omitempty"`
	Gateways  []netip.Addr `json:"gateways,omitempty"`
	MTU       int          `json:"mtu,omitempty"`
}

// route is an entry of sdc:routes.
type route struct {
	Dst     string     `json:"dst"`
	Gateway netip.Addr `json:"gateway"`
}

// tritonNetwork translates the network. What the format cannot say is left out:
// DHCPv6 ("addrconf" makes the cloud-init of Debian 12 fail, and router
// advertisements work without it), search domains beyond one, and which
// interface a route belongs to: cloud-init adds each route to each static address.
func tritonNetwork(n *imprint.Network) (nics []nic, resolvers []netip.Addr, routes []route) {
	if n == nil {
		return nil, nil, nil
	}
	for _, name := range slices.Sorted(maps.Keys(n.Ethernets)) {
		e := n.Ethernets[name]
		out := nic{MAC: e.MAC, Interface: name, IPs: []string{}, MTU: e.MTU}
		if e.DHCP4 {
			out.IPs = append(out.IPs, "dhcp")
		}
		for _, a := range e.Addresses {
			out.IPs = append(out.IPs, a.String())
		}
		for _, r := range e.Routes {
			if isDefault(r.To) {
				// cloud-init uses the gateways of primary interfaces only.
				out.Primary, out.Gateways = true, append(out.Gateways, r.Via)
			} else {
				routes = append(routes, route{r.To, r.Via})
			}
		}
		nics = append(nics, out)
		for _, a := range e.Nameservers.Addresses {
			if !slices.Contains(resolvers, a) {
				resolvers = append(resolvers, a)
			}
		}
	}
	return nics, resolvers, routes
}

func isDefault(to string) bool {
	if to == "default" {
		return true
	}
	prefix, err := netip.ParsePrefix(to)
	return err == nil && prefix.Bits() == 0
}

// toJSON returns list in JSON, or "" if it is empty. Its element types always encode.
func toJSON[T any](list []T) string {
	if len(list) == 0 {
		return ""
	}
	b, err := json.Marshal(list)
	if err != nil {
		return ""
	}
	return string(b)
}
