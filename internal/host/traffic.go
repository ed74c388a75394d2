package host

import (
	"fmt"
	"sync"
	"time"

	"imprint"
)

// passage is a way through a pipe, and who goes it.
type passage struct {
	pipe, way, what string              // such as console, "from the machine" and "written"
	channel         imprint.ChannelKind // the machine's; "" at the operator's end
	from            string              // who, in words
}

// traffic counts what goes through an instance's pipes and puts it on the
// timeline, without contents. It reports as often as a guest may make its host
// log something; what is not reported is counted in the next report.
type traffic struct {
	complaints complaints

	mu      sync.Mutex
	counts  map[passage]count // guarded by mu; not reported yet
	running bool              // guarded by mu; somebody reports
	ended   bool              // guarded by mu; nobody begins to report any more
}

// The two directions of a pipe, and what happens to a message in it.
const (
	toMachine   = "to the machine"
	fromMachine = "from the machine"
	written     = "written"
	taken       = "taken"
)

// trafficPause is how long what goes through pipes is counted together.
const trafficPause = time.Second

// maxPassages is how many passages are counted apart; who comes after that is
// counted with nobody in particular.
const maxPassages = 64

type count struct{ messages, bytes int }

// add counts a message of size bytes; 0 is none.
func (t *traffic) add(u *unit, p passage, size int) {
	if size == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = map[passage]count{}
	}
	if _, known := t.counts[p]; !known && len(t.counts) >= maxPassages {
		p.from = ""
	}
	c := t.counts[p]
	t.counts[p] = count{c.messages + 1, c.bytes + size}
	if t.running || t.ended {
		return
	}
	t.running = true
	u.runs.Go(func() { t.report(u) })
}

// end sees to it that nobody begins to report from now on.
func (t *traffic) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
}

// report reports what was counted, and what comes meanwhile, in rounds that are
// admitted and some time apart.
func (t *traffic) report(u *unit) {
	pause := func(d time.Duration) (goOn bool) {
		select {
		case <-time.After(d):
			return true
		case <-u.ctx.Done():
			return false
		}
	}
	for {
		for !t.complaints.admit(u.host.c.Now()) {
			if !pause(complaintEvery) {
				return
			}
		}
		t.mu.Lock()
		counts := t.counts
		t.counts = nil
		t.mu.Unlock()
		for p, c := range counts {
			tell(u, p, c)
		}
		if !pause(trafficPause) {
			return
		}
		t.mu.Lock()
		t.running = len(t.counts) > 0
		again := t.running
		t.mu.Unlock()
		if !again {
			return
		}
	}
}

// tell reports that so much went through a pipe.
func tell(u *unit, p passage, c count) {
	snap, _ := u.current()
	if snap == nil {
		return
	}
	text := fmt.Sprintf("pipe %s, %s: %d messages with %d bytes %s", p.pipe, p.way, c.messages, c.bytes, p.what)
	if c.messages == 1 {
		text = fmt.Sprintf("pipe %s, %s: a message of %d bytes %s", p.pipe, p.way, c.bytes, p.what)
	}
	err := u.host.c.Control.Report(u.ctx, imprint.Report{
		Instance: u.id, Generation: snap.inst.Generation, Channel: p.channel, Kind: imprint.ReportMessage,
		Name: text, From: p.from, Witness: u.host.c.Name,
	})
	if err != nil && u.ctx.Err() == nil {
		u.log.Warn("not on the timeline", "what", text, "from", p.from, "error", err)
	}
}
