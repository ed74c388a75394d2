package enrol

import (
	"context"
	"strconv"
	"strings"
	"time"

	"imprint"
)

// Setup stores what the machine has for its next installation only; nil takes it
// away. It counts for the present generation until a key has claimed that, or it
// ended, and then for the next one; an installation that succeeds takes it away.
// Kinds: Invalid if no machine could be given it; NotFound.
func (e *Engine) Setup(ctx context.Context, id imprint.InstanceID, setup *imprint.InstallSetup, by string) (*imprint.Instance, error) {
	return e.move(ctx, id, func(i *imprint.Instance) (imprint.Change, error) { return planned(i, setup, by, e.Now()) })
}

func planned(i *imprint.Instance, setup *imprint.InstallSetup, by string, now time.Time) (imprint.Change, error) {
	keep := imprint.Change{Keep: true}
	if setup == nil {
		if i.InstallSetup == nil {
			return keep, nil // said again
		}
		return imprint.Change{Events: endSetup(i, "by", by)}, nil
	}
	if err := setup.Check(); err != nil {
		return keep, err
	}
	if setup.IsZero() {
		return keep, imprint.Errorf(imprint.Invalid, "set up installation of", i.Ref(), "it asks for nothing").
			WithHint("to take away what there is: imprint setup clear %s", i.Ref())
	}
	kept := *setup
	kept.Generation, kept.Set, kept.By = i.SetupGeneration(), now, by
	i.InstallSetup = &kept
	return imprint.Change{Events: []imprint.Event{event(imprint.EventSetup, "", "what", what(&kept), "for", generation(kept.Generation), "by", by)}}, nil
}

// endSetup takes the setup away and returns the event that says so; why is a pair
// of strings.
func endSetup(i *imprint.Instance, why ...string) []imprint.Event {
	i.InstallSetup = nil
	return []imprint.Event{event(imprint.EventSetup, "", append([]string{"what", "cleared"}, why...)...)}
}

// installed takes the setup of the present generation's installation away, because
// that succeeded.
func installed(i *imprint.Instance, why string) []imprint.Event {
	if i.Setup() == nil {
		return nil
	}
	return endSetup(i, "because", why)
}

// what names the parts of a setup without their paths, which the record shows.
func what(n *imprint.InstallSetup) string {
	var parts []string
	add := func(name string, is bool) {
		if is {
			parts = append(parts, name)
		}
	}
	add("media", len(n.Media) > 0)
	add("boot order", len(n.BootOrder) > 0)
	add("disks", len(n.Disks) > 0)
	add("interfaces", len(n.NICs) > 0)
	add("kernel", n.Kernel != "")
	return strings.Join(parts, ", ")
}

func generation(g imprint.Generation) string {
	return "generation " + strconv.FormatUint(uint64(g), 10)
}
