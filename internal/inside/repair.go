package inside

import (
	"context"
	"io"

	"imprint/internal/confine"
	"imprint/internal/job"
	"imprint/internal/repair"
)

func (e *Env) repair(ctx context.Context, t *job.Repair) (*job.Repaired, error) {
	device, err := e.Disk(t.Disk)
	if err != nil {
		return nil, err
	}
	if err := e.Unmount(t.Disk); err != nil {
		return nil, err
	}
	return repair.Fix(ctx, e, guest, device, t)
}

// guest runs a program of the system that is mounted at dir.
func guest(ctx context.Context, dir string, out io.Writer, argv ...string) error {
	c := confine.Command{
		Path: argv[0], Args: argv[1:], Root: dir, Stdout: out, Stderr: out,
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root"},
	}
	return c.Run(ctx)
}
