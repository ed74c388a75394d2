//go:build linux

package unpack

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
)

// writer carries out a plan.
type writer struct {
	root int
	o    *Options
	plan *plan
	sum  Summary
	done int64

	dir     int // open, of the step before, or -1
	dirPath string
	dirs    []dirEntry // that get their metadata at the end
	buf     []byte
}

// dirEntry is a directory that exists, whose metadata is still to be written:
// what is made in it would change its times, and its mode may forbid that.
type dirEntry struct {
	path  string
	entry entry
	image bool // the image has it
}

const (
	chunk = 1 << 20 // bytes that are read and written at a time
	hole  = 4 << 10 // zero bytes at a multiple of it that a sparse file leaves out
)

// write reads the package again and does what p says.
func write(ctx context.Context, root *os.File, a *archive, p *plan, o *Options) (Summary, error) {
	w := &writer{root: int(root.Fd()), o: o, plan: p, dir: -1, sum: Summary{Entries: len(p.steps), Bytes: p.total}}
	defer w.leave()
	r, err := newReader(a)
	if err != nil {
		return w.sum, err
	}
	defer r.close()
	for i := range p.steps {
		if err := ctx.Err(); err != nil {
			return w.sum, imprint.Errorf(imprint.Unavailable, "unpack", "package", "%w", err)
		}
		e, err := r.next()
		if err == io.EOF {
			err = changed("package")
		}
		if err != nil {
			return w.sum, err
		}
		s := &p.steps[i]
		if e.path != s.path || e.kind != s.kind || e.size != s.size {
			return w.sum, changed(e.path)
		}
		w.sum.Changed = true
		if err := w.step(ctx, s, &e, r); err != nil {
			return w.sum, failed(e.path, err)
		}
	}
	if _, err := r.next(); err != io.EOF {
		return w.sum, changed("package")
	}
	w.leave()
	for i := range w.dirs {
		if err := w.finish(&w.dirs[i]); err != nil {
			return w.sum, failed(w.dirs[i].entry.path, err)
		}
	}
	// Only this shows what the disk makes of it.
	if err := unix.Syncfs(w.root); err != nil {
		return w.sum, failed("", err)
	}
	return w.sum, nil
}

// changed is an error about a package that is not what was checked.
func changed(path string) error {
	return refuse(imprint.Internal, path, "the package is not the one that was checked: it changed in between")
}

// failed is what became of err, which writing an entry came to.
func failed(path string, err error) error {
	var domain *imprint.Error
	switch {
	case errors.As(err, &domain):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return refuse(imprint.Exhausted, path, "write it: %w", err).WithHint("grow the disk, or pack less")
	case errors.Is(err, unix.EOPNOTSUPP):
		return refuse(imprint.Conflict, path, "write it: %w", err).WithHint("the filesystem cannot keep what the package has: pack it without extended attributes")
	}
	return refuse(imprint.Internal, path, "write it: %w", err)
}

// step writes one entry, whose contents are in r.
func (w *writer) step(ctx context.Context, s *step, e *entry, r *reader) error {
	for _, path := range s.parents {
		if err := w.makeParent(path); err != nil {
			return err
		}
	}
	if s.name == "" {
		return nil // the root directory stays as it is
	}
	if err := w.enter(s.dir); err != nil {
		return err
	}
	if e.kind == directory {
		if !s.there {
			if err := unix.Mkdirat(w.dir, s.name, 0o700); err != nil {
				return err
			}
		}
		w.dirs = append(w.dirs, dirEntry{join(s.dir, s.name), *e, s.there && s.image})
		return nil
	}
	name := s.name
	if s.there {
		name = ".imprint-" + rand.Text()
	}
	err := w.make(ctx, name, s, e, r)
	if err == nil && s.there {
		err = unix.Renameat(w.dir, name, w.dir, s.name)
	}
	// A rename to another name of the same file does nothing, and leaves the old one.
	if s.there {
		if gone := unix.Unlinkat(w.dir, name, 0); gone != nil && gone != unix.ENOENT && err == nil {
			err = gone
		}
	}
	return err
}

// enter opens a directory for the steps to come.
func (w *writer) enter(path string) error {
	if w.dir >= 0 && w.dirPath == path {
		return nil
	}
	w.leave()
	fd, err := openBelow(w.root, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	w.dir, w.dirPath = fd, path
	return nil
}

// leave closes it.
func (w *writer) leave() {
	if w.dir >= 0 {
		unix.Close(w.dir)
		w.dir = -1
	}
}

// makeParent makes a directory that the package does not name.
func (w *writer) makeParent(path string) error {
	if err := w.enter(parentOf(path)); err != nil {
		return err
	}
	name := baseOf(path)
	if err := unix.Mkdirat(w.dir, name, 0o755); err != nil {
		return err
	}
	fd, err := openBelow(w.dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, 0, 0); err != nil {
		return err
	}
	return unix.Fchmod(fd, 0o755)
}

// make makes what is not a directory under a name that is not there yet.
func (w *writer) make(ctx context.Context, name string, s *step, e *entry, r *reader) error {
	switch e.kind {
	case file:
		return w.makeFile(ctx, name, e, r)
	case hardlink:
		// The target is a name of the package or the image; nothing on the way is a link.
		dir, err := openBelow(w.root, parentOf(s.target), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		return unix.Linkat(dir, baseOf(s.target), w.dir, name, 0)
	}
	var err error
	switch e.kind {
	case symlink:
		err = unix.Symlinkat(e.target, w.dir, name)
	case fifo:
		err = unix.Mkfifoat(w.dir, name, 0o600)
	case charDevice:
		err = unix.Mknodat(w.dir, name, unix.S_IFCHR|0o600, int(unix.Mkdev(e.device[0], e.device[1])))
	case blockDevice:
		err = unix.Mknodat(w.dir, name, unix.S_IFBLK|0o600, int(unix.Mkdev(e.device[0], e.device[1])))
	}
	if err != nil {
		return err
	}
	fd, err := openBelow(w.dir, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return w.label(fd, true, e)
}

// makeFile makes a regular file.
func (w *writer) makeFile(ctx context.Context, name string, e *entry, r *reader) error {
	how := unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC, Mode: 0o600,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := openat2(w.dir, name, &how)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := w.copy(ctx, fd, e, r); err != nil {
		unix.Unlinkat(w.dir, name, 0) // a part of a file is worse than none
		return err
	}
	return w.label(fd, false, e)
}

// copy writes the contents of e to fd.
func (w *writer) copy(ctx context.Context, fd int, e *entry, r *reader) error {
	var off int64
	for off < e.size {
		if err := ctx.Err(); err != nil {
			return imprint.Errorf(imprint.Unavailable, "unpack", e.path, "%w", err)
		}
		b, err := w.next(r, e, off)
		if err != nil {
			return err
		}
		if err := pwrite(fd, b, off, e.sparse); err != nil {
			return err
		}
		off += int64(len(b))
		w.done += int64(len(b))
		if w.o.Progress != nil {
			w.o.Progress(w.done, w.plan.total)
		}
	}
	if e.sparse {
		return unix.Ftruncate(fd, e.size) // it may end with a hole
	}
	return nil
}

// next returns what follows at the offset off in a file's contents.
func (w *writer) next(r *reader, e *entry, off int64) ([]byte, error) {
	n := min(chunk, e.size-off)
	if !e.sparse && r.plain != nil { // where it is in memory; the reader skips it
		if r.n+off+n > int64(len(r.plain)) {
			return nil, changed(e.path)
		}
		return r.plain[r.n+off:][:n], nil
	}
	if w.buf == nil {
		w.buf = make([]byte, chunk)
	}
	b := w.buf[:n]
	if _, err := io.ReadFull(r.tar, b); err != nil {
		return nil, r.broken(err)
	}
	return b, nil
}

// pwrite writes b, without what is zero if the file is sparse.
func pwrite(fd int, b []byte, off int64, sparse bool) error {
	for len(b) > 0 {
		part := b
		if sparse {
			if part = b[:min(hole, len(b))]; len(bytes.TrimLeft(part, "\x00")) == 0 {
				b, off = b[len(part):], off+int64(len(part))
				continue
			}
		}
		n, err := unix.Pwrite(fd, part, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// label gives what fd is open on its owner, mode, attributes and times, in the
// order in which none takes another away: a new owner clears setuid and capabilities.
// An O_PATH descriptor is that of a symbolic link, a FIFO or a device.
func (w *writer) label(fd int, path bool, e *entry) error {
	owner := w.plan.accounts.owner(e, w.o.Owners)
	if err := unix.Fchownat(fd, "", int(owner.user), int(owner.group), unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	switch {
	case !path:
		if err := unix.Fchmod(fd, e.mode); err != nil {
			return err
		}
	case e.kind != symlink:
		if err := unix.Chmod(procPath(fd), e.mode); err != nil {
			return err
		}
	}
	for _, a := range e.attrs {
		if err := w.attribute(fd, path, a); err != nil {
			return err
		}
	}
	times := [2]unix.Timespec{{Nsec: unix.UTIME_NOW}, timespec(e.mtime)}
	if !e.atime.IsZero() {
		times[0] = timespec(e.atime)
	}
	return unix.UtimesNanoAt(fd, "", times[:], unix.AT_EMPTY_PATH)
}

func (w *writer) attribute(fd int, path bool, a attr) error {
	a, err := a.binary(w.plan.accounts.lookUp)
	if err != nil {
		return err
	}
	if path {
		err = unix.Setxattr(procPath(fd), a.name, []byte(a.value), 0)
	} else {
		err = unix.Fsetxattr(fd, a.name, []byte(a.value), 0)
	}
	if err != nil {
		return &os.PathError{Op: "setxattr", Path: a.name, Err: err}
	}
	return nil
}

// timespec is t as the kernel has it, which keeps it within what the filesystem can hold.
func timespec(t time.Time) unix.Timespec {
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// finish writes the metadata of a directory.
func (w *writer) finish(d *dirEntry) error {
	if d.image && w.o.KeepDirectories {
		return nil
	}
	fd, err := openBelow(w.root, d.path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var before, after unix.Stat_t
	if err := unix.Fstat(fd, &before); err != nil {
		return err
	}
	if err := w.label(fd, false, &d.entry); err != nil {
		return err
	}
	if err := unix.Fstat(fd, &after); err != nil {
		return err
	}
	if d.image && len(w.sum.Directories) < MaxNotedDirectories &&
		(before.Uid != after.Uid || before.Gid != after.Gid || before.Mode != after.Mode) {
		w.sum.Directories = append(w.sum.Directories, d.path)
	}
	return nil
}
