package personalize

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"imprint"
)

// Limits of what is injected at once. More is packed better by tar, and given as a
// package, which need not be in memory.
const (
	MaxPacked  = 256 << 20 // bytes of an archive
	maxEntries = 1 << 16
)

// Pack writes the archive that has all injections. It depends on nothing but them:
// what is in a directory comes in the order of its names. Symbolic links in it stay what
// they are, and nothing that one of them leads to outside of it is read.
//
// It fails with kind [imprint.Invalid] if there is something that cannot be injected,
// such as a device, or if two things have one place in the guest, with
// [imprint.NotFound] or [imprint.Denied] if one cannot be read, with [imprint.Conflict]
// if it changes meanwhile, and with [imprint.Exhausted] beyond [MaxPacked].
func Pack(ctx context.Context, w io.Writer, list []Injection) error {
	if len(list) > MaxInjections {
		return imprint.Errorf(imprint.Exhausted, "inject", list[MaxInjections].Local, "%d files and directories are named; %d are allowed", len(list), MaxInjections).
			WithHint("name the directory that has them, or pack them by tar and give that as a package")
	}
	p := &packer{ctx: ctx, tar: tar.NewWriter(&limitedWriter{w, MaxPacked}), has: map[string]string{}}
	for i := range list {
		if err := p.add(&list[i]); err != nil {
			return err
		}
	}
	return p.tar.Close()
}

type packer struct {
	ctx context.Context
	tar *tar.Writer
	has map[string]string // by path in the guest, whence it is
}

// add packs one injection.
func (p *packer) add(in *Injection) error {
	info, err := os.Stat(in.Local) // who names a link means what it leads to
	if err != nil {
		return fileError(in.Local, err)
	}
	if !info.IsDir() {
		f, err := os.OpenFile(in.Local, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return fileError(in.Local, err)
		}
		defer f.Close()
		return p.file(in, in.Local, ".", info, f)
	}
	root, err := os.OpenRoot(in.Local)
	if err != nil {
		return fileError(in.Local, err)
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(rel string, d fs.DirEntry, err error) error {
		local := filepath.Join(in.Local, rel)
		if err != nil {
			return fileError(local, err)
		}
		if err := p.ctx.Err(); err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return fileError(local, err)
		}
		switch d.Type() {
		case fs.ModeDir:
			if in.inGuest(rel, true) == "" {
				return nil // the guest's root directory
			}
			return p.header(in, local, rel, info, &tar.Header{Typeflag: tar.TypeDir})
		case fs.ModeSymlink:
			to, err := root.Readlink(rel)
			if err != nil {
				return fileError(local, err)
			}
			return p.header(in, local, rel, info, &tar.Header{Typeflag: tar.TypeSymlink, Linkname: to})
		case 0:
			f, err := root.OpenFile(rel, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
			if err != nil {
				return fileError(local, err)
			}
			defer f.Close()
			return p.file(in, local, rel, info, f)
		}
		return cannot(local, d.Type())
	})
}

// file packs the regular file f, which was found as info.
func (p *packer) file(in *Injection, local, rel string, info fs.FileInfo, f *os.File) error {
	now, err := f.Stat()
	if err != nil {
		return fileError(local, err)
	}
	changed := imprint.Errorf(imprint.Conflict, "inject", local, "it changed while it was read").WithHint("try again when nobody writes to it")
	switch {
	case !now.Mode().IsRegular():
		return cannot(local, now.Mode().Type())
	case !os.SameFile(info, now):
		return changed
	}
	if err := p.header(in, local, rel, now, &tar.Header{Typeflag: tar.TypeReg, Size: now.Size()}); err != nil {
		return err
	}
	n, err := io.Copy(p.tar, f)
	if errors.Is(err, tar.ErrWriteTooLong) || err == nil && n < now.Size() {
		return changed
	}
	return p.wrote(local, err)
}

// header packs what is called rel in the injection.
func (p *packer) header(in *Injection, local, rel string, info fs.FileInfo, h *tar.Header) error {
	dir := h.Typeflag == tar.TypeDir
	h.Name = in.inGuest(rel, dir || rel != ".")
	if other, ok := p.has[h.Name]; ok && !dir {
		return imprint.Errorf(imprint.Invalid, "inject", local, "/%s would be this and %s", h.Name, other).WithHint("leave one of them out")
	}
	if p.has[h.Name] = local; len(p.has) > maxEntries {
		return imprint.Errorf(imprint.Exhausted, "inject", local, "with it there are more than %d files", maxEntries).
			WithHint("pack them by tar, and give that as a package")
	}
	h.Mode = int64(info.Mode().Perm())
	if in.Mode != nil {
		h.Mode = int64(*in.Mode)
		if dir {
			h.Mode = h.Mode&0o777 | h.Mode&0o444>>2
		}
	}
	if h.Typeflag == tar.TypeSymlink {
		h.Mode = 0o777
	}
	if dir {
		h.Name += "/"
	}
	h.ModTime = info.ModTime()
	h.Uid, h.Uname = owner(in.User)
	h.Gid, h.Gname = owner(in.Group)
	return p.wrote(local, p.tar.WriteHeader(h))
}

// owner returns the number and name that a header has for a user or group.
func owner(s string) (id int, name string) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return int(n), ""
	}
	return 0, s
}

// wrote says what became of err, which writing local into the archive came to.
func (p *packer) wrote(local string, err error) error {
	var domain *imprint.Error
	if err == nil || errors.As(err, &domain) {
		return err
	}
	if errors.Is(err, errTooMuch) {
		return imprint.Errorf(imprint.Exhausted, "inject", local, "with it there are more than %d bytes", int64(MaxPacked)).
			WithHint("pack them by tar, and give that as a package")
	}
	return fileError(local, err)
}

func cannot(local string, is fs.FileMode) error {
	return imprint.Errorf(imprint.Invalid, "inject", local, "it is no file, directory or symbolic link (%s)", is).WithHint("leave it out")
}

// fileError says why the system refused.
func fileError(local string, err error) error {
	kind := imprint.Unavailable
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = imprint.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = imprint.Denied
	}
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err // without the path, which is said already
	}
	return imprint.Errorf(kind, "inject", local, "%w", err)
}

var errTooMuch = errors.New("too much")

// limitedWriter takes up to left bytes.
type limitedWriter struct {
	w    io.Writer
	left int64
}

func (l *limitedWriter) Write(b []byte) (int, error) {
	if l.left -= int64(len(b)); l.left < 0 {
		return 0, errTooMuch
	}
	return l.w.Write(b)
}
