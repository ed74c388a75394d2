package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/disk"
)

// target is the disk that an image is written to.
type target struct {
	d    *disk.File
	path string
	size int64 // of the image

	direct *os.File     // the disk again, past the page cache; nil where that cannot be
	blank  bool         // all of the disk reads as zeros, but for what was written
	data   atomic.Int64 // bytes written

	mu   sync.Mutex
	ends []write // of the image's beginning and end, for later; guarded by mu
}

// write is bytes and where they go.
type write struct {
	at int64
	b  []byte
}

// alignment is what direct writes need of place, length and memory, on any disk.
const alignment = 4096

// newTarget returns the disk that an image of size bytes is to be written to. Close
// has to be called.
func newTarget(d *disk.File, size int64) *target {
	t := &target{d: d, path: d.Name(), size: size}
	// The page cache would only be filled with what nobody reads soon, and written back
	// in one go at the end.
	if f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", d.Fd()), os.O_WRONLY|unix.O_DIRECT, 0); err == nil {
		t.direct = f
	}
	return t
}

func (t *target) Close() {
	if t.direct != nil {
		t.direct.Close()
	}
}

// begin takes away what is on the disk: all of it at once where that can be done by
// discarding, and else the beginning and the end, so that nothing is found there.
func (t *target) begin(ctx context.Context, discard bool) error {
	t.blank = discard
	for at := int64(0); at < t.d.Size() && t.blank; at += stride {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := t.d.Discard(at, min(stride, t.d.Size()-at))
		if errors.Is(err, errors.ErrUnsupported) {
			t.blank = false
		} else if err != nil {
			return t.failed(err)
		}
	}
	if !t.blank {
		for _, at := range []int64{0, max(0, t.size-held), max(0, t.d.Size()-held)} {
			if err := t.d.Zero(at, min(held, t.d.Size()-at)); err != nil {
				return t.failed(err)
			}
		}
	}
	if err := t.d.Sync(); err != nil {
		return t.failed(err)
	}
	return nil
}

// middle returns the part of n bytes at an offset that is not held back.
func (t *target) middle(at, n int64) (from, to int64) {
	from = max(at, min(held, t.size))
	to = min(at+n, max(from, t.size-held))
	return from, max(from, to)
}

func (t *target) put(b []byte, at int64) error {
	from, to := t.middle(at, int64(len(b)))
	if from >= at+int64(len(b)) || to <= from { // none of it
		t.hold(b, at)
		return nil
	}
	t.hold(b[:from-at], at)
	t.hold(b[to-at:], to)
	return t.write(b[from-at:to-at], from)
}

func (t *target) hold(b []byte, at int64) {
	if len(b) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ends = append(t.ends, write{at, append([]byte(nil), b...)})
}

func (t *target) write(b []byte, at int64) error {
	t.data.Add(int64(len(b)))
	if t.direct != nil && at%alignment == 0 && uintptr(unsafe.Pointer(unsafe.SliceData(b)))%alignment == 0 {
		n := len(b) / alignment * alignment
		if _, err := t.direct.WriteAt(b[:n], at); err != nil {
			return t.failed(err)
		}
		b, at = b[n:], at+int64(n)
	}
	if _, err := t.d.WriteAt(b, at); err != nil {
		return t.failed(err)
	}
	return nil
}

func (t *target) zeros(at, n int64) error {
	if t.blank {
		return nil
	}
	// The ends were zeroed already.
	from, to := t.middle(at, n)
	if to <= from {
		return nil
	}
	if err := t.d.Zero(from, to-from); err != nil {
		return t.failed(err)
	}
	return nil
}

// finish writes what was held back, once the rest is safely on the disk.
func (t *target) finish(ctx context.Context) error {
	if !t.blank {
		for at := t.size; at < t.d.Size(); at += stride {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := t.d.Zero(at, min(stride, t.d.Size()-at)); err != nil {
				return t.failed(err)
			}
		}
	}
	if err := t.d.Sync(); err != nil {
		return t.failed(err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, w := range t.ends {
		if err := t.write(w.b, w.at); err != nil {
			return err
		}
	}
	if err := t.d.Sync(); err != nil {
		return t.failed(err)
	}
	return nil
}

// unfinished says of an error what it leaves.
func (t *target) unfinished(err error) error {
	var known *imprint.Error
	if errors.As(err, &known) && known.Hint == "" {
		return known.WithHint("%s has no image and no partition table now; write it again", t.path)
	}
	return err
}

func (t *target) failed(err error) error { return fileError("write", t.path, err) }

// blankBeyond fails unless the disk is zeros behind the image.
func (t *target) blankBeyond(ctx context.Context) error {
	c := &compared{d: t.d, path: t.path}
	for at := t.size; at < t.d.Size(); at += stride {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.zeros(at, min(stride, t.d.Size()-at)); err != nil {
			return err
		}
	}
	return nil
}

// compared is a sink that fails unless the disk has what it is given.
type compared struct {
	d    *disk.File
	path string
}

func (c *compared) put(b []byte, at int64) error {
	have := make([]byte, len(b))
	if _, err := c.d.ReadAt(have, at); err != nil {
		return fileError("verify", c.path, err)
	}
	for i := range b {
		if b[i] != have[i] {
			return c.differs(at + int64(i))
		}
	}
	return nil
}

func (c *compared) zeros(at, n int64) error {
	same, at, err := c.d.IsBlank(at, n)
	if err != nil {
		return fileError("verify", c.path, err)
	}
	if !same {
		return c.differs(at)
	}
	return nil
}

func (c *compared) differs(at int64) error {
	return imprint.Errorf(imprint.Unavailable, "verify", c.path, "at byte %d the disk does not read as it was written", at).
		WithHint("do not trust this disk: look for its errors in the system's log")
}
