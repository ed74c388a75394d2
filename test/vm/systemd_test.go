//go:build vm

package vm_test

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/api"
	"imprint/demo/guest"
	"imprint/internal/platform/qemu"
)

const systemdManifest = `
name: web-1
dnsNames: [web-1.lab.internal]
enrolment: {approval: true}
params:
  private: {db-password: {env: DB_PASSWORD}}
`

// installed is what the packaging says to install, and the operator of the test.
var installed = []struct {
	from, to string
	mode     int64
}{
	{"../../packaging/agent/imprint-agent.service", "usr/lib/systemd/system/imprint-agent.service", 0o644},
	{"testdata/systemd/hook.sh", "etc/imprint/enrolled.d/10-tell", 0o755},
	{"testdata/systemd/look.sh", "usr/local/lib/test/look.sh", 0o644},
}

// The packaged unit on a Debian system with its own systemd. The agent is killed
// in the middle of its enrolment, and later the machine is off for five days.
func TestSystemdUnit(t *testing.T) {
	needQEMU(t)
	kernel, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "debian.raw")
	command(t, "cp", "--sparse=always", debianImage(t, kernel), disk)
	initrd, err := guest.Build(t.Context(), guest.Config{
		Cache: cache, Out: filepath.Join(t.TempDir(), "initrd.cpio"), Script: script(t, "systemd/boot.sh"),
	})
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t)
	private := canary("private")
	id := s.create(systemdManifest, "DB_PASSWORD="+private)
	m := qemu.Machine{
		CPUs: 2, MemoryMiB: 1024, Kernel: initrd.Kernel, Initrd: initrd.Initrd, Instance: id,
		Append:   guest.Append + " rdinit=/script systemd.show_status=0 TERM=dumb audit=0 apparmor=0 cloud-init=disabled",
		Channels: []qemu.Channel{{Kind: imprint.VirtioSerial, Socket: s.socket(id, imprint.VirtioSerial)}},
	}
	operated := func(operator string) qemu.Machine {
		m.Disks = []qemu.Disk{{Path: disk, Writable: true}, {Path: installation(t, operator)}}
		return m
	}

	v := boot(t, operated("first.sh"), 4*time.Minute)
	v.says("guest: killed")
	claimed := s.describe("web-1").Instance.Enrolment.Claim
	s.imprint(nil, "approve", "web-1")
	console := v.poweredOff()
	expectConsole(t, console,
		"guest: while it waits it is activating, the system starting",
		"guest: the system is running",
		"guest: ActiveState=active", "guest: SubState=running", "guest: NRestarts=1",
		"enrolled: web-1 reads "+fmt.Sprint(len(private))+" bytes")
	expectIdentity(t, console)
	d := s.describe("web-1")
	expectInOrder(t, d, imprint.EventClaimed, imprint.EventApproved, imprint.EventIssued, imprint.EventConfirmed, imprint.EventRead, imprint.EventClosed)
	expectOneKey(t, d, claimed)

	// Five days later its certificate is past two thirds of its life.
	s.kill()
	s.startLater(5 * 24 * time.Hour)
	console = boot(t, operated("again.sh"), 4*time.Minute).poweredOff()
	expectConsole(t, console,
		"guest: the system is running", "guest: ActiveState=active", "guest: NRestarts=0",
		"moving it forward", time.Now().UTC().Add(5*24*time.Hour).Format("guest: it is 2006-01-02"),
		"renewed: web-1 reads "+fmt.Sprint(len(private))+" bytes")
	expectIdentity(t, console)
	renewed := s.describe("web-1")
	expectInOrder(t, renewed, imprint.EventClosed, imprint.EventRenewed)
	expectOneKey(t, renewed, claimed)
	if old := d.Instance.Enrolment.Certificate.Serial; renewed.Instance.Enrolment.Certificate.Serial == old {
		t.Errorf("the certificate is still %s", old)
	}
	s.expectAbsent(private)
}

// expectIdentity fails the test unless the machine had its parameters and its
// certificates where they belong.
func expectIdentity(t *testing.T, console string) {
	t.Helper()
	expectConsole(t, console,
		"guest: parameters are on tmpfs",
		"guest: drwx------ root:root /run/imprint/params",
		"guest: -r-------- root:root /run/imprint/params/db-password",
		"guest: -rw------- root:root /etc/imprint/key.pem",
		"guest: -rw-r--r-- root:root /etc/imprint/cert.pem",
		"/run/imprint/params/db-password: Permission denied",
		"guest: openssl /etc/imprint/cert.pem: OK",
		"guest: sshd hostcertificate /etc/ssh/ssh_host_ed25519_key-cert.pub",
		"guest: ssh web-1.lab.internal")
	if strings.Contains(console, "nobody MAY") {
		t.Error("an unprivileged process read a parameter")
	}
}

// expectOneKey fails the test unless the machine claimed once.
func expectOneKey(t *testing.T, d api.Description, claim *imprint.Claim) {
	t.Helper()
	claims := 0
	for _, kind := range kinds(d) {
		if kind == imprint.EventClaimed {
			claims++
		}
	}
	if claims != 1 || d.Instance.Enrolment.Claim.Key != claim.Key {
		t.Errorf("%d claims; key %s claimed first and %s last", claims, claim.Key, d.Instance.Enrolment.Claim.Key)
	}
}

// installation returns a tar archive, as a disk, of what is to be installed;
// operator is the script of who looks at the machine.
func installation(t *testing.T, operator string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "installation.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	add := func(name string, mode int64, content []byte) {
		t.Helper()
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	link := func(name, target string) {
		t.Helper()
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range installed {
		content, err := os.ReadFile(file.from)
		if err != nil {
			t.Fatal(err)
		}
		add(file.to, file.mode, content)
	}
	agent, err := os.ReadFile(program("imprint-agent"))
	if err != nil {
		t.Fatal(err)
	}
	add("usr/sbin/imprint-agent", 0o755, agent)
	add("usr/local/lib/test/operator.sh", 0o755, script(t, "systemd/"+operator))
	add("etc/systemd/system/operator.service", 0o644, []byte("[Service]\nExecStart=/usr/local/lib/test/operator.sh\n"))
	add("etc/systemd/system/imprint-agent.service.d/time.conf", 0o644, []byte("[Service]\nRestartSec=1s\n"))               // half a minute less to wait
	for _, unit := range []string{"etc/systemd/system/operator.service", "usr/lib/systemd/system/imprint-agent.service"} { // as systemctl enable does
		link("etc/systemd/system/multi-user.target.wants/"+filepath.Base(unit), "/"+unit)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}
