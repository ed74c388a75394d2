//go:build vm

package vm_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/demo/guest"
	"imprint/internal/platform/qemu"
)

// The kernel mounts every volume that imprint writes, and the agent enrols with
// the payload on it: each is a disk of its own in one boot. The first disk is a
// volume of imprint's that is for others.
func TestBirthFromMedia(t *testing.T) {
	needQEMU(t)
	img := image(t, script(t, "volumes.sh"), "virtio_net", "isofs", "vfat", "nls_cp437", "nls_ascii")
	s := newServer(t, "--check-in", freeAddress(t))
	dir := t.TempDir()
	write := func(name, dialect, carrier string, more ...string) qemu.Disk {
		out := filepath.Join(dir, name+"."+carrier)
		s.imprint(nil, append([]string{"media", name, "--dialect", dialect, "--carrier", carrier, "--out", out}, more...)...)
		return qemu.Disk{Path: out, Writable: true}
	}
	id := s.create("name: other-1\n")
	disks := []qemu.Disk{write("other-1", "nocloud", "iso")}
	machines := map[string][]string{"iso-1": {"iso"}, "floppy-1": {"floppy"}, "fat16-1": {"fat"}, "fat32-1": {"fat", "--size", "64"}, "mbr-1": {"fat-mbr"}, "gpt-1": {"fat-gpt"}}
	for name, how := range machines {
		s.create(fmt.Sprintf("name: %s\ndnsNames: [%[1]s.lab.internal]\nchannels: [est]\n", name))
		disks = append(disks, write(name, "native", how[0], how[1:]...))
	}
	// A partition added to a disk that has others, and that its user enlarged.
	s.create("name: part-1\ndnsNames: [part-1.lab.internal]\nchannels: [est]\n")
	own := write("other-1", "nocloud", "fat-gpt")
	if err := os.Truncate(own.Path, 40<<20); err != nil {
		t.Fatal(err)
	}
	s.imprint(nil, "media", "part-1", "--dialect", "native", "--partition", own.Path)
	disks, machines["part-1"] = append(disks, own), nil
	before := digests(t, disks)

	m := enrolling(s, id, img)
	m.Disks, m.NICs = disks, []qemu.NIC{{Open: true}}
	console := boot(t, m, 90*time.Second).poweredOff()
	if n := strings.Count(console, "guest: ended with status 0"); n != len(machines) {
		t.Errorf("%d of %d machines enrolled", n, len(machines))
	}
	for name := range machines {
		expectByToken(t, s.describe(name))
		expectConsole(t, console, "guest: machine        "+name)
	}
	for i, after := range digests(t, disks) {
		if after != before[i] {
			t.Errorf("%s was written to", filepath.Base(disks[i].Path))
		}
	}
}

// mediumScript says which data source was used, and what the kernel finds on the
// second disk.
const mediumScript = `sed 's/^/guest: source /' /var/lib/cloud/instance/datasource; ` +
	`m=$(mktemp -d); mount -r /dev/vdb $m; cd $m; find . -type f -exec sha256sum {} + | sed 's/^/guest: file /'; ` +
	`find . -name 'meta*' -exec stat -c 'guest: mode %a %U' {} +; cd /; umount $m; `

// Debian's own cloud-init takes up what imprint put on a medium, and nothing
// serves it otherwise.
func TestStockCloudInitFromMedia(t *testing.T) {
	needQEMU(t)
	kernel, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	disk := debianImage(t, kernel)
	initrd := switchRoot(t)
	for _, c := range []struct {
		dialect, carrier, source string
	}{
		{"openstack", "iso", "DataSourceConfigDrive"},
		{"openstack", "fat", "DataSourceConfigDrive"},
		{"nocloud", "iso", "DataSourceNoCloud"},
	} {
		t.Run(c.dialect+" on "+c.carrier, func(t *testing.T) {
			s := newServer(t, "--check-in", freeAddress(t))
			private := canary("private")
			id := s.create(strings.Replace(stockManifest, `echo "guest: user data ran"`,
				mediumScript+`echo "guest: user data ran"`, 1), "DB_PASSWORD="+private)
			medium := filepath.Join(t.TempDir(), "medium")
			s.imprint(nil, "media", "stock-1", "--dialect", c.dialect, "--carrier", c.carrier, "--out", medium)
			m := qemu.Machine{
				Type: qemu.PC, CPUs: 2, MemoryMiB: 1024, Kernel: initrd.Kernel, Initrd: initrd.Initrd,
				Append: quietDisk, Instance: id,
				Disks: []qemu.Disk{{Path: disk}, {Path: medium}}, NICs: []qemu.NIC{{MAC: "52:54:00:12:34:56"}},
			}
			want := []string{"guest: hostname stock-1", "guest: key " + operatorKey, "guest: address 10.0.2.15/24", c.source, "guest: user data ran"}
			s.kill()
			console := boot(t, m, stockLimit).poweredOff()
			expectConsole(t, console, want...)
			expectAlice(t, console)
			if strings.Contains(console, "guest: the private value is in a file") || strings.Contains(console, private) {
				t.Error("the private value was on the medium")
			}
			if strings.Contains(console, "Invalid cloud-config") {
				t.Error("cloud-init finds fault with what it was given")
			}
			s.start()
			var on struct {
				Files []struct{ Path, SHA256 string }
			}
			if err := json.Unmarshal([]byte(s.imprint(nil, "media", "inspect", medium, "-o", "json")), &on); err != nil {
				t.Fatal(err)
			}
			for _, f := range on.Files {
				expectConsole(t, console, fmt.Sprintf("guest: file %s  ./%s\n", f.SHA256, f.Path))
			}
			if n := strings.Count(console, "guest: file "); n != len(on.Files) {
				t.Errorf("the kernel finds %d files, and %d were written", n, len(on.Files))
			}
			if c.carrier == "iso" { // Rock Ridge is heard
				expectConsole(t, console, "guest: mode 400 root\n")
			}
			if d := s.describe("stock-1"); d.Instance.Enrolment.State != imprint.Reserved {
				t.Errorf("a config drive made the machine %s", d.Instance.Enrolment.State)
			}
		})
	}
}
