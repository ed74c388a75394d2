package repair

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/job"
)

// Zero makes what the filesystems and the swap space of the disk at path do not use
// read as zeros, and reads it back. Used blocks are not written, so it can be
// interrupted at any instant.
//
// A filesystem is mounted over a loop device whose discards are the disk's
// WRITE ZEROES (drivers/block/loop.c, blkdev_fallocate of block/fops.c): each unused
// block then reads as zeros for certain, and takes no space where the disk can unmap
// it. The filesystem itself tells which those are (FITRIM), takes them from nobody and
// does not fill up meanwhile.
//
// It fails as [disk.Open] and [disk.Read] do, with kind [imprint.Invalid] for a
// filesystem that cannot be mounted, and with [imprint.Internal] if something does
// not read back as zeros.
func Zero(ctx context.Context, env Env, path string, task *job.Zero) (*job.Zeroed, error) {
	_, volumes, err := inspect(path)
	if err != nil {
		return nil, err
	}
	var done job.Zeroed
	for i := range volumes {
		v := &volumes[i]
		if err := ctx.Err(); err != nil {
			return &done, err
		}
		z := job.ZeroedVolume{Partition: v.Number, Type: string(v.Type)}
		switch {
		case v.Type.linux():
			z.Bytes, err = v.zero(ctx, env, task.DryRun)
		case v.Type == Swap && v.Hibernated:
			z.Skipped = "a suspended system is in it"
		case v.Type == Swap:
			z.Bytes, err = v.zeroSwap(ctx, env, task.DryRun)
		case v.Type != "":
			z.Skipped = "imprint does not know what of it is unused"
		case v.Foreign != "":
			z.Type, z.Skipped = v.Foreign, "imprint cannot look into it"
		default:
			continue // no filesystem: a boot loader's, or nothing at all
		}
		if err != nil {
			return &done, err
		}
		env.Logf("%s: %d MiB are unused", v, z.Bytes>>20)
		done.Volumes = append(done.Volumes, z)
	}
	return &done, nil
}

// zeroSwap zeroes all of a swap space but its first page, which has its UUID and
// label and what is known of its size.
func (v *Volume) zeroSwap(ctx context.Context, env Env, dryRun bool) (int64, error) {
	f, err := os.OpenFile(v.Device, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		return 0, imprint.Errorf(imprint.Unavailable, "open", v.String(), "%w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, unreadable(v.String(), err)
	}
	rest := extent{pageSize, size - pageSize}
	if dryRun || rest.length <= 0 {
		return max(rest.length, 0), nil
	}
	if err := zeroOut(f, rest); err != nil {
		return 0, imprint.Errorf(imprint.Unavailable, "zero", v.String(), "%w", err)
	}
	return rest.length, v.verify(ctx, env, f, []extent{rest})
}

// extent is a part of a device, in bytes.
type extent struct{ at, length int64 }

// zeroOut lets a part of a block device read as zeros, unmapped where that is possible.
func zeroOut(f *os.File, e extent) error {
	const step = 1 << 30
	for end := e.at + e.length; e.at < end; e.at += step {
		n := min(step, end-e.at)
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.at, n)
		if errors.Is(err, unix.EOPNOTSUPP) {
			span := [2]uint64{uint64(e.at), uint64(n)}
			err = ioctl(f, unix.BLKZEROOUT, unsafe.Pointer(&span))
		}
		if err != nil {
			return err
		}
	}
	return f.Sync()
}

// zero zeroes what a filesystem does not use.
func (v *Volume) zero(ctx context.Context, env Env, dryRun bool) (n int64, err error) {
	if !dryRun {
		if err := v.check(ctx, env, false); err != nil {
			return 0, err
		}
		if err := env.Modprobe("loop"); err != nil {
			return 0, err
		}
	}
	through := *v
	if !dryRun {
		l, err := attachLoop(v.Device)
		if err != nil {
			return 0, err
		}
		defer func() {
			if e := l.detach(); e != nil && err == nil {
				err = e
			}
		}()
		through.Device = l.path
	}
	err = through.mounted(env, "", dryRun, func(dir string) error {
		n, err = through.zeroMounted(ctx, env, dir, dryRun)
		return err
	})
	return n, err
}

// zeroMounted zeroes what a filesystem that is mounted at dir does not use, or tells
// how much that is about.
func (v *Volume) zeroMounted(ctx context.Context, env Env, dir string, dryRun bool) (int64, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if dryRun {
		var st unix.Statfs_t
		err := unix.Fstatfs(int(f.Fd()), &st)
		return int64(st.Bfree) * st.Bsize, err
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return 0, unreadable(v.String(), err)
	}
	trimmed, err := trim(f)
	if err != nil {
		return 0, imprint.Errorf(imprint.Unavailable, "zero", v.String(), "%w", err)
	}
	free, err := v.unused(f)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, e := range free {
		sum += e.length
	}
	if trimmed == 0 && sum > 0 {
		return 0, imprint.Errorf(imprint.Internal, "zero", v.String(), "%d bytes are unused, and the kernel zeroed none", sum)
	}
	d, err := os.Open(v.Device)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	return sum, v.verify(ctx, env, d, free)
}

// trim discards all that a mounted filesystem does not use.
func trim(f *os.File) (int64, error) {
	span := struct{ start, length, least uint64 }{0, 1<<64 - 1, 0} // struct fstrim_range of linux/fs.h
	const fitrim = 0xc0185879
	err := ioctl(f, fitrim, unsafe.Pointer(&span))
	return int64(span.length), err
}

// verify fails unless parts of a device read as zeros.
func (v *Volume) verify(ctx context.Context, env Env, d *os.File, free []extent) error {
	// What was read before may be in memory still.
	if err := unix.Fadvise(int(d.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return unreadable(v.String(), err)
	}
	var total, done int64
	for _, e := range free {
		total += e.length
	}
	b := make([]byte, 1<<20)
	for _, e := range free {
		for at, end := e.at, e.at+e.length; at < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			part := b[:min(int64(len(b)), end-at)]
			if _, err := d.ReadAt(part, at); err != nil {
				return unreadable(v.String(), err)
			}
			if !isZero(part) {
				return imprint.Errorf(imprint.Internal, "zero", v.String(), "unused bytes from %d on read back other than zeros", at)
			}
			at += int64(len(part))
			done += int64(len(part))
			env.Progress(done, total, "bytes")
		}
	}
	return nil
}

func isZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// loop is a loop device over a block device.
type loop struct {
	path string
	f    *os.File
}

// attachLoop attaches a device to a free loop device. That goes as the loop is
// closed, whatever happens to this process.
func attachLoop(device string) (*loop, error) {
	failed := func(err error) error { return imprint.Errorf(imprint.Unavailable, "attach", device, "%w", err) }
	backing, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return nil, failed(err)
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, failed(err)
	}
	defer control.Close()
	const tries = 20 // somebody else may take the one that was free
	for range tries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, failed(err)
		}
		l := &loop{path: fmt.Sprintf("/dev/loop%d", n)}
		if l.f, err = os.OpenFile(l.path, os.O_RDWR, 0); err != nil {
			return nil, failed(err)
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO}}
		if err = unix.IoctlLoopConfigure(int(l.f.Fd()), &config); err == nil {
			return l, nil
		}
		l.f.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, failed(err)
		}
	}
	return nil, failed(unix.EBUSY)
}

func (l *loop) detach() error {
	err := errors.Join(l.f.Sync(), l.f.Close())
	if err != nil {
		return imprint.Errorf(imprint.Unavailable, "detach", l.path, "%w", err)
	}
	return nil
}
