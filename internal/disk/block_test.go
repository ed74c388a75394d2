package disk_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/disk"
	"imprint/internal/media"
	"imprint/test/need"
)

// loop attaches an image of 64 MiB with a partition to a loop device, as args say.
func loop(t *testing.T, args ...string) (image, device string) {
	t.Helper()
	need.Root(t)
	losetup := need.Program(t, "losetup", "mount")
	_, err := os.Stat("/dev/loop-control")
	need.Kernel(t, err == nil, "loop devices")
	image = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	grow(t, image, 64*mib)
	sfdisk(t, image, "label: gpt\nstart=2048, size=20480, name=root\n")
	device = strings.TrimSpace(run(t, losetup, append(args, "--find", "--show", image)...))
	t.Cleanup(func() { run(t, losetup, "-d", device) })
	return image, device
}

// A block device gets its partition while nobody uses it, and the kernel knows of it
// at once, and of its end.
func TestBlockDevice(t *testing.T) {
	image, device := loop(t, "--partscan")
	before := read(t, image)
	name := filepath.Base(device)
	link := filepath.Join(t.TempDir(), "by-id") // as below /dev/disk
	if err := os.Symlink(device, link); err != nil {
		t.Fatal(err)
	}

	refused(t, image, imprint.Conflict, "it is attached to "+device)
	p := addTo(t, link, 16*mib)
	for file, want := range map[string]int64{"start": p.Start / sector, "size": p.Size / sector, "partition": 2} {
		b, err := os.ReadFile(fmt.Sprintf("/sys/block/%s/%sp2/%s", name, name, file))
		if strings.TrimSpace(string(b)) != fmt.Sprint(want) {
			t.Errorf("the kernel has the %s %q, %v; it is %d", file, b, err, want)
		}
	}
	refused(t, device+"p2", imprint.Invalid, "it is a partition")
	if out := run(t, "blkid", "-p", "-o", "export", device+"p2"); !strings.Contains(out, "LABEL=CONFIG-2\n") || !strings.Contains(out, "PART_ENTRY_NAME=config-2\n") {
		t.Errorf("blkid: %s", out)
	}
	intact(t, before, read(t, device), p)
	same(t, device, p)

	removeFrom(t, device)
	if _, err := os.Stat("/sys/block/" + name + "/" + name + "p2"); !os.IsNotExist(err) {
		t.Errorf("the kernel has it still: %v", err)
	}
	intact(t, before, read(t, device), p)
}

// A device is refused while something on it is mounted, whole or in part, or while
// another has opened it for itself.
func TestBlockDeviceInUse(t *testing.T) {
	image, device := loop(t, "--partscan")
	// The kernel may know no partition tables; sfdisk's package tells it of each.
	if _, err := os.Stat(device + "p1"); os.IsNotExist(err) {
		run(t, "addpart", device, "1", "2048", "20480")
	}
	run(t, "mke2fs", "-q", device+"p1")
	sum := func() string { return string(read(t, image)) }
	before := sum()
	unshared := func(script string) {
		t.Helper()
		run(t, "unshare", "--mount", "sh", "-e", "-c", script, "sh", device+"p1", t.TempDir())
	}
	d, err := disk.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	unshared(`! mount "$1" "$2" 2>/dev/null`) // not while it is being changed
	refused(t, device, imprint.Conflict, "it is mounted, or the kernel uses it for something else")
	d.Close()

	dir := t.TempDir()
	run(t, "mount", "-o", "ro", device+"p1", dir)
	refused(t, device, imprint.Conflict, "it is mounted, or the kernel uses it for something else")
	run(t, "umount", dir)

	f, err := os.OpenFile(device, os.O_RDONLY|os.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, device, imprint.Conflict, "it is mounted, or the kernel uses it for something else")
	f.Close()
	if sum() != before {
		t.Error("the device was written to")
	}
	addTo(t, device, 16*mib)
}

// Of a device whose partitions the kernel does not keep, it need not be told.
func TestDeviceWithoutPartitions(t *testing.T) {
	_, device := loop(t)
	p := addTo(t, device, 16*mib)
	same(t, device, p)
	removeFrom(t, device)
}

// A disk with sectors of 4096 bytes gets a table and a file system in such.
func TestSectorsOf4096(t *testing.T) {
	_, device := loop(t, "--partscan", "--sector-size", "4096")
	sfdisk(t, device, "label: gpt\nstart=256, size=2560, name=root\n")
	dump := run(t, "sfdisk", "--dump", device)
	for _, size := range []int64{17 * mib, 40 * mib} {
		p := addTo(t, device, size)
		if out := run(t, "sgdisk", "--verify", device); !strings.Contains(out, "No problems found") {
			t.Errorf("sgdisk --verify: %s", out)
		}
		if out := run(t, "sfdisk", "--dump", device); !strings.Contains(out, fmt.Sprintf("start= %11d, size= %11d", p.Start/4096, p.Size/4096)) {
			t.Errorf("sfdisk finds no partition from %d on:\n%s", p.Start/4096, out)
		}
		same(t, device, p)
		part := filepath.Join(t.TempDir(), "partition")
		if err := os.WriteFile(part, read(t, device)[p.Start:p.Start+p.Size], 0o600); err != nil {
			t.Fatal(err)
		}
		if out := run(t, "fsck.vfat", "-n", "-v", part); strings.Contains(out, "differ") || strings.Contains(out, "eclaimed") || !strings.Contains(out, "4096 bytes per logical sector") || !strings.Contains(out, "16 bit entries") {
			t.Errorf("fsck.vfat: %s", out)
		}
		if out := run(t, "blkid", "-p", "-o", "export", device+"p2"); !strings.Contains(out, "LABEL=CONFIG-2\n") {
			t.Errorf("blkid: %s", out)
		}
		f, err := os.Open(device)
		if err != nil {
			t.Fatal(err)
		}
		c, err := media.Inspect(f, 64*mib)
		f.Close()
		if err != nil || c.Label != "CONFIG-2" || c.Start != p.Start || !maps.EqualFunc(c.Files, drive().Files, bytes.Equal) {
			t.Errorf("inspected: %+v, %v", c, err)
		}
		removeFrom(t, device)
		if got := run(t, "sfdisk", "--dump", device); got != dump {
			t.Errorf("the table was\n%s\nand is\n%s", dump, got)
		}
	}
}
