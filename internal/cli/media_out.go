package cli

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"imprint"
	"imprint/internal/durable"
	"imprint/internal/media"
)

// mediumOut is where a medium goes: a file, a directory or standard output. It is
// begun before the medium is asked for, so that no token is made for nobody, and has
// its name once it is whole.
type mediumOut struct {
	carrier media.Carrier
	path    string    // as it was given
	abs     string    // that of the directory, whose files name each other
	stdout  io.Writer // nil if it goes to a file or a directory
	file    *durable.File
	dir     *durable.Dir
	named   bool // it may have its name
}

func (p *program) mediumOut(c media.Carrier, path string) (*mediumOut, error) {
	out := &mediumOut{carrier: c, path: path}
	var err error
	switch {
	case c.Kind == media.Directory && path == "-":
		return nil, imprint.Errorf(imprint.Invalid, "write", "carrier "+c.Name, "it is a directory, which standard output does not take").
			WithHint("name a directory that does not exist yet")
	case c.Kind == media.Directory:
		if out.abs, err = filepath.Abs(path); err == nil {
			out.dir, err = durable.CreateDir(path)
		}
	case path == "-":
		out.stdout = struct{ io.Writer }{p.out}
	default:
		out.file, err = durable.Create(path, 0o600)
	}
	if err != nil {
		return nil, fileError("write", path, err).WithHint("name one that does not exist yet, in a directory that you may write")
	}
	return out, nil
}

// discard removes what is not whole.
func (out *mediumOut) discard() {
	if out.file != nil {
		out.file.Discard()
	}
	if out.dir != nil {
		out.dir.Discard()
	}
}

// write writes v and gives the medium its name. size is that of a disk; before is
// what the medium is appended to.
func (out *mediumOut) write(v *media.Volume, size int64, before []byte) error {
	if out.dir != nil {
		return out.writeDir(v)
	}
	var w io.Writer = out.file
	if out.stdout != nil {
		w = out.stdout
	}
	if before != nil {
		w = struct{ io.Writer }{w} // not from its start
		if _, err := w.Write(append(before, make([]byte, -len(before)&511)...)); err != nil {
			return fileError("write", out.path, err)
		}
	}
	if err := out.carrier.Write(w, v, size); err != nil {
		if cause := errors.Unwrap(err); out.file != nil && imprint.KindOf(err) == imprint.Unavailable && cause != nil {
			return fileError("write", out.path, cause)
		}
		return err
	}
	if out.file == nil {
		return nil
	}
	out.named = true
	if err := out.file.Commit(); err != nil {
		return fileError("write", out.path, err)
	}
	return nil
}

// unwritten discards what is not whole and says what became of a medium that could
// not be written for err. It has its name all the same if only that it has was not to be
// made safe, as in a directory that may be written but not read.
func (out *mediumOut) unwritten(err error) (state imprint.MediumState, detail string) {
	out.discard()
	there := func(path string) bool { _, err := os.Lstat(path); return !errors.Is(err, fs.ErrNotExist) }
	if out.named && !errors.Is(err, fs.ErrExist) && there(out.path) || out.file != nil && there(out.file.Name()) {
		return imprint.MediumLeft, "some of it may be there: " + err.Error()
	}
	return imprint.MediumTaken, "it was never written"
}

func (out *mediumOut) writeDir(v *media.Volume) error {
	files, err := out.carrier.Files(v, out.abs)
	if err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if err := out.dir.WriteFile(path, files[path], 0o600); err != nil {
			return fileError("write", out.path, err)
		}
	}
	out.named = true
	if err := out.dir.Commit(); err != nil {
		return fileError("write", out.path, err)
	}
	return nil
}
