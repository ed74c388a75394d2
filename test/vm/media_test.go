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

// The agent enrols with the payload on every volume that imprint writes, and overwrites
// it, unless it is a CD image: each is a disk of its own in one boot. The first disk is
// a volume of imprint's that is for others.
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
	for i, disk := range disks {
		name := strings.SplitN(filepath.Base(disk.Path), ".", 2)[0]
		if disk.Path == own.Path {
			name = "part-1"
		}
		wantsBlank := machines[name] != nil && machines[name][0] != "iso" || name == "part-1"
		changed := sumOf(t, disk.Path) != before[i]
		if changed != wantsBlank {
			t.Errorf("%s was written to: %t", filepath.Base(disk.Path), changed)
		}
		if name == "other-1" {
			continue
		}
		state, detail := imprint.MediumLeft, "it is a CD image, which the machine does not write to"
		if wantsBlank {
			state, detail = imprint.MediumTaken, "overwritten with zeros by the machine, and read back: vd"
		}
		if m := s.describe(name).Instance.Media; len(m) != 1 || m[0].State != state || !strings.Contains(m[0].Detail, detail) {
			t.Errorf("%s: on record %+v", name, m)
		}
	}
}

// The machine overwrites the partition of its own disk on which its payload was: nothing
// else of the disk, and not while it is mounted, which stays to be seen until it is done.
func TestMachineBlanksItsPartition(t *testing.T) {
	needQEMU(t)
	img := image(t, script(t, "ownvolume.sh"), "virtio_net", "vfat", "nls_cp437", "nls_ascii")
	s := newServer(t, "--check-in", freeAddress(t))
	id := s.create("name: web-1\ndnsNames: [web-1.lab.internal]\nchannels: [est]\n")
	s.create("name: other-1\n")
	disk := filepath.Join(t.TempDir(), "disk.raw")
	s.imprint(nil, "media", "other-1", "--dialect", "nocloud", "--carrier", "fat-gpt", "--out", disk)
	if err := os.Truncate(disk, 40<<20); err != nil {
		t.Fatal(err)
	}
	s.imprint(nil, "media", "web-1", "--dialect", "native", "--partition", disk)
	before := read(t, disk)
	at := strings.Index(before, "\xeb\x3c\x90IMPRINT ")
	at += 512 + strings.Index(before[at+512:], "\xeb\x3c\x90IMPRINT ") // the second file system
	const size = 16 << 20
	if at%(1<<20) != 0 || !strings.Contains(before[at:at+size], `"token":`) {
		t.Fatalf("the partition is not at %d", at)
	}

	m := enrolling(s, id, img)
	m.Disks, m.NICs = []qemu.Disk{{Path: disk, Writable: true}}, []qemu.NIC{{Open: true}}
	console := boot(t, m, 60*time.Second).poweredOff()
	expectConsole(t, console, "guest: mounted ended with status 0", "guest: unmounted ended with status 0", "guest: blank ended with status 0",
		"the volume that the payload was on stays: take away vda2: it is in use: it is mounted at /mnt", "no payload; going on as web-1")
	if strings.Contains(console, "guest: left the mount point") {
		t.Error("the agent left its mount point")
	}
	after := read(t, disk)
	if strings.Trim(after[at:at+size], "\x00") != "" {
		t.Error("something is left on the partition")
	}
	if after[:at] != before[:at] || after[at+size:] != before[at+size:] {
		t.Error("something else of the disk was written to")
	}

	d := s.describe("web-1")
	expectByToken(t, d)
	const how = "overwritten with zeros by the machine, and read back: vda2"
	if on := d.Instance.Media; len(on) != 1 || on[0].State != imprint.MediumTaken || on[0].Detail != how || on[0].Carrier != "partition" {
		t.Errorf("on record: %+v", on)
	}
	expectMedium(t, s, "web-1", imprint.EventLeft, "why", "take away vda2: it is in use: it is mounted at /mnt")
	expectMedium(t, s, "web-1", imprint.EventTaken, "how", how)
	if text := s.imprint(nil, "describe", "web-1"); strings.Contains(text, "Media") {
		t.Errorf("a medium that is gone is shown:\n%s", text)
	}
	s.imprint(nil, "media", "remove-partition", disk, "--label", "IMPRINT")
	if out := s.imprint(nil, "media", "web-1", "--dialect", "openstack", "--partition", disk); !strings.Contains(out, "written to partition 2") {
		t.Errorf("the room is not free again: %s", out)
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
