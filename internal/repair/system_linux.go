package repair

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/disk"
)

// System is an operating system whose filesystems are mounted below a directory.
type System struct {
	Dir  string // where the root filesystem is mounted
	Name string // what it calls itself
	Root Volume

	env      Env
	readOnly bool
	table    *disk.Table // nil if the disk has no partitions
	volumes  []Volume
	tree     *tree
	mounted  []mounted
}

// mounted is a volume and where it is mounted: in the system, and on this machine.
type mounted struct {
	volume *Volume
	dir    string // such as "/boot/efi"
	at     string
}

// Mount finds the system on a disk, checks its filesystems and mounts them below dir,
// an empty directory, as the system's own fstab says: those that are on the disk and
// belong to the system. number is that of the partition with the root filesystem; 0
// is the only one with an operating system.
//
// It fails as [disk.Open] and [disk.Read] do; with kind [imprint.NotFound] if there is
// no system, or none on that partition; with [imprint.Conflict] if there are several;
// and with [imprint.Invalid] for filesystems that cannot be repaired or mounted.
func Mount(ctx context.Context, env Env, path, dir string, number int) (*System, error) {
	return mountSystem(ctx, env, path, dir, number, false)
}

func mountSystem(ctx context.Context, env Env, path, dir string, number int, readOnly bool) (*System, error) {
	table, volumes, err := inspect(path)
	if err != nil {
		return nil, err
	}
	found, err := roots(ctx, env, volumes)
	if err != nil {
		return nil, err
	}
	r, err := choose(found, volumes, number)
	if err != nil {
		return nil, err
	}
	s := &System{Dir: dir, Name: r.name, Root: *r.volume, env: env, readOnly: readOnly, table: table, volumes: volumes}
	if err := s.mountAll(ctx, r, readOnly); err != nil {
		return nil, errors.Join(err, s.Unmount())
	}
	return s, nil
}

func (s *System) mountAll(ctx context.Context, r root, readOnly bool) error {
	if err := s.mount(ctx, r.volume, "/", r.subvolume, readOnly); err != nil {
		return err
	}
	var err error
	if s.tree, err = openTree(s.Dir); err != nil {
		return err
	}
	b, err := s.tree.read("etc/fstab")
	if err != nil {
		b = nil // systemd and others mount what they need without one
	}
	entries, err := parseFstab(b)
	if err != nil {
		return err
	}
	slices.SortStableFunc(entries, func(a, b mount) int { return cmp.Compare(depth(a.dir), depth(b.dir)) })
	for i := range entries {
		m := &entries[i]
		again := slices.ContainsFunc(s.mounted, func(before mounted) bool { return before.dir == m.dir })
		if m.dir == "" || m.dir == "/" || !system(m.dir) || again {
			continue
		}
		v := m.find(s.volumes)
		if v == nil || !v.Type.linux() && v.Type != FAT {
			continue
		}
		if err := s.mount(ctx, v, m.dir, m.option("subvol"), readOnly); err != nil {
			return err
		}
	}
	s.Name = s.tree.system()
	return nil
}

// mount mounts a volume on a directory of the system.
func (s *System) mount(ctx context.Context, v *Volume, dir, subvolume string, readOnly bool) error {
	if len(s.mounted) == maxMounts {
		return imprint.Errorf(imprint.Exhausted, "mount", s.Root.String(), "its fstab has more than %d filesystems of the system", maxMounts)
	}
	t := s.tree
	if dir == "/" {
		var err error
		if t, err = openTree(s.Dir); err != nil {
			return err
		}
		defer t.Close()
	}
	at, err := t.open("."+dir, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) {
		s.env.Logf("%s is not mounted: the system has no directory %s", v, dir)
		return nil
	}
	if err != nil {
		return imprint.Errorf(imprint.Invalid, "mount", v.String()+" on "+dir, "%w", err)
	}
	defer at.Close()
	if !readOnly && !s.uses(v) {
		if err := v.check(ctx, s.env, false); err != nil {
			return err
		}
	}
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", at.Fd()))
	if err != nil {
		return err
	}
	if err := v.mountAt(s.env, at, subvolume, readOnly); err != nil {
		return err
	}
	s.mounted = append(s.mounted, mounted{v, dir, real})
	return nil
}

func (s *System) uses(v *Volume) bool {
	return slices.ContainsFunc(s.mounted, func(m mounted) bool { return m.volume == v })
}

// Unmount unmounts what [Mount] mounted, after which all of it is on the disk. It can
// be called again if it failed: with kind [imprint.Conflict] if somebody uses a filesystem.
func (s *System) Unmount() error {
	if s.tree != nil {
		s.tree.Close()
		s.tree = nil
	}
	for i := len(s.mounted) - 1; i >= 0; i-- {
		m := s.mounted[i]
		if err := unix.Unmount(m.at, unix.UMOUNT_NOFOLLOW); err != nil {
			kind := imprint.Internal
			if errors.Is(err, unix.EBUSY) {
				kind = imprint.Conflict
			}
			return imprint.Errorf(kind, "unmount", m.dir, "%w", err)
		}
		s.mounted = s.mounted[:i]
	}
	return nil
}

// check repairs what can be repaired without a question, as at every boot. thorough
// looks at everything even if the filesystem says that it is clean.
func (v *Volume) check(ctx context.Context, env Env, thorough bool) error {
	var args []string
	switch {
	case v.Type == Ext4 && thorough:
		args = []string{"e2fsck", "-f", "-p", v.Device}
	case v.Type == Ext4 && v.Dirty:
		args = []string{"e2fsck", "-p", v.Device}
	case v.Type == FAT && v.Dirty:
		args = []string{"fsck.vfat", "-a", "-w", v.Device}
	default: // XFS and Btrfs do it themselves when they are mounted
		return nil
	}
	err := run(ctx, env, args...)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() <= 3 && exit.ExitCode() > 0 { // fsck(8): errors corrected
		return nil
	}
	if errors.As(err, &exit) {
		return imprint.Errorf(imprint.Invalid, "check", v.String(), "the filesystem has errors that %s does not repair by itself", args[0]).
			WithHint("repair it first: %s -f, which asks what to do", strings.TrimSuffix(args[0], ".vfat"))
	}
	return err
}

// packages say where a program comes from on Debian.
func packages() map[string]string {
	return map[string]string{
		"e2fsck": "e2fsprogs", "tune2fs": "e2fsprogs", "resize2fs": "e2fsprogs", "xfs_db": "xfsprogs", "btrfstune": "btrfs-progs",
		"fsck.vfat": "dosfstools",
	}
}

// run runs a program of the host's, whose output is the log's. It fails with an
// [exec.ExitError] if that does, and with kind [imprint.NotFound] if there is no such program.
func run(ctx context.Context, env Env, args ...string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return imprint.Errorf(imprint.NotFound, "run", args[0], "the program is missing on this host").
			WithHint("install it: apt-get install %s", packages()[args[0]])
	}
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = env.Log(), env.Log()
	env.Logf("%s", strings.Join(args, " "))
	return cmd.Run()
}
