package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/disk"
)

// target is the disk, which nobody else uses while it is open.
type target struct {
	*disk.File
	path  string
	id    string // by which the journal knows it
	block bool
	made  bool // by this run
}

// openTarget opens the disk at path, which is made as an empty file if there is none and
// make is set. Kinds are those of [disk.Open].
func openTarget(path string, make bool) (*target, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "open", path, "%w", err)
	}
	t := &target{path: path}
	if make {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		switch {
		case err == nil:
			t.made = true
			f.Close()
		case !errors.Is(err, fs.ErrExist):
			return nil, openError(path, err)
		}
	}
	if t.File, err = disk.Open(path); err != nil {
		if imprint.KindOf(err) == imprint.Conflict && imprint.HintOf(err) == "" {
			err = imprint.Errorf(imprint.Conflict, "open", path, "%w", err)
		}
		return nil, err
	}
	if t.id, t.block, err = identify(t.File.File); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// identify names the disk that f is, so that another one at the same path has another
// name, and the same has it again after a reboot.
func identify(f *os.File) (id string, block bool, err error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return "", false, imprint.Errorf(imprint.Unavailable, "open", f.Name(), "%w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return fmt.Sprintf("file %d:%d inode %d made %d.%d", st.Dev_major, st.Dev_minor, st.Ino, st.Btime.Sec, st.Btime.Nsec), false, nil
	}
	sys := fmt.Sprintf("/sys/dev/block/%d:%d/", st.Rdev_major, st.Rdev_minor)
	for _, name := range []string{"dm/uuid", "wwid", "device/wwid", "serial", "device/serial"} {
		b, err := os.ReadFile(sys + name)
		if s := strings.TrimSpace(string(b)); err == nil && s != "" {
			return "device " + name + " " + s, true, nil
		}
	}
	if info, err := unix.IoctlLoopGetStatus64(int(f.Fd())); err == nil {
		return backing(info, sys), true, nil
	}
	return fmt.Sprintf("device %d:%d", st.Rdev_major, st.Rdev_minor), true, nil
}

// backing names the disk that a loop device is: the file that is behind it, which sys
// has the name of.
func backing(info *unix.LoopInfo64, sys string) string {
	id := fmt.Sprintf("loop of device %d inode %d from %d to %d", info.Device, info.Inode, info.Offset, info.Sizelimit)
	name, _ := os.ReadFile(sys + "loop/backing_file")
	var st unix.Statx_t // a file that is made later may have the same inode
	err := unix.Statx(unix.AT_FDCWD, strings.TrimSuffix(string(name), "\n"), 0, unix.STATX_INO|unix.STATX_BTIME, &st)
	if err == nil && st.Ino == info.Inode {
		id += fmt.Sprintf(" made %d.%d", st.Btime.Sec, st.Btime.Nsec)
	}
	return id
}

// changed is when a file was last changed; zero for a block device.
func (t *target) changed() (time.Time, error) {
	if t.block {
		return time.Time{}, nil
	}
	info, err := t.Stat()
	if err != nil {
		return time.Time{}, imprint.Errorf(imprint.Unavailable, "look at", t.path, "%w", err)
	}
	return info.ModTime().UTC(), nil
}

// room returns how many bytes the disk has once a file is enlarged to size, or to what
// the image needs if it is empty. It changes nothing, and fails with kind
// [imprint.Invalid] if the image has no room: none is ever cut off.
func (t *target) room(size, image int64) (int64, error) {
	have := t.Size()
	fault := func(format string, args ...any) *imprint.Error {
		return imprint.Errorf(imprint.Invalid, "use", t.path, format, args...)
	}
	switch {
	case size > 0 && t.block && size != have:
		return 0, fault("it is a device of %d bytes, whose size cannot be chosen", have).WithHint("leave --size out")
	case size > 0 && size < have && !t.block:
		return 0, fault("it has %d bytes already, more than the %d that are asked for", have, size).WithHint("leave --size out, or remove the file first")
	case size > 0:
		have = size
	case have == 0:
		have = image
	}
	if image > have {
		e := fault("the image needs %d bytes and there are %d", image, have)
		if t.block {
			return 0, e.WithHint("enlarge the device; an image is never cut off")
		}
		return 0, e.WithHint("give --size; an image is never cut off")
	}
	return have, nil
}

// enlarge gives a file its size.
func (t *target) enlarge(size int64) error {
	if t.block || t.Size() == size {
		return nil
	}
	if err := t.Truncate(size); err != nil {
		return imprint.Errorf(imprint.Exhausted, "enlarge", t.path, "to %d bytes: %w", size, errors.Unwrap(err))
	}
	return nil
}

// markSize is how much of the disk a mark takes: the sector without which neither BIOS
// nor UEFI firmware finds anything on a disk (the latter wants a protective MBR there:
// UEFI 2.10 section 5.2.3).
const markSize = 512

// markStart begins a mark.
const markStart = "imprint: the installation of "

// mark says in the first sector that the disk holds no system, in words. Partition
// tables of GPT stay, for whoever wants to look.
func (t *target) putMark(text string) error {
	b := make([]byte, markSize)
	copy(b[:markSize-2], markStart+text) // the last two are not the signature of a boot sector
	_, err := t.WriteAt(b, 0)
	if err == nil {
		err = t.Sync()
	}
	return err
}

// mark returns what the disk at path says of an installation that failed on it; "" if
// nothing did.
func mark(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", openError(path, err)
	}
	defer f.Close()
	b := make([]byte, markSize)
	n, _ := f.ReadAt(b, 0)
	text, marked := bytes.CutPrefix(b[:n], []byte(markStart))
	if !marked {
		return "", nil
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	text = bytes.TrimRight(text, "\n")
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) { // a machine may have written it
			return '?'
		}
		return r
	}, markStart[len("imprint: "):]+string(text)), nil
}

// openError says why the system refused.
func openError(path string, err error) error {
	kind := imprint.Unavailable
	if errors.Is(err, fs.ErrNotExist) {
		kind = imprint.NotFound
	} else if errors.Is(err, fs.ErrPermission) {
		kind = imprint.Denied
	}
	return imprint.Errorf(kind, "open", path, "%w", errors.Unwrap(err))
}
