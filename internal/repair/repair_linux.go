package repair

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"slices"
	"strings"

	"imprint"
	"imprint/internal/disk"
	"imprint/internal/job"
)

func keys[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }

// fixing is a repair under way.
type fixing struct {
	ctx   context.Context
	env   Env
	guest Guest
	path  string
	task  *job.Repair
	sys   *System
	done  job.Repaired
	dir   string // where the system is mounted
}

// did says what was done, or in a dry run would be.
func (f *fixing) did(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	f.done.Did = append(f.done.Did, s)
	f.env.Logf("%s", s)
}

func (f *fixing) warn(format string, args ...any) {
	f.done.Warnings = append(f.done.Warnings, fmt.Sprintf(format, args...))
}

// Fix does a repair to the disk at path. It fails as [Mount] and [disk.Open] do, and
// as each of what the task asks for: what cannot be done is told before anything is
// changed as far as that can be known. After any other failure the system boots as
// before or as it is to, unless the disk itself failed, and the same repair finishes it.
func Fix(ctx context.Context, env Env, guest Guest, path string, task *job.Repair) (*job.Repaired, error) {
	dir, err := os.MkdirTemp("", "imprint-root-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	f := &fixing{ctx: ctx, env: env, guest: guest, path: path, task: task, dir: dir}
	if err := f.mount(true); err != nil {
		return nil, err
	}
	err = f.plan()
	if err = errors.Join(err, f.sys.Unmount()); err != nil || task.DryRun {
		return &f.done, err
	}
	f.done.Did, f.done.Warnings = nil, nil
	if err := f.grow(); err != nil {
		return nil, err
	}
	if err := f.mount(false); err != nil {
		return nil, err
	}
	err = f.change()
	return &f.done, errors.Join(err, f.sys.Unmount())
}

func (f *fixing) mount(readOnly bool) (err error) {
	if f.sys, err = mountSystem(f.ctx, f.env, f.path, f.dir, f.task.RootPartition, readOnly); err != nil {
		return err
	}
	f.done.System, f.done.Root = f.sys.Name, f.sys.Root.Number
	return nil
}

// plan finds out what will be done, and fails if something cannot be. The system is
// mounted for reading.
func (f *fixing) plan() error {
	t := f.task
	for i := range f.sys.volumes {
		if v := &f.sys.volumes[i]; v.Hibernated && (t.NewIdentity || t.Grow) {
			return imprint.Errorf(imprint.Conflict, "repair", v.String(), "it has a system that is suspended, which would not wake up again").
				WithHint("shut the machine down instead")
		}
	}
	if t.Grow {
		if f.sys.table != nil {
			p, to, err := f.sys.table.Room(f.sys.Root.Number)
			if err != nil {
				return err
			}
			if to > p.Size {
				f.did("partition %d grows from %d to %d MiB", p.Number, p.Size>>20, to>>20)
			}
		}
		f.did("the filesystem on %s fills it, if it does not already", &f.sys.Root)
	}
	if len(t.Drivers) > 0 || t.RebuildInitramfs {
		r, err := f.sys.tree.initramfs(t.Drivers)
		if err != nil {
			return err
		}
		what := "is rebuilt"
		if len(t.Drivers) > 0 {
			what = "gets " + strings.Join(t.Drivers, ", ")
		}
		for _, version := range r.kernels {
			f.did("the initramfs of kernel %s %s", version, what)
		}
	}
	if t.NewIdentity {
		f.did("%d identifiers become new ones, also where the system refers to them", len(f.sys.newRenewal()))
		f.did("the machine ID, SSH host keys and random seeds that it has are removed")
	}
	return f.withESP(t.EFIFallback, func(esp *tree, v *Volume) error {
		f.done.Loader = f.sys.bootEntry(esp, v)
		if !t.EFIFallback {
			return nil
		}
		wrote, err := esp.fallback(true)
		for _, name := range wrote {
			f.did("%s is placed on the EFI system partition", name)
		}
		return f.noLoader(err)
	})
}

// withESP calls use with the EFI system partition. Without one nothing is called, which
// is a warning if it is needed.
func (f *fixing) withESP(needed bool, use func(*tree, *Volume) error) error {
	for _, m := range f.sys.mounted {
		if m.volume.Type != FAT {
			continue
		}
		t, err := openTree(m.at)
		if err != nil {
			return err
		}
		defer t.Close()
		if t.has("EFI") || t.has("loader") {
			return use(t, m.volume)
		}
	}
	for i := range f.sys.volumes {
		v := &f.sys.volumes[i]
		if v.Type != FAT || f.sys.uses(v) {
			continue
		}
		if found, err := f.lookAtESP(v, use); found || err != nil {
			return err
		}
	}
	if needed {
		f.warn("the disk has no EFI system partition: it starts by BIOS only")
	}
	return nil
}

// lookAtESP mounts a volume for as long as use has it, if it is an EFI system partition.
func (f *fixing) lookAtESP(v *Volume, use func(*tree, *Volume) error) (found bool, err error) {
	readOnly := f.sys.readOnly
	if !readOnly {
		if err := v.check(f.ctx, f.env, false); err != nil {
			return false, err
		}
	}
	err = v.tree(f.env, "", readOnly, func(t *tree) error {
		if found = t.has("EFI"); !found {
			return nil
		}
		return use(t, v)
	})
	return found, err
}

// grow lets the root partition grow, while nothing is mounted.
func (f *fixing) grow() error {
	if !f.task.Grow || f.sys.Root.Number == 0 {
		return nil
	}
	d, err := disk.Open(f.path)
	if err != nil {
		return err
	}
	defer d.Close()
	g, err := disk.PrepareGrowth(d, f.sys.Root.Number)
	if err != nil {
		return err
	}
	if err := g.Grow(); err != nil {
		return err
	}
	if g.To > g.Size {
		f.did("partition %d grew from %d to %d MiB", g.Number, g.Size>>20, g.To>>20)
	}
	return nil
}

// change changes the system, which is mounted.
func (f *fixing) change() error {
	t := f.task
	if t.Grow {
		if err := f.growFilesystem(); err != nil {
			return err
		}
	}
	rebuild := t.RebuildInitramfs
	if t.NewIdentity {
		changed, err := f.newIdentity()
		if err != nil {
			return err
		}
		// What has the old identifiers within it: Debian's only that of the swap space from
		// which it resumes, dracut's all that it waits for.
		rebuild = rebuild || slices.ContainsFunc(changed, func(name string) bool { return strings.HasPrefix(name, "etc/initramfs-tools/") }) ||
			f.sys.tree.has("usr/bin/dracut") && len(f.sys.tree.kernels()) > 0
	}
	if len(t.Drivers) > 0 || rebuild {
		r, err := f.sys.tree.initramfs(t.Drivers)
		if err != nil {
			return err
		}
		if err := r.rebuild(f.ctx, f.sys, f.guest); err != nil {
			return err
		}
		for _, version := range r.kernels {
			f.did("the initramfs of kernel %s was rebuilt%s", version, with(t.Drivers))
		}
	}
	return f.withESP(t.EFIFallback, func(esp *tree, v *Volume) error {
		f.done.Loader = f.sys.bootEntry(esp, v)
		if !t.EFIFallback {
			return nil
		}
		wrote, err := esp.fallback(false)
		for _, name := range wrote {
			f.did("%s was placed on the EFI system partition", name)
		}
		return f.noLoader(err)
	})
}

// growFilesystem lets the root filesystem fill its device.
func (f *fixing) growFilesystem() error {
	v := &f.sys.Root
	by, err := v.grow(f.dir)
	if err != nil && v.Type == Ext4 {
		// Old ones, for which no room was left at first, grow only when they are not mounted.
		f.env.Logf("%v", err)
		if err := f.sys.Unmount(); err != nil {
			return err
		}
		if err := v.check(f.ctx, f.env, true); err != nil {
			return err
		}
		if err := run(f.ctx, f.env, "resize2fs", v.Device); err != nil {
			return imprint.Errorf(imprint.Invalid, "grow", v.String(), "resize2fs: %w", err)
		}
		if err := f.mount(false); err != nil {
			return err
		}
		f.did("the filesystem on %s fills it", v)
		return nil
	}
	if err != nil {
		return err
	}
	if by > 0 {
		f.did("the filesystem on %s grew by %d MiB", v, by>>20)
	}
	return nil
}

// noLoader lets an EFI system partition that is empty be a warning, as one that is not there is.
func (f *fixing) noLoader(err error) error {
	if imprint.KindOf(err) == imprint.NotFound {
		f.warn("%v: %s", err, imprint.HintOf(err))
		return nil
	}
	return err
}

func with(drivers []string) string {
	if len(drivers) == 0 {
		return ""
	}
	return " with " + strings.Join(drivers, ", ")
}

// newIdentity lets the system differ from every copy of it, and returns the files that
// refer to its filesystems. It is unmounted and mounted again.
func (f *fixing) newIdentity() ([]string, error) {
	r, err := f.sys.renewal()
	if err != nil {
		return nil, err
	}
	changed, err := f.refer(r)
	if err != nil {
		return nil, err
	}
	if err := f.sys.Unmount(); err != nil {
		return nil, err
	}
	if err := r.renew(f.ctx, f.env, f.path, f.sys.volumes); err != nil {
		return nil, err
	}
	if err := f.mount(false); err != nil {
		return nil, err
	}
	// An interrupted renewal finds more of it mounted now.
	more, err := f.refer(r)
	if err != nil {
		return nil, err
	}
	changed = append(changed, more...)
	f.did("%d identifiers were renewed, and what refers to them in %d files", len(r), len(changed))
	gone, err := f.sys.tree.forget()
	if err != nil {
		return nil, err
	}
	err = f.withESP(false, func(esp *tree, _ *Volume) error {
		also, err := esp.forget()
		gone = append(gone, also...)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(gone) > 0 {
		f.did("what no two machines may have in common is gone: %s", strings.Join(gone, ", "))
	}
	if slices.ContainsFunc(gone, func(name string) bool { return strings.HasPrefix(name, "etc/ssh/") }) && !f.hostKeysFollow() {
		f.warn("nothing in the system makes SSH host keys at its next start: let the personalization do it, or install cloud-init")
	}
	_, err = f.sys.tree.remove(renewalFile)
	return changed, err
}

// refer lets the system and its EFI system partition refer to the new identifiers.
func (f *fixing) refer(r renewal) ([]string, error) {
	changed, err := f.sys.tree.refer(r)
	if err != nil {
		return nil, err
	}
	err = f.withESP(false, func(esp *tree, _ *Volume) error {
		more, err := esp.refer(r)
		changed = append(changed, more...)
		return err
	})
	return changed, err
}

// hostKeysFollow reports whether SSH host keys that are removed are made anew.
func (f *fixing) hostKeysFollow() bool {
	return f.sys.tree.makesHostKeys() || f.task.AgentFollows && !f.sys.tree.has("usr/sbin/imprint-agent")
}

// makesHostKeys reports whether the system is known to make SSH host keys when there are none.
func (t *tree) makesHostKeys() bool {
	return slices.ContainsFunc([]string{
		"usr/bin/cloud-init", "usr/libexec/openssh/sshd-keygen", "usr/lib/systemd/system/sshdgenkeys.service", "usr/sbin/sshd-gen-keys-start",
		"etc/systemd/system/multi-user.target.wants/imprint-ssh-keys.service",
	}, t.has)
}
