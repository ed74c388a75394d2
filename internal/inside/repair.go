package inside

import (
	"context"

	"imprint"
	"imprint/internal/job"
)

func (e *Env) repair(ctx context.Context, t *job.Repair) (*job.Repaired, error) {
	return nil, imprint.Errorf(imprint.Invalid, "run", "repair", "this agent cannot do it yet")
}
