package inside

import (
	"context"

	"imprint"
	"imprint/internal/job"
)

func (e *Env) zero(ctx context.Context, t *job.Zero) (*job.Zeroed, error) {
	return nil, imprint.Errorf(imprint.Invalid, "run", "zero", "this agent cannot do it yet")
}
