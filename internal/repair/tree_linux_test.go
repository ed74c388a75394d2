package repair_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/job"
	"imprint/internal/repair"
)

// tree is a directory with files.
func tree(t *testing.T, files map[string]string) (*repair.Tree, string) {
	t.Helper()
	dir := t.TempDir()
	plant(t, dir, files)
	tr, err := repair.OpenTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr, dir
}

// Firmware without boot entries gets the best of the loaders that are there, with what
// that loads from beside it.
func TestFallback(t *testing.T) {
	x64 := func(text string) string { return efiProgram(0x8664, false, text) }
	for name, c := range map[string]struct {
		files map[string]string
		want  map[string]string // below EFI/BOOT, "" for the loader that is taken
	}{
		"shim and grub": {
			map[string]string{"EFI/debian/shimx64.efi": x64("shim"), "EFI/debian/grubx64.efi": x64("grub"), "EFI/debian/mmx64.efi": x64("mm"), "EFI/debian/grub.cfg": "cfg", "EFI/debian/BOOTX64.CSV": "csv"},
			map[string]string{"BOOTX64.EFI": x64("shim"), "grubx64.efi": x64("grub"), "mmx64.efi": x64("mm"), "grub.cfg": "cfg"},
		},
		"grub alone":         {map[string]string{"EFI/debian/grubx64.efi": x64("grub"), "EFI/debian/grub.cfg": "cfg"}, map[string]string{"BOOTX64.EFI": x64("grub"), "grub.cfg": "cfg"}},
		"systemd-boot":       {map[string]string{"EFI/systemd/systemd-bootx64.efi": x64("sd"), "loader/loader.conf": ""}, map[string]string{"BOOTX64.EFI": x64("sd")}},
		"another machine's":  {map[string]string{"EFI/debian/grubaa64.efi": efiProgram(0xaa64, false, "arm")}, map[string]string{"BOOTAA64.EFI": efiProgram(0xaa64, false, "arm")}},
		"Windows":            {map[string]string{"EFI/Microsoft/Boot/bootmgfw.efi": x64("win"), "EFI/BOOT/BOOTX64.EFI": x64("old")}, map[string]string{"BOOTX64.EFI": x64("win")}},
		"no program":         {map[string]string{"EFI/debian/shimx64.efi": "text", "EFI/debian/grubx64.efi": x64("grub")}, map[string]string{"BOOTX64.EFI": x64("grub")}},
		"a fallback already": {map[string]string{"EFI/BOOT/BOOTX64.EFI": x64("it")}, map[string]string{"BOOTX64.EFI": x64("it")}},
	} {
		tr, dir := tree(t, c.files)
		would, err := tr.Fallback(true)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		did, err := tr.Fallback(false)
		if err != nil || !slices.Equal(would, did) {
			t.Errorf("%s: would write %q, wrote %q, %v", name, would, did, err)
		}
		if len(did) > 0 && !strings.HasPrefix(did[len(did)-1], "EFI/BOOT/BOOT") {
			t.Errorf("%s: the loader is not the last of %q, though it needs the others", name, did)
		}
		names, _ := os.ReadDir(filepath.Join(dir, "EFI/BOOT"))
		if len(names) != len(c.want) {
			t.Errorf("%s: there are %v", name, names)
		}
		for file, content := range c.want {
			if read(t, filepath.Join(dir, "EFI/BOOT", file)) != content {
				t.Errorf("%s: %s has another content", name, file)
			}
		}
		if again, err := tr.Fallback(false); err != nil || len(again) != 0 {
			t.Errorf("%s: again: %q, %v", name, again, err)
		}
	}
	tr, _ := tree(t, map[string]string{"EFI/debian/readme": ""})
	if _, err := tr.Fallback(false); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("no loader: %v", err)
	}
}

// What refers to an identifier refers to the new one, whatever the habits of who
// wrote it; what only looks like one stays, and so does a program that is signed.
func TestRefer(t *testing.T) {
	const root, newRoot = "5c1b8f2a-0d4e-4f6b-9a57-3e1d2c4b6a80", "11111111-2222-4333-8444-555555555555"
	ids := map[string]string{root: newRoot, "1D2C-4B6A": "AAAA-BBBB", "89abcdef-02": "01234567-02", "deadbeef": "12345678"}
	unsigned, signed := efiProgram(0x8664, false, "search.fs_uuid "+root), efiProgram(0x8664, true, "search.fs_uuid "+root)
	tr, dir := tree(t, map[string]string{
		"etc/fstab":                         "UUID=" + root + " / ext4\nUUID=1D2C-4B6A /boot/efi vfat\nPARTUUID=89ABCDEF-02 /x xfs\n",
		"boot/grub/grub.cfg":                "id 'gnulinux-simple-" + root + "' --fs-uuid 1d2c-4b6a ffff1d2c-4b6a deadbeef 1D2C-4B6A0\n",
		"boot/grub/grubenv":                 "# GRUB Environment Block\nsaved_entry=gnulinux-simple-" + root + "\n" + strings.Repeat("#", 900),
		"EFI/debian/grubx64.efi":            unsigned,
		"EFI/debian/shimx64.efi":            signed,
		"home/user/notes":                   root,
		"etc/initramfs-tools/conf.d/resume": "->/dev/zero",
	})
	changed, err := tr.Refer(ids)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(changed)
	if got := strings.Join(changed, " "); got != "EFI/debian/grubx64.efi boot/grub/grub.cfg boot/grub/grubenv etc/fstab" {
		t.Errorf("changed %s", got)
	}
	for name, want := range map[string]string{
		"etc/fstab":              "UUID=" + newRoot + " / ext4\nUUID=AAAA-BBBB /boot/efi vfat\nPARTUUID=01234567-02 /x xfs\n",
		"boot/grub/grub.cfg":     "id 'gnulinux-simple-" + newRoot + "' --fs-uuid aaaa-bbbb ffff1d2c-4b6a deadbeef 1D2C-4B6A0\n",
		"EFI/debian/grubx64.efi": strings.ReplaceAll(unsigned, root, newRoot),
		"EFI/debian/shimx64.efi": signed,
		"home/user/notes":        root,
	} {
		if got := read(t, filepath.Join(dir, name)); got != want {
			t.Errorf("%s is\n%q\nwant\n%q", name, got, want)
		}
	}
	if env := read(t, filepath.Join(dir, "boot/grub/grubenv")); len(env) != 25+len("saved_entry=gnulinux-simple-\n")+36+900 {
		t.Errorf("the environment block has %d bytes", len(env))
	}
}

// Links of the system lead nowhere outside of it, and what is no file holds nobody up.
func TestHostileTree(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	plant(t, outside, map[string]string{"machine-id": "precious", "dhcp/x.leases": "precious", "ssh_host_rsa_key": "precious", "fstab": "5c1b8f2a-0d4e-4f6b-9a57-3e1d2c4b6a80"})
	up := strings.Repeat("../", 30) + strings.TrimPrefix(outside, "/")
	tr, dir := tree(t, map[string]string{
		"etc/machine-id":                "->" + up + "/machine-id",
		"etc/fstab":                     "->" + outside + "/fstab",
		"etc/default/grub":              "->" + up + "/fstab",
		"etc/ssh":                       "->" + outside,
		"var/lib/dhcp":                  "->" + up + "/dhcp",
		"var/lib/systemd/random-seed/x": "a directory",
		"etc/kernel":                    "->/etc/kernel",
		"EFI/BOOT":                      "->" + outside,
		"EFI/debian/grubx64.efi":        efiProgram(0x8664, false, "grub"),
	})
	if err := unix.Mkfifo(filepath.Join(dir, "etc/crypttab"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Refer(map[string]string{"5c1b8f2a-0d4e-4f6b-9a57-3e1d2c4b6a80": "11111111-2222-4333-8444-555555555555"}); err != nil {
		t.Error(err)
	}
	if _, err := tr.Forget(); err != nil {
		t.Error(err)
	}
	if info, err := os.Lstat(filepath.Join(dir, "etc/machine-id")); err != nil || !info.Mode().IsRegular() || info.Size() != 0 {
		t.Errorf("the machine ID is %v, %v", info, err)
	}
	tr.Fallback(false) // may fail, but within
	for name, want := range map[string]string{"machine-id": "precious", "dhcp/x.leases": "precious", "ssh_host_rsa_key": "precious", "fstab": "5c1b8f2a-0d4e-4f6b-9a57-3e1d2c4b6a80"} {
		if got := read(t, filepath.Join(outside, name)); got != want {
			t.Errorf("outside, %s is %q", name, got)
		}
	}
	if names, _ := os.ReadDir(outside); len(names) != 4 {
		t.Errorf("outside there are %v", names)
	}
}

// A fstab with thousands of lines, with /boot that is a link, and with the same
// filesystem everywhere, is mounted within bounds or refused.
func TestHostileFstab(t *testing.T) {
	everywhere, dirs := "", map[string]string{}
	for i := range 40 {
		everywhere += fmt.Sprintf("/dev/sda2 /home/%d ext4 defaults 0 0\n", i)
		dirs[fmt.Sprintf("home/%d/x", i)] = ""
	}
	for name, c := range map[string]struct {
		fstab, want string
		files       map[string]string
	}{
		"10,000 lines":     {strings.Repeat("LABEL=nobody /boot ext4 defaults 0 0\n", 10000), "", nil},
		"one often":        {strings.Repeat("/dev/sda2 /boot ext4 defaults 0 0\n", 10000), "", map[string]string{"boot/x": ""}},
		"one everywhere":   {everywhere, "more than 32 filesystems", dirs},
		"a link outside":   {"/dev/sda2 /boot ext4 defaults 0 0\n", "", map[string]string{"boot": "->../../../../tmp", "tmp/x": ""}},
		"a link to itself": {"/dev/sda2 /boot ext4 defaults 0 0\n", "too many levels of symbolic links", map[string]string{"boot": "->boot"}},
		"a file":           {"/dev/sda2 /boot ext4 defaults 0 0\n", "not a directory", map[string]string{"boot": ""}},
		"upwards":          {"/dev/sda2 /boot/../../../../etc ext4 defaults 0 0\n", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, device := attachOf(t, "label: gpt\nsize=64MiB\nsize=16MiB\n", 82)
			format(t, "ext4", device+"p1")
			format(t, "ext4", device+"p2")
			with(t, device+"p1", "", func(dir string) {
				plant(t, dir, map[string]string{"etc/os-release": osRelease, "etc/fstab": c.fstab})
				plant(t, dir, c.files)
			})
			dir := t.TempDir()
			s, err := repair.Mount(t.Context(), env(t), device, dir, 0)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, want %q", err, c.want)
				}
			} else if err != nil {
				t.Error(err)
			}
			mounts := read(t, "/proc/self/mounts")
			for line := range strings.Lines(mounts) {
				if f := strings.Fields(line); strings.HasPrefix(f[0], device) && f[1] != dir && !strings.HasPrefix(f[1], dir+"/") {
					t.Errorf("mounted outside: %s", line)
				}
			}
			if s != nil {
				if err := s.Unmount(); err != nil {
					t.Error(err)
				}
			}
			if strings.Contains(read(t, "/proc/self/mounts"), device) {
				t.Error("something is mounted still")
			}
		})
	}
}

// builders are systems whose initramfs can be rebuilt.
func builder(program, drivers string) map[string]string {
	return map[string]string{
		"etc/os-release": osRelease, program: "", drivers: "loop\n",
		"boot/vmlinuz-6.1": "", "boot/vmlinuz-0-rescue-x": "", "boot/vmlinuz-without-modules": "",
		"lib/modules/6.1/modules.dep":     "kernel/drivers/scsi/virtio_scsi.ko.xz: kernel/x.ko\nkernel/drivers/net/virtio_net.ko:\n",
		"lib/modules/6.1/modules.builtin": "kernel/drivers/nvme/host/nvme.ko\n",
	}
}

// Drivers are named where the system's own builder looks for them, it is run for each
// kernel, and success is that they are in what it built.
func TestDrivers(t *testing.T) {
	for name, c := range map[string]struct{ program, drivers, named, run, listing string }{
		"Debian": {"usr/sbin/update-initramfs", "etc/initramfs-tools/modules", "loop\nvirtio_scsi\nnvme\n", "/usr/sbin/update-initramfs -c -k 6.1", "usr/lib/modules/6.1/kernel/drivers/scsi/virtio_scsi.ko\n"},
		"Fedora": {"usr/bin/dracut", "etc/dracut.conf.d/imprint-drivers.conf", "loop\nadd_drivers+=\" virtio_scsi nvme \"\n", "/usr/bin/dracut --force --kver 6.1",
			"-rw-r--r-- 1 root root 1 Jan 1 1970 usr/lib/modules/6.1/kernel/drivers/scsi/virtio-scsi.ko.xz\n"},
	} {
		t.Run(name, func(t *testing.T) {
			_, device := attachOf(t, "label: gpt\nsize=64MiB\n", 66)
			format(t, "ext4", device+"p1")
			with(t, device+"p1", "", func(dir string) { plant(t, dir, builder(c.program, c.drivers)) })
			var runs []string
			listing := c.listing
			guest := func(_ context.Context, dir string, out io.Writer, argv ...string) error {
				if _, err := os.Stat(filepath.Join(dir, "etc/os-release")); err != nil {
					t.Error(err)
				}
				if strings.Contains(argv[0], "ls") {
					_, err := io.WriteString(out, listing)
					return err
				}
				runs = append(runs, strings.Join(argv, " "))
				return nil
			}
			task := &job.Repair{Drivers: []string{"virtio_scsi", "nvme"}}
			if _, err := repair.Fix(t.Context(), env(t), guest, device, task); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(runs, []string{c.run}) {
				t.Errorf("ran %q", runs)
			}
			with(t, device+"p1", "ro", func(dir string) {
				if got := read(t, filepath.Join(dir, c.drivers)); got != c.named {
					t.Errorf("named %q", got)
				}
			})
			listing = "nothing of it"
			if _, err := repair.Fix(t.Context(), env(t), guest, device, task); err == nil || !strings.Contains(err.Error(), "driver virtio_scsi is not in it") {
				t.Errorf("though the driver is not in it: %v", err)
			}
			failing := func(context.Context, string, io.Writer, ...string) error { return errors.New("exit status 1") }
			if _, err := repair.Fix(t.Context(), env(t), failing, device, task); err == nil || !strings.Contains(err.Error(), "exit status 1") {
				t.Errorf("though the builder failed: %v", err)
			}
			for driver, kind := range map[string]imprint.Kind{"e1000": imprint.NotFound, "../x": imprint.Invalid, "-k": imprint.Invalid, "a b": imprint.Invalid} {
				if _, err := repair.Fix(t.Context(), env(t), noGuest, device, &job.Repair{Drivers: []string{driver}}); imprint.KindOf(err) != kind || err == nil {
					t.Errorf("driver %q: %v", driver, err)
				}
			}
		})
	}
	tr, _ := tree(t, map[string]string{"boot/vmlinuz-6.1": ""})
	if _, err := tr.Initramfs("virtio_scsi"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("without a builder: %v", err)
	}
}
