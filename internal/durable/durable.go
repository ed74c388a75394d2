// Package durable writes files that a crash cannot leave half-written: the
// content goes to a temporary name beside the file, to the disk, and only then to
// the file's name.
package durable

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// mark is in the temporary names, which begin with a dot: .NAME.new-RANDOM.
const mark = ".new-"

// WriteFile puts data at path, whose directory must exist. A crash leaves the old
// content or the new, whole and with mode whatever the umask is; an error leaves
// the old. When it returns nil, a power failure does not undo it.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	f, err := begin(path, mode)
	if err != nil {
		return err
	}
	defer f.Discard()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.commit(os.Rename)
}

// File is a new file on its way to its name, which it has after [File.Commit].
type File struct {
	*os.File
	path string
}

// Create begins a file with mode, less the umask. It works on file systems that
// know no modes, such as FAT, as well. It fails with [fs.ErrExist] if path exists.
func Create(path string, mode fs.FileMode) (*File, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: syscall.EEXIST}
	}
	return begin(path, mode)
}

func begin(path string, mode fs.FileMode) (*File, error) {
	dir, name := filepath.Split(path)
	f, err := os.OpenFile(filepath.Join(dir, "."+name+mark+rand.Text()[:8]), os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return nil, err
	}
	return &File{f, path}, nil
}

// Commit closes the file and gives it its name, safely on the disk. It fails
// with [fs.ErrExist] if something has that name meanwhile, and never replaces it.
func (f *File) Commit() error { return f.commit(renameNew) }

func (f *File) commit(name func(from, to string) error) error {
	err := errors.Join(f.Sync(), f.Close())
	if err == nil {
		err = name(f.File.Name(), f.path)
	}
	if err != nil {
		f.Discard()
		return err
	}
	return SyncDir(filepath.Dir(f.path))
}

// Discard closes the file and removes what there is under its temporary name. It
// may be called at any time, also after [File.Commit], when it does nothing.
func (f *File) Discard() {
	f.Close()
	os.Remove(f.File.Name())
}

// Clean removes what earlier processes that were killed left of unfinished files
// in dir. Call it only while nobody else writes there.
func Clean(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") && strings.Contains(e.Name(), mark) && e.Type().IsRegular() {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// linkNew renames where the kernel or the file system cannot do it without
// replacing what has the name.
func linkNew(from, to string) error {
	err := os.Link(from, to)
	if err == nil {
		err = os.Remove(from)
	}
	return err
}
