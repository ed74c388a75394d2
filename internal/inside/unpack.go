package inside

import (
	"context"

	"imprint"
	"imprint/internal/job"
)

func (e *Env) unpack(ctx context.Context, t *job.Unpack) (*job.Unpacked, error) {
	return nil, imprint.Errorf(imprint.Invalid, "run", "unpack", "this agent cannot do it yet")
}
