package enrol

import (
	"strconv"
	"sync"
	"time"

	"imprint"
)

// A note is an event that moves nothing: a request that was refused, a value
// that was read. Guests and strangers cause notes at will, and the timeline keeps
// the latest [imprint.MaxEvents] events, so their rate is limited for each
// instance and channel, and for refusals by kind, each for itself: noise of one
// sort does not hide another.
const (
	refusalBurst = 8
	refusalEvery = 30 * time.Minute

	readBurst = 2 * imprint.MaxParams // every parameter once, and again after a crash
	readEvery = 10 * time.Second

	servedBurst = 32 // all that a boot of cloud-init looks at that is told apart
	servedEvery = time.Minute

	noteSweep = 5 * time.Minute // how often what is idle is forgotten
)

// noteSort is what is limited together.
type noteSort struct {
	instance imprint.InstanceID
	channel  imprint.ChannelKind
	event    imprint.EventKind
	kind     imprint.Kind // of the refusal
}

func (s noteSort) limit() (burst int, every time.Duration) {
	switch s.event {
	case imprint.EventRead:
		return readBurst, readEvery
	case imprint.EventServed, imprint.EventMessage:
		return servedBurst, servedEvery
	}
	return refusalBurst, refusalEvery
}

// notes counts notes. It lives in memory: its loss costs a burst.
type notes struct {
	mu    sync.Mutex
	sorts map[noteSort]*noteCount
	swept time.Time
}

type noteCount struct {
	used    int       // of the burst
	since   time.Time // when used was last reduced
	omitted int       // since the last note that was admitted
}

// admit reports whether a note of sort s may be written now, and how many were
// not since the last one that was.
func (n *notes) admit(s noteSort, now time.Time) (ok bool, omitted int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sorts == nil {
		n.sorts = map[noteSort]*noteCount{}
	}
	if now.Sub(n.swept) >= noteSweep || now.Before(n.swept) {
		n.sweep(now)
	}
	c := n.sorts[s]
	if c == nil {
		c = &noteCount{since: now}
		n.sorts[s] = c
	}
	burst, every := s.limit()
	c.earn(every, now)
	if c.used >= burst {
		c.omitted++
		return false, 0
	}
	c.used++
	omitted, c.omitted = c.omitted, 0
	return true, omitted
}

// earn gives back what time has earned.
func (c *noteCount) earn(every time.Duration, now time.Time) {
	if now.Before(c.since) { // the clock was set back
		c.since = now
	}
	earned := min(int(now.Sub(c.since)/every), c.used)
	if c.used -= earned; c.used == 0 {
		c.since = now
		return
	}
	c.since = c.since.Add(time.Duration(earned) * every)
}

// sweep forgets the sorts that have their whole burst again.
func (n *notes) sweep(now time.Time) {
	n.swept = now
	for s, c := range n.sorts {
		_, every := s.limit()
		if c.earn(every, now); c.used == 0 {
			delete(n.sorts, s)
		}
	}
}

// ration is the decision about the notes of one move, which may be decided
// several times but is counted once.
type ration struct {
	sort    noteSort
	asked   bool
	ok      bool
	omitted int
}

// allows reports whether ev may be written, and says in it how many were not.
func (r *ration) allows(n *notes, i *imprint.Instance, ev *imprint.Event, refusal error, now time.Time) bool {
	sort := noteSort{instance: i.ID, channel: ev.Channel, event: ev.Kind}
	if refusal != nil {
		sort.kind = imprint.KindOf(refusal)
	}
	if !r.asked || r.sort != sort {
		r.sort, r.asked = sort, true
		r.ok, r.omitted = n.admit(sort, now)
	}
	if r.ok && r.omitted > 0 {
		ev.Detail["omitted"] = strconv.Itoa(r.omitted)
	}
	return r.ok
}

// loud reports whether a refusal may be seen in the log: whoever can fill a
// timeline can fill a disk. What is not on the timeline has a ration of its own.
func (r *ration) loud(n *notes, id imprint.InstanceID, refusal error, now time.Time) bool {
	if !r.asked {
		r.ok, _ = n.admit(noteSort{instance: id, kind: imprint.KindOf(refusal)}, now)
	}
	return r.ok
}
