package guest

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// SwitchRoot is a [Config.Script] that hands over to the system on the first
// disk. The kernel's command line has to have [AppendDisk] as well.
//
//go:embed switch-root.sh
var SwitchRoot []byte

// AppendDisk is what the kernel's command line needs besides [Append] for a
// system on a disk.
const AppendDisk = "rdinit=/script TERM=dumb audit=0 apparmor=0"

// debian is the recipe of a Debian system.
type debian struct {
	suite    string
	packages []string
	masked   []string          // units that only cost time under emulation
	enabled  []string          // units that are not by themselves
	files    map[string]string // by path
}

// debian12 has its own, unmodified cloud-init.
func debian12() debian {
	return debian{
		suite: "bookworm", // from mmdebstrap's own idea of Debian's archive
		packages: []string{
			"systemd", "systemd-sysv", "udev", "dbus", "cloud-init", "python3-serial", "openssh-server", "sudo",
			"iproute2", "ifupdown", "isc-dhcp-client", "net-tools", "netbase", "kmod", "procps", "ca-certificates",
		},
		masked: slow(),
		files: map[string]string{
			"etc/fstab":    rootfs,
			"etc/hostname": "unset\n",
			// The build host's resolver is none of the guest's.
			"etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
			// Fewer modules than Debian's default, for time; where data comes from is left to detection.
			"etc/cloud/cloud.cfg.d/99-test.cfg": `ssh_genkeytypes: [ed25519]
ssh_deletekeys: false
cloud_init_modules: [bootcmd, write-files, set_hostname, users-groups, ssh]
cloud_config_modules: [set-passwords, runcmd]
cloud_final_modules: [scripts-user, final-message, power-state-change]
`,
		},
	}
}

// debian13 has systemd 257 and little else, and no agent.
func debian13() debian {
	return debian{
		suite:    "trixie",
		packages: []string{"systemd", "systemd-sysv", "udev", "dbus", "iproute2", "kmod", "procps"},
		masked:   slow(),
		enabled:  []string{"systemd-networkd.service"},
		files:    map[string]string{"etc/fstab": rootfs, "etc/hostname": "unset\n"},
	}
}

const rootfs = "LABEL=rootfs / ext4 defaults,noatime 0 1\n"

// slow are units that only cost time under emulation.
func slow() []string {
	return []string{
		"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
		"fstrim.timer", "systemd-tmpfiles-clean.timer", "getty@tty1.service", "serial-getty@ttyS0.service", "systemd-pstore.service",
		"dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-binfmt.service",
		"keyboard-setup.service", "console-setup.service", "systemd-logind.service", "systemd-update-utmp.service",
		"modprobe@configfs.service", "modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@fuse.service",
	}
}

// Debian returns a raw disk image of Debian 12 with cloud-init, and with k's
// modules. It takes mmdebstrap, mke2fs, root, the network, and minutes to make one;
// cache keeps it for as long as recipe and kernel stay the same.
func Debian(ctx context.Context, cache string, k Kernel) (image string, err error) {
	return debian12().image(ctx, cache, k)
}

// Bare is [Debian] for a Debian 13 with systemd and systemd-networkd, and nothing
// that would configure it.
func Bare(ctx context.Context, cache string, k Kernel) (image string, err error) {
	return debian13().image(ctx, cache, k)
}

func (d debian) image(ctx context.Context, cache string, k Kernel) (image string, err error) {
	sum := sha256.Sum256(fmt.Append(nil, d, k.ABI))
	image, err = filepath.Abs(filepath.Join(cache, fmt.Sprintf("debian-%x.raw", sum[:6])))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(image); err == nil {
		return image, nil
	}
	temp, err := os.MkdirTemp("", "debian-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	root := filepath.Join(temp, "root")
	if err := d.install(ctx, root, k); err != nil {
		return "", err
	}
	fresh := image + ".new"
	os.Remove(fresh)
	if err := command(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "rootfs", "-O", "^has_journal", "-d", root, fresh, "1500M"); err != nil {
		return "", err
	}
	return image, os.Rename(fresh, image)
}

// install makes the system below root; more are arguments of mmdebstrap.
func (d debian) install(ctx context.Context, root string, k Kernel, more ...string) error {
	args := append([]string{"--quiet", "--variant=minbase", "--include=" + strings.Join(d.packages, ",")}, more...)
	if err := command(ctx, "mmdebstrap", append(args, d.suite, root)...); err != nil {
		return err
	}
	if k.ABI != "" { // else it has a kernel of its own
		modules := filepath.Join("lib", "modules", k.ABI)
		if err := os.CopyFS(filepath.Join(root, "usr", modules), os.DirFS(filepath.Join(k.Root, modules))); err != nil {
			return err
		}
	}
	for _, unit := range d.masked {
		if err := os.Symlink("/dev/null", filepath.Join(root, "etc/systemd/system", unit)); err != nil {
			return err
		}
	}
	for _, unit := range d.enabled {
		if err := command(ctx, "systemctl", "--root", root, "enable", unit); err != nil {
			return err
		}
	}
	for name, content := range d.files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.RemoveAll(path), os.MkdirAll(filepath.Dir(path), 0o755)); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func command(ctx context.Context, name string, arg ...string) error {
	if out, err := exec.CommandContext(ctx, name, arg...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}
