package guest

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"imprint"
)

// putParams fetches every parameter and keeps it in memory for root to read,
// with an index that says what there is. What imprint no longer lists goes.
func (a *Agent) putParams(ctx context.Context, l paramReader, cred *credential) error {
	params, err := l.Params(ctx, cred)
	if imprint.KindOf(err) == imprint.NotFound {
		return nil // a host that has no parameters to give
	}
	if err != nil {
		return err
	}
	keep := make(map[string]bool, len(params))
	if keepsValues {
		if err := a.layout.makeParamsDir(); err != nil {
			return err
		}
		for i, p := range params {
			if !p.Available {
				a.console.About("parameter "+p.Name, "imprint has no value for it at present; imprint-agent param --live %s asks again", p.Name)
				continue
			}
			value, err := l.Param(ctx, cred, p)
			if imprint.KindOf(err) == imprint.NotFound || imprint.KindOf(err) == imprint.Denied {
				// One value that is gone or withheld must not keep the machine from its others.
				a.console.About("parameter "+p.Name, "%v", err)
				params[i].Available = false
				continue
			}
			if err != nil {
				return err
			}
			if err := writeFile(filepath.Join(a.layout.Params(), p.Name), value.Reveal(), 0o400); err != nil {
				return err
			}
			keep[p.Name] = true
		}
		if err := removeOthers(a.layout.Params(), keep); err != nil {
			return err
		}
	}
	index, err := json.MarshalIndent(params, "", "  ")
	if err != nil {
		return imprint.Errorf(imprint.Internal, "encode", a.layout.Index(), "%w", err)
	}
	if err := writeFile(a.layout.Index(), append(index, '\n'), 0o600); err != nil {
		return err
	}
	if len(params) > 0 && keepsValues {
		a.console.Say("%d of %d parameters are in %s, for root only", len(keep), len(params), a.layout.Params())
	}
	return nil
}

// removeOthers removes every file in dir that keep does not name.
func removeOthers(dir string, keep map[string]bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return imprint.Errorf(imprint.Internal, "list", dir, "%w", err)
	}
	for _, e := range entries {
		if keep[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return imprint.Errorf(imprint.Internal, "remove", e.Name(), "%w", err)
		}
	}
	return nil
}

// loadIndex returns the parameters that the last enrolment or boot found.
func (l Layout) loadIndex() ([]Param, error) {
	b, err := readFile(l.Index(), maxParamList)
	if err != nil {
		return nil, err
	}
	return parseParams(b)
}
