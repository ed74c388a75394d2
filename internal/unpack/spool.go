package unpack

import (
	"errors"
	"io"
)

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
