package inside

import (
	"context"

	"imprint"
	"imprint/internal/job"
)

func (e *Env) script(ctx context.Context, t *job.Script) (*job.Ran, error) {
	return nil, imprint.Errorf(imprint.Invalid, "run", "script", "this agent cannot do it yet")
}
