package unpack

import (
	"bytes"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"imprint"
)

// A compression is how the bytes of an archive are packed.
type compression struct {
	name  string
	magic string
	open  func(io.Reader) (io.ReadCloser, error) // nil if imprint does not read it
}

// compressions returns those that are recognised; what none of them is, is a plain archive.
func compressions() []compression {
	return []compression{
		{"gzip", "\x1f\x8b", func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }},
		{"zstd", "\x28\xb5\x2f\xfd", func(r io.Reader) (io.ReadCloser, error) {
			z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow))
			if err != nil {
				return nil, err
			}
			return z.IOReadCloser(), nil
		}},
		{"xz", "\xfd7zXZ\x00", func(r io.Reader) (io.ReadCloser, error) {
			z, err := xz.NewReader(r, maxXZDict)
			return io.NopCloser(z), err
		}},
		{"bzip2", "BZh", nil},
		{"lzip", "LZIP", nil},
		{"lz4", "\x04\x22\x4d\x18", nil},
		{"compress", "\x1f\x9d", nil},
		{"zip", "PK\x03\x04", nil},
		{"cpio", "070701", nil},
	}
}

// archive is a package that can be read from its beginning, more than once.
type archive struct {
	r           io.ReaderAt
	size        int64
	compression *compression // nil for none
	limits      Limits
	plain       []byte // all of it uncompressed, if memory has it
	spool       *spool // what a compressed one is kept in by who reads it first, or nil
}

// All but archives of the time before POSIX have it, behind the first name.
const (
	tarMagic       = "ustar"
	tarMagicOffset = 257
)

// open recognises how the package in the first size bytes of r is compressed.
func open(r io.ReaderAt, size int64, limits Limits) (*archive, error) {
	if size <= 0 {
		return nil, imprint.Errorf(imprint.Invalid, "unpack", "package", "it is empty")
	}
	head := make([]byte, min(size, tarMagicOffset+int64(len(tarMagic))))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, imprint.Errorf(imprint.Internal, "read", "package", "%w", err)
	}
	a := &archive{r: r, size: size, limits: limits}
	if bytes.HasSuffix(head, []byte(tarMagic)) {
		return a, nil // whatever it begins with is a name
	}
	for _, c := range compressions() {
		if !bytes.HasPrefix(head, []byte(c.magic)) {
			continue
		}
		if c.open == nil {
			return nil, imprint.Errorf(imprint.Invalid, "unpack", "package", "it is made by %s", c.name).
				WithHint("pack it as .tar, .tar.gz, .tar.zst or .tar.xz")
		}
		a.compression = &c
	}
	return a, nil
}

// stream is the uncompressed archive on its way.
type stream struct {
	r     io.Reader
	close func() error
	n     int64 // bytes so far
	limit int64
	zeros int // of the last bytes so far, up to endSize
}

// endSize is how many zero bytes end an archive at least: two blocks (POSIX.1-2024, pax).
const endSize = 1024

var errTooLarge = errors.New("the archive has more bytes than the limit allows")

// stream returns the archive from its beginning. Unless it is decompressed on the way,
// parts of it can be skipped: then the reader is an [io.Seeker].
func (a *archive) stream() (*stream, io.Reader, error) {
	s := &stream{limit: a.limits.Size, close: func() error { return nil }}
	section := io.NewSectionReader(a.r, 0, a.size)
	var skips io.ReadSeeker
	switch {
	case a.plain != nil:
		skips = bytes.NewReader(a.plain)
	case a.compression == nil:
		skips = section
	default:
		z, err := a.compression.open(section)
		if err != nil {
			return nil, nil, imprint.Errorf(imprint.Invalid, "unpack", "package", "%s: %w", a.compression.name, err)
		}
		s.close, s.r = z.Close, z
		if a.spool == nil {
			return s, s, nil
		}
		a.spool.from(z)
		skips = a.spool
	}
	s.r = skips
	return s, &seekable{s, skips}, nil
}

func (s *stream) Read(p []byte) (int, error) {
	if s.n > s.limit {
		return 0, errTooLarge
	}
	n, err := s.r.Read(p[:min(int64(len(p)), s.limit+1-s.n)])
	s.n += int64(n)
	s.count(p[:n])
	return n, err
}

// count keeps how many zeros the bytes so far end with.
func (s *stream) count(p []byte) {
	tail := p[max(0, len(p)-endSize):]
	zeros := len(tail) - len(bytes.TrimRight(tail, "\x00"))
	if zeros == len(p) {
		zeros += s.zeros
	}
	s.zeros = min(zeros, endSize)
}

// end reads what is behind the last entry: zeros and nothing else.
func (s *stream) end() error {
	if s.zeros < endSize {
		return imprint.Errorf(imprint.Invalid, "unpack", "package", "it stops without the end of an archive").
			WithHint("it was cut off: compare its size with that of the original")
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := s.Read(buf)
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			return imprint.Errorf(imprint.Invalid, "unpack", "package", "something follows the end of the archive").
				WithHint("pack everything into one archive; archives that are put one behind the other are not read")
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// seekable is a stream of which parts can be skipped.
type seekable struct {
	*stream
	skips io.Seeker
}

func (s *seekable) Seek(offset int64, whence int) (int64, error) {
	n, err := s.skips.Seek(offset, whence)
	if err == nil {
		if n != s.n {
			s.zeros = 0
		}
		s.n = n
	}
	return n, err
}
