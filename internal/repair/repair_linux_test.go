package repair_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/job"
	"imprint/internal/repair"
)

// bootAndRoot is a disk with /boot, swap space and, last, the root filesystem.
func bootAndRoot(t *testing.T, kind, label string, spare int64) (path, device string) {
	path, device, _ = bootAndRootOf(t, kind, label, spare)
	return path, device
}

func bootAndRootOf(t *testing.T, kind, label string, spare int64) (path, device string, detach func()) {
	t.Helper()
	root := least(kind)
	path = image(t, (64+16+root+3+spare)*mib, fmt.Sprintf("label: %s\nsize=64MiB\nsize=16MiB\nsize=%dMiB\n", label, root))
	device, detach = attach(t, path)
	format(t, "ext4", device+"p1")
	format(t, "swap", device+"p2", "-L", "swap")
	format(t, kind, device+"p3")
	boot, swap, uuid, part := tag(t, device+"p1", "UUID"), tag(t, device+"p2", "UUID"), tag(t, device+"p3", "UUID"), tag(t, device+"p3", "PART_ENTRY_UUID")
	options := ""
	if kind == "btrfs" {
		with(t, device+"p3", "", func(dir string) { run(t, "btrfs", "subvolume", "create", dir+"/@") })
		options = "subvol=/@"
	}
	with(t, device+"p3", options, func(dir string) {
		plant(t, dir, map[string]string{
			"etc/os-release":                 "->../usr/lib/os-release",
			"usr/lib/os-release":             osRelease,
			"etc/fstab":                      fmt.Sprintf("UUID=%s / %s defaults 0 1\n/dev/disk/by-uuid/%s /boot ext4 ro 0 2\nUUID=%s none swap sw 0 0\n# PARTUUID=%s\n", uuid, kind, boot, swap, part),
			"etc/machine-id":                 "0123456789abcdef0123456789abcdef\n",
			"etc/ssh/ssh_host_rsa_key":       "private",
			"etc/ssh/ssh_host_rsa_key.pub":   "public",
			"etc/imprint/key.pem":            "private",
			"etc/ssh/sshd_config":            "UsePAM yes\n",
			"var/lib/dbus/machine-id":        "->/etc/machine-id",
			"var/lib/systemd/random-seed":    "seed",
			"etc/default/grub":               "GRUB_CMDLINE_LINUX=\"root=PARTUUID=" + part + "\"\n",
			"boot/this-is-beneath-the-mount": "",
		})
	})
	with(t, device+"p1", "", func(dir string) {
		plant(t, dir, map[string]string{
			"grub/grub.cfg":             fmt.Sprintf("menuentry 'x' $menuentry_id_option 'gnulinux-simple-%s' {\nsearch --fs-uuid --set=root %s\nlinux /vmlinuz root=UUID=%s ro resume=UUID=%s\n}\n", uuid, boot, uuid, strings.ToUpper(swap)),
			"loader/entries/entry.conf": "options root=PARTUUID=" + part + "\n",
		})
	})
	return path, device, detach
}

// A system is found, and mounted as its own fstab says, on each filesystem.
func TestMount(t *testing.T) {
	for _, kind := range linux() {
		t.Run(kind, func(t *testing.T) {
			_, device := bootAndRoot(t, kind, "gpt", 0)
			dir := t.TempDir()
			s, err := repair.Mount(t.Context(), env(t), device, dir, 0)
			if err != nil {
				t.Fatal(err)
			}
			if s.Name != "Testix 1" || s.Root.Number != 3 || s.Root.Type != repair.Type(kind) {
				t.Errorf("found %q on %s", s.Name, &s.Root)
			}
			if _, err := os.Stat(filepath.Join(dir, "boot/grub/grub.cfg")); err != nil {
				t.Errorf("/boot is not mounted: %v", err)
			}
			if err := os.WriteFile(filepath.Join(dir, "etc/written"), nil, 0o600); err != nil {
				t.Error(err)
			}
			if err := s.Unmount(); err != nil {
				t.Fatal(err)
			}
			if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
				t.Errorf("unmounted, and still %v, %v", names, err)
			}
			sound(t, kind, device+"p3")
		})
	}
}

// A partition and its filesystem fill the disk; what is in them stays, and the
// filesystem's own program finds nothing wrong. Once they do, nothing is done.
func TestGrow(t *testing.T) {
	for _, kind := range linux() {
		for _, label := range []string{"gpt", "dos"} {
			t.Run(kind+" "+label, func(t *testing.T) {
				_, device := bootAndRoot(t, kind, label, 200)
				task := &job.Repair{Grow: true}
				dry := *task
				dry.DryRun = true
				would, err := repair.Fix(t.Context(), env(t), noGuest, device, &dry)
				if err != nil || len(would.Did) != 2 {
					t.Errorf("dry run: %+v, %v", would, err)
				}
				done, err := repair.Fix(t.Context(), env(t), noGuest, device, task)
				if err != nil {
					t.Fatal(err)
				}
				if len(done.Did) != 2 || !strings.Contains(done.Did[0], fmt.Sprintf("grew from %d to %d MiB", least(kind), least(kind)+201)) {
					t.Errorf("did %q", done.Did)
				}
				sound(t, kind, device+"p3")
				with(t, device+"p3", "", func(dir string) {
					var st unix.Statfs_t
					if err := unix.Statfs(dir, &st); err != nil || int64(st.Blocks)*st.Bsize < (least(kind)+100)*mib {
						t.Errorf("the filesystem has %d MiB, %v", int64(st.Blocks)*st.Bsize>>20, err)
					}
				})
				again, err := repair.Fix(t.Context(), env(t), noGuest, device, task)
				if err != nil || len(again.Did) != 0 {
					t.Errorf("again: %+v, %v", again, err)
				}
			})
		}
	}
}

// identity is what tells one disk from a copy.
func identity(t *testing.T, device string) map[string]string {
	t.Helper()
	return map[string]string{
		"disk": tag(t, device, "PTUUID"), "boot": tag(t, device+"p1", "UUID"), "swap": tag(t, device+"p2", "UUID"), "root": tag(t, device+"p3", "UUID"),
		"part": tag(t, device+"p3", "PART_ENTRY_UUID"),
	}
}

// renewed fails the test unless nothing is left of the old identity, everything refers
// to the new one, and the filesystems are sound.
func renewed(t *testing.T, kind, device string, old map[string]string) {
	t.Helper()
	new := identity(t, device)
	for name := range old {
		if old[name] == new[name] || new[name] == "" {
			t.Errorf("the %s has %q as before", name, new[name])
		}
	}
	if label := tag(t, device+"p2", "LABEL"); label != "swap" {
		t.Errorf("the swap space is called %q", label)
	}
	options := ""
	if kind == "btrfs" {
		options = "subvol=/@"
	}
	texts := map[string]string{}
	with(t, device+"p3", options, func(dir string) {
		for _, name := range []string{"etc/fstab", "etc/default/grub"} {
			texts[name] = read(t, filepath.Join(dir, name))
		}
		if id := read(t, filepath.Join(dir, "etc/machine-id")); id != "" {
			t.Errorf("the machine ID is %q", id)
		}
		for _, name := range []string{"etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_rsa_key.pub", "var/lib/systemd/random-seed", "var/lib/dbus/machine-id", "etc/imprint/key.pem", ".imprint-new-identity"} {
			if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
				t.Errorf("%s is still there", name)
			}
		}
		if read(t, filepath.Join(dir, "etc/ssh/sshd_config")) == "" {
			t.Error("sshd_config is gone")
		}
	})
	with(t, device+"p1", "", func(dir string) {
		for _, name := range []string{"grub/grub.cfg", "loader/entries/entry.conf"} {
			texts[name] = read(t, filepath.Join(dir, name))
		}
	})
	for name, text := range texts {
		for what, id := range old {
			if strings.Contains(strings.ToLower(text), strings.ToLower(id)) {
				t.Errorf("%s refers to the old %s:\n%s", name, what, text)
			}
		}
	}
	for name, wants := range map[string][]string{
		"etc/fstab": {"UUID=" + new["root"] + " /", "by-uuid/" + new["boot"] + " /boot", "UUID=" + new["swap"] + " none", "PARTUUID=" + new["part"]}, "etc/default/grub": {"PARTUUID=" + new["part"]},
		"grub/grub.cfg": {"simple-" + new["root"], "set=root " + new["boot"], "root=UUID=" + new["root"], "resume=UUID=" + new["swap"]}, "loader/entries/entry.conf": {new["part"]},
	} {
		for _, want := range wants {
			if !strings.Contains(texts[name], want) {
				t.Errorf("%s lacks %q:\n%s", name, want, texts[name])
			}
		}
	}
	sound(t, kind, device+"p3")
	sound(t, "ext4", device+"p1")
}

// A copy of a disk becomes one of its own: identifiers are new and everything that
// refers to them follows, the machine's own keys are gone, and nothing else.
func TestNewIdentity(t *testing.T) {
	for _, kind := range linux() {
		for _, label := range []string{"gpt", "dos"} {
			t.Run(kind+" "+label, func(t *testing.T) {
				_, device := bootAndRoot(t, kind, label, 0)
				old := identity(t, device)
				done, err := repair.Fix(t.Context(), env(t), noGuest, device, &job.Repair{NewIdentity: true})
				if err != nil {
					t.Fatal(err)
				}
				renewed(t, kind, device, old)
				if len(done.Warnings) != 1 || !strings.Contains(done.Warnings[0], "SSH host keys") {
					t.Errorf("nobody makes host keys, and the warnings are %q", done.Warnings)
				}
			})
		}
	}
}

// Nobody is told to see to SSH host keys where the agent's unit makes them.
func TestHostKeysFollow(t *testing.T) {
	_, device := bootAndRoot(t, "ext4", "gpt", 0)
	done, err := repair.Fix(t.Context(), env(t), noGuest, device, &job.Repair{NewIdentity: true, AgentFollows: true})
	if err != nil || len(done.Warnings) != 0 {
		t.Errorf("%v, the warnings are %q", err, done.Warnings)
	}
}

// At whatever step a repair is interrupted, the same repair finishes it.
func TestInterrupted(t *testing.T) {
	for _, kind := range []string{"ext4"} { // the steps are the same with the others
		t.Run(kind, func(t *testing.T) {
			pristine, device, detach := bootAndRootOf(t, kind, "gpt", 0)
			old := identity(t, device)
			detach()
			task := &job.Repair{NewIdentity: true, Grow: true}
			finished := false
			for n := 1; !finished; n++ {
				path := filepath.Join(t.TempDir(), "copy.raw")
				run(t, "cp", "--sparse=always", pristine, path)
				device, detach := attach(t, path)
				ctx, cancel := context.WithCancel(t.Context())
				e := env(t)
				e.stop, e.after = cancel, n
				_, err := repair.Fix(ctx, e, noGuest, device, task)
				cancel()
				if finished = err == nil; finished && n < 4 {
					t.Errorf("it has only %d steps", n)
				}
				if err != nil && !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "killed") {
					t.Errorf("step %d: %v", n, err)
				}
				if err != nil {
					if _, err := repair.Fix(t.Context(), env(t), noGuest, device, task); err != nil {
						t.Fatalf("step %d: again: %v", n, err)
					}
					renewed(t, kind, device, old)
				}
				detach()
				os.Remove(path)
			}
		})
	}
}

// twoRoots has a system on each of two partitions.
func twoRoots(t *testing.T) string {
	_, device := attachOf(t, "label: gpt\nsize=64MiB\nsize=64MiB\n", 130)
	for n := 1; n <= 2; n++ {
		part := fmt.Sprintf("%sp%d", device, n)
		format(t, "ext4", part)
		with(t, part, "", func(dir string) {
			plant(t, dir, map[string]string{"etc/os-release": fmt.Sprintf("PRETTY_NAME=\"System %d\x1b[31m\"\n", n)})
		})
	}
	return device
}

func attachOf(t *testing.T, table string, size int64) (path, device string) {
	path = image(t, size*mib, table)
	device, _ = attach(t, path)
	return path, device
}

// Which of two systems is meant has to be said, and the message names both.
func TestTwoRoots(t *testing.T) {
	device := twoRoots(t)
	_, err := repair.Mount(t.Context(), env(t), device, t.TempDir(), 0)
	if imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "System 1") || !strings.Contains(err.Error(), "System 2") ||
		strings.Contains(err.Error(), "\x1b") || !strings.Contains(imprint.HintOf(err), "--root-partition") {
		t.Errorf("%q, hint %q", err, imprint.HintOf(err))
	}
	s, err := repair.Mount(t.Context(), env(t), device, t.TempDir(), 2)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(s.Name, "System 2") {
		t.Errorf("found %q", s.Name)
	}
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	if _, err := repair.Mount(t.Context(), env(t), device, t.TempDir(), 3); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("a partition that is not there: %v", err)
	}
}

// Disks without a system that imprint can get at are refused, and the message says why.
func TestNoRoot(t *testing.T) {
	for name, c := range map[string]struct {
		make func(t *testing.T, part string)
		want string
	}{
		"nothing": {func(*testing.T, string) {}, "no filesystem of the disk has an operating system"},
		"only data": {func(t *testing.T, part string) {
			format(t, "ext4", part)
			format(t, "ext4", strings.TrimSuffix(part, "1")+"2")
		}, "no filesystem of the disk has an operating system"},
		"LUKS": {func(t *testing.T, part string) { scribble(t, part, 0, "LUKS\xba\xbe\x00\x02") }, "partition 1 (a LUKS volume), which imprint cannot look into"},
		"LVM":  {func(t *testing.T, part string) { scribble(t, part, 512, "LABELONE") }, "partition 1 (an LVM physical volume), which"},
		"damaged ext4": {func(t *testing.T, part string) {
			format(t, "ext4", part)
			scribble(t, part, 2048, strings.Repeat("x", 4000000))
		}, "partition 1 (ext4)"},
	} {
		t.Run(name, func(t *testing.T) {
			_, device := attachOf(t, "label: gpt\nsize=64MiB\nsize=16MiB\n", 82)
			c.make(t, device+"p1")
			_, err := repair.Fix(t.Context(), env(t), noGuest, device, &job.Repair{Grow: true})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func scribble(t *testing.T, path string, at int64, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte(text), at)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}
