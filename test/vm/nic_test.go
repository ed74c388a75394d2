//go:build vm

package vm_test

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/api"
	"imprint/demo/guest"
	"imprint/internal/platform/qemu"
	"imprint/test/netns"
)

// nicManifest is an instance called NAME whose user data is at USERDATA, after
// which "session" has it asked for by EC2's session token. What after.sh does
// happens when cloud-init has phoned home.
const nicManifest = `
name: NAME
dnsNames: [NAME.lab.internal]
channels: [nic]
sshKeys: ["` + operatorKey + `"]
params:
  private: {db-password: {env: DB_PASSWORD}}
vendorData: |
  #cloud-config
  bootcmd:
    - [sh, -c, 'echo "guest: vendor data ran" >/dev/ttyS0']
userData: |
  #cloud-config
  users:
    - default
    - name: alice
      ssh_authorized_keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIClClga4j7TmeFRB7jhdbnbZbJawYCd+Iv3clQzbvOs alice@lab.internal"]
  cloud_final_modules: [scripts-user, phone-home, final-message, power-state-change]
  phone_home: {url: "http://169.254.169.254/imprint/v1/phone-home", post: [instance_id, hostname], tries: 1}
  final_message: "guest: from $DATASOURCE"
  runcmd:
    - |
      exec >/dev/ttyS0
      echo "guest: hostname $(hostname)"
      sed 's/^/guest: key /' /home/debian/.ssh/authorized_keys /home/alice/.ssh/authorized_keys
      ip -4 -o addr show | sed -n 's/.* inet \([0-9./]*\) .*/guest: address \1/p'
      ip -4 route show default | sed 's/^/guest: route /'
      ip -4 route show 169.254.169.254 | sed 's/^/guest: host /; s/ dev [^ ]* / /'
  write_files:
    - path: /run/after.sh
      content: |
        exec >/dev/ttyS0
        grep WARNING /var/log/cloud-init.log | sed 's/^/guest: warning /'
        grep -E 'Please wait|Crawl of metadata|after [0-9]* attempts' /var/log/cloud-init.log | sed 's/^/guest: log /'
        cat >/run/ask.py <<'EOF'
        import http.client, sys
        port = int(sys.argv[1])
        c = http.client.HTTPConnection("169.254.169.254", timeout=20, source_address=("", port))
        def ask(method, path, **headers):
            c.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            r = c.getresponse()
            return r, r.read().decode()
        headers = {}
        if sys.argv[3:] == ["session"]:
            r, headers["X_aws_ec2_metadata_token"] = ask("PUT", "/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds="60")
        r, body = ask("GET", sys.argv[2], **headers)
        print("guest: %s from port %d: %d" % (sys.argv[2], port, r.status), body if "/param/" in sys.argv[2] else "%d bytes" % len(body), flush=True)
        EOF
        python3 /run/ask.py 0 USERDATA
        python3 /run/ask.py 700 /openstack/latest/meta_data.json
        python3 /run/ask.py 701 USERDATA
        python3 /run/ask.py 0 /latest/meta-data/instance-id
        python3 /run/ask.py 0 /imprint/v1/param/db-password
        python3 /run/ask.py 702 /imprint/v1/param/db-password
        echo "guest: done"
  power_state: {mode: poweroff, delay: now, condition: sh /run/after.sh}
`

// stockBoot is a boot of Debian's cloud-init, which knows nothing of imprint, with
// one of its data sources.
type stockBoot struct {
	platform qemu.Stock
	fields   string // more of the manifest
	userData string // where it is
	withheld string // how that is answered once the machine has booted
	v1       string // how EC2's metadata is answered without a session token
	lan      bool   // a second interface, that the manifest configures
	console  []string
	served   []string // what is on the timeline, in this order
	unserved string   // what the data source does not ask for
	warning  string   // what cloud-init complains about for no reason of imprint's
}

var stockBoots = []stockBoot{
	{
		platform: qemu.OpenStack, userData: "openstack/latest/user_data", withheld: "404", v1: "200", lan: true,
		fields: `network:
  ethernets:
    lan0:
      macaddress: "52:54:00:12:34:56"
      addresses: [10.0.2.15/24]
      routes: [{to: default, via: 10.0.2.2}]
`,
		console: []string{"guest: from DataSourceOpenStackLocal", "guest: vendor data ran", "guest: address 10.0.2.15/24", "guest: route default via 10.0.2.2"},
		served:  []string{"openstack", "openstack/2018-08-27/user_data", "latest/meta-data"}, unserved: "nocloud",
	},
	{
		// EC2 describes only interfaces that use DHCP, and cloud-init knows of no vendor data there.
		platform: qemu.EC2, userData: "latest/user-data", withheld: "404", v1: "401", lan: true,
		fields: `imdsv2Only: true
network:
  ethernets:
    lan0: {macaddress: "52:54:00:12:34:56", dhcp4: true}
`,
		console: []string{"guest: from DataSourceEc2Local", "guest: address 10.0.2.15/24"},
		served:  []string{"2009-04-04/user-data"}, unserved: "openstack/2018-08-27",
	},
	{
		// It asks for no network-config over HTTP before 23.x, and would wait for a file that is not there.
		platform: qemu.NoCloud, userData: "nocloud/user-data", withheld: "200 0 bytes", v1: "200",
		console: []string{"guest: from DataSourceNoCloudNet", "guest: vendor data ran"},
		served:  []string{"nocloud/meta-data", "nocloud/user-data"}, unserved: "openstack/2018-08-27",
		warning: "already configured", // with ifupdown it sets up once more what it needed for asking
	},
}

// TestStockCloudInitOverTheNIC boots machines side by side on one host. Each
// finds 169.254.169.254 at its interface, and itself there.
func TestStockCloudInitOverTheNIC(t *testing.T) {
	needQEMU(t)
	kernel, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	disk := debianImage(t, kernel) // while there is a network to fetch packages over
	if !netns.Isolate(t) {
		return
	}
	initrd := switchRoot(t)
	s := newServer(t)
	t.Run("platforms", func(t *testing.T) { // it ends when all of them have
		for _, b := range stockBoots {
			t.Run(string(b.platform), func(t *testing.T) {
				t.Parallel()
				b.run(t, s.of(t), initrd, disk)
			})
		}
	})
}

// run boots one instance, and compares what the guest says and what the host
// has on record.
func (b *stockBoot) run(t *testing.T, s *server, initrd guest.Image, disk string) {
	name, private := "stock-"+string(b.platform), canary("private")
	userData := "/" + b.userData
	if b.v1 != "200" {
		userData += " session"
	}
	id := s.create(strings.NewReplacer("NAME", name, "USERDATA", userData).Replace(nicManifest)+b.fields, "DB_PASSWORD="+private)
	var console string
	if b.lan { // imprint boot attaches imprint's interface and no other
		nic := s.nic(name)
		m := qemu.Machine{
			MemoryMiB: 768, Kernel: initrd.Kernel, Initrd: initrd.Initrd, Append: quietDisk, Instance: id,
			Disks: []qemu.Disk{{Path: disk}}, NICs: []qemu.NIC{nic, {MAC: "52:54:00:12:34:56"}},
		}
		if err := m.LookLike(b.platform); err != nil {
			t.Fatal(err)
		}
		console = boot(t, m, stockLimit).poweredOff()
	} else {
		console = s.bootVerb(name, initrd, disk, b.platform)
	}
	d := s.describe(name)
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIClClga4j7TmeFRB7jhdbnbZbJawYCd+Iv3clQzbvOs "
	expectConsole(t, console, append([]string{
		"guest: hostname " + name, "guest: key " + key + "operator@lab.internal", "guest: key " + key + "alice@lab.internal",
		fmt.Sprintf("guest: address %s/", d.Instance.NIC.IPv4),
		"guest: /" + b.userData + " from port 0: " + b.withheld, "guest: /" + b.userData + " from port 701: " + b.withheld,
		"guest: /openstack/latest/meta_data.json from port 700: 200", "guest: /latest/meta-data/instance-id from port 0: " + b.v1,
		"guest: host 169.254.169.254 scope link",
		"guest: /imprint/v1/param/db-password from port 0: 403", "guest: /imprint/v1/param/db-password from port 702: 200 " + private,
		"guest: done",
	}, b.console...)...)
	expectCalm(t, console, b.warning)

	lines := onRecord(d)
	var want []string
	for _, what := range b.served {
		want = append(want, "served "+what+" to any process")
	}
	const closed = ": the boot is closed; user data needs the enrolled key"
	want = append(want, "home from any process",
		"refused "+b.userData+closed+" to any process", "served openstack/latest/meta_data.json to root",
		"refused "+b.userData+closed+" to root")
	if b.v1 != "200" {
		want = append(want, "refused latest/meta-data/instance-id: EC2 metadata needs a session token (IMDSv2) to any process")
	}
	expectLines(t, lines, append(want, "read db-password")...)
	if slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, "served "+b.unserved) }) {
		t.Errorf("it asked for %s as well: %q", b.unserved, lines)
	}
	if d.Instance.Enrolment.HomeAt.IsZero() {
		t.Error("the record does not say that the machine has booted")
	}
	expectAbsent(t, s.data(), private)
}

const (
	quietDisk  = guest.Append + " systemd.show_status=0 " + guest.AppendDisk
	stockLimit = 5 * time.Minute // for a boot with others beside it
)

// of returns the server for a test of its own to use.
func (s *server) of(t *testing.T) *server {
	same := *s
	same.t = t
	return &same
}

// nic waits for the interface that the server makes for an instance.
func (s *server) nic(name string) qemu.NIC {
	s.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		d := s.describe(name)
		for _, port := range d.Ports {
			if port.Channel == imprint.LinkLocal && port.Interface != "" && d.Instance.NIC != nil {
				return qemu.NIC{MAC: d.Instance.NIC.MAC, Tap: port.Interface}
			}
		}
	}
	s.t.Fatalf("%s has no interface: %+v", name, s.describe(name).Ports)
	return qemu.NIC{}
}

// bootVerb runs "imprint boot" until the machine is off and returns its console.
func (s *server) bootVerb(name string, initrd guest.Image, disk string, platform qemu.Stock) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), stockLimit+10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program("imprint"), "--socket", filepath.Join(s.run(), "imprint.sock"),
		"boot", name, "--stock", string(platform), "--kernel", initrd.Kernel, "--initrd", initrd.Initrd, "--disk", disk,
		"--append", quietDisk, "--memory", "768", "--timeout", stockLimit.String())
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	console := strings.ReplaceAll(string(out), "\r", "")
	if err != nil {
		s.t.Fatalf("imprint boot: %v\n%s", err, console)
	}
	s.t.Logf("the machine ran for %.1f s", time.Since(begin).Seconds())
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("the guest's console:\n%s", console)
		}
	})
	return console
}

// onRecord is what the timeline says about who read what, a line each, without
// source ports.
func onRecord(d api.Description) (lines []string) {
	for _, e := range d.Timeline {
		from, _, _ := strings.Cut(e.Detail["from"], ",")
		switch e.Kind {
		case imprint.EventServed:
			lines = append(lines, "served "+e.Detail["what"]+" to "+from)
		case imprint.EventRefused:
			lines = append(lines, "refused "+e.Detail["reason"]+" to "+from)
		case imprint.EventHome:
			lines = append(lines, "home from "+from)
		case imprint.EventRead:
			lines = append(lines, "read "+e.Detail["param"])
		}
	}
	return lines
}

// expectLines fails the test unless the lines are there, in this order.
func expectLines(t *testing.T, lines []string, want ...string) {
	t.Helper()
	rest := lines
	for _, line := range want {
		i := slices.Index(rest, line)
		if i < 0 {
			t.Errorf("no %q, in its place, on the timeline:\n%s", line, strings.Join(lines, "\n"))
			return
		}
		rest = rest[i+1:]
	}
}

// missingHostKey is what cloud-init says when it phones home, of the SSH host
// keys that this image does not have.
var missingHostKey = regexp.MustCompile(`ssh_host_(dsa|rsa|ecdsa)_key.pub: failed to open, can not phone home that data`)

// expectCalm fails the test if cloud-init complained, other than in the words
// given, or had to ask for anything twice.
func expectCalm(t *testing.T, console, warning string) {
	t.Helper()
	if n := strings.Count(console, "Crawl of metadata"); n > 1 {
		t.Errorf("cloud-init reads its metadata %d times", n)
	}
	for line := range strings.Lines(console) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "guest: warning "):
			if !missingHostKey.MatchString(line) && (warning == "" || !strings.Contains(line, warning)) {
				t.Errorf("cloud-init complains: %s", line)
			}
		case !strings.HasPrefix(line, "guest: log "):
		case strings.Contains(line, "Crawl of metadata"):
			t.Log(line)
		case !strings.HasSuffix(line, "after 1 attempts"):
			t.Errorf("cloud-init waits: %s", line)
		}
	}
}
