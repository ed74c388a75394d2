package signer

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"imprint"
	"imprint/internal/peercred"
)

// maxPath is how long a unix socket's path can be in bytes (unix(7)).
const maxPath = 107

// probeTimeout is how long to wait for a process behind an existing socket.
const probeTimeout = time.Second

// Listen makes the socket at path, with mode 0600, or 0660 and group gid if gid
// is not negative. A socket that nobody serves any more is replaced. It fails with
// kind [imprint.Conflict] if a process is serving the path, and [imprint.Invalid]
// if something else than a socket is there.
func Listen(path string, gid int) (*net.UnixListener, error) {
	operand := "signer socket " + path
	if len(path) > maxPath {
		return nil, imprint.Errorf(imprint.Invalid, "listen on", operand, "the path has %d bytes; a socket's has at most %d", len(path), maxPath)
	}
	unlock, err := lockPath(path)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "listen on", operand, "%w", err)
	}
	// Until the mode is set the peer credentials alone keep others out.
	mode := fs.FileMode(0o600)
	if gid >= 0 {
		mode = 0o660
		err = os.Chown(path, -1, gid)
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		l.Close()
		return nil, imprint.Errorf(imprint.Denied, "listen on", operand, "%w", err)
	}
	return l, nil
}

// lockPath keeps other processes from listening on path meanwhile: two that
// both found the same dead socket would remove each other's new one.
func lockPath(path string) (unlock func() error, err error) {
	operand := "signer socket " + path
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, imprint.Errorf(imprint.Invalid, "listen on", operand, "%w", err).WithHint("make the directory first")
	}
	if err != nil {
		return nil, imprint.Errorf(imprint.Denied, "listen on", operand, "%w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, imprint.Errorf(imprint.Unavailable, "listen on", operand, "%w", err)
	}
	return f.Close, nil
}

// removeStale removes a socket at path that nobody serves.
func removeStale(path string) error {
	operand := "signer socket " + path
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return imprint.Errorf(imprint.Unavailable, "listen on", operand, "%w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return imprint.Errorf(imprint.Invalid, "listen on", operand, "there is something else than a socket").
			WithHint("move it away, or give the socket another path")
	}
	conn, err := net.DialTimeout("unix", path, probeTimeout)
	if err == nil {
		conn.Close()
		return imprint.Errorf(imprint.Conflict, "listen on", operand, "another process is serving it").
			WithHint("stop the other signer, or give this one another path")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return imprint.Errorf(imprint.Conflict, "listen on", operand, "%w", err).
			WithHint("find out what serves this socket, or give it another path")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return imprint.Errorf(imprint.Unavailable, "listen on", operand, "%w", err)
	}
	return nil
}

// admit refuses a peer that is neither the signer's own user, nor root, nor of
// group gid.
func admit(conn *net.UnixConn, gid int) error {
	peer, err := peercred.Of(conn)
	if err != nil {
		return err
	}
	if !admitted(peer, os.Geteuid(), gid) {
		return imprint.Errorf(imprint.Denied, "admit", "peer", "user %d, group %d", peer.UID, peer.GID)
	}
	return nil
}

func admitted(peer peercred.Peer, uid, gid int) bool {
	return peer.UID == uid || peer.UID == 0 || peer.In(gid)
}
