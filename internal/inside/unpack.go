package inside

import (
	"context"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/job"
	"imprint/internal/unpack"
)

func (e *Env) unpack(ctx context.Context, t *job.Unpack) (*job.Unpacked, error) {
	device, err := e.Disk(t.Package)
	if err != nil {
		return nil, err
	}
	pkg, err := os.Open(device)
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "open", "package", "%w", err)
	}
	defer pkg.Close()
	dir, err := e.Root(ctx, t.Disk)
	if err != nil {
		return nil, err
	}
	root, err := os.Open(dir)
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "open", "the root directory", "%w", err)
	}
	defer root.Close()
	if t.Unless != "" {
		r, err := os.OpenRoot(dir)
		if err != nil {
			return nil, imprint.Errorf(imprint.Internal, "open", "the root directory", "%w", err)
		}
		defer r.Close()
		if _, err := r.Stat(strings.TrimPrefix(t.Unless, "/")); err == nil {
			return &job.Unpacked{Had: true}, nil
		}
	}
	limits := unpack.DefaultLimits()
	if t.MaxSize > 0 {
		limits.Size = t.MaxSize
	}
	if t.MaxEntries > 0 {
		limits.Entries = t.MaxEntries
	}
	var machine unix.Sysinfo_t
	if err := unix.Sysinfo(&machine); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "look at", "the machine's memory", "%w", err)
	}
	sum, err := unpack.Unpack(ctx, root, pkg, t.Size, unpack.Options{
		Owners: unpack.Owners(t.Owners), Devices: t.Devices, KeepDirectories: t.KeepDirectories, Limits: limits,
		Memory:   int64(machine.Totalram) * int64(machine.Unit) / 4,
		Progress: func(done, total int64) { e.Progress(done, total, "bytes") },
	})
	return &job.Unpacked{Entries: sum.Entries, Bytes: sum.Bytes, Changed: sum.Changed, Directories: sum.Directories}, err
}
