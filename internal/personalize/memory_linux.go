package personalize

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"imprint"
)

// Inject returns the archive of all injections (see [Pack]) and its size. It is a file
// in memory, which nobody can change any more: what is in it touches no disk of the host.
// The caller closes it. It can only be read.
func Inject(ctx context.Context, list []Injection) (*os.File, int64, error) {
	fd, err := unix.MemfdCreate("imprint-package", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, 0, imprint.Errorf(imprint.Unavailable, "inject", "files", "memory for them: %w", err)
	}
	f := os.NewFile(uintptr(fd), "imprint-package")
	defer f.Close()
	if err := Pack(ctx, f, list); err != nil {
		return nil, 0, err
	}
	sealed, size, err := seal(f)
	if err != nil {
		return nil, 0, imprint.Errorf(imprint.Unavailable, "inject", "files", "%w", err)
	}
	return sealed, size, nil
}

// seal lets nobody change f any more. It returns another descriptor, for reading: one
// for both is not what QEMU takes for a disk that is only read.
func seal(f *os.File) (*os.File, int64, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE|unix.F_SEAL_SEAL); err != nil {
		return nil, 0, err
	}
	sealed, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	return sealed, info.Size(), err
}
