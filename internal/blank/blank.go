// Package blank overwrites a medium with zeros, and makes sure that it did. A [Medium]
// is one that nobody else uses.
package blank

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/disk"
)

// chunk is how many bytes are read or written at once.
const chunk = 1 << 20

// Medium is a regular file or a block device that nobody else uses while it is open.
type Medium struct {
	f      *disk.File
	path   string
	device bool
}

// Open takes what is at path for blanking and changes nothing. It fails as
// [disk.Open] does, and with kind [imprint.Denied] for a device that is for reading only.
func Open(path string) (*Medium, error) {
	f, err := disk.Open(path)
	if err != nil {
		return nil, err
	}
	m := &Medium{f: f, path: path}
	if err := m.look(); err != nil {
		f.Close()
		return nil, err
	}
	return m, nil
}

func (m *Medium) look() error {
	info, err := m.f.Stat()
	if err != nil {
		return m.fault("open", err)
	}
	if m.device = !info.Mode().IsRegular(); m.device { // one that is for reading only may be opened for writing
		if fixed, err := unix.IoctlGetInt(int(m.f.Fd()), unix.BLKROGET); err == nil && fixed != 0 {
			return imprint.Errorf(imprint.Denied, "open", m.path, "the device is for reading only")
		}
	}
	return nil
}

// fault says why the system refused.
func (m *Medium) fault(op string, err error) error {
	kind := imprint.Unavailable
	if errors.Is(err, fs.ErrPermission) {
		kind = imprint.Denied
	}
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err // without the path, which is said already
	}
	return imprint.Errorf(kind, op, m.path, "%w", err)
}

// Size returns its size in bytes.
func (m *Medium) Size() int64 { return m.f.Size() }

// Device reports whether it is a block device.
func (m *Medium) Device() bool { return m.device }

// ReadAt implements [io.ReaderAt].
func (m *Medium) ReadAt(b []byte, at int64) (int, error) { return m.f.ReadAt(b, at) }

// Blank does [Zero] with all of it. It fails with kind [imprint.Unavailable] or
// [imprint.Denied].
func (m *Medium) Blank(ctx context.Context) error {
	if err := Zero(ctx, m.f.File, 0, m.Size()); err != nil {
		return m.fault("blank", err)
	}
	return nil
}

// Zero writes zeros wherever there are none in n bytes of f from an offset on, to the
// disk and past the page cache, and reads all of them back. It fails as f does, if that
// reads back other than zeros, and if ctx ends; then some of it may be blank.
func Zero(ctx context.Context, f *os.File, at, n int64) error {
	zeros := make([]byte, chunk)
	err := walk(ctx, f, at, n, func(at int64, b []byte) error {
		if disk.IsZero(b) {
			return nil // a hole stays one
		}
		_, err := f.WriteAt(zeros[:len(b)], at)
		return err
	})
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	// What is read back is to come from where it was written to. Not everything has a
	// cache to drop: the one call is for files, the other for block devices.
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0)
	return walk(ctx, f, at, n, func(_ int64, b []byte) error {
		if !disk.IsZero(b) {
			return errors.New("it reads back other than it was written")
		}
		return nil
	})
}

// walk calls visit with n bytes of f from an offset on, piece by piece.
func walk(ctx context.Context, f io.ReaderAt, at, n int64, visit func(at int64, b []byte) error) error {
	b := make([]byte, chunk)
	for end := at + n; at < end; at += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := b[:min(chunk, end-at)]
		if _, err := io.ReadFull(io.NewSectionReader(f, at, int64(len(b))), b); err != nil {
			return err
		}
		if err := visit(at, b); err != nil {
			return err
		}
	}
	return nil
}

// Remove removes the file, unless something else has its name by now. It fails
// with kind [imprint.Invalid] for a block device, [imprint.Conflict] for another
// file, and as the system says.
func (m *Medium) Remove() error {
	if m.device {
		return imprint.Errorf(imprint.Invalid, "remove", m.path, "it is a block device")
	}
	named, err := os.Lstat(m.path)
	if err != nil {
		return m.fault("remove", err)
	}
	if ours, err := m.f.Stat(); err != nil || !os.SameFile(named, ours) {
		return imprint.Errorf(imprint.Conflict, "remove", m.path, "another file has its name by now")
	}
	if err := os.Remove(m.path); err != nil {
		return m.fault("remove", err)
	}
	return nil
}

// Close lets go of it.
func (m *Medium) Close() error { return m.f.Close() }
