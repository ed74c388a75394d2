//go:build vm

package vm_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"imprint/demo/guest"
	"imprint/internal/cpio"
	"imprint/internal/platform/qemu"
	"imprint/test/need"
)

// UEFI firmware loads a unified kernel image, whose stub hands the credentials that are
// beside it to the systemd in its initial RAM disk: those make the network and the
// payload's file, with which the machine enrols. Nothing else tells it anything.
func TestBirthFromSystemdStub(t *testing.T) {
	needQEMU(t)
	const (
		code = "/usr/share/OVMF/OVMF_CODE_4M.fd"
		vars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
		stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	)
	need.File(t, code, "ovmf")
	need.File(t, stub, "systemd-boot-efi")
	objcopy := need.Program(t, "objcopy", "binutils")
	mkfs, mcopy := need.Program(t, "mkfs.vfat", "dosfstools"), need.Program(t, "mcopy", "mtools")
	kernel, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, content string) string {
		if err := os.WriteFile(at(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return at(name)
	}

	// The sections of an image, in places that do not overlap (systemd-stub(7)).
	args, end := []string{}, 0x2000000
	for _, section := range []struct{ name, file string }{
		{".cmdline", write("cmdline", quietStub)}, {".linux", kernel.Image}, {".initrd", systemdInitrd(t, kernel, at("initrd"))},
	} {
		info, err := os.Stat(section.file)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, "--add-section", section.name+"="+section.file, "--change-section-vma", fmt.Sprintf("%s=%#x", section.name, end))
		end += (int(info.Size()) + 1<<20) &^ (1<<20 - 1)
	}
	command(t, objcopy, append(args, stub, at("uki"))...)

	s := newServer(t, "--check-in", freeAddress(t))
	id := s.create(`name: stub-1
dnsNames: [stub-1.lab.internal]
channels: [est]
network: {ethernets: {lan0: {macaddress: "52:54:00:12:34:56", addresses: [10.0.2.15/24]}}}
`)
	s.imprint(nil, "media", "stub-1", "--dialect", "credentials", "--carrier", "esp", "--out", at("esp"))
	// The firmware reads cluster by cluster, so large ones save it half of its time.
	command(t, mkfs, "-F", "16", "-s", "64", "-C", at("disk"), fmt.Sprint(256<<10))
	for _, made := range []string{"EFI", "EFI/BOOT"} {
		command(t, need.Program(t, "mmd", "mtools"), "-i", at("disk"), "::"+made)
	}
	command(t, mcopy, "-i", at("disk"), at("uki"), "::EFI/BOOT/BOOTX64.EFI")
	command(t, mcopy, "-s", "-i", at("disk"), at("esp/loader"), "::")
	write("vars", read(t, vars))

	console := boot(t, qemu.Machine{
		CPUs: 2, MemoryMiB: 1024, Instance: id,
		Disks: []qemu.Disk{{Path: at("disk")}}, NICs: []qemu.NIC{{MAC: "52:54:00:12:34:56", Open: true}},
		ReadConfig: write("firmware.conf", fmt.Sprintf(`[drive]
  if = "pflash"
  unit = "0"
  format = "raw"
  readonly = "on"
  file = %q
[drive]
  if = "pflash"
  unit = "1"
  format = "raw"
  file = %q
`, code, at("vars"))),
	}, stockLimit).poweredOff()
	expectByToken(t, s.describe("stub-1"))
	expectConsole(t, console, "guest: stub-1.lab.internal is enrolled by imprint-agent.service\n", "file /etc/imprint/payload.json: found a payload")
}

// quietStub is the kernel's command line of a unified image without a root file system.
// Without no_timer_check a busy host's emulated timer may fail the kernel's test of it.
const quietStub = "console=ttyS0 quiet loglevel=3 panic=-1 random.trust_cpu=on mitigations=off audit=0 apparmor=0 TERM=dumb " +
	"no_timer_check systemd.gpt_auto=0 rd.systemd.unit=multi-user.target systemd.show_status=0"

// spare is what of a Debian a small initial RAM disk does without.
var spare = regexp.MustCompile(`^(usr/share/(doc|man|locale|info|zoneinfo|perl5?|bash-completion|i18n|gcc|lintian)|usr/lib/(apt|locale|gcc)|` +
	`usr/lib/x86_64-linux-gnu/(gconv|perl.*|libapt.*|libdb-.*|libstdc.*|libsqlite.*)|usr/lib/udev/hwdb.*|usr/bin/(perl|apt|dpkg|sq|localedef|x86_64).*|var/(lib/(apt|dpkg)|cache)|boot|lost\+found)$`)

// systemdInitrd writes an initial RAM disk with the systemd of Debian 13, as distributions
// with dracut have it, and the agent with its unit enabled.
func systemdInitrd(t *testing.T, kernel guest.Kernel, path string) string {
	t.Helper()
	disk, tree := madeImage(t, kernel, guest.Bare), t.TempDir()
	command(t, need.Program(t, "debugfs", "e2fsprogs"), "-R", "rdump / "+tree, disk)
	var image bytes.Buffer
	packed, err := gzip.NewWriterLevel(&image, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	a := cpio.NewWriter(packed)
	const wants, unit = "etc/systemd/system/multi-user.target.wants/imprint-agent.service", "usr/lib/systemd/system/imprint-agent.service"
	a.Link("init", "usr/lib/systemd/systemd")
	a.File("etc/initrd-release", 0o644, []byte("ID=debian\n"))
	a.File("etc/hosts", 0o644, []byte("10.0.2.2 imprint.internal\n"))
	a.File("etc/imprint/enrolled.d/10-tell", 0o700, script(t, "systemd/tell.sh"))
	a.File("etc/modules-load.d/net.conf", 0o644, []byte("virtio_pci\nvirtio_net\n"))
	a.File("usr/sbin/imprint-agent", 0o755, []byte(read(t, program("imprint-agent"))))
	a.File(unit, 0o644, []byte(read(t, "../../packaging/agent/imprint-agent.service")))
	a.Link(wants, "/"+unit)
	err = fs.WalkDir(os.DirFS(tree), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." || a.Has(name) {
			return err
		}
		if spare.MatchString(name) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		module := strings.HasPrefix(name, "usr/lib/modules/") && strings.Contains(name, ".ko")
		switch {
		case d.IsDir():
			a.Dir(name, info.Mode().Perm()|info.Mode()&fs.ModeSticky)
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(filepath.Join(tree, name))
			if err != nil {
				return err
			}
			a.Link(name, target)
		case d.Type().IsRegular() && (!module || strings.Contains(name, "virtio") || strings.Contains(name, "failover")):
			b, err := os.ReadFile(filepath.Join(tree, name))
			if err != nil {
				return err
			}
			a.File(name, info.Mode().Perm(), b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Close(), packed.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, image.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
