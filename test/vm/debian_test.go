//go:build vm

package vm_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imprint/demo/guest"
	"imprint/test/need"
)

// debian is the recipe of a Debian 12 system with its own, unmodified cloud-init.
var debian = struct {
	suite    string
	packages []string
	masked   []string          // units that only cost time under emulation
	files    map[string]string // by path
}{
	suite: "bookworm", // from mmdebstrap's own idea of Debian's archive
	packages: []string{
		"systemd", "systemd-sysv", "udev", "dbus", "cloud-init", "python3-serial", "openssh-server", "sudo",
		"iproute2", "ifupdown", "isc-dhcp-client", "netbase", "kmod", "procps", "ca-certificates",
	},
	masked: []string{
		"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
		"fstrim.timer", "systemd-tmpfiles-clean.timer", "getty@tty1.service", "serial-getty@ttyS0.service", "systemd-pstore.service",
		"dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-binfmt.service",
		"keyboard-setup.service", "console-setup.service", "systemd-logind.service", "systemd-update-utmp.service",
		"modprobe@configfs.service", "modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@fuse.service",
	},
	files: map[string]string{
		"etc/fstab":    "LABEL=rootfs / ext4 defaults,noatime 0 1\n",
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

// debianImage returns a raw ext4 image of the recipe. It takes a minute or more to
// make, and is kept for as long as recipe and kernel stay the same.
func debianImage(t *testing.T, k guest.Kernel) string {
	t.Helper()
	need.Root(t)
	mmdebstrap := need.Program(t, "mmdebstrap", "mmdebstrap")
	mke2fs := need.Program(t, "mke2fs", "e2fsprogs")
	recipe := sha256.Sum256(fmt.Append(nil, debian, k.ABI))
	image, err := filepath.Abs(filepath.Join(cache, fmt.Sprintf("debian-%x.raw", recipe[:6])))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(image); err == nil {
		return image
	}
	root := filepath.Join(t.TempDir(), "root")
	command(t, mmdebstrap, "--quiet", "--variant=minbase", "--include="+strings.Join(debian.packages, ","), debian.suite, root)
	modules := filepath.Join("lib", "modules", k.ABI)
	if err := os.CopyFS(filepath.Join(root, "usr", modules), os.DirFS(filepath.Join(k.Root, modules))); err != nil {
		t.Fatal(err)
	}
	for _, unit := range debian.masked {
		if err := os.Symlink("/dev/null", filepath.Join(root, "etc/systemd/system", unit)); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range debian.files {
		path := filepath.Join(root, name)
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	temp := image + ".new"
	os.Remove(temp)
	command(t, mke2fs, "-q", "-F", "-t", "ext4", "-L", "rootfs", "-O", "^has_journal", "-d", root, temp, "1500M")
	if err := os.Rename(temp, image); err != nil {
		t.Fatal(err)
	}
	return image
}

func command(t *testing.T, name string, arg ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, arg...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}
