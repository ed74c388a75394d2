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
	"imprint/internal/blank"
	"imprint/internal/media"
)

// volumeSource is a volume labelled IMPRINT, mounted or not.
type volumeSource struct {
	layout Layout
	// mount makes the file system on device readable at dir until unmount.
	mount func(device, dir string) (unmount func() error, err error)
	// zero overwrites n bytes of a volume from an offset on, and makes sure of that.
	zero func(ctx context.Context, f *os.File, at, n int64) error
}

func newVolumeSource(l Layout) volumeSource { return volumeSource{l, mountReadOnly, blank.Zero} }

func (s volumeSource) String() string { return "volume " + VolumeLabel }

// Try reads the first volume with the label: where it is mounted; or else by itself,
// which needs no driver and lets no kernel parse what a stranger may have made; or else,
// what is too large for that, by mounting it.
func (s volumeSource) Try(context.Context) (*finding, error) {
	all := s.labelled()
	if len(all) == 0 {
		return nil, volumeEmpty()
	}
	device := all[0]
	if point := s.mountedAt(device.number); point != "" {
		return readVolume(s.String(), point)
	}
	if f, err := s.inspect(device.path); err == nil {
		return f, nil
	}
	dir := filepath.Join(s.layout.Run(), "volume")
	if err := makePrivateDir(s.layout.Run()); err != nil {
		return nil, err
	}
	if err := makePrivateDir(dir); err != nil {
		return nil, err
	}
	unmount, err := s.mount(device.path, dir)
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "mount", device.path, "%w", err)
	}
	f, err := readVolume(s.String(), dir)
	if err := errors.Join(err, unmount(), os.Remove(dir)); err != nil {
		return nil, err
	}
	return f, nil
}

// inspect reads the payload from the device itself.
func (s volumeSource) inspect(path string) (*finding, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	c, err := media.Inspect(f, size)
	if err != nil {
		return nil, err
	}
	for path, b := range c.Files {
		if strings.EqualFold(path, PayloadName) && len(b) <= imprint.MaxPayload {
			return &finding{source: s.String(), payload: b, files: filesOf(b)}, nil
		}
	}
	return nil, volumeEmpty()
}

// blockDevice is a disk or a partition.
type blockDevice struct{ name, path, number string } // the number as in mountinfo

// labelled returns the block devices with the label. It reads the devices themselves:
// udev's links may be missing or stale.
func (s volumeSource) labelled() []blockDevice {
	class := s.layout.at("sys", "class", "block")
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil
	}
	var list []blockDevice
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "loop") {
			continue // on a desktop whoever sits there may make one of any file
		}
		d := blockDevice{name: strings.ReplaceAll(e.Name(), "!", "/")}
		d.path = s.layout.at("dev", d.name)
		if label, err := deviceLabel(d.path); err != nil || !isVolumeLabel(label) {
			continue
		}
		if number, err := readFile(filepath.Join(class, e.Name(), "dev"), 64); err == nil {
			d.number = strings.TrimSpace(string(number))
			list = append(list, d)
		}
	}
	return list
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
