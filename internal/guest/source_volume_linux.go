package guest

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
)

// volumeSource is a volume labelled IMPRINT, mounted or not.
type volumeSource struct {
	layout Layout
	// mount makes the file system on device readable at dir until unmount.
	mount func(device, dir string) (unmount func() error, err error)
}

func newVolumeSource(l Layout) volumeSource { return volumeSource{l, mountReadOnly} }

func (s volumeSource) String() string { return "volume " + VolumeLabel }

func (s volumeSource) Try(context.Context) (*finding, error) {
	device, number, err := s.find()
	if err != nil {
		return nil, err
	}
	if point := s.mountedAt(number); point != "" {
		return readVolume(s.String(), point)
	}
	dir := filepath.Join(s.layout.Run(), "volume")
	if err := makePrivateDir(s.layout.Run()); err != nil {
		return nil, err
	}
	if err := makePrivateDir(dir); err != nil {
		return nil, err
	}
	unmount, err := s.mount(device, dir)
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "mount", device, "%w", err)
	}
	f, err := readVolume(s.String(), dir)
	if err := errors.Join(err, unmount(), os.Remove(dir)); err != nil {
		return nil, err
	}
	return f, nil
}

// find returns the block device with the label, and its number as in mountinfo.
// It reads the devices themselves: udev's links may be missing or stale.
func (s volumeSource) find() (device, number string, err error) {
	class := s.layout.at("sys", "class", "block")
	entries, err := os.ReadDir(class)
	if err != nil {
		return "", "", volumeEmpty()
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "loop") {
			continue // on a desktop whoever sits there may make one of any file
		}
		device := s.layout.at("dev", strings.ReplaceAll(e.Name(), "!", "/"))
		if label, err := deviceLabel(device); err != nil || !isVolumeLabel(label) {
			continue
		}
		number, err := readFile(filepath.Join(class, e.Name(), "dev"), 64)
		return device, strings.TrimSpace(string(number)), err
	}
	return "", "", volumeEmpty()
}

func deviceLabel(device string) (string, error) {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_NONBLOCK, 0) // an empty drive must not wait for a disc
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, volumeHead)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	return volumeLabel(head[:n]), nil
}

// mountedAt returns where the whole file system of a device is mounted, or "".
func (s volumeSource) mountedAt(number string) string {
	b, err := readFile(s.layout.at("proc", "self", "mountinfo"), maxMountinfo)
	if err != nil {
		return ""
	}
	for _, m := range parseMountinfo(b) {
		if m.device == number && m.root == "/" && slices.Contains(volumeTypes(), m.fstype) {
			return s.layout.at(m.point)
		}
	}
	return ""
}

// volumeTypes are the file systems of a volume. They have neither links nor
// pipes, whoever made them.
func volumeTypes() []string { return []string{"iso9660", "vfat"} }

func mountReadOnly(device, dir string) (func() error, error) {
	var errs error
	for _, fstype := range volumeTypes() {
		err := unix.Mount(device, dir, fstype, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		if err == nil {
			return func() error { return unix.Unmount(dir, 0) }, nil
		}
		errs = errors.Join(errs, err)
	}
	return nil, errs
}
