package dialect

import (
	"net/netip"

	"imprint"
)

// NoCloud renders the files of cloud-init's NoCloud datasource below "nocloud/":
// meta-data and user-data, which must both be there, and vendor-data and
// network-config if there is something to say.
//
// Both documents are YAML in its JSON form, so that no value can break out of
// its quotes. network-config is netplan's version 2; an interface with a MAC
// address is found by it and keeps the name that the guest gave it.
//
// What makes the users is in vendor-data, before what the operator gave for it.
func NoCloud(inst *imprint.Instance) *imprint.View {
	inst = withUsers(inst, inst.Spec.VendorData)
	spec := &inst.Spec
	v := values{NetworkReaders, map[string]imprint.Value{}}
	v.put("nocloud/meta-data", imprint.Public, compact(noCloudMeta{
		InstanceID: inst.ID,
		Hostname:   fqdn(spec),
		PublicKeys: spec.SSHKeys,
		Facts:      publicFacts(spec),
	})+"\n")
	v.putValue("nocloud/user-data", userData(spec))
	if spec.VendorData != "" {
		v.put("nocloud/vendor-data", imprint.Public, spec.VendorData)
	}
	if n := networkOf(inst); n != nil {
		v.put("nocloud/network-config", imprint.Public, compact(netplanOf(n))+"\n")
	}
	return v.view(inst)
}

// noCloudMeta is meta-data. The operator's facts are below a name of their own,
// so that none of them takes the place of what steers cloud-init.
type noCloudMeta struct {
	InstanceID imprint.InstanceID `json:"instance-id"`
	Hostname   string             `json:"local-hostname"`
	PublicKeys []string           `json:"public-keys,omitempty"`
	Facts      map[string]string  `json:"imprint,omitempty"`
}

// The parts of netplan's version 2 that imprint has.
type (
	netplan struct {
		Version   int                        `json:"version"`
		Ethernets map[string]netplanEthernet `json:"ethernets"`
	}
	netplanEthernet struct {
		Match       *netplanMatch        `json:"match,omitempty"`
		DHCP4       bool                 `json:"dhcp4"`
		DHCP6       bool                 `json:"dhcp6"`
		Addresses   []netip.Prefix       `json:"addresses,omitempty"`
		MTU         int                  `json:"mtu,omitempty"`
		Routes      []imprint.Route      `json:"routes,omitempty"`
		Nameservers *imprint.Nameservers `json:"nameservers,omitempty"`
	}
	netplanMatch struct {
		MAC string `json:"macaddress"`
	}
)

func netplanOf(n *imprint.Network) netplan {
	plan := netplan{Version: 2, Ethernets: map[string]netplanEthernet{}}
	for name, e := range n.Ethernets {
		out := netplanEthernet{DHCP4: e.DHCP4, DHCP6: e.DHCP6, Addresses: e.Addresses, MTU: e.MTU}
		if e.MAC != "" {
			out.Match = &netplanMatch{e.MAC}
		}
		for _, r := range e.Routes {
			if isDefault(r.To) { // cloud-init before 22.3 does not know the word
				r.To = "::/0"
				if r.Via.Is4() {
					r.To = "0.0.0.0/0"
				}
			}
			out.Routes = append(out.Routes, r)
		}
		if ns := e.Nameservers; len(ns.Addresses)+len(ns.Search) > 0 {
			out.Nameservers = &ns
		}
		plan.Ethernets[name] = out
	}
	return plan
}

// NoCloudFiles returns the files that cloud-init asks for over HTTP, where one
// that is missing costs it ten seconds and an empty one none.
func NoCloudFiles() []string {
	return []string{"meta-data", "network-config", "user-data", "vendor-data"}
}
