package osdef

import (
	"archive/tar"
	"cmp"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"imprint"
)

// snapshot copies the definition into a directory that nobody else can change, with
// links replaced by what they lead to, and makes sure that it is what was read and,
// if that is asked for, marked. What runs is the copy.
func (d *Definition) snapshot(scratch string) (dir string, err error) {
	dir, err = os.MkdirTemp(scratch, "imprint-os-")
	if err != nil {
		return "", imprint.Errorf(imprint.Unavailable, "copy", "OS definition "+d.Name, "%w", err)
	}
	err = filepath.WalkDir(d.Dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(d.Dir, path)
		if err != nil || name == "." {
			return err
		}
		if e.IsDir() {
			return os.Mkdir(filepath.Join(dir, name), 0o755)
		}
		return copyFile(path, filepath.Join(dir, name))
	})
	var now imprint.Digest
	if err == nil {
		now, err = digest(dir)
	}
	if err == nil {
		err = os.Chmod(dir, 0o755) // for scripts that run as nobody
	}
	switch {
	case err != nil:
		err = imprint.Errorf(imprint.Unavailable, "copy", "OS definition "+d.Name, "%w", cause(err))
	case now != d.Digest:
		err = imprint.Errorf(imprint.Conflict, "copy", "OS definition "+d.Name, "it changed while it was read").WithHint("try again when %s stays as it is", d.Dir)
	}
	if err != nil {
		os.RemoveAll(dir)
		return "", err
	}
	return dir, nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return reason("%s is neither a file nor a directory", from)
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return err
	}
	defer out.Close()
	if n, err := io.Copy(out, io.LimitReader(in, maxBytes+1)); err != nil || n > maxBytes {
		return cmp.Or(err, reason("%s has more than %d bytes", from, int64(maxBytes)))
	}
	if err := out.Chmod(info.Mode().Perm()); err != nil { // whatever the umask is
		return err
	}
	return out.Close()
}

// archive writes the files below dir to a tar archive that has no name and is open for
// reading only, as a VM wants it, and returns its length.
func archive(dir, scratch string) (f *os.File, size int64, err error) {
	out, err := os.CreateTemp(scratch, "imprint-os-")
	if err != nil {
		return nil, 0, err
	}
	defer out.Close()
	defer os.Remove(out.Name()) // it goes with its descriptor
	if size, err = writeArchive(dir, out); err != nil {
		return nil, 0, err
	}
	f, err = os.Open(out.Name())
	return f, size, err
}

func writeArchive(dir string, f *os.File) (int64, error) {
	w := tar.NewWriter(f)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || name == "." {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: filepath.ToSlash(name), Mode: int64(info.Mode().Perm()), Size: info.Size()}
		if e.IsDir() {
			h.Typeflag, h.Size = tar.TypeDir, 0
			return w.WriteHeader(h)
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		_, err = io.Copy(w, in)
		return err
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return 0, err
	}
	return f.Seek(0, io.SeekCurrent)
}
