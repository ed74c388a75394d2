package repair

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/disk"
)

// Env is the surroundings of a repair, such as a helper VM.
type Env interface {
	// Modprobe loads a kernel module, unless the kernel has it already.
	Modprobe(name string) error
	// Logf says something in the log, and Log takes the output of programs for it.
	Logf(format string, args ...any)
	Log() io.Writer
	// Progress says how much is done. Total 0 is not known.
	Progress(done, total int64, unit string)
}

// inspect reads the table of a disk and what its partitions hold, and lets the
// kernel know of them. It fails as [disk.Open] and [disk.Read] do.
func inspect(path string) (*disk.Table, []Volume, error) {
	d, err := disk.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer d.Close()
	if v, err := probe(d); err != nil {
		return nil, nil, unreadable(path, err)
	} else if v.Type.linux() || v.Type == Swap || v.Foreign != "" { // FAT and NTFS look like a boot record
		v.Device = path
		return nil, []Volume{v}, nil
	}
	t, err := disk.Read(d, d.Size(), d.SectorSize())
	if err != nil {
		return nil, nil, err
	}
	var volumes []Volume
	for _, p := range t.Partitions {
		if p.Type == 0x05 || p.Type == 0x0f || p.Type == 0x85 {
			continue // it holds others, which are in the list
		}
		v, err := probe(io.NewSectionReader(d, p.Start, p.Size))
		if err != nil {
			return nil, nil, unreadable(path, err)
		}
		v.Number, v.PartUUID, v.PartName = p.Number, t.PartUUID(p), p.Name
		if v.Device, err = announce(d, path, p); err != nil {
			return nil, nil, err
		}
		volumes = append(volumes, v)
	}
	return t, volumes, nil
}

func unreadable(path string, err error) error {
	return imprint.Errorf(imprint.Unavailable, "read", path, "%w", err)
}

// announce returns the block device of a partition, after it told the kernel of
// that if it knew none, or one of another size.
func announce(d *disk.File, path string, p disk.Partition) (string, error) {
	name, same := known(path, p)
	if !same {
		if name != "" {
			if err := d.Tell(p, false); err != nil {
				return "", err
			}
		}
		if err := d.Tell(p, true); err != nil {
			return "", err
		}
		if name, same = known(path, p); !same {
			return "", imprint.Errorf(imprint.Unavailable, "announce", p.String()+" of "+path, "the kernel keeps no partitions of this device").
				WithHint("for a loop device: losetup --partscan")
		}
	}
	return "/dev/" + name, nil
}

// known returns the kernel's name of a partition, and whether it is where p is.
func known(path string, p disk.Partition) (name string, same bool) {
	dirs, _ := filepath.Glob(filepath.Join("/sys/class/block", filepath.Base(path), "*", "partition"))
	for _, at := range dirs {
		dir := filepath.Dir(at)
		if number(dir, "partition") == int64(p.Number) {
			return filepath.Base(dir), number(dir, "start")*512 == p.Start && number(dir, "size")*512 == p.Size
		}
	}
	return "", false
}

// number reads a number of sysfs, and is -1 if there is none.
func number(dir, name string) int64 {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return -1
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// mountAt mounts a volume on the directory that is open as dir. subvolume is of Btrfs; "" is the default one.
func (v *Volume) mountAt(env Env, dir *os.File, subvolume string, readOnly bool) error {
	if !supported(v.Type) {
		if err := env.Modprobe(string(v.Type)); err != nil {
			return err
		}
	}
	if v.Type == FAT { // its character sets are modules of their own, which Linux asks user space for
		for _, name := range []string{"nls_cp437", "nls_ascii", "nls_iso8859-1"} {
			if err := env.Modprobe(name); err != nil && imprint.KindOf(err) != imprint.NotFound {
				return err // one that is not there is built in, or not this kernel's default
			}
		}
	}
	var data []string
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	switch v.Type {
	case Ext4:
		data = append(data, "errors=remount-ro")
		if readOnly {
			data = append(data, "noload")
		}
	case XFS:
		data = append(data, "nouuid")
		if readOnly {
			data = append(data, "norecovery")
		}
	case Btrfs:
		if readOnly {
			data = append(data, "rescue=nologreplay")
		}
		if subvolume != "" {
			data = append(data, "subvol="+subvolume)
		}
	}
	target := fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	if err := unix.Mount(v.Device, target, string(v.Type), flags, strings.Join(data, ",")); err != nil {
		return v.mountFailed(err)
	}
	return nil
}

// supported reports whether the kernel has a filesystem.
func supported(t Type) bool {
	b, _ := os.ReadFile("/proc/filesystems")
	return slices.Contains(strings.Fields(string(b)), string(t))
}

func (v *Volume) mountFailed(err error) error {
	e := imprint.Errorf(imprint.Invalid, "mount", v.String(), "%w", err)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EIO):
		return e.WithHint("the filesystem may be damaged: check it with its own fsck")
	case errors.Is(err, unix.ENODEV):
		return e.WithHint("the kernel has no driver for %s", v.Type)
	}
	return e
}

// mounted mounts a volume at a directory of its own for as long as use runs.
func (v *Volume) mounted(env Env, subvolume string, readOnly bool, use func(dir string) error) (err error) {
	dir, err := os.MkdirTemp("", "imprint-volume-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	at, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer at.Close()
	if err := v.mountAt(env, at, subvolume, readOnly); err != nil {
		return err
	}
	defer func() {
		if e := unix.Unmount(dir, 0); e != nil && err == nil {
			err = imprint.Errorf(imprint.Internal, "unmount", v.String(), "%w", e)
		}
	}()
	return use(dir)
}

// tree is what a volume has, mounted for as long as use runs.
func (v *Volume) tree(env Env, subvolume string, readOnly bool, use func(*tree) error) error {
	return v.mounted(env, subvolume, readOnly, func(dir string) error {
		t, err := openTree(dir)
		if err != nil {
			return err
		}
		defer t.Close()
		return use(t)
	})
}

// root is a volume that has an operating system.
type root struct {
	volume    *Volume
	subvolume string // of Btrfs
	name      string // what the system calls itself, as far as it can be told before all is mounted
}

// subvolumes are where Btrfs has a root filesystem that is not the default
// subvolume: Ubuntu's, Debian's, Fedora's.
func subvolumes() []string { return []string{"/@", "/@rootfs", "/root"} }

// roots finds the volumes that have a Linux system.
func roots(ctx context.Context, env Env, volumes []Volume) ([]root, error) {
	var found []root
	for i := range volumes {
		v := &volumes[i]
		if !v.Type.linux() {
			continue
		}
		try := []string{""}
		if v.Type == Btrfs {
			try = append(try, subvolumes()...)
		}
		for _, sub := range try {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			var name string
			var is bool
			err := v.tree(env, sub, true, func(t *tree) error {
				is = t.has("etc/os-release") || t.has("usr/lib/os-release") || t.has("etc/fstab") && t.has("etc/passwd")
				name = t.system()
				return nil
			})
			if sub != "" && errors.Is(err, unix.ENOENT) {
				continue // no such subvolume
			}
			if err != nil {
				env.Logf("%s: %v", v, err)
				break
			}
			if is {
				found = append(found, root{v, sub, name})
				break
			}
		}
	}
	return found, nil
}

const unnamed = "an unnamed system"

// system returns what the system calls itself.
func (t *tree) system() string {
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		b, err := t.read(name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
				if value = printable(strings.Trim(value, `"'`)); value != "" {
					return value[:min(len(value), 200)]
				}
			}
		}
	}
	return unnamed
}

// choose returns the root that is meant: that on partition number or, if it is 0, the only one.
func choose(found []root, volumes []Volume, number int) (root, error) {
	const op, operand = "find", "root filesystem"
	if number != 0 {
		if i := slices.IndexFunc(found, func(r root) bool { return r.volume.Number == number }); i >= 0 {
			return found[i], nil
		}
		i := slices.IndexFunc(volumes, func(v Volume) bool { return v.Number == number })
		if i < 0 {
			return root{}, imprint.Errorf(imprint.NotFound, op, operand, "the disk has no partition %d", number).WithHint("its partitions are: %s", listed(volumes))
		}
		return root{}, imprint.Errorf(imprint.NotFound, op, operand, "%s has no operating system that imprint knows", &volumes[i])
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		if only := onlyFilesystem(volumes); only != nil {
			return root{volume: only, name: unnamed}, nil // such as one that is yet to be filled
		}
		for i := range volumes {
			if v := &volumes[i]; v.Foreign != "" {
				return root{}, imprint.Errorf(imprint.Invalid, op, operand, "the disk has %s, which imprint cannot look into, and no operating system beside it", v).
					WithHint("use an image whose root filesystem is in a partition of its own: ext4, xfs or btrfs")
			}
		}
		return root{}, imprint.Errorf(imprint.NotFound, op, operand, "no filesystem of the disk has an operating system that imprint knows").
			WithHint("its partitions are: %s", listed(volumes))
	}
	var names []string
	for _, r := range found {
		names = append(names, fmt.Sprintf("%s with %s", r.volume, r.name))
	}
	return root{}, imprint.Errorf(imprint.Conflict, op, operand, "the disk has %d: %s", len(found), strings.Join(names, "; ")).
		WithHint("say which one: --root-partition %d", found[0].volume.Number)
}

// onlyFilesystem returns the filesystem of a disk that has no other, or nil.
func onlyFilesystem(volumes []Volume) (only *Volume) {
	for i := range volumes {
		if v := &volumes[i]; v.Type.linux() || v.Foreign != "" {
			if only != nil || v.Foreign != "" {
				return nil
			}
			only = v
		}
	}
	return only
}

func listed(volumes []Volume) string {
	var names []string
	for i := range volumes {
		names = append(names, volumes[i].String())
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
