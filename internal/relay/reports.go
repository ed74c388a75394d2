package relay

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"imprint"
	"imprint/internal/spool"
)

const (
	// maxSends is how many reports are on their way at a time, of different instances.
	maxSends = 8
	// maxPending is how many reports of one instance may wait, so that a guest
	// cannot use up what is there for all.
	maxPending = 2 * imprint.MaxParams
	// verdictPatience is how long a guest waits for the control plane's word.
	verdictPatience = 5 * time.Second
	// Pauses before a report is sent again.
	resendFirst = 100 * time.Millisecond
	resendLast  = 10 * time.Second
)

// reports are on the disk from when they are added until the control plane has
// decided about them.
type reports struct {
	queue  *spool.Spool
	send   func(context.Context, imprint.Report) error
	logger *slog.Logger
	sends  chan struct{} // one element for each report that is on its way

	mu      sync.Mutex
	waiting map[imprint.InstanceID]*lane // guarded by mu; those that have reports
	arrived chan struct{}                // guarded by mu; closed and replaced when a lane begins
	back    chan struct{}                // guarded by mu; closed and replaced when the control plane comes back
}

// lane is the reports of one instance, in order. One that has to wait delays no
// other instance's.
type lane struct {
	list    []*pending
	drained bool // somebody sends them
}

// pending is a report that waits.
type pending struct {
	number  uint64
	report  imprint.Report
	verdict chan error // of capacity 1

	mu sync.Mutex
	// stands is set once nobody waits for the verdict: what the report says has
	// happened. Guarded by mu.
	stands bool
}

func newReports(queue *spool.Spool, kept []spool.Entry, send func(context.Context, imprint.Report) error, logger *slog.Logger) *reports {
	r := &reports{
		queue: queue, send: send, logger: logger, sends: make(chan struct{}, maxSends),
		waiting: map[imprint.InstanceID]*lane{}, arrived: make(chan struct{}), back: make(chan struct{}),
	}
	for _, e := range kept {
		p := &pending{number: e.Number, verdict: make(chan error, 1), stands: true}
		if err := json.Unmarshal(e.Content, &p.report); err != nil {
			logger.Error("a kept report cannot be read; it stays on the disk", "number", e.Number, "error", err)
			continue
		}
		r.push(p)
	}
	return r
}

func (r *reports) push(p *pending) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.waiting[p.report.Instance]
	if l == nil {
		l = &lane{}
		r.waiting[p.report.Instance] = l
		close(r.arrived)
		r.arrived = make(chan struct{})
	}
	l.list = append(l.list, p)
}

// wake makes all lanes try again at once.
func (r *reports) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.back)
	r.back = make(chan struct{})
}

// add puts rep on the disk and, with the control plane at hand, waits a while for
// what it decides. A report that stands without that is a success.
func (r *reports) add(ctx context.Context, rep imprint.Report, connected func() bool) error {
	r.mu.Lock()
	l := r.waiting[rep.Instance]
	full := l != nil && len(l.list) >= maxPending
	r.mu.Unlock()
	if full {
		return imprint.Errorf(imprint.Exhausted, "report", string(rep.Instance), "%d reports wait for the control plane; ask again when it is back", maxPending)
	}
	rep.ID = rand.Text()
	content, err := json.Marshal(rep)
	if err != nil {
		return imprint.Errorf(imprint.Internal, "encode", "report", "%w", err)
	}
	p := &pending{report: rep, verdict: make(chan error, 1)}
	p.number, err = r.queue.Append(content)
	if imprint.KindOf(err) == imprint.Exhausted && err != nil {
		return imprint.Errorf(imprint.Exhausted, "report", string(rep.Instance), "this host's queue or disk is full; ask again when the control plane is back: %w", err)
	}
	if err != nil {
		return err
	}
	p.stands = !connected()
	r.push(p)
	if p.stands {
		return nil
	}
	patience := time.NewTimer(verdictPatience)
	defer patience.Stop()
	select {
	case err := <-p.verdict:
		return err
	case <-patience.C:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case err := <-p.verdict: // at the last moment
		return err
	default:
	}
	p.stands = true
	return ctx.Err()
}

// run sends what waits until ctx ends.
func (r *reports) run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		r.mu.Lock()
		arrived := r.arrived
		for id, l := range r.waiting {
			if !l.drained {
				l.drained = true
				running.Go(func() { r.drain(ctx, id) })
			}
		}
		r.mu.Unlock()
		select {
		case <-arrived:
		case <-ctx.Done():
			return
		}
	}
}

// drain sends the reports of one instance, one after the other, until there are
// none: at most one is in doubt at any time, and the control plane knows that one
// again.
func (r *reports) drain(ctx context.Context, id imprint.InstanceID) {
	for pause := resendFirst; ; {
		p, back := r.head(id)
		if p == nil {
			return
		}
		select {
		case r.sends <- struct{}{}:
		case <-ctx.Done():
			return
		}
		err := r.send(ctx, p.report)
		<-r.sends
		if r.decided(p, err) {
			pause = resendFirst
			r.pop(p)
			continue
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			pause = min(2*pause, resendLast)
		case <-back:
			pause = resendFirst
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// head returns the first report of an instance, and what is closed when the
// control plane comes back. Without a report the lane is gone.
func (r *reports) head(id imprint.InstanceID) (p *pending, back <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.waiting[id]
	if len(l.list) == 0 {
		delete(r.waiting, id)
		return nil, nil
	}
	return l.list[0], r.back
}

// decided tells whoever waits what became of p, and reports whether it is done
// with. A report that stands and that is only too early is sent until it is taken.
func (r *reports) decided(p *pending, err error) bool {
	kind := imprint.KindOf(err)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
	case kind == imprint.Unavailable || kind == imprint.Internal:
		return false
	case p.stands && (kind == imprint.Exhausted || kind == imprint.Unauthorized):
		return false
	case p.stands && kind == imprint.Denied:
		r.logger.Error("the control plane denies a report of what has happened", "instance", p.report.Instance, "report", p.report.Kind, "error", err)
	case p.stands:
		r.logger.Warn("the control plane refused a report of what has happened", "instance", p.report.Instance,
			"report", p.report.Kind, "name", p.report.Name, "seen", p.report.Seen, "error", err)
	}
	p.verdict <- err
	return true
}

func (r *reports) pop(p *pending) {
	if err := r.queue.Remove(p.number); err != nil {
		r.logger.Error("a report that was taken stays on the disk", "number", p.number, "error", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.waiting[p.report.Instance]
	l.list = l.list[1:]
}
