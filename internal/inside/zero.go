package inside

import (
	"context"

	"imprint/internal/job"
	"imprint/internal/repair"
)

func (e *Env) zero(ctx context.Context, t *job.Zero) (*job.Zeroed, error) {
	device, err := e.Disk(t.Disk)
	if err != nil {
		return nil, err
	}
	if err := e.Unmount(t.Disk); err != nil {
		return nil, err
	}
	return repair.Zero(ctx, e, device, t)
}
