package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"imprint"
)

// File is a [Device]: a raw image or a block device that nobody else uses for as
// long as it is open.
type File struct {
	*os.File
	path         string
	size, sector int64
	block        bool
	mode         fs.FileMode
}

// Open opens the disk at path to change it. Of symbolic links only those to block
// devices are followed. It fails with kind [imprint.Conflict] if the disk is in use:
// locked as QEMU locks images, attached to a loop device, mounted, or held by the
// kernel otherwise; with [imprint.Invalid] if it is no disk, and with
// [imprint.NotFound], [imprint.Denied] and [imprint.Unavailable] as the system says.
func Open(path string) (*File, error) {
	d := &File{path: path}
	if err := d.open(); err != nil {
		return nil, err
	}
	if err := d.claim(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Wrap returns the disk that f is, which its opener keeps others away from, as [Open]
// does: with the size that it has now. The size of its sectors is not looked for.
func Wrap(f *os.File) (*File, error) {
	d := &File{File: f, path: f.Name()}
	info, err := f.Stat()
	if err != nil {
		return nil, d.failed("open", err)
	}
	d.mode, d.block = info.Mode(), block(info.Mode())
	if d.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, d.failed("open", err)
	}
	return d, nil
}

func (d *File) open() error {
	info, err := os.Lstat(d.path)
	if err == nil && info.Mode().Type() == fs.ModeSymlink {
		link := d.path
		if d.path, err = filepath.EvalSymlinks(link); err == nil {
			info, err = os.Lstat(d.path)
		}
		if err == nil && !block(info.Mode()) {
			return imprint.Errorf(imprint.Invalid, "open", link, "it is a symbolic link, and not to a block device").WithHint("name the disk itself: %s", d.path)
		}
	}
	if err != nil {
		return d.failed("open", err)
	}
	d.mode, d.block = info.Mode(), block(info.Mode())
	if !d.block && !d.mode.IsRegular() {
		return imprint.Errorf(imprint.Invalid, "open", d.path, "it is neither a regular file nor a block device")
	}
	flags := os.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK
	if d.block {
		flags |= os.O_EXCL // which a block device grants once, and not while it is mounted
	}
	if d.File, err = os.OpenFile(d.path, flags, 0); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return d.inUse("it is mounted, or the kernel uses it for something else").WithHint("see what for: lsblk %s", d.path)
		}
		return d.failed("open", err)
	}
	if now, err := d.Stat(); err != nil || !os.SameFile(info, now) {
		d.Close()
		return imprint.Errorf(imprint.Conflict, "open", d.path, "it was replaced meanwhile")
	}
	return nil
}

// block reports whether mode is a block device's.
func block(mode fs.FileMode) bool { return mode.Type() == fs.ModeDevice }

// claim keeps others away, and learns the disk's size.
func (d *File) claim() (err error) {
	// QEMU takes open file description locks of bytes of an image (block/file-posix.c),
	// shared ones, so an exclusive one of everything is refused while any QEMU has it
	// open, and refuses every QEMU later.
	err = unix.FcntlFlock(d.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return d.inUse("another program has locked it, as QEMU does with the disk of a machine that runs").WithHint("shut the machine down first")
	}
	if err != nil {
		return d.failed("lock", err)
	}
	if d.size, err = d.Seek(0, io.SeekEnd); err != nil {
		return d.failed("open", err)
	}
	if !d.block {
		if loop := d.loop(); loop != "" {
			return d.inUse("it is attached to %s", loop).WithHint("name that device, or detach it: losetup -d %s", loop)
		}
		d.sector = sectorOf(d, d.size)
		var b [8]byte // a table's header is in the second sector
		if _, err := d.ReadAt(b[:], 512); err == nil && string(b[:]) != "EFI PART" {
			if _, err := d.ReadAt(b[:], 4096); err == nil && string(b[:]) == "EFI PART" {
				d.sector = 4096
			}
		}
		return nil
	}
	sys := d.sys()
	if _, err := os.Lstat(filepath.Join(sys, "partition")); err == nil {
		return imprint.Errorf(imprint.Invalid, "open", d.path, "it is a partition").WithHint("name the whole disk: /dev/%s", filepath.Base(filepath.Dir(sys)))
	}
	n, err := unix.IoctlGetInt(int(d.Fd()), unix.BLKSSZGET)
	if err != nil {
		return d.failed("open", err)
	}
	d.sector = int64(n)
	return nil
}

// loop returns the loop device that the image is attached to, or "".
func (d *File) loop() string {
	mine, err := d.Stat()
	if err != nil {
		return ""
	}
	list, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range list {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		device := "/dev/" + strings.Split(name, "/")[3]
		if info, err := os.Stat(strings.TrimSuffix(string(b), "\n")); err == nil && os.SameFile(info, mine) || backs(device, mine) {
			return device
		}
	}
	return ""
}

// backs reports whether a loop device says itself that it has an image. Its name is no
// help where that was attached in a container, which knows it by another.
func backs(device string, image fs.FileInfo) bool {
	f, err := os.Open(device)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	st, ok := image.Sys().(*syscall.Stat_t)
	return err == nil && ok && info.Device == uint64(st.Dev) && info.Inode == st.Ino
}

// sys is where the kernel tells about a block device.
func (d *File) sys() string {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return ""
	}
	path, _ := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	return path
}

// Size is in bytes.
func (d *File) Size() int64 { return d.size }

// SectorSize is that of a logical sector, in bytes. An image has none of its own:
// it is told by where a GUID partition table is, or what a master boot record's
// partitions hold, and 512 otherwise.
func (d *File) SectorSize() int64 { return d.sector }

// Public reports whether every user of this machine may read the disk.
func (d *File) Public() bool { return d.mode.Perm()&0o004 != 0 }

// Zero overwrites n bytes at an offset with zeros, but for the holes of an image,
// which stay.
func (d *File) Zero(at, n int64) error {
	if d.block && unix.Fallocate(int(d.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, at, n) == nil {
		return nil // by the kernel or the device itself
	}
	zeros := make([]byte, min(n, 1<<20))
	for end := at + n; at < end; {
		to := end
		if !d.block {
			data, hole, err := d.data(at)
			if err != nil {
				return err
			}
			at, to = max(at, data), min(end, hole)
		}
		for at < to {
			k, err := d.WriteAt(zeros[:min(int64(len(zeros)), to-at)], at)
			if at += int64(k); err != nil {
				return err
			}
		}
	}
	return nil
}

// Discard gives the space of n bytes at an offset back, which read as zeros then. It
// fails with [errors.ErrUnsupported] where that cannot be done.
func (d *File) Discard(at, n int64) error {
	// Of a block device too this is done only if it really reads as zeros then
	// (block/fops.c: blkdev_fallocate), unlike with BLKDISCARD.
	err := unix.Fallocate(int(d.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n)
	return os.NewSyscallError("fallocate", err) // whose EOPNOTSUPP is errors.ErrUnsupported
}

// IsBlank reports whether n bytes at an offset read as zeros, and if not, where
// something else is.
func (d *File) IsBlank(at, n int64) (blank bool, where int64, err error) {
	b := make([]byte, min(n, 1<<20))
	for end := at + n; at < end; {
		if !d.block {
			data, _, err := d.data(at)
			if err != nil {
				return false, at, err
			}
			if at = max(at, data); at >= end {
				break
			}
		}
		b = b[:min(int64(len(b)), end-at)]
		if _, err := d.ReadAt(b, at); err != nil {
			return false, at, err
		}
		if !IsZero(b) {
			i := bytes.IndexFunc(b, func(r rune) bool { return r != 0 })
			return false, at + int64(i), nil
		}
		at += int64(len(b))
	}
	return true, at, nil
}

// data returns where the next data of an image is, from an offset on. A file
// system that knows no holes has data everywhere.
func (d *File) data(at int64) (start, end int64, err error) {
	start, err = unix.Seek(int(d.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return d.size, d.size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return at, d.size, nil
	case err != nil:
		return 0, 0, os.NewSyscallError("lseek", err)
	}
	end, err = unix.Seek(int(d.Fd()), start, unix.SEEK_HOLE)
	return start, end, os.NewSyscallError("lseek", err)
}

// Tell tells the kernel that a block device has a partition, or has it no more. Only
// that one changes, so it works while others are in use. It does nothing for images,
// and fails with kind [imprint.Unavailable]: the disk is right all the same.
func (d *File) Tell(p Partition, there bool) error {
	if !d.block {
		return nil
	}
	// struct blkpg_partition of linux/blkpg.h.
	var b [152]byte
	binary.NativeEndian.PutUint64(b[0:], uint64(p.Start))
	binary.NativeEndian.PutUint64(b[8:], uint64(p.Size))
	binary.NativeEndian.PutUint32(b[16:], uint32(p.Number))
	arg := unix.BlkpgIoctlArg{Op: unix.BLKPG_DEL_PARTITION, Datalen: int32(len(b)), Data: &b[0]}
	if there {
		arg.Op = unix.BLKPG_ADD_PARTITION
	}
	const blkpg = 0x1269
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), blkpg, uintptr(unsafe.Pointer(&arg)))
	switch {
	case errno == 0, errno == unix.ENXIO && !there: // it did not know of it
		return nil
	case errno == unix.EINVAL: // it keeps no partitions of this device, such as a loop device
		return nil
	}
	return imprint.Errorf(imprint.Unavailable, "announce", p.String()+" of "+d.path, "%w", errno).WithHint("let the kernel read the table: blockdev --rereadpt %s", d.path)
}

func (d *File) inUse(format string, args ...any) *imprint.Error {
	return imprint.Errorf(imprint.Conflict, "open", d.path, "it is in use: "+format, args...)
}

// failed says why the system refused.
func (d *File) failed(op string, err error) error {
	kind := imprint.Unavailable
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = imprint.NotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		kind = imprint.Denied
	}
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err // without the path, which is said already
	}
	return imprint.Errorf(kind, op, d.path, "%w", err)
}
