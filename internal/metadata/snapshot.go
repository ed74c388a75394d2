package metadata

import (
	"time"

	"imprint"
)

// Boot says how long user data is served in the clear.
type Boot struct {
	// Ends is when the time for it is over; zero is no limit.
	Ends time.Time
	// Home is set once the guest has phoned home.
	Home bool
}

// closed reports whether the boot is over: the time ran out, the guest said so, a
// key is enrolled, or nobody may enrol any more.
func (b Boot) closed(e *imprint.Enrolment, now time.Time) bool {
	return b.Home || e.State.Enrolled() || !e.State.Open() || !b.Ends.IsZero() && !now.Before(b.Ends)
}

// Options say how one instance is served.
type Options struct {
	Boot Boot
	// TokensOnly refuses EC2 requests without a session token, that is IMDSv1.
	TokensOnly bool
}

// Snapshot is an instance with everything that is rendered from it, ready to be
// served. It is never changed.
type Snapshot struct {
	inst    *imprint.Instance
	options Options
	trees   [2][2]*dir // by whether the boot is closed, and by whether root asks
}

// The two audiences of a link-local network, in the order of Snapshot.trees.
var audiences = [2]imprint.Readers{imprint.GuestProcesses | imprint.GuestRoot, imprint.GuestRoot}

// NewSnapshot prepares inst for serving in the dialects whose views are given;
// the others are not offered. It keeps the views' bytes, and inst.
func NewSnapshot(inst *imprint.Instance, options Options, views ...*imprint.View) *Snapshot {
	s := &Snapshot{inst: inst, options: options}
	b := newBuilder(views)
	for closed := range s.trees {
		for root, readers := range audiences {
			s.trees[closed][root] = b.tree(func(v imprint.Value) bool {
				return imprint.MayTravel(v.At(closed == 1), readers)
			})
		}
	}
	return s
}

// closed reports whether the boot is over.
func (s *Snapshot) closed(now time.Time) bool {
	return s.options.Boot.closed(&s.inst.Enrolment, now)
}

// tree returns what from may read while the boot is open, or once it is closed.
func (s *Snapshot) tree(from Origin, closed bool) *dir {
	trees := &s.trees[0]
	if closed {
		trees = &s.trees[1]
	}
	if from.Root() {
		return trees[1]
	}
	return trees[0]
}

// withheld says why name, which from may not read, is kept from it; "" if there
// is no such thing.
func (s *Snapshot) withheld(from Origin, name string, closed bool) string {
	switch page := s.trees[0][1].find(name); {
	case page == nil:
		return ""
	case closed && page.bootOnly:
		return "the boot is closed; user data needs the enrolled key"
	case !from.Root():
		return needsRoot
	}
	return "its audience does not include the guest's root"
}
