package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
)

// maxSocketPath is the longest path of a unix socket (sun_path in unix(7),
// without its final NUL).
const maxSocketPath = 107

// lockedDir is a data directory that this process alone uses until it is closed.
type lockedDir struct {
	*os.File // the directory
	lock     *os.File
}

// lockDir takes the directory. It fails with kind [imprint.Conflict] and names
// the process that has it already.
func lockDir(path string) (*lockedDir, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, diskFault(path, err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		dir.Close()
		return nil, diskFault(path, err)
	}
	d := &lockedDir{dir, lock}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer d.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, diskFault(path, err)
		}
		return nil, imprint.Errorf(imprint.Conflict, "open", path, "already in use by %s", d.holder()).
			WithHint("stop that process, or give this one another data directory")
	}
	// The number is for people; the lock is what counts.
	if err := lock.Truncate(0); err == nil {
		fmt.Fprintf(lock, "%d\n", os.Getpid())
	}
	return d, nil
}

// holder names the process that has the lock, as far as it is known.
func (d *lockedDir) holder() string {
	b, _ := io.ReadAll(io.LimitReader(d.lock, 32))
	if pid := strings.TrimSpace(string(b)); pid != "" {
		return "process " + pid
	}
	return "another process"
}

// short returns a path of name in the directory that fits a socket's address:
// the plain one if it does, else one by way of the open directory.
func (d *lockedDir) short(name string) string {
	if path := filepath.Join(d.Name(), name); len(path) <= maxSocketPath {
		return path
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name)
}

// Close gives the directory back. The lock's file stays: removing it would let
// two processes lock two files of that name.
func (d *lockedDir) Close() error {
	return errors.Join(d.lock.Close(), d.File.Close())
}
