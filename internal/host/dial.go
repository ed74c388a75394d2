package host

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
)

// Pauses between two attempts to reach a socket.
const (
	dialPauseMin = 100 * time.Millisecond
	dialPauseMax = 5 * time.Second
)

// dial serves the guest behind a socket on which the hypervisor listens, again
// and again until ctx ends.
func (u *unit) dial(ctx context.Context, kind imprint.ChannelKind, path string) {
	p := u.port(kind)
	defer u.host.unclaim(path, end{u.id, kind})
	pause := dialPauseMin
	for {
		began := time.Now()
		err := u.host.claim(path, end{u.id, kind})
		if err == nil {
			err = u.dialOnce(ctx, p, kind, path)
		}
		if ctx.Err() != nil {
			return
		}
		if p.trouble(err) && err != nil {
			level := slog.LevelError
			if imprint.KindOf(err) == imprint.Unavailable { // as long as the machine is not started
				level = slog.LevelInfo
			}
			u.log.Log(ctx, level, "the guest's port cannot be dialled", "channel", kind, "error", err, "hint", imprint.HintOf(err))
		}
		// Who hangs up at once is not dialled at once again.
		if time.Since(began) > dialPauseMax {
			pause = dialPauseMin
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
			pause = min(2*pause, dialPauseMax)
		}
	}
}

// dialOnce connects to path and serves the guest there until the connection ends,
// which is no error.
func (u *unit) dialOnce(ctx context.Context, p *port, kind imprint.ChannelKind, path string) error {
	conn, err := dialSocket(ctx, path, u.host.c.Owner)
	if err != nil {
		return err
	}
	p.trouble(nil)
	if err := u.serve(ctx, kind, conn); err != nil {
		u.log.DebugContext(ctx, "session over", "channel", kind, "because", err)
	}
	return nil
}

// end names the guest's end of a port.
type end struct {
	id   imprint.InstanceID
	kind imprint.ChannelKind
}

// claim gives the socket at path to a port until [Host.unclaim]. The socket is the
// identity of who speaks there, so it belongs to one. It fails with kind
// [imprint.Conflict] if it is another's.
func (h *Host) claim(path string, e end) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if other, taken := h.dialled[path]; taken && other != e {
		return imprint.Errorf(imprint.Conflict, "dial", path, "it is the channel %s of instance %s already", other.kind, other.id).
			WithHint("give every instance and channel a socket of its own; see dial in the server's configuration")
	}
	h.dialled[path] = e
	return nil
}

func (h *Host) unclaim(path string, e end) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dialled[path] == e {
		delete(h.dialled, path)
	}
}

// dialSocket connects to a socket on which the hypervisor listens. Whoever listens
// there is believed to be the instance. So it has to be the hypervisor's user
// (owner), root or this process's user, at a path that nobody else can change.
//
// It fails with kind [imprint.Unavailable] while nobody listens, with
// [imprint.Conflict] if somebody else could, and with [imprint.Denied] if this
// process may not connect.
func dialSocket(ctx context.Context, path string, owner *Owner) (*net.UnixConn, error) {
	if len(path) > MaxSocketPath {
		return nil, imprint.Errorf(imprint.Invalid, "dial", path, "%d bytes; a socket's path holds %d", len(path), MaxSocketPath)
	}
	if err := checkPath(path, path, owner); err != nil {
		return nil, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, dialError(path, err)
	}
	conn := c.(*net.UnixConn)
	uid, err := listenerOf(conn)
	if err == nil && !trusted(uid, owner) {
		err = imprint.Errorf(imprint.Conflict, "dial", path, "user %d listens there, who does not run the hypervisor", uid).
			WithHint("guestOwner in the server's configuration says who does")
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// checkPath returns an error unless at, which is path or a directory above it, and
// what is above at, can be replaced by those only who run the hypervisor.
func checkPath(path, at string, owner *Owner) error {
	if above := filepath.Dir(at); above != at {
		if err := checkPath(path, above, owner); err != nil {
			return err
		}
	}
	info, err := os.Lstat(at)
	if err != nil {
		return dialError(path, err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !trusted(stat.Uid, owner) {
		return imprint.Errorf(imprint.Conflict, "dial", path, "%s does not belong to root, to this user or to the one who runs the hypervisor", at).
			WithHint("guestOwner in the server's configuration says who runs the hypervisor")
	}
	mode := info.Mode()
	switch {
	case at == path && mode.Type() != fs.ModeSocket:
		return imprint.Errorf(imprint.Conflict, "dial", path, "it is not a socket")
	case at == path: // who may connect to it is its owner's matter
		return nil
	case mode.Type() == fs.ModeSymlink:
		return imprint.Errorf(imprint.Conflict, "dial", path, "%s is a symbolic link", at).
			WithHint("write the path without links in the server's configuration")
	case !mode.IsDir():
		return imprint.Errorf(imprint.Conflict, "dial", path, "%s is not a directory", at)
	}
	// In a sticky directory others can make things, and not replace what is there.
	byOthers := mode.Perm()&0o002 != 0 || mode.Perm()&0o020 != 0 && stat.Gid != 0
	if byOthers && mode&fs.ModeSticky == 0 {
		return imprint.Errorf(imprint.Conflict, "dial", path, "others can replace what is in %s (mode %v)", at, mode).
			WithHint("let only the user who runs the hypervisor write there")
	}
	return nil
}

// trusted reports whether uid may listen in a guest's place.
func trusted(uid uint32, owner *Owner) bool {
	return uid == 0 || int(uid) == os.Geteuid() || owner != nil && int(uid) == owner.UID
}

// listenerOf returns the user who listens at the other end of conn.
func listenerOf(conn *net.UnixConn) (uid uint32, err error) {
	var cred *unix.Ucred
	raw, err := conn.SyscallConn()
	if err == nil {
		var cerr error
		err = raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return 0, imprint.Errorf(imprint.Internal, "look at", conn.RemoteAddr().String(), "%w", err)
	}
	return cred.Uid, nil
}

func dialError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return imprint.Errorf(imprint.Unavailable, "dial", path, "nobody listens there yet")
	case errors.Is(err, fs.ErrPermission):
		return imprint.Errorf(imprint.Denied, "dial", path, "%w", err).
			WithHint("whoever connects needs to pass through the directories and write to the socket: add imprint to the group that may")
	}
	return imprint.Errorf(imprint.Unavailable, "dial", path, "%w", err)
}
