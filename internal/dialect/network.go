package dialect

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"imprint"
)

// NetworkReaders are who may read what stock software asks for over the
// link-local network: it uses source ports that any process may have.
const NetworkReaders = imprint.GuestProcesses | imprint.GuestRoot

// fqdn is the instance's name with its domain, if it has one.
func fqdn(spec *imprint.Spec) string {
	if d := domain(spec); d != "" {
		return string(spec.Name) + "." + d
	}
	return string(spec.Name)
}

// zone names the place for stock software.
func zone(spec *imprint.Spec, facts Facts) string {
	return cmp.Or(facts.Datacenter, string(spec.Host))
}

// keyPrefix begins the names that stock software gets for SSH keys; their numbers
// follow. Comments of keys are not unique and may hold anything.
const keyPrefix = "key-"

func keyName(i int) string { return keyPrefix + strconv.Itoa(i) }

// publicFacts are the operator's metadata and public parameters, the former first.
func publicFacts(spec *imprint.Spec) map[string]string {
	all := maps.Clone(spec.Metadata)
	if all == nil {
		all = map[string]string{}
	}
	for _, p := range spec.Params {
		if _, taken := all[p.Name]; !taken && p.Visibility == imprint.Public {
			all[p.Name] = p.Value
		}
	}
	return all
}

// ownInterface names the link-local interface in what the guest is told.
const ownInterface = "imprint0"

// networkOf is the network that a guest is told: what the operator declares, with
// the interface to the host beside it. Without that, stock software would leave
// it down once it has configured the rest, and could neither phone home nor ask
// again. Where nothing is declared the guest finds its interfaces by itself.
func networkOf(inst *imprint.Instance) *imprint.Network {
	n := inst.Spec.Network
	if n == nil || len(n.Ethernets) == 0 || inst.NIC == nil {
		return n
	}
	for name, e := range n.Ethernets {
		if name == ownInterface || strings.EqualFold(e.MAC, inst.NIC.MAC) {
			return n // the operator knows better
		}
	}
	all := maps.Clone(n.Ethernets)
	maps.Copy(all, ownEthernet(inst.NIC))
	return &imprint.Network{Ethernets: all}
}

// ownEthernet is the interface to the host as it has to be configured.
func ownEthernet(nic *imprint.NIC) map[string]imprint.Ethernet {
	return map[string]imprint.Ethernet{ownInterface: {MAC: nic.MAC, DHCP4: true}}
}

// firstIPv4 is the first IPv4 address that the machine is known to have, or "".
func firstIPv4(spec *imprint.Spec) string {
	addrs := slices.Clone(spec.IPs)
	if spec.Network != nil {
		for _, name := range slices.Sorted(maps.Keys(spec.Network.Ethernets)) {
			for _, prefix := range spec.Network.Ethernets[name].Addresses {
				addrs = append(addrs, prefix.Addr())
			}
		}
	}
	if i := slices.IndexFunc(addrs, netip.Addr.Is4); i >= 0 {
		return addrs[i].String()
	}
	return ""
}

// compact returns v in JSON on one line, with no characters escaped but those
// that must be. The dialects' own types always encode.
func compact(v any) string {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if enc.Encode(v) != nil {
		return ""
	}
	return string(bytes.TrimSuffix(buf.Bytes(), []byte("\n")))
}
