package guest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
)

// virtioSource is the named virtio-serial port. The port is known by its name
// in sysfs; the link below /dev/virtio-ports is udev's work and may be missing.
type virtioSource struct{ layout Layout }

func newVirtioSource(l Layout) virtioSource { return virtioSource{l} }

func (s virtioSource) String() string { return "virtio port " + PortName }

func (s virtioSource) Try(ctx context.Context) (*finding, error) {
	path, err := s.device()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, imprint.Errorf(imprint.Unavailable, "open", path, "another process has it open")
	}
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "open", path, "%w", err)
	}
	return greet(ctx, s.String(), f)
}

// device returns the port's device node.
func (s virtioSource) device() (string, error) {
	link := s.layout.at("dev", "virtio-ports", PortName)
	if _, err := os.Stat(link); err == nil {
		return link, nil
	}
	class := s.layout.at("sys", "class", "virtio-ports")
	ports, err := os.ReadDir(class)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", imprint.Errorf(imprint.Unavailable, "list", class, "%w", err)
	}
	for _, port := range ports {
		name, err := readFile(filepath.Join(class, port.Name(), "name"), 4<<10)
		if err == nil && strings.TrimSpace(string(name)) == PortName {
			return s.node(class, port.Name())
		}
	}
	return "", imprint.Errorf(imprint.NotFound, "find", PortName, "the machine has no such port")
}

// node returns the device node of port, which it makes where there is neither
// udev nor a mounted devtmpfs.
func (s virtioSource) node(class, port string) (string, error) {
	node := s.layout.at("dev", port)
	if _, err := os.Stat(node); err == nil {
		return node, nil
	}
	numbers, err := readFile(filepath.Join(class, port, "dev"), 64)
	if err != nil {
		return "", err
	}
	major, minor, err := parseDevice(string(numbers))
	if err != nil {
		return "", err
	}
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return "", imprint.Errorf(imprint.Unavailable, "make", node, "%w", err)
	}
	return node, nil
}

// parseDevice reads "major:minor" as sysfs and mountinfo write it.
func parseDevice(s string) (major, minor uint32, err error) {
	a, b, ok := strings.Cut(strings.TrimSpace(s), ":")
	x, errA := strconv.ParseUint(a, 10, 32)
	y, errB := strconv.ParseUint(b, 10, 32)
	if !ok || errA != nil || errB != nil {
		return 0, 0, imprint.Errorf(imprint.Invalid, "read", "device number", "%q", oneLine(s))
	}
	return uint32(x), uint32(y), nil
}
