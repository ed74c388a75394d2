package spool

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// files is the directory of a spool.
type files interface {
	names() ([]string, error)
	// read returns at most limit bytes of a file.
	read(name string, limit int) ([]byte, error)
	// create makes a file that does not exist, writes content to it and syncs
	// that; the file's name is durable only after sync.
	create(name string, content []byte) error
	// remove is durable only after sync.
	remove(name string) error
	sync() error
}

// disk is a directory on a real disk.
type disk struct{ dir string }

func openDisk(dir string) (disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return disk{}, err
	}
	parent, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return disk{}, err
	}
	return disk{dir}, errors.Join(parent.Sync(), parent.Close())
}

func (d disk) names() ([]string, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (d disk) read(name string, limit int) ([]byte, error) {
	f, err := os.OpenFile(filepath.Join(d.dir, name), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, int64(limit)))
}

func (d disk) create(name string, content []byte) error {
	f, err := os.OpenFile(filepath.Join(d.dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		f.Close()
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d disk) remove(name string) error { return os.Remove(filepath.Join(d.dir, name)) }

func (d disk) sync() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
