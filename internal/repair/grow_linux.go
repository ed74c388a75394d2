package repair

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"imprint"
)

// Requests by which a mounted filesystem grows. The kernel does the work, so that
// this needs no program that knows the filesystem.
const (
	ext4Resize    = 0x40086610 // EXT4_IOC_RESIZE_FS of fs/ext4/ext4.h: the number of blocks
	xfsGeometry   = 0x80705864 // XFS_IOC_FSGEOMETRY_V1 of fs/xfs/libxfs/xfs_fs.h
	xfsGrow       = 0x4010586e // XFS_IOC_FSGROWFSDATA
	btrfsResize   = 0x50009403 // BTRFS_IOC_RESIZE of linux/btrfs.h
	xfsGeometryV1 = 112        // bytes of struct xfs_fsop_geom_v1
)

// grow lets a filesystem that is mounted at dir fill its device, and returns by how
// many bytes it grew. It fails with kind [imprint.Invalid] if that cannot be done to
// this filesystem.
func (v *Volume) grow(dir string) (int64, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size, err := deviceSize(v.Device)
	if err != nil {
		return 0, unreadable(v.Device, err)
	}
	before, err := v.size(f)
	if err != nil {
		return 0, unreadable(v.String(), err)
	}
	if size <= before {
		return 0, nil
	}
	switch v.Type {
	case Ext4:
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
			return 0, err
		}
		blocks := uint64(size / st.Bsize)
		err = ioctl(f, ext4Resize, unsafe.Pointer(&blocks))
	case XFS:
		var geometry [xfsGeometryV1]byte
		if err := ioctl(f, xfsGeometry, unsafe.Pointer(&geometry)); err != nil {
			return 0, unreadable(v.String(), err)
		}
		ne := binary.NativeEndian
		var arg [16]byte // struct xfs_growfs_data
		ne.PutUint64(arg[0:], uint64(size)/uint64(ne.Uint32(geometry[0:])))
		ne.PutUint32(arg[8:], ne.Uint32(geometry[28:])) // what part inodes may take stays
		err = ioctl(f, xfsGrow, unsafe.Pointer(&arg))
	case Btrfs:
		var arg [4096]byte // struct btrfs_ioctl_vol_args
		copy(arg[8:], "max")
		err = ioctl(f, btrfsResize, unsafe.Pointer(&arg))
	}
	if err != nil {
		return 0, imprint.Errorf(imprint.Invalid, "grow", v.String(), "%w", err).WithHint("grow it with its own program: resize2fs, xfs_growfs or btrfs filesystem resize")
	}
	after, err := v.size(f)
	if err != nil {
		return 0, unreadable(v.String(), err)
	}
	// XFS leaves what is too little for an allocation group, ext4 for a group's tables.
	if after <= before && size-before > 64<<20 {
		return 0, imprint.Errorf(imprint.Internal, "grow", v.String(), "it has %d bytes as before, and its device has %d", after, size)
	}
	return after - before, unix.Syncfs(int(f.Fd()))
}

// size is how many bytes of its device a mounted filesystem takes, as its superblock says.
func (v *Volume) size(f *os.File) (int64, error) {
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return 0, err
	}
	if v.Type == XFS {
		var geometry [xfsGeometryV1]byte
		err := ioctl(f, xfsGeometry, unsafe.Pointer(&geometry))
		ne := binary.NativeEndian
		return int64(ne.Uint32(geometry[0:])) * int64(ne.Uint64(geometry[32:])), err
	}
	d, err := os.Open(v.Device)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	b := make([]byte, 4096)
	le := binary.LittleEndian
	switch v.Type {
	case Ext4:
		_, err = d.ReadAt(b[:1024], extAt)
		blocks := int64(le.Uint32(b[4:]))
		if const64bit := uint32(0x80); le.Uint32(b[96:])&const64bit != 0 {
			blocks |= int64(le.Uint32(b[0x150:])) << 32
		}
		return blocks << (10 + min(le.Uint32(b[24:]), 6)), err
	case Btrfs:
		_, err = d.ReadAt(b, btrfsAt)
		return int64(le.Uint64(b[112:])), err // of all its devices, which are one
	}
	return 0, imprint.Errorf(imprint.Invalid, "measure", v.String(), "imprint does not know how")
}

// deviceSize is in bytes.
func deviceSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
		if errno == 0 {
			return nil
		}
		if !errors.Is(errno, unix.EINTR) {
			return errno
		}
	}
}
