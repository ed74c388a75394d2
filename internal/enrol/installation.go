package enrol

import (
	"context"
	"net/url"
	"slices"
	"strings"
	"time"

	"imprint"
)

// Limits on a report of an installation, in bytes.
const (
	maxInstallName   = 1024 // the name of a disk, an image or a host
	maxInstallDetail = 1024 // what is kept of the detail
)

// ReportInstallation records how far an installation is. It may be said again. Kinds:
// Invalid for what cannot be reported; Conflict for another generation, for a step of an
// installation that was not started, and for a start when a key has claimed; NotFound.
func (e *Engine) ReportInstallation(ctx context.Context, id imprint.InstanceID, r imprint.Installation) (*imprint.Instance, error) {
	return e.move(ctx, id, func(i *imprint.Instance) (imprint.Change, error) { return installation(i, r, e.Now()) })
}

func installation(i *imprint.Instance, r imprint.Installation, now time.Time) (imprint.Change, error) {
	keep := imprint.Change{Keep: true}
	if err := checkInstallation(i.Ref(), &r); err != nil {
		return keep, err
	}
	before := i.Installation
	if before != nil && before.Generation != i.Generation {
		before = nil // of an earlier life
	}
	r.Detail = clipTo(r.Detail, maxInstallDetail)
	conflict := func(format string, args ...any) *imprint.Error {
		return imprint.Errorf(imprint.Conflict, "install", i.Ref(), format, args...)
	}
	starts := r.Step == imprint.InstallStarted
	switch {
	case r.Generation != i.Generation:
		return keep, conflict("generation %d began while generation %d was installed", i.Generation, r.Generation).
			WithHint("install it again: what is on the disk is of an earlier life")
	case starts && !i.Enrolment.State.Open():
		return keep, conflict("generation %d is %s, and nothing may enrol any more", i.Generation, i.Enrolment.State).
			WithHint("start its next generation first: imprint rebirth %s", i.Ref())
	case starts && i.Enrolment.Claim != nil:
		return keep, conflict("a machine has claimed generation %d already; one that is installed now would be a second", i.Generation).
			WithHint("start its next generation first: imprint rebirth %s", i.Ref())
	case !starts && (before == nil || before.ID != r.ID):
		e := conflict("the installation of which this is a step was not started")
		if before != nil {
			e = conflict("another installation was started since, on %s of %s", before.Disk, before.Host)
		}
		return keep, e.WithHint("run one at a time, and give the command of the right one again")
	case before != nil && before.ID == r.ID && before.Step == r.Step && before.Detail == r.Detail:
		return keep, nil // it was said before and the reply was lost
	}
	r.At = now
	i.Installation = &r
	pairs := []string{"step", string(r.Step), "detail", r.Detail, "by", r.By}
	switch r.Step { // what holds for all of it is said once
	case imprint.InstallStarted:
		pairs = append(pairs, "id", string(r.ID), "host", r.Host, "disk", r.Disk, "image", r.Image)
	case imprint.InstallFetched:
		pairs = append(pairs, "digest", string(r.Digest))
	}
	events := []imprint.Event{event(imprint.EventInstall, "", pairs...)}
	if r.Step == imprint.InstallFinished {
		events = append(events, installed(i, "the installation finished")...)
	}
	return imprint.Change{Events: events}, nil
}

// installSteps are all that can be reported.
func installSteps() []imprint.InstallStep {
	return []imprint.InstallStep{imprint.InstallStarted, imprint.InstallFetched, imprint.InstallWritten, imprint.InstallRepaired,
		imprint.InstallPersonalized, imprint.InstallScripts, imprint.InstallFinished, imprint.InstallFailed}
}

func checkInstallation(ref string, r *imprint.Installation) error {
	invalid := func(format string, args ...any) error {
		return imprint.Errorf(imprint.Invalid, "report installation of", ref, format, args...)
	}
	if !slices.Contains(installSteps(), r.Step) {
		return invalid("%.40q is no step of one", r.Step)
	}
	if !imprint.ValidDigest(r.ID) || r.Digest != "" && !imprint.ValidDigest(r.Digest) {
		return invalid("its id, or the digest of its image, is no SHA-256 in hexadecimal digits")
	}
	for what, s := range map[string]string{"host": r.Host, "disk": r.Disk, "image": r.Image} {
		if len(s) > maxInstallName || s != clipTo(s, maxInstallName) {
			return invalid("the name of the %s has more than %d bytes, or some that cannot be printed", what, maxInstallName)
		}
	}
	// A URL is a good place for a password, and a timeline is none.
	if u, err := url.Parse(r.Image); err == nil && (u.User != nil || u.RawQuery != "") && strings.Contains(r.Image, "://") {
		return invalid("the name of the image has a user or a query in it, which may be secret")
	}
	if r.Step == imprint.InstallFailed && r.Detail == "" {
		return invalid("it is not said why it failed")
	}
	return nil
}
