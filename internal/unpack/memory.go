//go:build linux

package unpack

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"imprint"
)

// hold has the package in memory as far as that costs less than reading it: a file is
// mapped, and a compressed package gets up to limit bytes to be kept in once it is
// decompressed. What is written is then written from there.
func (a *archive) hold(limit int64) (free func(), err error) {
	if a.compression != nil {
		if limit = min(limit, a.limits.Size); limit <= 0 {
			return func() {}, nil
		}
		mem, err := unix.Mmap(-1, 0, int(limit), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		if err != nil {
			return nil, imprint.Errorf(imprint.Unavailable, "unpack", "package", "memory for it: %w", err)
		}
		a.spool = &spool{mem: mem}
		return func() { unix.Munmap(mem) }, nil
	}
	f, ok := a.r.(*os.File)
	if !ok {
		return func() {}, nil
	}
	end, err := f.Seek(0, io.SeekEnd) // a block device has no size otherwise
	if err != nil || end < a.size {
		return nil, imprint.Errorf(imprint.Invalid, "unpack", "package", "it has %d bytes, where %d are expected", end, a.size)
	}
	// The kernel begins to read all that it has room for.
	unix.Fadvise(int(f.Fd()), 0, a.size, unix.FADV_WILLNEED)
	mem, err := unix.Mmap(int(f.Fd()), 0, int(a.size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return func() {}, nil // such as a pipe: then it is read
	}
	a.plain = mem
	return func() { unix.Munmap(mem) }, nil
}

// spool keeps what it reads, so that it can be read again. Parts that are skipped are kept too.
type spool struct {
	src io.Reader
	err error // that src ended with
	mem []byte
	n   int // bytes that are in mem
	pos int // of the next that is read
}

var errSpoolFull = errors.New("the package has more bytes than there is memory for")

// from begins with another source.
func (s *spool) from(src io.Reader) { *s = spool{src: src, mem: s.mem} }

// bytes returns what is kept.
func (s *spool) bytes() []byte { return s.mem[:s.n] }

// fill reads until there are to bytes.
func (s *spool) fill(to int) {
	for s.n < to && s.err == nil {
		if s.n == len(s.mem) {
			// Only one byte more shows that it is too much.
			if n, err := io.ReadFull(s.src, make([]byte, 1)); n == 1 {
				s.err = errSpoolFull
			} else {
				s.err = err
			}
			return
		}
		var n int
		n, s.err = s.src.Read(s.mem[s.n:min(len(s.mem), max(to, s.n+64<<10))])
		s.n += n
	}
}

func (s *spool) Read(p []byte) (int, error) {
	s.fill(s.pos + len(p))
	if s.pos >= s.n {
		return 0, s.err
	}
	n := copy(p, s.mem[s.pos:s.n])
	s.pos += n
	return n, nil
}

// Seek skips forward from where it is, and says where that is.
func (s *spool) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || offset < 0 {
		return 0, errors.ErrUnsupported
	}
	s.pos += int(min(offset, int64(len(s.mem))))
	return int64(s.pos), nil
}
