package inside

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
)

// root is a mounted root filesystem.
type root struct{ dir string }

// mountRoot mounts the root filesystem of a disk. Nothing in it is a device or
// has somebody else's rights here.
func (m *machine) mountRoot(ctx context.Context, index int) (string, error) {
	if r := m.roots[index]; r != nil {
		return r.dir, nil
	}
	device, kind, err := findRoot(index)
	if err != nil {
		return "", err
	}
	if !known(kind) {
		if err := modprobe(kind); err != nil {
			return "", err
		}
	}
	dir := "/mnt/" + strconv.Itoa(index)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount(device, dir, kind, unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return "", imprint.Errorf(imprint.Unavailable, "mount", filepath.Base(device)+" ("+kind+")", "%w", err)
	}
	m.roots[index] = &root{dir}
	return dir, nil
}

func (m *machine) unmount(index int) error {
	r := m.roots[index]
	if r == nil {
		return nil
	}
	if err := unix.Unmount(r.dir, 0); err != nil {
		kind := imprint.Unavailable
		if errors.Is(err, unix.EBUSY) {
			kind = imprint.Conflict
		}
		return imprint.Errorf(kind, "unmount", "the root filesystem of disk "+strconv.Itoa(index), "%w", err)
	}
	delete(m.roots, index)
	return nil
}

// unmountAll unmounts everything and returns the first failure.
func (m *machine) unmountAll() (err error) {
	for index := range m.roots {
		if left := m.unmount(index); err == nil {
			err = left
		}
	}
	unix.Sync()
	return err
}

// known reports whether the kernel has the filesystem.
func known(kind string) bool {
	list, _ := os.ReadFile("/proc/filesystems")
	for line := range strings.Lines(string(list)) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == kind {
			return true
		}
	}
	return false
}

// findRoot returns the first of a disk's filesystems that looks like a root.
func findRoot(index int) (device, kind string, err error) {
	disk, err := findDisk(index)
	if err != nil {
		return "", "", err
	}
	parts, _ := filepath.Glob(disk + "[0-9]*")
	for _, device := range append([]string{disk}, parts...) {
		if kind := filesystem(device); kind != "" {
			return device, kind, nil
		}
	}
	return "", "", imprint.Errorf(imprint.NotFound, "find", "the root filesystem of disk "+strconv.Itoa(index), "it has none that is known here")
}

// filesystem returns the kind of filesystem on a device, or "".
func filesystem(device string) string {
	f, err := os.Open(device)
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 0x10048)
	if _, err := f.ReadAt(b, 0); err != nil {
		return ""
	}
	switch {
	case binary.LittleEndian.Uint16(b[1024+56:]) == 0xef53:
		return "ext4"
	case string(b[:4]) == "XFSB":
		return "xfs"
	case string(b[0x10040:]) == "_BHRfS_M":
		return "btrfs"
	}
	return ""
}
