//go:build interop

package interop

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/metadata"
	"imprint/test/need"
)

// novaPy answers requests with Nova's own handler.
//
//go:embed testdata/nova.py
var novaPy string

// The instance as nova.py reads it.
type (
	novaInstance struct {
		UUID        imprint.InstanceID `json:"uuid"`
		Project     string             `json:"project"`
		Domain      string             `json:"domain"`
		Hostname    string             `json:"hostname"`
		Zone        string             `json:"zone"`
		Reservation string             `json:"reservation"`
		EC2         string             `json:"ec2"`
		AMI         string             `json:"ami"`
		Key         [2]string          `json:"key"`
		Meta        map[string]string  `json:"meta"`
		UserData    string             `json:"userData"`
		VendorData  string             `json:"vendorData"`
		VIFs        []novaVIF          `json:"vifs"`
	}
	novaVIF struct {
		Name    string       `json:"name"`
		MAC     string       `json:"mac"`
		MTU     int          `json:"mtu"`
		Subnets []novaSubnet `json:"subnets"`
	}
	novaSubnet struct {
		CIDR    string      `json:"cidr"`
		Address string      `json:"address"`
		Gateway string      `json:"gateway"`
		DNS     []string    `json:"dns"`
		Routes  []novaRoute `json:"routes"`
		DHCP    bool        `json:"dhcp"`
	}
	novaRoute struct {
		CIDR    string `json:"cidr"`
		Gateway string `json:"gateway"`
	}
	novaRequest struct {
		Method string `json:"method"`
		Path   string `json:"path"`
		Body   string `json:"body"`
	}
	novaReply struct {
		Status int    `json:"status"`
		Type   string `json:"type"`
		Body   string `json:"body"`
	}
)

// desk is what a guest's server needs, with one guest behind it.
type desk struct{ inst *imprint.Instance }

func (d *desk) Snapshot() *metadata.Snapshot {
	facts := dialect.Facts{Datacenter: "zone-1"}
	return metadata.NewSnapshot(d.inst, metadata.Options{}, dialect.OpenStack(d.inst, facts, make([]byte, dialect.SeedSize)), dialect.EC2(d.inst, facts))
}
func (d *desk) Report(context.Context, metadata.Access) {}
func (d *desk) PostPassword(_ context.Context, _ metadata.Origin, text []byte) error {
	d.inst.Enrolment.Password = bytes.Clone(text)
	return nil
}
func (d *desk) PhoneHome(context.Context, metadata.Origin, url.Values) error { return nil }

// novaPair is one instance as imprint and as Nova know it.
func novaPair(userData, vendorData string) (*imprint.Instance, novaInstance) {
	key := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBbbb alice@example.org"
	inst := &imprint.Instance{
		ID: "6b1c2f0e-4a57-4d6e-9d0a-0f2f6f3b8a11", Generation: 1,
		Spec: imprint.Spec{
			Name: "web-1", Tenant: imprint.DefaultTenant, DNSNames: []string{"web-1.example.org"}, SSHKeys: []string{key},
			Metadata: map[string]string{"note": "<ü&\">", "role": "web"}, UserData: userData, VendorData: vendorData, Image: &imprint.Image{Source: "file:///srv/images/debian-12.raw"},
			Network: &imprint.Network{Ethernets: map[string]imprint.Ethernet{
				"eth0": {
					MAC: "52:54:00:12:34:56", MTU: 1400,
					Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24"), netip.MustParsePrefix("2001:db8::10/64")},
					Routes: []imprint.Route{
						{To: "10.0.0.0/8", Via: netip.MustParseAddr("192.0.2.254")},
						{To: "default", Via: netip.MustParseAddr("192.0.2.1")},
						{To: "::/0", Via: netip.MustParseAddr("2001:db8::1")},
						{To: "2001:db8:1::/48", Via: netip.MustParseAddr("2001:db8::fe")},
					},
					Nameservers: imprint.Nameservers{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")}},
				},
				"eth1": {MAC: "52:54:00:12:34:57", MTU: 9000, DHCP4: true},
			}},
		},
		Enrolment: imprint.Enrolment{State: imprint.Reserved},
	}
	ec2 := dialect.EC2(inst, dialect.Facts{})
	leaf := func(name string) string { return string(ec2.Values["latest/meta-data/"+name].Data) }
	return inst, novaInstance{
		UUID: inst.ID, Project: "default", Domain: "example.org", Hostname: "web-1", Zone: "zone-1",
		Reservation: leaf("reservation-id"), EC2: leaf("instance-id"), AMI: leaf("ami-id"),
		Key: [2]string{"key-0", key}, Meta: inst.Spec.Metadata, UserData: userData, VendorData: vendorData,
		VIFs: []novaVIF{
			{"eth0", "52:54:00:12:34:56", 1400, []novaSubnet{
				{"192.0.2.0/24", "192.0.2.10", "192.0.2.1", []string{"192.0.2.53"}, []novaRoute{{"10.0.0.0/8", "192.0.2.254"}}, false},
				{"2001:db8::/64", "2001:db8::10", "2001:db8::1", []string{"2001:db8::53"}, []novaRoute{{"2001:db8:1::/48", "2001:db8::fe"}}, false},
			}},
			{"eth1", "52:54:00:12:34:57", 9000, []novaSubnet{{"198.51.100.0/24", "198.51.100.7", "", []string{}, []novaRoute{}, true}}},
		},
	}
}

// askNova lets Nova's handler answer.
func askNova(t *testing.T, inst novaInstance, requests []novaRequest) []novaReply {
	t.Helper()
	const python = "/usr/bin/python3" // the one that Debian's nova is installed for
	need.Program(t, python, "python3")
	need.File(t, "/usr/lib/python3/dist-packages/nova/api/metadata/handler.py", "python3-nova")
	in, err := json.Marshal(map[string]any{"instance": inst, "requests": requests})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "-c", novaPy, t.TempDir())
	cmd.Stdin = bytes.NewReader(in)
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("nova.py: %v\n%s", err, log.String())
	}
	var replies []novaReply
	if err := json.Unmarshal(out, &replies); err != nil || len(replies) != len(requests) {
		t.Fatalf("nova.py: %v in %s", err, out)
	}
	return replies
}

// requestsForNova are all that a client may ask for in any version, and what it
// may not.
func requestsForNova() []novaRequest {
	get := func(path string) novaRequest { return novaRequest{"GET", path, ""} }
	list := []novaRequest{
		get("/"), get("/ec2"), get("/ec2/"), get("/openstack"), get("/openstack/"), get("/latest/meta-data/../../openstack"), get("/x/.."),
		get("/none"), get("/2012-01-01/meta-data"), get("/openstack/2012-01-01"), get("/openstack/content"), get("/openstack/content/0000"),
		get("/ec2/openstack"), get("/ec2/ec2"), get("/latest/meta-data/instance-id/"), get("/latest//meta-data/./hostname"), get("/latest/meta-data/instance-id/x"),
		get("/latest/dynamic/"), {"PUT", "/latest/api/none", ""}, get("/latest/user-data/"), get("/latest/user-data/x"), get("/ec2/latest/meta-data/placement/"),
	}
	for _, version := range append(dialect.EC2Versions(), "2010-01-01") {
		for _, path := range []string{"", "/", "/meta-data", "/meta-data/", "/user-data"} {
			list = append(list, get("/"+version+path))
		}
		for _, leaf := range []string{
			"ami-id", "ami-launch-index", "ami-manifest-path", "instance-id", "hostname", "local-ipv4", "reservation-id", "security-groups",
			"local-hostname", "public-hostname", "public-ipv4", "instance-type", "block-device-mapping", "block-device-mapping/ami",
			"block-device-mapping/root", "block-device-mapping/ephemeral0", "placement", "placement/availability-zone", "instance-action",
			"public-keys", "public-keys/", "public-keys/0", "public-keys/0/", "public-keys/0/openssh-key", "public-keys/1", "kernel-id", "none",
		} {
			list = append(list, get("/"+version+"/meta-data/"+leaf))
		}
	}
	for _, version := range dialect.OpenStackVersions() {
		if version == "2025-04-04" {
			continue // Debian's Nova is older
		}
		for _, file := range []string{"", "/", "/meta_data.json", "/user_data", "/password", "/vendor_data.json", "/vendor_data2.json", "/network_data.json", "/none", "/meta_data.json/"} {
			list = append(list, get("/openstack/"+version+file))
		}
	}
	password := "/openstack/2013-04-04/password"
	return append(list,
		novaRequest{"POST", password, ""}, get(password), novaRequest{"PUT", password, "x"}, novaRequest{"DELETE", password, ""}, novaRequest{"HEAD", password, ""},
		novaRequest{"POST", "/openstack/2012-08-10/password", "x"}, novaRequest{"POST", password, strings.Repeat("x", 5000)},
		novaRequest{"POST", password, "QUJD"}, get(password), get("/openstack/latest/password"), novaRequest{"POST", password, "QUJE"}, novaRequest{"POST", "/openstack/latest/password", "QUJD"}, get(password))
}

// Every request has the same answer from imprint as from Nova: the status, the
// content type, and the bytes, or where they are JSON the same values in the
// same order. Known differences are named here and nowhere else.
func TestNovaAnswersTheSame(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ userData, vendorData string }{
		"everything": {"#cloud-config\npackages: [nginx] # ü\n", `{"cloud-init": "#cloud-config\n{}\n", "b": [1, {"a": null}]}`},
		"bare":       {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inst, same := novaPair(c.userData, c.vendorData)
			requests := requestsForNova()
			want := askNova(t, same, requests)
			d := &desk{inst}
			server, err := metadata.New(metadata.Config{Guest: d, Reporter: d, Inbox: d, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range requests {
				got := askImprint(server, r)
				compare(t, r, got, want[i])
			}
			t.Logf("%d requests", len(requests))
		})
	}
}

func askImprint(h http.Handler, r novaRequest) novaReply {
	req := httptest.NewRequest(r.Method, "http://169.254.169.254"+r.Path, strings.NewReader(r.Body))
	reply := httptest.NewRecorder()
	h.ServeHTTP(reply, req)
	body := reply.Body.String()
	if r.Method == http.MethodHead {
		body = ""
	}
	return novaReply{reply.Code, reply.Header().Get("Content-Type"), body}
}

func compare(t *testing.T, r novaRequest, got, want novaReply) {
	t.Helper()
	if want.Status == http.StatusInternalServerError && got.Status == http.StatusNotFound {
		return // Nova fails on what is below a leaf
	}
	if got.Status != want.Status {
		t.Errorf("%s %s: status %d, Nova's is %d (%q)", r.Method, r.Path, got.Status, want.Status, want.Body)
		return
	}
	if want.Status != http.StatusOK {
		return // error pages are HTML in Nova
	}
	if strings.HasSuffix(strings.TrimSuffix(r.Path, "/"), "/password") {
		want.Type = "text/plain; charset=UTF-8" // the text is the guest's: no browser is to take it for a page
	}
	if got.Type != want.Type && got.Type+"; charset=UTF-8" != want.Type {
		t.Errorf("%s %s: type %q, Nova's is %q", r.Method, r.Path, got.Type, want.Type)
	}
	if r.Path == "/openstack" || r.Path == "/openstack/" || strings.HasSuffix(r.Path, "../openstack") {
		got.Body = strings.Replace(got.Body, "2025-04-04\n", "", 1)
	}
	if strings.Contains(r.Path, ".json") {
		a, b := inOrder(t, got.Body), inOrder(t, want.Body)
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%s %s:\n%s\nNova's is\n%s", r.Method, r.Path, got.Body, want.Body)
		}
	} else if got.Body != want.Body {
		t.Errorf("%s %s: %q, Nova's is %q", r.Method, r.Path, got.Body, want.Body)
	}
}

// inOrder reads JSON as the sequence of its tokens, so that the order of keys
// counts; the random seed becomes its length.
func inOrder(t *testing.T, text string) []any {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	var tokens []any
	for dec.More() || len(tokens) > 0 {
		token, err := dec.Token()
		if err != nil {
			break
		}
		if n := len(tokens); n > 0 && tokens[n-1] == "random_seed" {
			token = len(token.(string))
		}
		tokens = append(tokens, token)
	}
	return tokens
}
