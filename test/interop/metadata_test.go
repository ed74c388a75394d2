//go:build interop

package interop

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os/exec"
	"strings"
	"testing"

	"imprint/internal/dialect"
	"imprint/internal/metadata"
	"imprint/test/need"
)

// metadataPy drives cloud-init's clients of metadata over HTTP.
//
//go:embed testdata/metadata.py
var metadataPy string

// metadataSeen is what they saw.
type metadataSeen struct {
	OpenStack                                        map[string]any
	OpenStackUser, OpenStackVendor, OpenStackNetwork string
	NoCloud                                          map[string]any
	NoCloudUser, NoCloudVendor, NoCloudNetwork       string
	EC2                                              map[string]any
	EC2User                                          string
	Waits                                            []float64 // before it tried again
}

// caller is a desk in all dialects that remembers who phoned.
type caller struct {
	*desk
	form chan url.Values
}

func (c *caller) Snapshot() *metadata.Snapshot {
	facts := dialect.Facts{Datacenter: "zone-1"}
	return metadata.NewSnapshot(c.inst, metadata.Options{TokensOnly: true}, dialect.OpenStack(c.inst, facts, nil), dialect.EC2(c.inst, facts), dialect.NoCloud(c.inst))
}

func (c *caller) PhoneHome(_ context.Context, _ metadata.Origin, form url.Values) error {
	c.form <- form
	return nil
}

// cloud-init finds everything in each dialect, with session tokens in EC2's, and
// after it has phoned home everything but the user data, without waiting.
func TestCloudInitReadsTheLinkLocalNetwork(t *testing.T) {
	t.Parallel()
	const python = "/usr/bin/python3" // the one that Debian's cloud-init is installed for
	need.Program(t, python, "python3")
	need.Program(t, "cloud-init", "cloud-init")
	const userData, vendorData = "#cloud-config\npackages: [nginx]\n", "#cloud-config\nbootcmd: [x]\n"
	inst, _ := novaPair(userData, vendorData)
	eth1 := inst.Spec.Network.Ethernets["eth1"]
	eth1.MAC = "" // found by its name
	inst.Spec.Network.Ethernets["eth1"] = eth1
	guest := &caller{&desk{inst}, make(chan url.Values, 1)}
	server, err := metadata.New(metadata.Config{Guest: guest, Reporter: guest, Inbox: guest, Logger: slog.New(slog.DiscardHandler), Names: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, ln) }()
	defer func() { cancel(); <-served }()

	cmd := exec.CommandContext(t.Context(), python, "-c", metadataPy, "http://"+ln.Addr().String())
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("metadata.py: %v\n%s", err, log.String())
	}
	var r struct{ Before, After metadataSeen }
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	for when, s := range map[string]metadataSeen{"open": r.Before, "closed": r.After} {
		user := ""
		if when == "open" {
			user = userData
		}
		if s.OpenStackUser != user || s.NoCloudUser != user || s.EC2User != user {
			t.Errorf("%s: user data %q, %q, %q", when, s.OpenStackUser, s.NoCloudUser, s.EC2User)
		}
		if s.OpenStackVendor != vendorData || s.NoCloudVendor != vendorData {
			t.Errorf("%s: vendor data %q, %q", when, s.OpenStackVendor, s.NoCloudVendor)
		}
		id, key := string(inst.ID), inst.Spec.SSHKeys[0]
		if got := fmt.Sprint(s.OpenStack["instance-id"], s.OpenStack["local-hostname"], s.OpenStack["public_keys"]); got != fmt.Sprint(id, "web-1.example.org", map[string]any{"key-0": key}) {
			t.Errorf("%s: OpenStack %s", when, got)
		}
		if got := fmt.Sprint(s.NoCloud["instance-id"], s.NoCloud["local-hostname"], s.NoCloud["public-keys"]); got != fmt.Sprint(id, "web-1.example.org", []any{key}) {
			t.Errorf("%s: NoCloud %s", when, got)
		}
		if got := fmt.Sprint(s.EC2["instance-id"], s.EC2["local-hostname"], s.EC2["public-keys"]); got != fmt.Sprint("i-6b1c2f0e", "web-1.example.org", map[string]any{"key-0": key}) {
			t.Errorf("%s: EC2 %s", when, got)
		}
		for _, want := range []string{"192.0.2.10/24", "2001:db8::10/64", "192.0.2.1", "2001:db8::1", "192.0.2.254", "192.0.2.53", "52:54:00:12:34:56", "dhcp4: true"} {
			if !strings.Contains(s.OpenStackNetwork, want) || !strings.Contains(s.NoCloudNetwork, want) {
				t.Errorf("%s: no %s in\n%s\n%s", when, want, s.OpenStackNetwork, s.NoCloudNetwork)
			}
		}
		if len(s.Waits) > 0 { // a file that is missing from NoCloud would be ten
			t.Errorf("%s: cloud-init would have waited %v seconds", when, s.Waits)
		}
	}
	if form := <-guest.form; form.Get("hostname") != "web-1" || form.Get("pub_key_rsa") != "ssh-rsa AAAA" {
		t.Errorf("it phoned with %v", form)
	}
}
