package guest

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"imprint"
)

// serialSource is the second serial port.
type serialSource struct{ path string }

func newSerialSource(l Layout) serialSource { return serialSource{l.at("dev", "ttyS1")} }

func (s serialSource) String() string { return "serial port " + s.path }

func (s serialSource) Try(ctx context.Context) (*finding, error) {
	f, err := openSerial(s.path)
	if err != nil {
		return nil, err
	}
	return greet(ctx, s.String(), f)
}

// openSerial opens a serial port for a binary-clean protocol at 115200 8N1 and
// keeps every other process off it.
func openSerial(path string) (_ *os.File, err error) {
	// O_NONBLOCK: without it open waits for a carrier signal that nobody gives.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, imprint.Errorf(imprint.NotFound, "open", path, "the machine has no such port")
	}
	if errors.Is(err, unix.EBUSY) {
		return nil, imprint.Errorf(imprint.Unavailable, "open", path, "another process has it open")
	}
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "open", path, "%w", err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, imprint.Errorf(imprint.Internal, "open", path, "%w", err)
	}
	// Control and not Fd: that would make the file blocking and end its deadlines.
	controlErr := raw.Control(func(fd uintptr) { err = claimSerial(int(fd), path) })
	if err = errors.Join(controlErr, err); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// claimSerial takes the locks that other serial programs honour, makes the line
// raw and drops what arrived before anybody asked.
func claimSerial(fd int, path string) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		// The kernel makes nodes for ports that no hardware is behind: EIO.
		return imprint.Errorf(imprint.NotFound, "open", path, "no serial port is behind it (%w)", err)
	}
	busy := func(err error) error {
		return imprint.Errorf(imprint.Unavailable, "lock", path, "another process uses it (%w)", err)
	}
	// Three locks, because three kinds of program exist: mdata-client takes the
	// fcntl one, minicom and its like flock, and everybody obeys TIOCEXCL but root.
	if err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		return busy(err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return busy(err)
	}
	if err := unix.IoctlSetInt(fd, unix.TIOCEXCL, 0); err != nil {
		return busy(err)
	}
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON | unix.IXOFF
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag &^= unix.CSIZE | unix.PARENB | unix.CSTOPB | unix.CRTSCTS | unix.HUPCL | unix.CBAUD
	t.Cflag |= unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	t.Ispeed, t.Ospeed = unix.B115200, unix.B115200
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return imprint.Errorf(imprint.Unavailable, "set up", path, "%w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIOFLUSH); err != nil {
		return imprint.Errorf(imprint.Unavailable, "flush", path, "%w", err)
	}
	return nil
}
