// Package blank overwrites a medium with zeros, and makes sure that it did. It
// touches nothing that somebody else uses.
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

// Blank writes zeros wherever there are none, to the disk and past the page cache,
// and reads all of it back. It fails with kind [imprint.Unavailable] or [imprint.Denied],
// also if ctx ends, and then some of it may be blank.
func (m *Medium) Blank(ctx context.Context) error {
	zeros := make([]byte, chunk)
	err := m.walk(ctx, func(at int64, b []byte) error {
		if disk.IsZero(b) {
			return nil // a hole stays one
		}
		_, err := m.f.WriteAt(zeros[:len(b)], at)
		return err
	})
	if err == nil {
		err = m.f.Sync()
	}
	if err != nil {
		return m.fault("blank", err)
	}
	// What is read back is to come from where it was written to. Not every file
	// system has a cache to drop.
	unix.Fadvise(int(m.f.Fd()), 0, 0, unix.FADV_DONTNEED)
	err = m.walk(ctx, func(_ int64, b []byte) error {
		if !disk.IsZero(b) {
			return errors.New("it reads back other than it was written")
		}
		return nil
	})
	if err != nil {
		return m.fault("verify", err)
	}
	return nil
}

// walk calls visit with all that there is, piece by piece.
func (m *Medium) walk(ctx context.Context, visit func(at int64, b []byte) error) error {
	b := make([]byte, chunk)
	for at := int64(0); at < m.Size(); at += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(chunk, m.Size()-at)
		if _, err := io.ReadFull(io.NewSectionReader(m.f, at, n), b[:n]); err != nil {
			return err
		}
		if err := visit(at, b[:n]); err != nil {
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
