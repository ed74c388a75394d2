package inside

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/job"
)

// devicePatience is how long a device may take to appear. A second is enough for a
// busy host's emulation.
const devicePatience = 10 * time.Second

// prepare makes a Linux of what the kernel left: the kernel's file systems and its drivers.
func prepare() error {
	// Linux gives PID 1 no PATH, by which tasks find the host's programs.
	if err := os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return err
	}
	for _, m := range []struct {
		kind, at string
		flags    uintptr
		data     string
	}{
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID, ""},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			return imprint.Errorf(imprint.Internal, "mount", m.at, "%w", err)
		}
	}
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err == nil {
		// What runs foreign code is limited by these; without them by rlimits alone.
		os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory +pids"), 0)
	}
	return modprobe(job.ModulesAtBoot)
}

// openPort opens a virtio-serial port once the kernel has it. Nobody else can open
// it while it is open (drivers/char/virtio_console.c).
func openPort(name string) (*os.File, error) {
	var path string
	err := await(func() bool {
		ports, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, at := range ports {
			if b, err := os.ReadFile(at); err == nil && strings.TrimSpace(string(b)) == name {
				path = "/dev/" + filepath.Base(filepath.Dir(at))
				return true
			}
		}
		return false
	})
	if err != nil {
		return nil, imprint.Errorf(imprint.NotFound, "find", "port "+name, "%w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "open", "port "+name, "%w", err)
	}
	return f, nil
}

// findDisk returns the device node of a disk, which its serial number tells.
func findDisk(index int) (path string, err error) {
	want := job.DiskSerial + strconv.Itoa(index)
	err = await(func() bool {
		disks, _ := filepath.Glob("/sys/block/*/serial")
		for _, at := range disks {
			if b, err := os.ReadFile(at); err == nil && string(bytes.TrimRight(b, "\x00\n")) == want {
				path = "/dev/" + filepath.Base(filepath.Dir(at))
				return true
			}
		}
		return false
	})
	if err != nil {
		return "", imprint.Errorf(imprint.NotFound, "find", "disk "+strconv.Itoa(index), "%w", err)
	}
	return path, nil
}

// await returns nil once there says so. It is asked again whenever the kernel
// announces a change of a device.
func await(there func() bool) error {
	if there() {
		return nil
	}
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	if err := unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	end := time.Now().Add(devicePatience)
	b := make([]byte, 8<<10)
	for !there() {
		left := time.Until(end)
		if left <= 0 {
			return fs.ErrNotExist
		}
		tv := unix.NsecToTimeval(left.Nanoseconds())
		unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		if _, _, err := unix.Recvfrom(s, b, 0); err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			return os.NewSyscallError("recvfrom", err)
		}
	}
	return nil
}
