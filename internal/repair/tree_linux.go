package repair

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
)

// maxFile is how large a file of the system may be that is read or changed, in bytes.
const maxFile = 64 << 20

// tree is a directory within which paths are resolved as chroot(2) would: symbolic
// links are followed, and lead nowhere else.
type tree struct{ dir *os.File }

func openTree(dir string) (*tree, error) {
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return &tree{f}, nil
}

func (t *tree) Close() error { return t.dir.Close() }

// open opens what a path means in the tree.
func (t *tree) open(name string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Openat2(int(t.dir.Fd()), name, &unix.OpenHow{
			Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		case err != nil:
			return nil, &fs.PathError{Op: "open", Path: "/" + name, Err: err}
		default:
			return os.NewFile(uintptr(fd), name), nil
		}
	}
}

// file opens a regular file. A FIFO or a device does not hold anybody up.
func (t *tree) file(name string, flags int) (*os.File, error) {
	f, err := t.open(name, flags|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: "/" + name, Err: errors.New("it is no regular file")}
	}
	return f, nil
}

// read returns a file of at most maxFile bytes.
func (t *tree) read(name string) ([]byte, error) {
	f, err := t.file(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = imprint.Errorf(imprint.Exhausted, "read", "/"+name, "it has more than %d bytes", maxFile)
	}
	return b, err
}

// readDir returns the names in a directory, up to 10,000, and none if there is no such directory.
func (t *tree) readDir(name string) []string {
	f, err := t.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(10000)
	return names
}

// has reports whether a path means something, or is a symbolic link to something else.
func (t *tree) has(name string) bool {
	f, err := t.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// root returns the directory that a path is in, as an [os.Root].
func (t *tree) root(name string) (*os.Root, error) {
	f, err := t.open(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d/.", f.Fd()))
}

// remove removes what has that name, not what a symbolic link there leads to, and
// reports whether there was something.
func (t *tree) remove(name string) (bool, error) {
	dir, err := t.root(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	if _, err := dir.Lstat(path.Base(name)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return true, dir.RemoveAll(path.Base(name))
}

// write replaces a file, whole or not at all, and makes the directories that it is
// in. An existing file keeps owner, mode and security label; a symbolic link is replaced.
func (t *tree) write(name string, b []byte, mode fs.FileMode) error {
	if err := t.mkdirAll(path.Dir(name)); err != nil {
		return err
	}
	dir, err := t.root(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	base := path.Base(name)
	fresh := ".imprint-" + base
	if err := dir.RemoveAll(fresh); err != nil {
		return err
	}
	f, err := dir.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	err = errors.Join(f.Chmod(mode), resemble(f, dir, base))
	if err == nil {
		_, err = f.Write(b)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = dir.Rename(fresh, base)
	}
	if err != nil {
		dir.Remove(fresh)
	}
	return err
}

// resemble gives f the owner, mode and security label of an existing file.
func resemble(f *os.File, dir *os.Root, base string) error {
	info, err := dir.Lstat(base)
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	old, err := dir.OpenFile(base, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer old.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(old.Fd()), &st); err != nil {
		return err
	}
	if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil && !errors.Is(err, fs.ErrPermission) { // FAT has no owners
		return err
	}
	var label [1024]byte
	if n, err := unix.Fgetxattr(int(old.Fd()), "security.selinux", label[:]); err == nil && n > 0 {
		unix.Fsetxattr(int(f.Fd()), "security.selinux", label[:n], 0)
	}
	return f.Chmod(info.Mode().Perm())
}

// mkdirAll makes a directory and those that it is in.
func (t *tree) mkdirAll(name string) error {
	if name == "." || name == "/" {
		return nil
	}
	if f, err := t.open(name, unix.O_PATH|unix.O_DIRECTORY); err == nil {
		return f.Close()
	}
	if err := t.mkdirAll(path.Dir(name)); err != nil {
		return err
	}
	dir, err := t.root(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Mkdir(path.Base(name), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// patch replaces identifiers in a file, which has the content b, by others of the same
// length, in place, so that whatever else the file is stays. It reports whether there was one.
func (t *tree) patch(name string, b []byte, replace map[string]string) (bool, error) {
	patched := bytes.Clone(b)
	for i := 0; i < len(patched); i++ {
		if w := patched[i:]; len(w) >= uuidLen && w[8] == '-' && w[13] == '-' && w[18] == '-' && w[23] == '-' && substitute(w[:uuidLen], replace) {
			i += uuidLen - 1
			continue
		}
		if i > 0 && isIdentifier(patched[i-1]) {
			continue
		}
		n := 0
		for n < len(patched)-i && isIdentifier(patched[i+n]) {
			n++
		}
		if n > 8 && n < uuidLen { // eight digits alone may be anything
			substitute(patched[i:i+n], replace)
		}
	}
	if bytes.Equal(b, patched) {
		return false, nil
	}
	f, err := t.file(name, unix.O_WRONLY)
	if err != nil {
		return false, err
	}
	_, err = f.WriteAt(patched, 0)
	return true, errors.Join(err, f.Sync(), f.Close())
}

// uuidLen is how long the text of a UUID is. Shorter identifiers are replaced only as
// whole words, since what they are made of is a part of others.
const uuidLen = 36

// substitute replaces a word if it is a key, in lower or in upper case, which is the
// writer's habit: grub-probe writes the lower, blkid FAT's in the upper.
func substitute(word []byte, replace map[string]string) bool {
	was := string(word)
	for _, cased := range []string{strings.ToLower(was), strings.ToUpper(was)} {
		if to, ok := replace[cased]; ok && len(to) == len(word) {
			if was == strings.ToLower(was) {
				to = strings.ToLower(to)
			}
			copy(word, to)
			return true
		}
	}
	return false
}

// isIdentifier reports whether an identifier may have that character.
func isIdentifier(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' || c == '-'
}
