package image

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/image/reader"
)

// Source is an image that is here: a file that nobody changes while it is open.
type Source struct {
	// Format is what the file is, by its first bytes.
	Format reader.Format
	// Origin is where it came from, for people: without a password or a query.
	Origin string
	// FileSize is in bytes.
	FileSize int64
	// Fetched is set if it came over a network just now, rather than from the cache.
	Fetched bool

	f      *os.File
	info   fs.FileInfo
	want   []sum  // all of which the file has to have
	size   int64  // of the virtual disk; -1 until it was measured
	flaw   error  // why it is no image
	spoilt func() // what to do if the file has other sums
}

// open takes a file that is at path, for reading.
func open(path, origin string) (*Source, error) {
	// Without waiting for whoever may write to it, if it is a pipe.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fileError("open", origin, err)
	}
	return take(f, origin)
}

// take takes a file that is open.
func take(f *os.File, origin string) (*Source, error) {
	s := &Source{f: f, Origin: origin, size: -1}
	if err := s.look(); err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

func (s *Source) look() (err error) {
	if s.info, err = s.f.Stat(); err != nil {
		return fileError("open", s.Origin, err)
	}
	if !s.info.Mode().IsRegular() {
		return imprint.Errorf(imprint.Invalid, "open", s.Origin, "it is no regular file")
	}
	if s.written() {
		return imprint.Errorf(imprint.Conflict, "open", s.Origin, "a machine that runs may write to it").WithHint("shut the machine down first, or copy the image")
	}
	s.FileSize = s.info.Size()
	if s.FileSize == 0 {
		return imprint.Errorf(imprint.Invalid, "open", s.Origin, "it is empty")
	}
	head := make([]byte, reader.HeadLen)
	n, err := s.f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return fileError("read", s.Origin, err)
	}
	if s.Format, err = reader.Recognize(head[:n]); err == nil && s.Format == (reader.Format{Name: reader.Raw}) {
		s.size, err = s.FileSize, s.foot()
	}
	if err != nil {
		s.flaw = imprint.Errorf(imprint.Invalid, "open", s.Origin, "%w, which cannot be installed from", err).
			WithHint("raw, qcow2 and VMDK images can be, and gzip, xz, zstd and bzip2 around a raw one; convert it: qemu-img convert -O qcow2")
	}
	return nil
}

// foot looks for what a VHD image of fixed size has behind the disk.
func (s *Source) foot() error {
	b := make([]byte, 8)
	if _, err := s.f.ReadAt(b, max(0, s.FileSize-512)); err == nil && string(b) == "conectix" {
		return errors.New("it is a VHD image")
	}
	return nil
}

// written reports whether QEMU has the image open for writing: then it has locked
// this byte of it (block/file-posix.c: RAW_LOCK_PERM_BASE plus the bit of BLK_PERM_WRITE).
func (s *Source) written() bool {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: 101, Len: 1}
	return unix.FcntlFlock(s.f.Fd(), unix.F_OFD_GETLK, &l) == nil && l.Type != unix.F_UNLCK
}

// expect makes sure that the format is the one that was asked for, if any was.
func (s *Source) expect(format string) error {
	if s.flaw != nil {
		return s.flaw
	}
	if format != "" && format != s.Format.Name {
		return imprint.Errorf(imprint.Invalid, "open", s.Origin, "it is %s, where %s was asked for", s.Format, format)
	}
	return nil
}

// Sums are those that the file has to have, as "sha256:" or "sha512:" and hexadecimal;
// none if nobody said.
func (s *Source) Sums() []string {
	var list []string
	for _, w := range s.want {
		list = append(list, w.String())
	}
	return list
}

// Measure returns the size of the virtual disk in bytes. If that can be known only by
// decompressing, this takes as long. It fails with kind [imprint.Exhausted] if the disk
// is larger than limit, with [imprint.Invalid] if the image is damaged or needs what
// imprint does not give it, such as a backing file, and with [imprint.Unavailable] if
// there is no sandbox.
func (s *Source) Measure(ctx context.Context, limit int64) (int64, error) {
	if s.size < 0 {
		err := s.sandboxed(ctx, reader.Measure, limit, func(f reader.Frame) error {
			if f.Kind == reader.FrameSize {
				s.size = f.Length
			}
			return nil
		})
		if err != nil {
			s.size = -1
			return 0, err
		}
	}
	if s.size > limit {
		return s.size, imprint.Errorf(imprint.Exhausted, "unpack", s.Origin, "it needs a disk of %s, and there are %s", Bytes(s.size), Bytes(limit))
	}
	return s.size, nil
}

// unchanged fails if somebody wrote to the file since it was opened.
func (s *Source) unchanged() error {
	now, err := s.f.Stat()
	if err != nil {
		return fileError("read", s.Origin, err)
	}
	was, is := s.info.Sys().(*syscall.Stat_t), now.Sys().(*syscall.Stat_t)
	if was.Size != is.Size || was.Mtim != is.Mtim {
		return imprint.Errorf(imprint.Conflict, "read", s.Origin, "somebody changed it meanwhile").WithHint("start again when nobody writes to it")
	}
	return nil
}

// Check reads all of the file, returns its digest, and fails with kind [imprint.Invalid] if its sums are not
// those that it has to have. From then on it has to have that digest. Progress is called
// now and then with the bytes read.
func (s *Source) Check(ctx context.Context, progress func(done, total int64)) (digest imprint.Digest, err error) {
	h := newHashes(s.want)
	if err := h.file(ctx, s.f, s.FileSize, progress); err != nil {
		return "", readError(s.Origin, err)
	}
	if digest, err = s.judge(h); err == nil {
		s.pin("sha256", h)
	}
	return digest, err
}

// pin makes sure that whoever reads the file next finds what was found.
func (s *Source) pin(algorithm string, h *hashes) {
	if !slices.ContainsFunc(s.want, func(w sum) bool { return w.algorithm == algorithm }) {
		s.want = append(s.want, sum{algorithm, h.sum(algorithm)})
	}
}

// judge fails unless the sums are right and the file is still what it was.
func (s *Source) judge(h *hashes) (imprint.Digest, error) {
	if err := s.unchanged(); err != nil {
		return "", err
	}
	for _, w := range s.want {
		if got := h.sum(w.algorithm); !slices.Equal(got, w.value) {
			if s.spoilt != nil {
				s.spoilt()
			}
			return "", imprint.Errorf(imprint.Invalid, "verify", s.Origin, "its %s is %x, where %x was expected", strings.ToUpper(w.algorithm), got, w.value).
				WithHint("it is damaged, or another version: look whether the expected sum is of this file")
		}
	}
	return h.digest(), nil
}

// File returns the image's file, for who reads it otherwise than [Source.Write] does. It
// is the caller's, and is open when the source is closed.
func (s *Source) File() (*os.File, error) {
	fd, err := unix.FcntlInt(s.f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fileError("open", s.Origin, err)
	}
	return os.NewFile(uintptr(fd), s.f.Name()), nil
}

// Close lets go of the file.
func (s *Source) Close() error { return s.f.Close() }

// fileError says why the system refused.
func fileError(op, path string, err error) *imprint.Error {
	kind := imprint.Unavailable
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = imprint.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = imprint.Denied
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind = imprint.Exhausted
	}
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err // without the path, which is said already
	}
	return imprint.Errorf(kind, op, path, "%w", err)
}

func readError(path string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var known *imprint.Error
	if errors.As(err, &known) {
		return err
	}
	return fileError("read", path, err)
}
