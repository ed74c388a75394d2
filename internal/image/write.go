package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/disk"
	"imprint/internal/image/reader"
)

// How an image is copied.
const (
	chunk   = 1 << 20  // bytes that are read or written at once
	piece   = 64 << 10 // bytes of which runs of zeros are left out
	buffers = 16       // chunks in memory
	writers = 4        // chunks written at the same time
	held    = 1 << 20  // bytes at the beginning and the end of an image, written last
	stride  = 1 << 30  // bytes discarded at once
	often   = 50 * time.Millisecond
)

// WriteOptions is how to write an image.
type WriteOptions struct {
	// Verify reads the disk back and compares it with the image.
	Verify bool
	// Allocate overwrites what is to be zeros with zeros, rather than giving its space
	// back.
	Allocate bool
	// Progress is called now and then, by one goroutine at a time: stage is "write" or
	// "verify", done and total are bytes of the virtual disk.
	Progress func(stage string, done, total int64)
}

// Written is what [Source.Write] did.
type Written struct {
	Size   int64          // bytes of the virtual disk
	Data   int64          // bytes that are not known to be zeros, and were written
	Digest imprint.Digest // of the image's file
}

// Write writes the image to a disk that has room for all of it. What the disk has
// beyond the image reads as zeros afterwards.
//
// Nothing is written before everything but the sum is known to be right. The image's
// beginning and end are written when all else is on the disk and the sum is right:
// after a failure, a kill or a power failure before that, the disk has no partition
// table, and Write can be called again. It fails as [Source.Measure] does, with kind
// [imprint.Invalid] if the sum is wrong, and with [imprint.Unavailable] or
// [imprint.Exhausted] if the disk fails, is full, or reads other than it was written.
func (s *Source) Write(ctx context.Context, d *disk.File, o WriteOptions) (Written, error) {
	path := d.Name()
	if info, err := d.Stat(); err != nil || os.SameFile(info, s.info) {
		return Written{}, imprint.Errorf(imprint.Invalid, "write", path, "it is the image itself")
	}
	size, err := s.Measure(ctx, d.Size())
	if imprint.KindOf(err) == imprint.Exhausted {
		return Written{}, imprint.Errorf(imprint.Exhausted, "write", path, "%w; an image is never cut off", err).
			WithHint("enlarge the disk; what is on it was left as it is")
	}
	if err != nil {
		return Written{}, err
	}
	t := newTarget(d, size)
	defer t.Close()
	p := &progress{call: o.Progress, stage: "write", total: size}
	if err := t.begin(ctx, !o.Allocate); err != nil {
		return Written{}, err
	}
	w := Written{Size: size}
	if w.Digest, err = s.pour(ctx, t, p); err == nil {
		err = t.finish(ctx)
	}
	if err != nil {
		return Written{}, t.unfinished(err)
	}
	w.Data = t.data.Load()
	if !o.Verify {
		return w, nil
	}
	// What is read back is to come from where it was written to.
	unix.Fadvise(int(d.Fd()), 0, 0, unix.FADV_DONTNEED)
	p = &progress{call: o.Progress, stage: "verify", total: size}
	if _, err := s.pour(ctx, &compared{d: d, path: path}, p); err != nil {
		return Written{}, err
	}
	return w, t.blankBeyond(ctx)
}

// sink takes the virtual disk, piece by piece and in any order, by several goroutines.
type sink interface {
	// put has b at an offset; b is the caller's again when it returns.
	put(b []byte, at int64) error
	// zeros has n bytes of zeros at an offset.
	zeros(at, n int64) error
}

// job is a part of the virtual disk on its way to the sink.
type job struct {
	at, n int64
	b     []byte // a chunk with the bytes; nil for zeros
	from  int64  // where the bytes are in the image's file, if copy
	copy  bool
}

// pour gives all of the virtual disk to a sink, and returns the file's digest if its
// sums are right.
func (s *Source) pour(ctx context.Context, to sink, p *progress) (imprint.Digest, error) {
	h := newHashes(s.want)
	g, ctx := errgroup.WithContext(ctx)
	pool, jobs := newPool(), make(chan job, buffers)
	if s.Format == (reader.Format{Name: reader.Raw}) {
		hashed := make(chan job, buffers) // what was hashed is what is written
		g.Go(func() error {
			defer close(hashed)
			return s.readRaw(ctx, pool, hashed)
		})
		g.Go(func() error {
			defer close(jobs)
			return h.jobs(ctx, hashed, jobs)
		})
	} else {
		g.Go(func() error {
			defer close(jobs)
			return s.readForeign(ctx, pool, jobs)
		})
		g.Go(func() error { return h.file(ctx, s.f, s.FileSize, nil) })
	}
	for range writers {
		g.Go(func() error {
			for j := range jobs {
				if err := s.settle(ctx, to, pool, j); err != nil {
					return err
				}
				p.add(j.n)
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return "", readError(s.Origin, err)
	}
	return s.judge(h)
}

// send sends a job unless ctx ends.
func send(ctx context.Context, to chan<- job, j job) error {
	select {
	case to <- j:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// readRaw sends all of a raw image, of whose holes nothing is read.
func (s *Source) readRaw(ctx context.Context, pool *pool, to chan<- job) error {
	for at := int64(0); at < s.FileSize; {
		start, end := s.extent(at)
		for ; at < start; at += min(chunk, start-at) {
			if err := send(ctx, to, job{at: at, n: min(chunk, start-at)}); err != nil {
				return err
			}
		}
		for at < end {
			b, err := pool.get(ctx)
			if err != nil {
				return err
			}
			b = b[:min(chunk, end-at)]
			if _, err := s.f.ReadAt(b, at); err != nil {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
			if err := send(ctx, to, job{at: at, n: int64(len(b)), b: b}); err != nil {
				return err
			}
			at += int64(len(b))
		}
	}
	return nil
}

// extent returns where the next data of the file are, from an offset on.
func (s *Source) extent(at int64) (start, end int64) {
	start, err := unix.Seek(int(s.f.Fd()), at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return s.FileSize, s.FileSize
	}
	if err != nil { // the file system knows no holes
		return at, s.FileSize
	}
	end, err = unix.Seek(int(s.f.Fd()), start, unix.SEEK_HOLE)
	if err != nil {
		end = s.FileSize
	}
	return min(start, s.FileSize), min(end, s.FileSize)
}

// jobs hashes what it passes on.
func (h *hashes) jobs(ctx context.Context, from <-chan job, to chan<- job) error {
	nothing := make([]byte, chunk)
	for j := range from {
		b := j.b
		if b == nil {
			b = nothing[:j.n]
		}
		h.Write(b)
		if err := send(ctx, to, j); err != nil {
			return err
		}
	}
	return nil
}

// readForeign sends what a sandbox finds in the image.
func (s *Source) readForeign(ctx context.Context, pool *pool, to chan<- job) error {
	return s.sandboxed(ctx, reader.Read, s.size, func(f reader.Frame) error {
		switch f.Kind {
		case reader.FrameSize:
			if f.Length != s.size {
				return fmt.Errorf("%w: the disk had %d bytes, and now %d", errStream, s.size, f.Length)
			}
		case reader.FrameZeros:
			for at, n := f.Offset, f.Length; n > 0; {
				k := min(n, stride)
				if err := send(ctx, to, job{at: at, n: k}); err != nil {
					return err
				}
				at, n = at+k, n-k
			}
		case reader.FrameCopy:
			for done := int64(0); done < f.Length; done += chunk {
				if err := send(ctx, to, job{at: f.Offset + done, n: min(chunk, f.Length-done), from: f.At + done, copy: true}); err != nil {
					return err
				}
			}
		case reader.FrameData:
			b, err := pool.get(ctx)
			if err != nil {
				return err
			}
			b = b[:copy(b, f.Data)]
			return send(ctx, to, job{at: f.Offset, n: f.Length, b: b})
		}
		return nil
	})
}

// settle brings a job to the sink.
func (s *Source) settle(ctx context.Context, to sink, pool *pool, j job) (err error) {
	if j.copy {
		if j.b, err = pool.get(ctx); err != nil {
			return err
		}
		j.b = j.b[:j.n]
		if _, err := s.f.ReadAt(j.b, j.from); err != nil {
			return err
		}
	}
	if j.b == nil {
		return to.zeros(j.at, j.n)
	}
	defer pool.put(j.b)
	// Zeros that are stored are zeros as well.
	for b, at := j.b, j.at; len(b) > 0; {
		n, zero := run(b)
		if zero {
			err = to.zeros(at, int64(n))
		} else {
			err = to.put(b[:n], at)
		}
		if err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// run returns how many bytes at the beginning of b are pieces of zeros, or are not.
func run(b []byte) (n int, zero bool) {
	for n < len(b) {
		p := b[n:min(n+piece, len(b))]
		is := p[0] == 0 && disk.IsZero(p)
		if n == 0 {
			zero = is
		} else if is != zero {
			break
		}
		n += len(p)
	}
	return n, zero
}

// pool bounds the memory that an image on its way takes.
type pool struct{ free chan []byte }

func newPool() *pool {
	p := &pool{make(chan []byte, buffers+writers)}
	for range cap(p.free) {
		p.free <- nil
	}
	return p
}

func (p *pool) get(ctx context.Context) ([]byte, error) {
	select {
	case b := <-p.free:
		if b == nil {
			b = aligned(chunk)
		}
		return b[:chunk], nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// aligned returns n bytes that may be written directly.
func aligned(n int) []byte {
	b := make([]byte, n+alignment)
	off := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) % alignment)
	return b[off : off+n : off+n]
}

func (p *pool) put(b []byte) { p.free <- b[:cap(b)] }

// progress tells how far something is, not too often.
type progress struct {
	call  func(stage string, done, total int64)
	stage string
	total int64
	done  atomic.Int64
	mu    sync.Mutex
	last  time.Time // guarded by mu
}

func (p *progress) add(n int64) {
	done := p.done.Add(n)
	if p.call == nil || done < p.total && !p.mu.TryLock() {
		return
	}
	if done >= p.total {
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	done = p.done.Load() // never less than what was told before
	if now := time.Now(); done >= p.total || now.Sub(p.last) >= often {
		p.last = now
		p.call(p.stage, done, p.total)
	}
}
