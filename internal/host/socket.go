package host

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
)

// Owner is who may open the sockets: the user that the hypervisor runs as.
type Owner struct{ UID, GID int }

// MaxSocketPath is how many bytes a socket's path may have: sun_path in
// unix(7) holds 108 with the final NUL.
const MaxSocketPath = 107

// maxRunDir is what that leaves for the run directory.
const maxRunDir = MaxSocketPath - len("/00000000-0000-4000-8000-000000000000/virtio-serial.sock")

// lockName is the file that is locked while a process serves a run directory.
const lockName = "lock"

const socketSuffix = ".sock"

func socketPath(runDir string, id imprint.InstanceID, kind imprint.ChannelKind) string {
	return filepath.Join(runDir, string(id), string(kind)+socketSuffix)
}

func checkRunDir(dir string) error {
	if !filepath.IsAbs(dir) {
		return imprint.Errorf(imprint.Invalid, "use", dir, "the run directory needs an absolute path")
	}
	if n := len(filepath.Clean(dir)); n > maxRunDir {
		return imprint.Errorf(imprint.Invalid, "use", dir, "%d bytes; a socket's path holds 107, which leaves %d for the run directory", n, maxRunDir).
			WithHint("choose a shorter run directory, such as /run/imprint")
	}
	return nil
}

// lockRunDir makes the run directory and keeps other processes from serving it
// until unlock is called.
func lockRunDir(dir string, owner *Owner) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "make", dir, "%w", err)
	}
	if err := ownDir(dir); err != nil {
		return nil, err
	}
	if owner != nil {
		if err := os.Chmod(dir, 0o711); err != nil { // others pass through, and see nothing
			return nil, imprint.Errorf(imprint.Internal, "open to the sockets' owner", dir, "%w", err)
		}
	}
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "lock", dir, "%w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, imprint.Errorf(imprint.Conflict, "serve", dir, "another process serves the sockets below it").
				WithHint("stop it, or choose another run directory")
		}
		return nil, imprint.Errorf(imprint.Internal, "lock", dir, "%w", err)
	}
	return func() { f.Close() }, nil
}

// ownDir returns an error unless path is a directory, not a link, that nobody
// but this process's user can change.
func ownDir(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return imprint.Errorf(imprint.Internal, "use", path, "%w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || info.Mode().Perm()&0o022 != 0 || !ok || int(stat.Uid) != os.Geteuid() {
		return imprint.Errorf(imprint.Conflict, "use", path, "it is not a directory that only this user can change (mode %v)", info.Mode()).
			WithHint("remove it, or give it to the user that runs imprint, with mode 0700")
	}
	return nil
}

// boundBefore returns the sockets that an earlier process left behind.
func boundBefore(runDir string) map[imprint.InstanceID][]imprint.ChannelKind {
	found := map[imprint.InstanceID][]imprint.ChannelKind{}
	dirs, _ := os.ReadDir(runDir) // nothing to read is nothing left behind
	for _, d := range dirs {
		if !imprint.ValidID(d.Name()) {
			continue
		}
		id := imprint.InstanceID(d.Name())
		for _, kind := range []imprint.ChannelKind{imprint.VirtioSerial, imprint.Serial2} {
			if info, err := os.Lstat(socketPath(runDir, id, kind)); err == nil && info.Mode().Type() == fs.ModeSocket {
				found[id] = append(found[id], kind)
			}
		}
	}
	return found
}

func removeSockets(runDir string, id imprint.InstanceID) {
	for _, kind := range []imprint.ChannelKind{imprint.VirtioSerial, imprint.Serial2} {
		removeSocket(socketPath(runDir, id, kind))
	}
	os.Remove(filepath.Join(runDir, string(id))) // only if nothing else is in it
}

// removeSocket removes path if it is a socket.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeSocket {
		return err
	}
	return os.Remove(path)
}

// bind listens on path, in a directory of its own. The directory belongs to
// this process's user, so that nobody can put something else in the socket's
// place; an owner reaches the socket through the directory's group.
//
// A socket that nobody listens on is replaced. It fails with kind
// [imprint.Conflict] if path is anything else.
func bind(path string, owner *Owner) (*net.UnixListener, error) {
	dir := filepath.Dir(path)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, imprint.Errorf(imprint.Internal, "make", dir, "%w", err)
	}
	if err := ownDir(dir); err != nil {
		return nil, err
	}
	if err := clearWay(path, owner); err != nil {
		return nil, err
	}
	// The mode is set on the descriptor before it gets its name, so that at no
	// time anybody else can connect; Linux takes the socket file's mode from there.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "listen on", path, "%w", err)
	}
	listener := l.(*net.UnixListener)
	listener.SetUnlinkOnClose(false)
	if owner != nil {
		if err := give(path, *owner); err != nil {
			listener.Close()
			return nil, err
		}
	}
	return listener, nil
}

func give(path string, owner Owner) error {
	dir := filepath.Dir(path)
	for _, step := range []func() error{
		func() error { return os.Lchown(path, owner.UID, owner.GID) },
		func() error { return os.Lchown(dir, -1, owner.GID) },
		func() error { return os.Chmod(dir, 0o710) },
	} {
		if err := step(); err != nil {
			return imprint.Errorf(imprint.Denied, "give", path, "to user %d, group %d: %w", owner.UID, owner.GID, err).
				WithHint("only root can give a socket to another user; run as root or leave the owner out")
		}
	}
	return nil
}

// clearWay removes a socket that nobody listens on, also one that an earlier
// process gave to owner.
func clearWay(path string, owner *Owner) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return imprint.Errorf(imprint.Internal, "look at", path, "%w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return imprint.Errorf(imprint.Conflict, "listen on", path, "something that is not a socket is there").
			WithHint("find out whose file it is and move it away")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if errors.Is(err, syscall.EACCES) && owner != nil {
		conn, err = dialGiven(path, *owner)
	}
	if err == nil {
		conn.Close()
		return imprint.Errorf(imprint.Conflict, "listen on", path, "another program listens there").
			WithHint("stop it; if it is the hypervisor, let imprint dial the socket instead (dial in the server's configuration)")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return imprint.Errorf(imprint.Conflict, "listen on", path, "another program may listen there: %w", err)
	}
	return removeSocket(path)
}

// dialGiven connects to a socket that was given to owner. As a service this
// process is root without the power to pass over file modes, so it takes the
// socket back for that moment.
func dialGiven(path string, owner Owner) (net.Conn, error) {
	if err := os.Lchown(path, os.Geteuid(), -1); err != nil {
		return nil, err
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, err
	}
	return conn, errors.Join(err, os.Lchown(path, owner.UID, -1))
}
