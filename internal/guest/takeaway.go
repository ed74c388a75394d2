package guest

import (
	"context"
	"os"
	"time"

	"imprint"
)

// A volume that imprint made for this machine has nothing to do any more when the
// machine is confirmed: the token on it is spent, and what it says is in the record. So
// the agent overwrites it with zeros, its first sector last: by that the volume is known
// again after an interruption, and what has another one is not touched.

// medium is what the record says of the volume that brought the payload.
type medium struct {
	// Digest is that of its files.
	Digest imprint.Digest `json:"digest"`
	// Boot is the digest of its first sector, from before any of it is overwritten.
	Boot imprint.Digest `json:"boot,omitempty"`
	// Cleared says that all but its first sector was read back as zeros.
	Cleared bool `json:"cleared,omitempty"`
	// How says how it was taken away, once it was, and Reported that imprint knows.
	How      string `json:"how,omitempty"`
	Reported bool   `json:"reported,omitempty"`
}

// bootSector is how many bytes of a volume are overwritten last.
const bootSector = 512

// ownVolume is the volume that brought the payload. Nobody else uses it while it is open.
type ownVolume struct {
	*os.File
	name string
	size int64
	boot imprint.Digest
	// zero overwrites a part of it with zeros, safely, and reads them back.
	zero func(ctx context.Context, f *os.File, at, n int64) error
}

// brought notes that a volume brought the payload. One that was taken away and is there
// again is another copy.
func (r *record) brought(files imprint.Digest) {
	if r.Medium == nil || r.Medium.Digest != files || r.Medium.How != "" {
		r.Medium = &medium{Digest: files}
	}
}

// How often a report about the medium is sent before it is left to the next renewal, or
// the next start.
const mediumReports = 5

// takeAway overwrites the volume that brought the payload, and reports that to imprint,
// or why it could not be done. It takes up what an earlier run left. The machine does
// not depend on it: what fails is said, and tried again at the next start.
func (a *Agent) takeAway(ctx context.Context) {
	if a.o.IdentityOnly {
		return
	}
	rec, cred, err := a.current()
	if err != nil || rec.Medium == nil || rec.Medium.Reported || rec.Confirmed == "" {
		return
	}
	end := imprint.MediumEnd{Digest: rec.Medium.Digest, State: imprint.MediumTaken}
	err = a.blankMedium(ctx, rec)
	switch {
	case ctx.Err() != nil:
		return
	case imprint.KindOf(err) == imprint.NotFound:
		a.console.About("medium", "%v", err)
		return
	case err != nil:
		a.console.Say("the volume that the payload was on stays: %v", err)
		end.State, end.Detail = imprint.MediumLeft, err.Error()
	default:
		end.Detail = rec.Medium.How
	}
	if len(end.Detail) > imprint.MaxMediumDetail {
		end.Detail = end.Detail[:imprint.MaxMediumDetail]
	}
	if err := a.reportMedium(ctx, rec, cred, end); err != nil && imprint.KindOf(err) != imprint.NotFound {
		a.console.Say("what became of the volume that the payload was on is not on record: %v", err)
		return
	}
	if err := a.boundary("medium reported"); err != nil || end.State != imprint.MediumTaken {
		return
	}
	rec.Medium.Reported = true
	if err := a.layout.saveRecord(rec); err != nil {
		a.console.Say("%v", err)
	}
}

// blankMedium overwrites the volume, unless an earlier run did. It fails with kind
// [imprint.NotFound] if it is not there, and otherwise for a reason to report.
func (a *Agent) blankMedium(ctx context.Context, rec *record) error {
	m := rec.Medium
	if m.How != "" {
		return nil
	}
	v, err := a.volumes.claim(m)
	if imprint.KindOf(err) == imprint.NotFound && m.Cleared {
		return a.away(rec, "overwritten with zeros by the machine, which was interrupted at the first sector, the last")
	}
	if err != nil {
		return err
	}
	defer v.Close()
	if !a.o.TakeAway {
		return imprint.Errorf(imprint.Denied, "take away", v.name, "the agent was told to leave it (--take-away=false)")
	}
	if m.Boot = v.boot; !m.Cleared {
		if err := a.layout.saveRecord(rec); err != nil {
			return err
		}
		if err := a.boundary("medium begun"); err != nil {
			return err
		}
	}
	if err := v.zero(ctx, v.File, bootSector, v.size-bootSector); err != nil {
		return imprint.Errorf(imprint.Unavailable, "overwrite", v.name, "%w", err)
	}
	if err := a.boundary("medium cleared"); err != nil {
		return err
	}
	m.Cleared = true
	if err := a.layout.saveRecord(rec); err != nil {
		return err
	}
	if err := v.zero(ctx, v.File, 0, bootSector); err != nil {
		return imprint.Errorf(imprint.Unavailable, "overwrite", v.name, "%w", err)
	}
	if err := a.boundary("medium blank"); err != nil {
		return err
	}
	return a.away(rec, "overwritten with zeros by the machine, and read back: "+v.name)
}

func (a *Agent) away(rec *record, how string) error {
	a.console.Say("the volume that the payload was on is %s", how)
	rec.Medium.How = how
	return a.layout.saveRecord(rec)
}

// reportMedium tells imprint what became of the volume.
func (a *Agent) reportMedium(ctx context.Context, rec *record, cred *credential, end imprint.MediumEnd) error {
	l, err := a.checkIn(&rec.Payload)
	if err != nil {
		return err
	}
	for pause, left := retryFirst, mediumReports; ; pause *= 2 {
		err := l.Medium(ctx, cred, end)
		if left--; err == nil || left == 0 || !mayPass(err) {
			return err
		}
		if err := a.sleep(ctx, pause+time.Duration(a.random()*float64(pause)/4)); err != nil {
			return err
		}
	}
}
