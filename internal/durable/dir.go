package durable

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Dir is a new directory on its way to its name, which it has after [Dir.Commit].
// Until then it is empty or has some of its files, under a temporary name beside it.
type Dir struct {
	temp, path string
	made       []string // directories, of which each is before those in it
}

// CreateDir begins a directory that its owner alone may enter. It fails with
// [fs.ErrExist] if path exists.
func CreateDir(path string) (*Dir, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: syscall.EEXIST}
	}
	parent, name := filepath.Split(filepath.Clean(path))
	d := &Dir{temp: filepath.Join(parent, "."+name+mark+rand.Text()[:8]), path: filepath.Clean(path)}
	if err := os.Mkdir(d.temp, 0o700); err != nil {
		return nil, err
	}
	d.made = []string{d.temp}
	return d, nil
}

// WriteFile puts a new file into the directory, at a path relative to it. The
// directories on the way are made.
func (d *Dir) WriteFile(path string, data []byte, mode fs.FileMode) error {
	full := filepath.Join(d.temp, path)
	var missing []string
	for parent := filepath.Dir(full); parent != d.temp; parent = filepath.Dir(parent) {
		if _, err := os.Lstat(parent); err == nil {
			break
		}
		missing = append(missing, parent)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		if err := os.Mkdir(missing[i], 0o700); err != nil {
			return err
		}
		d.made = append(d.made, missing[i])
	}
	f, err := os.OpenFile(full, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// Commit gives the directory its name, with all that is in it safely on the disk.
// It fails with [fs.ErrExist] if something has that name meanwhile.
func (d *Dir) Commit() error {
	for _, dir := range d.made {
		if err := SyncDir(dir); err != nil {
			return err
		}
	}
	if err := renameNew(d.temp, d.path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(d.path))
}

// Discard removes what there is under the temporary name. It may be called at any
// time, also after [Dir.Commit], when it does nothing.
func (d *Dir) Discard() { os.RemoveAll(d.temp) }
