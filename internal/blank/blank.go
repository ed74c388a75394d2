// Package blank overwrites a medium with zeros, and makes sure that it did. It
// touches nothing that somebody else uses: what is mounted, attached to a loop
// device, or locked, as QEMU locks the images that it has open.
package blank

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"imprint"
)

// chunk is how many bytes are read or written at once.
const chunk = 1 << 20

// Medium is a regular file or a block device that nobody else uses while it is open.
type Medium struct {
	f      *os.File
	path   string // without symbolic links
	size   int64
	device bool
}

// Open takes what is at path for blanking and changes nothing. Kinds: NotFound;
// Denied; Conflict if it is in use; Invalid if it is neither file nor block device.
func Open(path string) (*Medium, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fault("blank", path, err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return nil, fault("blank", path, err)
	}
	m := &Medium{path: real, device: info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0}
	if !m.device && !info.Mode().IsRegular() {
		return nil, imprint.Errorf(imprint.Invalid, "blank", path, "it is neither a file nor a block device")
	}
	flags := os.O_RDWR | syscall.O_NONBLOCK
	if m.device {
		flags |= os.O_EXCL // without O_CREATE: nobody else may have claimed it (open(2))
	}
	if m.f, err = os.OpenFile(real, flags, 0); err != nil {
		if errors.Is(err, syscall.EBUSY) {
			return nil, inUse(path, "it is mounted, or the kernel uses it otherwise").WithHint("umount it, and what is on its partitions, and try again")
		}
		return nil, fault("blank", path, err)
	}
	if err := m.claim(path, info); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// claim makes sure that nobody uses the file, which was looked at before it was opened.
func (m *Medium) claim(path string, before fs.FileInfo) error {
	info, err := m.f.Stat()
	if err != nil {
		return fault("blank", path, err)
	}
	if !os.SameFile(info, before) {
		return inUse(path, "it was replaced just now")
	}
	if m.device { // one that is for reading only may be opened for writing
		if fixed, err := unix.IoctlGetInt(int(m.f.Fd()), unix.BLKROGET); err == nil && fixed != 0 {
			return imprint.Errorf(imprint.Denied, "blank", path, "the device is for reading only")
		}
	}
	if m.size, err = m.f.Seek(0, io.SeekEnd); err != nil { // of a device too
		return fault("blank", path, err)
	}
	// QEMU holds such locks, shared ones at least, on every image that it has open.
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	switch err := unix.FcntlFlock(m.f.Fd(), unix.F_OFD_SETLK, &lock); {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return inUse(path, "another program, such as QEMU, has it open and locked").
			WithHint("take it out of the machine, or end the machine, and try again")
	case err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOLCK) && !errors.Is(err, unix.EOPNOTSUPP):
		return fault("blank", path, err)
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return fault("blank", path, err)
	}
	for _, loop := range loops {
		name, err := os.ReadFile(loop)
		if err != nil {
			continue // it was detached meanwhile
		}
		if backing, err := os.Stat(string(bytes.TrimRight(name, "\n"))); err == nil && os.SameFile(backing, info) {
			return inUse(path, "it is attached to /dev/"+filepath.Base(filepath.Dir(filepath.Dir(loop)))).WithHint("detach it with losetup -d, and try again")
		}
	}
	return nil
}

func inUse(path, how string) *imprint.Error {
	return imprint.Errorf(imprint.Conflict, "blank", path, "%s", how)
}

// fault says why what is at path cannot be used.
func fault(op, path string, err error) error {
	kind := imprint.Unavailable
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = imprint.NotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		kind = imprint.Denied
	}
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err // without the path, which is said already
	}
	return imprint.Errorf(kind, op, path, "%w", err)
}

// Size returns its size in bytes.
func (m *Medium) Size() int64 { return m.size }

// Device reports whether it is a block device.
func (m *Medium) Device() bool { return m.device }

// ReadAt implements [io.ReaderAt].
func (m *Medium) ReadAt(b []byte, at int64) (int, error) { return m.f.ReadAt(b, at) }

// Blank writes zeros wherever there are none, to the disk and past the page cache,
// and reads all of it back. It fails with kind [imprint.Unavailable], or with ctx's
// error, and then some of it may be blank.
func (m *Medium) Blank(ctx context.Context) error {
	zeros := make([]byte, chunk)
	err := m.walk(ctx, func(at int64, b []byte) error {
		if isZero(b) {
			return nil // a hole stays one
		}
		_, err := m.f.WriteAt(zeros[:len(b)], at)
		return err
	})
	if err == nil {
		err = m.f.Sync()
	}
	if err != nil {
		return fault("blank", m.path, err)
	}
	// What is read back is to come from where it was written to. Not every file
	// system has a cache to drop.
	unix.Fadvise(int(m.f.Fd()), 0, 0, unix.FADV_DONTNEED)
	err = m.walk(ctx, func(at int64, b []byte) error {
		if !isZero(b) {
			return errors.New("it reads back other than it was written")
		}
		return nil
	})
	if err != nil {
		return fault("verify", m.path, err)
	}
	return nil
}

// walk calls visit with all that there is, piece by piece.
func (m *Medium) walk(ctx context.Context, visit func(at int64, b []byte) error) error {
	b := make([]byte, chunk)
	for at := int64(0); at < m.size; at += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(chunk, m.size-at)
		if _, err := io.ReadFull(io.NewSectionReader(m.f, at, n), b[:n]); err != nil {
			return err
		}
		if err := visit(at, b[:n]); err != nil {
			return err
		}
	}
	return nil
}

func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// Remove removes the file, unless something else has its name by now. It fails
// with kind [imprint.Invalid] for a block device, and as [Open].
func (m *Medium) Remove() error {
	if m.device {
		return imprint.Errorf(imprint.Invalid, "remove", m.path, "it is a block device")
	}
	named, err := os.Lstat(m.path)
	if err != nil {
		return fault("remove", m.path, err)
	}
	if ours, err := m.f.Stat(); err != nil || !os.SameFile(named, ours) {
		return imprint.Errorf(imprint.Conflict, "remove", m.path, "another file has its name by now")
	}
	if err := os.Remove(m.path); err != nil {
		return fault("remove", m.path, err)
	}
	return nil
}

// Close lets go of it.
func (m *Medium) Close() error { return m.f.Close() }
