package dialect_test

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/dialect"
)

func instance() *imprint.Instance {
	return &imprint.Instance{
		ID: "6b1c2f0e-4a57-4d6e-9d0a-0f2f6f3b8a11", Generation: 3, Revision: 42,
		Spec: imprint.Spec{
			Name: "web-1", Tenant: imprint.DefaultTenant, Host: "hv1.example",
			Channels: []imprint.ChannelKind{imprint.Serial2, imprint.LinkLocal},
			DNSNames: []string{"www.example.org", "web-1.dmz.example.org"},
			IPs:      []netip.Addr{netip.MustParseAddr("192.0.2.10")},
			SSHKeys:  []string{"ssh-ed25519 AAAA one", "ssh-rsa BBBB two"},
			UserData: "#cloud-config\npackages: [nginx]\n",
			Metadata: map[string]string{"role": "web", "hostname": "evil", "user-script": "rm -rf /", "b64-role": "true", "sdc:uuid": "evil"},
			Params: []imprint.Param{
				{Name: "motd", Visibility: imprint.Public, Value: "hello"},
				{Name: "role", Visibility: imprint.Public, Value: "shadowed by metadata"},
				{Name: "base64_all", Visibility: imprint.Public, Value: "true"},
				{Name: "empty", Visibility: imprint.Public},
				{Name: "token", Visibility: imprint.Private, Value: "must not be here at all"},
				{Name: "disk-key", Visibility: imprint.SecretOnly, Value: "must not be here at all"},
			},
			Network: &imprint.Network{Ethernets: map[string]imprint.Ethernet{
				"eth1": {DHCP4: true, DHCP6: true},
				"eth0": {
					MAC: "52:54:00:12:34:56", MTU: 1400,
					Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24"), netip.MustParsePrefix("2001:db8::10/64")},
					Routes: []imprint.Route{
						{To: "default", Via: netip.MustParseAddr("192.0.2.1")},
						{To: "::/0", Via: netip.MustParseAddr("2001:db8::1")},
						{To: "10.0.0.0/8", Via: netip.MustParseAddr("192.0.2.254")},
					},
					Nameservers: imprint.Nameservers{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, Search: []string{"search.example.org"}},
				},
			}},
		},
		Enrolment: imprint.Enrolment{State: imprint.Claimed, Claim: &imprint.Claim{NeedsApproval: true}},
	}
}

var facts = dialect.Facts{CA: "-----BEGIN CERTIFICATE-----\n", CheckIn: []string{"https://checkin.example"}}

func strs(v *imprint.View) map[string]string {
	out := map[string]string{}
	for key, value := range v.Values {
		out[key] = string(value.Data)
	}
	return out
}

func TestTritonView(t *testing.T) {
	t.Parallel()
	view := dialect.Triton(instance(), facts)
	want := map[string]string{
		"sdc:uuid":             "6b1c2f0e-4a57-4d6e-9d0a-0f2f6f3b8a11",
		"hostname":             "web-1",
		"sdc:hostname":         "web-1",
		"sdc:dns_domain":       "dmz.example.org",
		"sdc:datacenter_name":  "hv1.example",
		"root_authorized_keys": "ssh-ed25519 AAAA one\nssh-rsa BBBB two",
		"cloud-init:user-data": "#cloud-config\npackages: [nginx]\n",
		"sdc:vendor-data":      "#cloud-config\nfs_setup: []\n",
		"sdc:nics": `[{"mac":"52:54:00:12:34:56","interface":"eth0","ips":["192.0.2.10/24","2001:db8::10/64"],"primary":true,"gateways":["192.0.2.1","2001:db8::1"],"mtu":1400},` +
			`{"interface":"eth1","ips":["dhcp"]}]`,
		"sdc:resolvers": `["192.0.2.53"]`,
		"sdc:routes":    `[{"dst":"10.0.0.0/8","gateway":"192.0.2.254"}]`,
		"role":          "web",
		"motd":          "hello",
		"empty":         "",
	}
	if got := strs(view); !maps.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	for key, value := range view.Values {
		if value.Visibility != imprint.Public {
			t.Errorf("%s is %s; cloud-init logs it", key, value.Visibility)
		}
	}
	if view.Revision != 42 {
		t.Errorf("revision %d", view.Revision)
	}
}

func TestTritonViewOfABareInstance(t *testing.T) {
	t.Parallel()
	view := dialect.Triton(&imprint.Instance{ID: "id", Spec: imprint.Spec{Name: "n", VendorData: "#cloud-config\n{}\n"}}, dialect.Facts{Datacenter: "east"})
	want := map[string]string{"sdc:uuid": "id", "hostname": "n", "sdc:hostname": "n", "sdc:datacenter_name": "east", "sdc:vendor-data": "#cloud-config\n{}\n"}
	if got := strs(view); !maps.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestDomainComesFromSearchIfNoNameHasOne(t *testing.T) {
	t.Parallel()
	inst := instance()
	inst.Spec.DNSNames = []string{"www.example.org"}
	if got := string(dialect.Triton(inst, facts).Values["sdc:dns_domain"].Data); got != "search.example.org" {
		t.Errorf("domain %q", got)
	}
}

func TestNativeView(t *testing.T) {
	t.Parallel()
	inst := instance()
	payload := dialect.Payload(inst, facts, time.Date(2026, 11, 21, 8, 0, 0, 999, time.UTC))
	encoded, err := payload.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := imprint.DecodePayload(encoded)
	if err != nil || got.Instance != inst.ID || got.Generation != 3 || got.Token != "" || !got.Time.Equal(time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)) ||
		!slices.Equal(got.DNSNames, inst.Spec.DNSNames) || !slices.Equal(got.CheckIn, facts.CheckIn) || got.Network == nil {
		t.Errorf("payload %s, %v", encoded, err)
	}
	view := strs(dialect.Native(inst, facts, encoded, imprint.GuestRoot))
	want := map[string]string{
		"imprint:payload": string(encoded), "imprint:ca": facts.CA,
		"imprint:param/motd": "hello", "imprint:param/role": "shadowed by metadata", "imprint:param/base64_all": "true", "imprint:param/empty": "",
	}
	if !maps.Equal(view, want) {
		t.Errorf("got %q\nwant %q", view, want)
	}
}

func TestParamsListsNamesWithoutValues(t *testing.T) {
	t.Parallel()
	list, err := dialect.Params(instance(), func(p imprint.Param) bool { return p.Name == "token" })
	if err != nil || strings.Contains(string(list), "hello") || strings.Contains(string(list), "must not") {
		t.Fatalf("list %s, %v", list, err)
	}
	for name, want := range map[string]string{
		"motd":     `{"name":"motd","visibility":"public","available":true}`,
		"token":    `{"name":"token","visibility":"private","available":true}`,
		"disk-key": `{"name":"disk-key","visibility":"secret","available":false}`,
	} {
		if !strings.Contains(string(list), want) {
			t.Errorf("%s: no %s in %s", name, want, list)
		}
	}
}

func TestStateSaysWhetherAnOperatorIsAwaited(t *testing.T) {
	t.Parallel()
	inst := instance()
	for approver, want := range map[string]string{
		"":      `{"state":"claimed","waiting":true,"generation":3}`,
		"alice": `{"state":"claimed","waiting":false,"generation":3}`,
	} {
		inst.Enrolment.Claim.ApprovedBy = approver
		if got, err := json.Marshal(dialect.StateOf(inst)); err != nil || string(got) != want {
			t.Errorf("state %s, %v; want %s", got, err, want)
		}
	}
}

func BenchmarkTriton(b *testing.B) {
	inst := instance()
	b.ReportAllocs()
	for b.Loop() {
		dialect.Triton(inst, facts)
	}
}
