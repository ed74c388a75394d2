package dialect_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/dialect"
)

// onLinkLocal is an instance with a declared network and an interface to its host.
func onLinkLocal(ethernets map[string]imprint.Ethernet) *imprint.Instance {
	i := &imprint.Instance{
		ID: "6b1c2f0e-4a57-4d6e-9d0a-0f2f6f3b8a11", Generation: 1,
		Spec: imprint.Spec{Name: "web-1", Tenant: imprint.DefaultTenant, Host: "host-1"},
		NIC:  &imprint.NIC{Host: "host-1", MAC: "02:12:34:56:78:9a", IPv4: netip.MustParseAddr("169.254.7.9")},
	}
	if ethernets != nil {
		i.Spec.Network = &imprint.Network{Ethernets: ethernets}
	}
	return i
}

func text(view *imprint.View, name string) string { return string(view.Values[name].Data) }

// Software that configures the network that it is told would leave the
// interface down by which it was told, and could not phone home.
func TestDeclaredNetworksHaveTheLinkLocalInterfaceToo(t *testing.T) {
	static := map[string]imprint.Ethernet{"lan0": {MAC: "52:54:00:12:34:56", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24")}}}
	inst := onLinkLocal(static)
	openStack := text(dialect.OpenStack(inst, dialect.Facts{}, nil), "openstack/latest/network_data.json")
	for _, want := range []string{
		`{"id":"imprint0","vif_id":"imprint0","type":"phy","mtu":null,"ethernet_mac_address":"02:12:34:56:78:9a"}`,
		`"type":"ipv4_dhcp","link":"imprint0"`, `"ip_address":"10.0.2.15"`,
	} {
		if !strings.Contains(openStack, want) {
			t.Errorf("network_data.json lacks %s:\n%s", want, openStack)
		}
	}
	noCloud := text(dialect.NoCloud(inst), "nocloud/network-config")
	for _, want := range []string{`"imprint0":{"match":{"macaddress":"02:12:34:56:78:9a"},"dhcp4":true,`, `"10.0.2.15/24"`} {
		if !strings.Contains(noCloud, want) {
			t.Errorf("network-config lacks %s:\n%s", want, noCloud)
		}
	}
	if len(static) != 1 {
		t.Error("the spec was changed")
	}

	// Where nothing is declared OpenStack's clients configure nothing, and NoCloud's
	// what they find. Who declares that interface knows better.
	alone := text(dialect.OpenStack(onLinkLocal(nil), dialect.Facts{}, nil), "openstack/latest/network_data.json")
	if !strings.Contains(alone, `"ethernet_mac_address":"02:12:34:56:78:9a"`) || strings.Count(alone, `"ipv4_dhcp"`) != 1 {
		t.Errorf("without a network: %s", alone)
	}
	if got := text(dialect.NoCloud(onLinkLocal(nil)), "nocloud/network-config"); got != "" {
		t.Errorf("without a network: %s", got)
	}
	for name, e := range map[string]imprint.Ethernet{"mine": {MAC: "02:12:34:56:78:9A", MTU: 1400}, "imprint0": {MTU: 1400}} {
		got := text(dialect.NoCloud(onLinkLocal(map[string]imprint.Ethernet{name: e})), "nocloud/network-config")
		if strings.Count(got, "mtu") != 1 || strings.Contains(got, `"dhcp4":true`) {
			t.Errorf("%s is declared: %s", name, got)
		}
	}
}

// What cloud-init asks for on machines that look like Amazon's.
func TestEC2DescribesTheLinkLocalInterface(t *testing.T) {
	inst := onLinkLocal(map[string]imprint.Ethernet{
		"lan0": {MAC: "52:54:00:12:34:56", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24")}},
		"lan1": {MAC: "52:54:00:12:34:57", DHCP4: true},
	})
	view := dialect.EC2(inst, dialect.Facts{})
	for name, want := range map[string]string{
		"network/interfaces/macs/02:12:34:56:78:9a/device-number": "0",
		"network/interfaces/macs/02:12:34:56:78:9a/mac":           "02:12:34:56:78:9a",
		"network/interfaces/macs/02:12:34:56:78:9a/local-ipv4s":   "169.254.7.9",
		"network/interfaces/macs/02:12:34:56:78:9a/vpc-id":        "vpc-6b1c2f0e",
		"network/interfaces/macs/52:54:00:12:34:57/vpc-id":        "vpc-6b1c2f0e",
		"network/interfaces/macs/52:54:00:12:34:57/device-number": "1",
		"network/interfaces/macs/52:54:00:12:34:56/device-number": "", // EC2 has no static addresses
	} {
		for version, want := range map[string]string{"latest": want, "2009-04-04": want, "2008-09-01": ""} {
			if got := text(view, version+"/meta-data/"+name); got != want {
				t.Errorf("%s/%s is %q; want %q", version, name, got, want)
			}
		}
	}
	var identity map[string]string
	if err := json.Unmarshal([]byte(text(view, "latest/dynamic/instance-identity/document")), &identity); err != nil ||
		identity["instanceId"] != text(view, "latest/meta-data/instance-id") || identity["region"] != "host-1" {
		t.Errorf("the identity document: %v, %v", identity, err)
	}

	inst.NIC = nil // then it is as in Nova
	for name := range dialect.EC2(inst, dialect.Facts{}).Values {
		if strings.Contains(name, "/network/") || strings.Contains(name, "/dynamic/") {
			t.Errorf("without the interface there is %s", name)
		}
	}
}
