//go:build interop

package interop

import (
	"context"
	_ "embed"
	"encoding/json"
	"iter"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/host"
	"imprint/test/need"
)

// smartos drives cloud-init's own client and datasource for the Triton protocol.
//
//go:embed testdata/smartos.py
var smartos string

// smartosResult is what smartos.py saw.
type smartosResult struct {
	UUID, Missing, Note, Deleted *string
	Keys, KeysAfter              []string
	Readonly                     string // the raw reply to a put of sdc:uuid
	Metadata                     map[string]any
	Userdata                     string
	Vendordata                   string
	FSSetup                      []any // what cloud-init would format
	Netplan                      string
}

// still is an inventory of one instance that never changes.
type still struct {
	inst  *imprint.Instance
	known chan struct{} // closed when the host has taken it in
}

func (s still) Watch(ctx context.Context) iter.Seq2[host.Notice, error] {
	return func(yield func(host.Notice, error) bool) {
		if yield(host.Notice{Instance: s.inst, Relist: true}, nil) && yield(host.Notice{Synced: true}, nil) {
			close(s.known)
			<-ctx.Done()
		}
	}
}

func (s still) Enrol(context.Context, imprint.Submission) (*imprint.Instance, error) {
	return s.inst, nil
}
func (s still) Report(context.Context, imprint.Report) error { return nil }
func (s still) Param(context.Context, imprint.InstanceID, string) (imprint.Secret, error) {
	return imprint.NewSecret([]byte("canary-private")), nil
}

func stillInstance() *imprint.Instance {
	return &imprint.Instance{
		ID: imprint.NewInstanceID(), Generation: 1, Revision: 1,
		Spec: imprint.Spec{
			Name: "web-1", Tenant: imprint.DefaultTenant, Host: "hv1.example",
			DNSNames: []string{"web-1.example.org"},
			Channels: []imprint.ChannelKind{imprint.Serial2},
			SSHKeys:  []string{"ssh-ed25519 AAAA one", "ssh-ed25519 BBBB two"},
			UserData: "#cloud-config\npackages: [nginx]\n",
			Metadata: map[string]string{"role": "web"},
			Params: []imprint.Param{
				{Name: "motd", Visibility: imprint.Public, Value: "hello"},
				{Name: "token", Visibility: imprint.Private},
			},
			Network: &imprint.Network{Ethernets: map[string]imprint.Ethernet{"eth0": {
				MAC: "52:54:00:12:34:56", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24"), netip.MustParsePrefix("2001:db8::10/64")},
				Routes: []imprint.Route{
					{To: "default", Via: netip.MustParseAddr("192.0.2.1")},
					{To: "10.0.0.0/8", Via: netip.MustParseAddr("192.0.2.254")},
				},
				Nameservers: imprint.Nameservers{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.53")}},
			}, "eth1": {MAC: "52:54:00:12:34:57", DHCP4: true, DHCP6: true}}},
		},
		Enrolment: imprint.Enrolment{State: imprint.Reserved},
	}
}

// serveOnTerminal runs a host for inst and returns the device that the guest opens.
func serveOnTerminal(t *testing.T, inst *imprint.Instance) (device string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "imprint")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := still{inst, make(chan struct{})}
	h, err := host.New(host.Config{
		Name: "hv1.example", RunDir: dir, Instances: s, Control: s, Params: s, Secrets: host.NewSecrets(),
		Facts: func(imprint.TenantName) (dialect.Facts, error) { return dialect.Facts{CA: "CA"}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- h.Run(ctx) }()

	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	device = slave.Name()
	fd, err := unix.Dup(int(master.Fd())) // its Close must end a Read
	if err != nil {
		t.Fatal(err)
	}
	master.Close()
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	<-s.known
	go func() { served <- h.Serve(ctx, inst.ID, imprint.Serial2, os.NewFile(uintptr(fd), "pty")) }()
	t.Cleanup(func() { cancel(); <-served; <-ran; slave.Close() })
	return device
}

func TestCloudInitReadsTheSerialPort(t *testing.T) {
	t.Parallel()
	const python = "/usr/bin/python3" // the one that Debian's cloud-init is installed for
	need.Program(t, python, "python3")
	if err := exec.Command(python, "-c", "import cloudinit, serial").Run(); err != nil {
		need.Program(t, "cloud-init", "cloud-init and python3-serial")
		t.Fatalf("cloud-init is installed, but not for %s: %v", python, err)
	}
	inst := stillInstance()
	device := serveOnTerminal(t, inst)
	cmd := exec.CommandContext(t.Context(), python, "-c", smartos, device, t.TempDir())
	var log strings.Builder // cloud-init's, at the level at which it logs values
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("smartos.py: %v\n%s", err, log.String())
	}
	var r smartosResult
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}

	str := func(s *string) string {
		if s == nil {
			return "none"
		}
		return *s
	}
	if str(r.UUID) != string(inst.ID) || str(r.Missing) != "none" || str(r.Note) != "line one\nline two: ü" || str(r.Deleted) != "none" {
		t.Errorf("the client saw uuid %s, missing %s, note %q, deleted %s", str(r.UUID), str(r.Missing), str(r.Note), str(r.Deleted))
	}
	if !strings.Contains(r.Readonly, " FAILURE ") {
		t.Errorf("put sdc:uuid was answered with %q", r.Readonly)
	}
	if !slices.Contains(r.Keys, "com.example:note") || slices.Contains(r.KeysAfter, "com.example:note") || slices.Contains(r.Keys, "sdc:uuid") {
		t.Errorf("keys %q, later %q", r.Keys, r.KeysAfter)
	}

	got := map[string]any{}
	for key := range r.Metadata {
		if r.Metadata[key] != nil {
			got[key] = r.Metadata[key]
		}
	}
	for key, want := range map[string]string{
		"instance-id": string(inst.ID), "local-hostname": "web-1", "hostname": "web-1", "dns_domain": "example.org",
		"public-keys": "ssh-ed25519 AAAA one\nssh-ed25519 BBBB two", "availability_zone": "hv1.example",
	} {
		if got[key] != want {
			t.Errorf("the datasource's %s is %q, want %q", key, got[key], want)
		}
	}
	for _, key := range []string{"user-script", "operator-script", "legacy-user-data"} {
		if got[key] != nil {
			t.Errorf("the datasource has %s: %v", key, got[key])
		}
	}
	if r.Userdata != inst.Spec.UserData || !strings.Contains(r.Vendordata, "fs_setup: []") {
		t.Errorf("user data %q, vendor data %q; all of %q", r.Userdata, r.Vendordata, slices.Sorted(maps.Keys(got)))
	}
	if len(r.FSSetup) != 0 {
		t.Errorf("cloud-init would format %v", r.FSSetup)
	}
	for _, want := range []string{"192.0.2.10/24", "2001:db8::10/64", "192.0.2.1", "10.0.0.0/8", "192.0.2.53", "52:54:00:12:34:57", "dhcp4: true"} {
		if !strings.Contains(r.Netplan, want) {
			t.Errorf("the network has no %s:\n%s", want, r.Netplan)
		}
	}
	if !strings.Contains(log.String(), "packages: [nginx]") {
		t.Errorf("cloud-init does not log user data any more; the rule about stock keys has lost its reason:\n%s", log.String())
	}
	if strings.Contains(log.String()+string(out), "canary-private") {
		t.Error("a private value is in cloud-init's log or metadata")
	}
}
