package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"imprint"
)

// Installer runs installations, one at a time. All fields but Changes must be set.
type Installer struct {
	Journal  Journal
	Images   Images
	Changes  Changes // nil leaves the image as it is
	Timeline Timeline
	Tell     func(Notice)
	Now      func() time.Time
}

// reportTime is how long the last report may take when the installation was
// interrupted, and how long every other may.
const reportTime = 15 * time.Second

// Run does what is left to do of p, or all of it if again is set. It returns when the
// disk is complete and the timeline says so. Otherwise the error says what state the
// disk is in and what to do; Run with the same plan goes on.
//
// Kinds: [imprint.Conflict] if the disk is in use, by another installation for
// instance, or belongs to another instance, or if the instance may not be installed;
// what the parts fail with, and [imprint.Internal].
func (in *Installer) Run(ctx context.Context, p *Plan, again bool) error {
	t, err := openTarget(p.Disk, true)
	if err != nil {
		return err
	}
	defer t.Close()
	r := &run{Installer: in, plan: p, target: t, id: p.id(t.id)}
	err = r.begin(again)
	if err == nil && r.entry.State != finished {
		if err = r.install(ctx); err != nil {
			err = r.fail(ctx, err)
		}
	}
	if err != nil && t.made && !r.touched {
		os.Remove(t.path) // it was not there before
	}
	return err
}

// run is one run of an installation.
type run struct {
	*Installer
	plan    *Plan
	target  *target
	id      imprint.Digest
	entry   *entry
	image   Image
	began   time.Time
	before  string // what an earlier installation left on the disk, if that is incomplete
	touched bool   // the disk is not as it was found
	started bool   // the timeline says so
	last    imprint.InstallStep
	owed    []report // what the timeline could not be told
}

type report struct {
	step   imprint.InstallStep
	detail string
}

// found says what is left of an earlier installation.
type found struct {
	entry *entry
	note  string // what a person should know; "" is nothing
}

// look decides what the journal's entry means for p. It fails with kind
// [imprint.Conflict] if the disk belongs to another instance.
func look(old *entry, p *Plan, id imprint.Digest, again bool) (found, error) {
	switch {
	case old == nil:
		return found{}, nil
	case old.Instance != p.Instance && !again:
		return found{}, imprint.Errorf(imprint.Conflict, "install", p.Ref, "the disk %s has %s of %s", p.Disk, describe(old), old.Ref).
			WithHint("name the disk of %s, or give --again to overwrite what is on this one", p.Ref)
	case again:
		return found{note: fmt.Sprintf("%s has %s of %s, which is overwritten", p.Disk, describe(old), old.Ref)}, nil
	case old.Plan != id && old.State == finished:
		return found{note: fmt.Sprintf("%s has %s, generation %d from %s, which is overwritten: what is to be installed is another", p.Disk, describe(old), old.Generation, old.Image)}, nil
	case old.Plan != id:
		return found{note: fmt.Sprintf("%s has %s of another plan, generation %d from %s: it starts over", p.Disk, describe(old), old.Generation, old.Image)}, nil
	}
	switch old.State {
	case failed:
		return found{note: "the installation failed before (" + old.Reason + "): the image is written anew"}, nil
	case writing:
		return found{note: "the installation was interrupted while the image was written: it is written anew"}, nil
	case changing:
		return found{note: "the installation was interrupted while the image was changed: it is written anew"}, nil
	}
	return found{entry: old}, nil
}

func describe(e *entry) string {
	switch e.State {
	case finished, installed:
		return "a finished installation"
	case failed:
		return "a failed installation"
	}
	return "a half-done installation"
}

func (r *run) begin(again bool) error {
	r.began = r.Now()
	old, err := r.Journal.read(r.target.id)
	if err != nil {
		return err
	}
	f, err := look(old, r.plan, r.id, again)
	if err != nil {
		return err
	}
	if f.note != "" {
		r.Tell(Notice{Step: imprint.InstallStarted, State: Warning, Text: f.note})
	}
	if old != nil && f.entry == nil && old.State != finished && old.State != installed {
		r.before = describe(old)
	}
	if r.entry = f.entry; r.entry == nil {
		r.entry = &entry{Plan: r.id, Instance: r.plan.Instance, Ref: r.plan.Ref, Generation: r.plan.Generation,
			Disk: r.plan.Disk, Image: r.plan.Image}
		return nil
	}
	if r.entry.State == finished {
		r.Tell(Notice{Step: imprint.InstallFinished, State: Skipped, Text: fmt.Sprintf("%s was installed on %s, %s; --again does it anew", r.plan.Ref, r.plan.Disk, r.entry.At.Local().Format(time.DateTime))})
	}
	return nil
}

// advance puts the state into the journal, before what it announces happens.
func (r *run) advance(s state) error {
	r.entry.State, r.entry.At = s, r.Now().UTC()
	return r.Journal.write(r.target.id, r.entry)
}

func (r *run) install(ctx context.Context) error {
	if r.entry.State == installed {
		r.Tell(Notice{Step: imprint.InstallWritten, State: Skipped, Text: "the disk is complete; only the timeline was not told"})
		r.image.Digest = r.entry.Digest
		// Another installation may have been started since, of which this is no step.
		if err := r.start(ctx); err != nil {
			return err
		}
		return r.finish(ctx)
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := r.fetch(ctx); err != nil {
		return err
	}
	size, err := r.target.room(r.plan.Size, r.image.Size)
	if err != nil {
		return err
	}
	if r.Changes != nil {
		if err := r.Changes.Ready(); err != nil {
			return err
		}
	}
	if err := r.write(ctx, size); err != nil {
		return err
	}
	if err := r.change(ctx); err != nil {
		return err
	}
	if err := r.advance(installed); err != nil {
		return err
	}
	return r.finish(ctx)
}

// start tells the timeline, without which nothing begins: it knows whether the
// instance may be installed at all.
func (r *run) start(ctx context.Context) error {
	detail := ""
	if r.entry.State != "" {
		detail = "goes on"
	}
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	if err := r.Timeline.Report(ctx, r.id, imprint.InstallStarted, "", detail); err != nil {
		return err
	}
	r.started = true
	return nil
}

func (r *run) fetch(ctx context.Context) error {
	began := r.Now()
	r.Tell(Notice{Step: imprint.InstallFetched, State: Begun, Text: r.plan.Image})
	var err error
	if r.image, err = r.Images.Fetch(ctx, r.going(imprint.InstallFetched)); err != nil {
		return err
	}
	text := fmt.Sprintf("%s, %s, sha256:%.16s", r.image.Format, size(r.image.Size), r.image.Digest)
	if r.image.Cached {
		r.Tell(Notice{Step: imprint.InstallFetched, State: Skipped, Text: text + "; it was in the cache"})
	} else {
		r.done(imprint.InstallFetched, text, began)
	}
	r.report(ctx, imprint.InstallFetched, text)
	return nil
}

func (r *run) write(ctx context.Context, to int64) error {
	if r.entry.State == written {
		changed, err := r.target.changed()
		if err != nil {
			return err
		}
		switch {
		case r.entry.Digest != r.image.Digest:
			r.Tell(Notice{Step: imprint.InstallWritten, State: Warning, Text: "the image is another now than the one on the disk"})
		case !r.entry.Changed.Equal(changed):
			r.Tell(Notice{Step: imprint.InstallWritten, State: Warning, Text: "something changed the disk meanwhile"})
		default:
			r.Tell(Notice{Step: imprint.InstallWritten, State: Skipped, Text: "the image is on the disk"})
			r.report(ctx, imprint.InstallWritten, "it was on the disk already")
			return nil
		}
	}
	began := r.Now()
	r.Tell(Notice{Step: imprint.InstallWritten, State: Begun, Text: fmt.Sprintf("%s, %s", r.plan.Disk, size(to))})
	r.entry.Digest, r.entry.Changed = r.image.Digest, time.Time{}
	if err := r.advance(writing); err != nil {
		return err
	}
	r.touched = true
	if err := r.target.enlarge(to); err != nil {
		return err
	}
	if err := r.Images.Write(ctx, r.target.File.File, to, r.going(imprint.InstallWritten)); err != nil {
		return err
	}
	if err := r.target.Sync(); err != nil {
		return imprint.Errorf(imprint.Unavailable, "write", r.plan.Disk, "%w", err)
	}
	changed, err := r.target.changed()
	if err != nil {
		return err
	}
	r.entry.Changed = changed
	if err := r.advance(written); err != nil {
		return err
	}
	text := size(r.image.Size) + " to " + r.plan.Disk
	r.done(imprint.InstallWritten, text, began)
	r.report(ctx, imprint.InstallWritten, text)
	return nil
}

func (r *run) change(ctx context.Context) error {
	if r.Changes == nil {
		return nil
	}
	if err := r.advance(changing); err != nil {
		return err
	}
	r.touched = true
	began := r.Now()
	r.last = imprint.InstallRepaired
	what := ""
	progress := func(now string, done, total int64) {
		if now != what {
			what = now
			r.Tell(Notice{Step: r.last, State: Begun, Text: now})
		}
		r.Tell(Notice{Step: r.last, State: Going, Text: now, Done: done, Total: total})
	}
	return r.Changes.Change(ctx, r.target.File.File, progress, func(step imprint.InstallStep, detail string) {
		r.done(step, detail, began)
		began = r.Now()
		r.report(ctx, step, detail)
	})
}

// finish tells the timeline that the disk is complete. Who asks there would otherwise
// wait for a machine that is ready, so that is not left out.
func (r *run) finish(ctx context.Context) error {
	text := fmt.Sprintf("%s on %s, in %s", r.plan.Ref, r.plan.Disk, r.Now().Sub(r.began).Round(100*time.Millisecond))
	if err := r.settle(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	if err := r.Timeline.Report(ctx, r.id, imprint.InstallFinished, r.image.Digest, text); err != nil {
		return err
	}
	if err := r.advance(finished); err != nil {
		return err
	}
	r.done(imprint.InstallFinished, text, r.began)
	return nil
}

// report tells the timeline of a step. If that fails it is told later, at the latest
// with the end.
func (r *run) report(ctx context.Context, step imprint.InstallStep, detail string) {
	r.owed = append(r.owed, report{step, detail})
	if err := r.settle(ctx); err != nil && ctx.Err() == nil {
		r.Tell(Notice{Step: step, State: Warning, Text: "the timeline cannot be told now: " + err.Error()})
	}
}

func (r *run) settle(ctx context.Context) error {
	for len(r.owed) > 0 {
		ctx, cancel := context.WithTimeout(ctx, reportTime)
		err := r.Timeline.Report(ctx, r.id, r.owed[0].step, r.image.Digest, r.owed[0].detail)
		cancel()
		if err != nil {
			return err
		}
		r.owed = r.owed[1:]
	}
	return nil
}

// fail says what became of the disk: in the error, on the disk, in the journal and on
// the timeline.
func (r *run) fail(ctx context.Context, err error) error {
	interrupted := errors.Is(err, context.Canceled)
	// What a script printed follows in lines of its own, and is for who installs alone.
	reason, _, _ := strings.Cut(err.Error(), "\n")
	reason = strings.TrimSuffix(reason, "; it printed last:")
	if interrupted {
		reason = "it was interrupted"
	}
	var became string
	hint := imprint.HintOf(err)
	switch r.entry.State {
	case installed:
		became = fmt.Sprintf("%s is complete, but the timeline does not say so", r.plan.Disk)
		hint = "the same command tells it: nothing is installed again"
	case writing, changing:
		became = fmt.Sprintf("%s is marked as failed, and nothing boots from it", r.plan.Disk)
		if e := r.markFailed(reason); e != nil {
			became = fmt.Sprintf("%s is incomplete, and could not be marked as that: %v", r.plan.Disk, e)
		}
		if hint == "" {
			hint = "the same command starts over with the image, which is in the cache"
		}
	case written:
		became = fmt.Sprintf("%s holds the image as it is, without what makes it %s", r.plan.Disk, r.plan.Ref)
		if hint == "" {
			hint = "the same command goes on from there"
		}
	case "":
		became = fmt.Sprintf("%s was not touched", r.plan.Disk)
		if r.before != "" {
			became += fmt.Sprintf(", and still has %s", r.before)
		}
	}
	if r.started {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportTime)
		defer cancel()
		if e := r.Timeline.Report(ctx, r.id, imprint.InstallFailed, r.image.Digest, reason+"; "+became); e != nil {
			r.Tell(Notice{Step: imprint.InstallFailed, State: Warning, Text: "the timeline cannot be told: " + e.Error()})
		}
	}
	if interrupted {
		r.Tell(Notice{Step: imprint.InstallFailed, State: Warning, Text: "interrupted; " + became})
		return err
	}
	e := imprint.Errorf(imprint.KindOf(err), "install", r.plan.Ref, "%w; %s", err, became)
	e.Hint = hint
	return e
}

// markFailed makes sure that nothing boots from a disk that is not complete.
func (r *run) markFailed(reason string) error {
	again := fmt.Sprintf("imprint install %s --disk %s", r.plan.Ref, r.plan.Disk)
	err := r.target.putMark(fmt.Sprintf("%s (%s), generation %d, failed on this disk, %s: %.150s. Again: %s\n",
		r.plan.Ref, r.plan.Instance, r.plan.Generation, r.Now().UTC().Format(time.RFC3339), reason, again))
	r.entry.Reason = fmt.Sprintf("%.500s", reason)
	return errors.Join(err, r.advance(failed))
}

// going passes progress on.
func (r *run) going(step imprint.InstallStep) func(done, total int64) {
	return func(done, total int64) { r.Tell(Notice{Step: step, State: Going, Done: done, Total: total}) }
}

func (r *run) done(step imprint.InstallStep, text string, began time.Time) {
	r.Tell(Notice{Step: step, State: Done, Text: text, Took: r.Now().Sub(began).Seconds()})
}

// size writes a number of bytes for people.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, prefix := float64(n)/unit, 0
	for ; f >= unit && prefix < 3; prefix++ {
		f /= unit
	}
	return fmt.Sprintf("%.4g %ciB", f, "KMGT"[prefix])
}
