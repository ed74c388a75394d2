package enrol_test

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"imprint"
)

// life is one generation of an instance.
type life = binding

// fixture is whose certificate has a serial number.
type fixture struct {
	life
	notAfter time.Time
}

// oracle watches a world and knows what must never happen, whatever the order
// of events. It looks at every write and every reply.
type oracle struct {
	w      *world
	faults []string

	claimed map[life]imprint.KeyID     // by the first write that said so
	issued  map[imprint.Serial]fixture // certificates that a write stored
	stored  map[imprint.Serial]string  // their bytes
	logged  map[life]imprint.KeyID     // by the first entry for the log
}

func watch(w *world) *oracle {
	o := &oracle{
		w: w, claimed: map[life]imprint.KeyID{}, issued: map[imprint.Serial]fixture{}, stored: map[imprint.Serial]string{},
		logged: map[life]imprint.KeyID{},
	}
	w.store.committed = o.written
	return o
}

func (o *oracle) fault(format string, args ...any) {
	o.faults = append(o.faults, fmt.Sprintf(format, args...))
}

// moves are the states that may follow each other.
var moves = map[imprint.State][]imprint.State{
	imprint.Reserved:  {imprint.Delivered, imprint.Claimed, imprint.Issued, imprint.Expired, imprint.Revoked},
	imprint.Delivered: {imprint.Claimed, imprint.Issued, imprint.Expired, imprint.Revoked},
	imprint.Claimed:   {imprint.Issued, imprint.InDispute, imprint.Revoked},
	imprint.Issued:    {imprint.Confirmed, imprint.InDispute, imprint.Revoked},
	imprint.Confirmed: {imprint.Closed, imprint.InDispute, imprint.Revoked},
	imprint.Closed:    {imprint.InDispute, imprint.Revoked},
}

func (o *oracle) written(before, after *imprint.Instance, c *imprint.Change) {
	was, is := &before.Enrolment, &after.Enrolment
	if !c.Keep {
		var wake time.Time
		if is.State == imprint.Reserved || is.State == imprint.Delivered {
			wake = is.Expires
		}
		if !c.WakeAt.Equal(wake) {
			o.fault("%s wakes at %s, expires at %s", is.State, c.WakeAt, is.Expires)
		}
	}
	if after.Generation != before.Generation {
		if after.Generation != before.Generation+1 || is.State != imprint.Reserved || is.Claim != nil || is.Certificate != nil || is.Password != nil {
			o.fault("generation %d became %d: %+v", before.Generation, after.Generation, is)
		}
		o.ended(life{before.ID, before.Generation})
		return
	}
	l := life{after.ID, after.Generation}
	if is.State != was.State {
		if !slices.Contains(moves[was.State], is.State) {
			o.fault("%s became %s", was.State, is.State)
		}
		if !slices.ContainsFunc(c.Events, func(e imprint.Event) bool { return string(e.Kind) == string(is.State) }) {
			o.fault("%s became %s without an event", was.State, is.State)
		}
	}
	if is.Claim != nil {
		if first, ok := o.claimed[l]; ok && first != is.Claim.Key {
			o.fault("the claim's key changed")
		}
		o.claimed[l] = is.Claim.Key
	}
	if e := c.Log; e != nil {
		if first, ok := o.logged[l]; ok && first != is.Claim.Key {
			o.fault("two keys are in the log for generation %d", l.gen)
		}
		o.logged[l] = is.Claim.Key
		if is.Certificate == nil || is.Certificate.Serial != e.Serial || string(e.Data) != string(is.Certificate.DER) {
			o.fault("the log tells of a certificate that is not stored")
		}
	}
	if is.Certificate != nil && (was.Certificate == nil || string(was.Certificate.DER) != string(is.Certificate.DER)) {
		switch {
		case !was.State.Open():
			o.fault("a certificate was stored when it was %s", was.State)
		case is.Claim == nil || is.Claim.Serial != is.Certificate.Serial || !strings.HasSuffix(string(is.Certificate.DER), string(is.Claim.Key)):
			o.fault("a certificate was stored that is not the claim's")
		case is.Claim.NeedsApproval && is.Claim.ApprovedBy == "":
			o.fault("a certificate was stored without consent")
		case c.Log == nil:
			o.fault("a certificate was stored that the log does not tell of")
		case was.Certificate != nil && was.Certificate.Serial == is.Certificate.Serial:
			o.fault("a certificate was replaced by one of the same number")
		}
		o.stored[is.Certificate.Serial] = string(is.Certificate.DER)
		o.issued[is.Certificate.Serial] = fixture{l, is.Certificate.NotAfter}
	}
	if !is.State.Open() {
		o.ended(l)
	}
}

// ended checks that nothing that was issued for l can be used any more.
func (o *oracle) ended(l life) {
	for serial, f := range o.issued {
		if _, revoked := o.w.store.revoked[serial]; f.life == l && !revoked && o.w.now.Before(f.notAfter) {
			o.fault("generation %d ended, but not its certificate %s", l.gen, serial)
		}
	}
}

// replied checks a reply to a request of m that m got.
func (o *oracle) replied(m *machine, s imprint.Submission, i *imprint.Instance, err error) {
	if err != nil {
		o.refused(m, s, err)
		return
	}
	cert := i.Enrolment.Certificate
	switch {
	case cert == nil:
		o.fault("granted without a certificate")
		return
	case !strings.HasSuffix(string(cert.DER), string(m.id)):
		o.fault("somebody got a certificate for a key that is not its own")
	case o.stored[cert.Serial] != string(cert.DER):
		o.fault("a certificate left that was not stored")
	}
	if now := o.w.get(s.Instance); now.Generation != i.Generation || !now.Enrolment.State.Open() {
		o.ended(life{i.ID, i.Generation}) // it was decided just before
	}
}

// refused checks that a second key with evidence did not get off lightly.
func (o *oracle) refused(m *machine, s imprint.Submission, err error) {
	i := o.w.get(s.Instance)
	c := i.Enrolment.Claim
	if s.Witness != i.Spec.Host || s.Generation != i.Generation || c == nil || c.Key == m.id || !i.Enrolment.State.Open() {
		return
	}
	if owner, bound := o.w.store.keys[m.id]; bound && owner != (life{i.ID, i.Generation}) {
		return // refused for that, before there was a first claim
	}
	o.fault("a second key was only told: %v", err)
}

// check returns what is wrong now that nothing is under way.
func (o *oracle) check() []string {
	for id, e := range o.w.store.records {
		o.checkTimeline(id, e.events)
		if i := e.instance(); i.Enrolment.State == imprint.InDispute {
			last := e.events[slices.IndexFunc(e.events, func(e imprint.Event) bool {
				return e.Kind == imprint.EventContested && e.Generation == i.Generation
			})]
			if last.Detail["firstKey"] != string(i.Enrolment.Claim.Key) || last.Detail["secondKey"] == "" || last.Detail["secondKey"] == last.Detail["firstKey"] {
				o.fault("the dispute does not name both keys: %v", last.Detail)
			}
		}
	}
	return o.faults
}

// order is the rank of events that happen at most once a generation, and after
// each other; those of rank 9 end it.
var order = map[imprint.EventKind]int{
	imprint.EventReserved: 1, imprint.EventReborn: 1, imprint.EventClaimed: 3, imprint.EventWaiting: 4, imprint.EventApproved: 5,
	imprint.EventIssued: 6, imprint.EventConfirmed: 7, imprint.EventClosed: 8,
	imprint.EventContested: 9, imprint.EventRevoked: 9, imprint.EventExpired: 9,
}

func (o *oracle) checkTimeline(id imprint.InstanceID, events []imprint.Event) {
	reached := map[imprint.Generation]int{}
	delivered := map[imprint.Generation]bool{}
	for n, e := range events {
		if e.Seq != uint64(n+1) {
			o.fault("event %d has the number %d", n+1, e.Seq)
		}
		rank, ranked := order[e.Kind]
		switch {
		case ranked && rank <= reached[e.Generation]:
			o.fault("%s in generation %d came after an event of rank %d", e.Kind, e.Generation, reached[e.Generation])
		case ranked:
			reached[e.Generation] = rank
		case e.Kind == imprint.EventDelivered:
			if delivered[e.Generation] || reached[e.Generation] == 9 {
				o.fault("delivered again, or after the end")
			}
			delivered[e.Generation] = true
		case e.Kind == imprint.EventRenewed && (reached[e.Generation] < 6 || reached[e.Generation] == 9):
			o.fault("renewed at rank %d", reached[e.Generation])
		}
	}
}

// task is something a server does, that stands still wherever another server may
// get its turn.
type task struct {
	name string
	at   string // where it stands
	next func() (string, bool)
	stop func()
}

// crash unwinds a task whose server died.
type crash struct{}

// start prepares do, which stands still at every pause of its context.
func start(ctx context.Context, name string, do func(context.Context)) *task {
	t := &task{name: name, at: "start"}
	t.next, t.stop = iter.Pull(func(yield func(string) bool) {
		defer func() {
			if r := recover(); r != nil && r != (any)(crash{}) {
				panic(r)
			}
		}()
		do(context.WithValue(ctx, pauseKey{}, func(at string) {
			if !yield(at) {
				panic(crash{})
			}
		}))
	})
	return t
}

// step goes on to the next pause; it returns false at the end.
func (t *task) step() bool {
	at, more := t.next()
	t.at = at
	return more
}

// die ends the task where it stands: its server crashed, or its reply got lost.
func (t *task) die() { t.stop() }
