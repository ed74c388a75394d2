package guest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// What identifies the filesystems of an [Installable] image, as in every copy of it.
const (
	InstallableRoot = "5c1b8f2a-0d4e-4f6b-9a57-3e1d2c4b6a80"
	InstallableESP  = "1D2C-4B6A"
)

// Where its partitions are, in sectors of 512 bytes: the EFI system partition, and
// the root filesystem up to a MiB before the end of a disk of installableSize MiB.
const (
	installableSize = 768
	espStart        = 2048
	espSectors      = 65536
	rootStart       = espStart + espSectors
)

// installable is Debian 13 as a distributor's image has it: kernel, initramfs, boot
// loader, and identifiers that are the same in all copies. It is made on a machine
// with NVMe disks, so its initramfs has no driver for virtual ones; and its boot loader
// is where only a boot entry of the firmware finds it.
func installable() debian {
	return debian{
		suite: "trixie",
		packages: []string{"systemd", "systemd-sysv", "udev", "dbus", "iproute2", "kmod", "procps", "e2fsprogs", "zstd",
			"linux-image-cloud-amd64", "initramfs-tools", "grub-efi-amd64-bin", "grub2-common"},
		masked: slow(),
		files: map[string]string{
			"etc/fstab":                           "UUID=" + InstallableRoot + " / ext4 defaults,noatime 0 1\nUUID=" + InstallableESP + " /boot/efi vfat umask=0077,nofail 0 2\n",
			"etc/hostname":                        "unset\n",
			"etc/machine-id":                      "0123456789abcdef0123456789abcdef\n",
			"etc/initramfs-tools/conf.d/nvme":     "MODULES=list\nRESUME=none\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n",
			"etc/ssh/ssh_host_ed25519_key":        "of every copy\n",
			"var/lib/systemd/random-seed":         strings.Repeat("x", 32),
			"boot/efi/EFI/debian/grub.cfg":        "search.fs_uuid " + InstallableRoot + " root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n",
			"etc/initramfs-tools/modules":         "nvme\n",
			"etc/systemd/system.conf.d/test.conf": "[Manager]\nDefaultTimeoutStopSec=5s\n",
		},
	}
}

// Installable returns an image of Debian 13 to install from: qcow2, with a GPT, an EFI
// system partition and ext4. It takes mmdebstrap, sfdisk, mkfs.vfat, mtools, mke2fs and
// qemu-img, root, the network, and minutes to make one; cache keeps it as [Debian]'s.
func Installable(ctx context.Context, cache string) (image string, err error) {
	d := installable()
	sum := sha256.Sum256(fmt.Append(nil, d, installableSize, grubConfig("ABI")))
	image, err = filepath.Abs(filepath.Join(cache, fmt.Sprintf("installable-%x.qcow2", sum[:6])))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(image); err == nil {
		return image, nil
	}
	temp, err := os.MkdirTemp("", "installable-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	root, esp, disk := filepath.Join(temp, "root"), filepath.Join(temp, "esp"), filepath.Join(temp, "disk")
	if err := d.install(ctx, root, Kernel{}, "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*"); err != nil {
		return "", err
	}
	if err := bootable(ctx, root); err != nil {
		return "", err
	}
	for _, step := range [][]string{
		{"truncate", "-s", fmt.Sprint(espSectors * 512), esp},
		{"mkfs.vfat", "-F", "16", "-n", "ESP", "-i", strings.ReplaceAll(InstallableESP, "-", ""), esp},
		{"mcopy", "-s", "-i", esp, filepath.Join(root, "boot/efi/EFI"), "::"},
		{"rm", "-r", filepath.Join(root, "boot/efi/EFI")},
		{"truncate", "-s", fmt.Sprintf("%dM", installableSize), disk},
		{"sh", "-c", fmt.Sprintf("printf 'label: gpt\\nstart=%d, size=%d, type=uefi\\nstart=%d, type=linux\\n' | sfdisk -q %s", espStart, espSectors, rootStart, disk)},
		{"dd", "if=" + esp, "of=" + disk, "bs=512", fmt.Sprintf("seek=%d", espStart), "conv=notrunc", "status=none"},
		{"mke2fs", "-q", "-F", "-t", "ext4", "-L", "rootfs", "-U", InstallableRoot, "-d", root, "-E", fmt.Sprintf("offset=%d", rootStart*512),
			disk, fmt.Sprintf("%dK", (installableSize<<11-rootStart-2048)/2)},
		{"qemu-img", "convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd", disk, image + ".new"},
	} {
		if err := command(ctx, step[0], step[1:]...); err != nil {
			return "", err
		}
	}
	return image, os.Rename(image+".new", image)
}

// bootable gives the system below root its initramfs and boot loader.
func bootable(ctx context.Context, root string) error {
	kernels, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return fmt.Errorf("the image has %d kernels, want 1", len(kernels))
	}
	abi := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	if err := command(ctx, "chroot", root, "update-initramfs", "-u", "-k", abi); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, "boot/grub"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "boot/grub/grub.cfg"), []byte(grubConfig(abi)), 0o600); err != nil {
		return err
	}
	// As grub-install would, which wants to see the disk itself.
	return command(ctx, "chroot", root, "grub-mkimage", "-O", "x86_64-efi", "-p", "/EFI/debian", "-o", "/boot/efi/EFI/debian/grubx64.efi",
		"part_gpt", "fat", "ext2", "normal", "linux", "search", "search_fs_uuid", "configfile", "boot", "echo", "test")
}

func grubConfig(abi string) string {
	return fmt.Sprintf(`set timeout=0
menuentry 'Debian GNU/Linux' {
	search --no-floppy --fs-uuid --set=root %[1]s
	linux /boot/vmlinuz-%[2]s root=UUID=%[1]s ro console=ttyS0 quiet mitigations=off random.trust_cpu=on no_timer_check
	initrd /boot/initrd.img-%[2]s
}
`, InstallableRoot, abi)
}
