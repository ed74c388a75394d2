package personalize

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"imprint"
)

// Inject returns the archive of all injections (see [Pack]) and its size. It is a file
// in memory, which nobody can change any more: what is in it touches no disk of the host.
// The caller closes it.
func Inject(ctx context.Context, list []Injection) (*os.File, int64, error) {
	fd, err := unix.MemfdCreate("imprint-package", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, 0, imprint.Errorf(imprint.Unavailable, "inject", "files", "memory for them: %w", err)
	}
	f := os.NewFile(uintptr(fd), "imprint-package")
	if err := Pack(ctx, f, list); err != nil {
		f.Close()
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, 0, imprint.Errorf(imprint.Unavailable, "inject", "files", "%w", err)
	}
	return f, info.Size(), nil
}
