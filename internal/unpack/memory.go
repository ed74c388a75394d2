//go:build linux

package unpack

import (
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
