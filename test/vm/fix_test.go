//go:build vm

package vm_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"imprint/demo/guest"
	"imprint/internal/platform/qemu"
	"imprint/test/need"
)

// toInstall returns a raw copy of the image to install from, of that many MiB, to which
// script has done what debugfs can.
func toInstall(t *testing.T, mib int, script string) string {
	t.Helper()
	need.Root(t)
	for program, pkg := range map[string]string{"mmdebstrap": "mmdebstrap", "qemu-img": "qemu-utils", "debugfs": "e2fsprogs", "mcopy": "mtools", "sfdisk": "fdisk"} {
		need.Program(t, program, pkg)
	}
	image, err := guest.Installable(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "disk.raw")
	command(t, "qemu-img", "convert", "-O", "raw", image, disk)
	command(t, "truncate", "-s", fmt.Sprintf("%dM", mib), disk)
	commands := filepath.Join(t.TempDir(), "commands")
	if err := os.WriteFile(commands, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "debugfs", "-w", "-f", commands, disk+rootOffset)
	return disk
}

// rootOffset is behind the name of an image where e2fsprogs are to look for its root filesystem.
const rootOffset = "?offset=34603008"

// helper runs imprint on a disk in a helper VM.
func helper(t *testing.T, args ...string) string {
	t.Helper()
	k, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program("imprint"), append(args, "--helper-kernel", k.Image)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("imprint %v: %v\n%s", args, err, &said)
	}
	return string(out)
}

// A distribution's image that this machine's firmware and kernel would not start, since
// it has no fallback loader and no driver for the disk, is fixed and boots: larger,
// and as no copy of what it was.
func TestFix(t *testing.T) {
	needQEMU(t)
	firmware, err := qemu.UEFI()
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "unit")
	const tell = `[Unit]
DefaultDependencies=no
After=systemd-remount-fs.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'exec > /dev/ttyS0; echo; echo MACHINE $(cat /etc/machine-id); echo ROOT $(findmnt -no UUID,SIZE /); echo DISK $(lsblk -dno PTUUID /dev/vda); sync; poweroff -ff'
`
	if err := os.WriteFile(unit, []byte(tell), 0o600); err != nil {
		t.Fatal(err)
	}
	disk := toInstall(t, 1536, "cd /etc/systemd/system\nwrite "+unit+" tell.service\nmkdir sysinit.target.wants\ncd sysinit.target.wants\nsymlink tell.service /etc/systemd/system/tell.service\n")
	did := helper(t, "fix", "--disk", disk, "--grow", "--new-identity", "--add-driver", "virtio_blk", "--efi-fallback")
	t.Log(did)
	command(t, "e2fsck", "-f", "-n", disk+rootOffset)
	m := qemu.Machine{Type: qemu.Q35, MemoryMiB: 512, Firmware: firmware, Disks: []qemu.Disk{{Path: disk}}}
	said := boot(t, m, 90*time.Second).poweredOff()
	found := regexp.MustCompile(`MACHINE ([0-9a-f]{32})\nROOT (\S+) +([0-9.]+)G\nDISK (\S+)`).FindStringSubmatch(said)
	switch {
	case found == nil:
		t.Fatalf("the machine says\n%s", said)
	case found[1] == "0123456789abcdef0123456789abcdef":
		t.Error("it has the machine ID of every copy")
	case found[2] == guest.InstallableRoot:
		t.Error("its root filesystem has the UUID of every copy")
	case found[3] < "1.3":
		t.Errorf("its root filesystem has only %s GiB", found[3])
	}
}

// What was deleted in an image is not in it any more, which is smaller now, and sound.
func TestZeroUnused(t *testing.T) {
	needQEMU(t)
	const canary = "what-was-deleted-must-not-be-found-"
	planted := filepath.Join(t.TempDir(), "planted")
	if err := os.WriteFile(planted, bytes.Repeat([]byte(canary), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	disk := toInstall(t, 768, "write "+planted+" planted\nrm planted\n")
	count := func() int {
		b, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(b, []byte(canary))
	}
	if n := count(); n < 1<<19 {
		t.Fatalf("only %d canaries were planted", n)
	}
	if dry := helper(t, "zero", "--disk", disk, "--dry-run"); !strings.Contains(dry, "would be zeroed") || count() < 1<<19 {
		t.Errorf("dry run: %s, and %d canaries are left", dry, count())
	}
	did := helper(t, "zero", "--disk", disk)
	if !regexp.MustCompile(`(?m)^2 +ext4 +\d\d\d +zeroed, and read back$`).MatchString(did) {
		t.Error(did)
	}
	if n := count(); n != 0 {
		t.Errorf("%d canaries are left", n)
	}
	command(t, "e2fsck", "-f", "-n", disk+rootOffset)
}
