//go:build vm

package vm_test

import (
	"crypto/x509"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/platform/qemu"
	"imprint/test/need"
)

const webManifest = `
name: web-1
dnsNames: [web-1.lab.internal]
ips: [10.0.2.15]
params:
  public: {motd: Welcome.}
  private: {db-password: {env: DB_PASSWORD}}
  secret: {join-key: {env: JOIN_KEY}}
`

// A machine enrols as a child of PID 1 in an initramfs, over each channel and
// on each machine type, and only root and the key's holder see its values.
func TestBirth(t *testing.T) {
	needQEMU(t)
	img := image(t, nil)
	for _, c := range []struct {
		machine  qemu.Type
		channels []imprint.ChannelKind
		used     imprint.ChannelKind
		port     string // what nobody may read
	}{
		{qemu.Q35, []imprint.ChannelKind{imprint.Serial2}, imprint.Serial2, "/dev/ttyS1"},
		{qemu.Q35, []imprint.ChannelKind{imprint.VirtioSerial, imprint.Serial2}, imprint.VirtioSerial, "/dev/vport0p1"},
		{qemu.Microvm, []imprint.ChannelKind{imprint.VirtioSerial}, imprint.VirtioSerial, "/dev/vport0p1"},
		{qemu.Microvm, []imprint.ChannelKind{imprint.Serial2}, imprint.Serial2, "/dev/ttyS1"},
	} {
		t.Run(fmt.Sprintf("%s/%d/%s", c.machine, len(c.channels), c.used), func(t *testing.T) {
			s := newServer(t)
			private, secret := canary("private"), canary("secret")
			id := s.create(webManifest, "DB_PASSWORD="+private, "JOIN_KEY="+secret)
			m := enrolling(s, id, img, c.channels...)
			m.Type = c.machine
			console := boot(t, m, 60*time.Second).poweredOff()

			expectConsole(t, console,
				"root finds the private parameter on tmpfs: -r-------- root",
				"root reads the private parameter: "+private,
				"nobody is a working user",
				"nobody may not cat /run/imprint/params/db-password: Permission denied",
				"nobody may not cat /etc/imprint/key.pem: Permission denied",
				"nobody may not cat "+c.port+": Permission denied",
				"opens the secret parameter with the enrolled key: "+secret)
			if strings.Contains(console, "nobody MAY") {
				t.Error("an unprivileged process was not denied")
			}
			expectBirth(t, s, c.used)
			s.expectAbsent(private, secret)
		})
	}
}

// expectBirth checks the timeline of web-1 and its certificate.
func expectBirth(t *testing.T, s *server, used imprint.ChannelKind) {
	t.Helper()
	d := s.describe("web-1")
	expectInOrder(t, d, imprint.EventReserved, imprint.EventDelivered, imprint.EventClaimed, imprint.EventIssued,
		imprint.EventConfirmed, imprint.EventClosed)
	if !slices.Contains(kinds(d), imprint.EventRead) {
		t.Error("the private parameter was read, but the timeline does not tell")
	}
	e := d.Instance.Enrolment
	if e.Claim == nil || e.Claim.Tier != imprint.TierHost || e.Claim.Channel != used || e.Delivery == nil || e.Delivery.Channel != used {
		t.Fatalf("claim %+v, delivery %+v; want tier 3 over %s", e.Claim, e.Delivery, used)
	}
	leaf, err := x509.ParseCertificate(e.Certificate.DER)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(leaf.DNSNames, []string{"web-1.lab.internal"}) || len(leaf.URIs) != 1 ||
		!strings.HasSuffix(leaf.URIs[0].Path, "/instance/"+string(d.Instance.ID)+"/generation/1") {
		t.Errorf("the certificate names %v and %v", leaf.DNSNames, leaf.URIs)
	}
}

// What "imprint boot" does is what the tests above do by hand.
func TestBootVerb(t *testing.T) {
	needQEMU(t)
	img := image(t, nil)
	s := newServer(t)
	secret := canary("secret")
	s.create(webManifest, "DB_PASSWORD=x", "JOIN_KEY="+secret)
	console := s.imprint(nil, "boot", "web-1", "--kernel", img.Kernel, "--initrd", img.Initrd, "--append", "quiet panic=-1",
		"--channel", "serial", "--timeout", "50s")
	expectConsole(t, console, "opens the secret parameter with the enrolled key: "+secret)
	s.until("web-1", imprint.Closed)

	printed := s.imprint(nil, "boot", "web-1", "--kernel", img.Kernel, "--initrd", img.Initrd, "--print")
	if !strings.HasPrefix(printed, qemu.Program+" ") || strings.Contains(printed, secret) {
		t.Errorf("--print printed %s", printed)
	}
}

// The server dies while a guest waits for approval, and the guest goes on once
// it is back.
func TestServerCrashesWhileAGuestWaits(t *testing.T) {
	needQEMU(t)
	for _, kind := range []imprint.ChannelKind{imprint.Serial2, imprint.VirtioSerial} {
		t.Run(string(kind), func(t *testing.T) {
			s := newServer(t)
			id := s.create("name: web-1\ndnsNames: [web-1.lab.internal]\nenrolment: {approval: true}\n")
			v := boot(t, enrolling(s, id, image(t, script(t, "enrol.sh")), kind), 90*time.Second)
			s.until("web-1", imprint.Claimed)
			key := s.describe("web-1").Instance.Enrolment.Claim.Key
			s.kill()
			s.start()
			s.imprint(nil, "approve", "web-1")
			expectConsole(t, v.poweredOff(), "guest: enrolled with status 0")
			d := s.describe("web-1")
			expectInOrder(t, d, imprint.EventClaimed, imprint.EventApproved, imprint.EventIssued, imprint.EventConfirmed)
			if got := d.Instance.Enrolment.Claim.Key; got != key {
				t.Errorf("key %s confirmed, but %s claimed", got, key)
			}
		})
	}
}

// A machine loses its power after it claimed. It boots again with what is on
// its disk, and goes on with the same key.
func TestGuestLosesPowerAfterItsClaim(t *testing.T) {
	needQEMU(t)
	mke2fs := need.Program(t, "mke2fs", "e2fsprogs")
	disk := filepath.Join(t.TempDir(), "state.raw")
	if out, err := exec.Command(mke2fs, "-q", "-t", "ext4", disk, "16M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	s := newServer(t)
	id := s.create("name: web-1\ndnsNames: [web-1.lab.internal]\nenrolment: {approval: true}\n")
	m := enrolling(s, id, image(t, script(t, "enrol.sh")), imprint.VirtioSerial)
	m.Disks = []qemu.Disk{{Path: disk, Writable: true}}

	first := boot(t, m, 90*time.Second)
	s.until("web-1", imprint.Claimed)
	first.process.Kill()
	<-first.process.Done()
	key := s.describe("web-1").Instance.Enrolment.Claim.Key

	s.imprint(nil, "approve", "web-1")
	expectConsole(t, boot(t, m, 90*time.Second).poweredOff(), "guest: enrolled with status 0")
	d := s.describe("web-1")
	expectInOrder(t, d, imprint.EventClaimed, imprint.EventApproved, imprint.EventIssued, imprint.EventConfirmed)
	if got := d.Instance.Enrolment.Claim.Key; got != key {
		t.Errorf("key %s confirmed, but %s claimed", got, key)
	}
}
