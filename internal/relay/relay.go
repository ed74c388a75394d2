package relay

import (
	"context"
	"iter"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/durable"
	"imprint/internal/host"
	"imprint/internal/hostapi"
	"imprint/internal/seal"
	"imprint/internal/spool"
)

// ControlPlane is the other end: a hostapi.Client. Kind [imprint.Unavailable]
// means that it could not be asked.
type ControlPlane interface {
	Watch(ctx context.Context, from hostapi.Position, each func(hostapi.Notice) error) error
	Enrol(ctx context.Context, s imprint.Submission) (*imprint.Instance, error)
	Report(ctx context.Context, r imprint.Report) error
	Param(ctx context.Context, id imprint.InstanceID, name string) (imprint.Secret, error)
	Answer(ctx context.Context, call string, a hostapi.Answer) error
}

// Guests is the host role that serves over a [Relay]: a host.Host.
type Guests interface {
	Refresh()
	Ports(id imprint.InstanceID) []host.Port
	Pipes(id imprint.InstanceID) ([]host.Pipe, error)
	WritePipe(id imprint.InstanceID, pipe, messageID string, data []byte, by string) error
	ReadPipe(ctx context.Context, id imprint.InstanceID, pipe string) (data []byte, receipt string, err error)
	TakePipe(id imprint.InstanceID, pipe, receipt, by string) error
}

// Config is what a [Relay] needs; all of it is.
type Config struct {
	// Dir holds the copy, the queue and the key that seals the copy. Mode 0700, and
	// nobody else writes there.
	Dir          string
	ControlPlane ControlPlane
	Secrets      *host.Secrets
	Logger       *slog.Logger
	Now          func() time.Time
}

// Relay stands between a host role and its control plane.
type Relay struct {
	Config
	copy    *copied
	reports *reports
	// stream says how the stream to the control plane is.
	stream atomic.Int32
	guests Guests // set before anything is served

	facts struct {
		sync.Mutex
		m map[imprint.TenantName]dialect.Facts // guarded by Mutex
	}
	calls chan struct{} // one element for each call that is being answered
	reads chan struct{} // likewise for those that wait for a message

	following sync.Mutex // held while the copy is given another key
}

// How the stream to the control plane is.
const (
	away    int32 = iota // nobody answers
	refused              // it is there, and does not want this host
	open
)

// Limits on the calls that are answered at a time. Those that wait for a message
// are counted apart, so that no secret value has to wait for them.
const (
	maxCalls = 16
	maxReads = hostapi.MaxReads
)

// Open reads what an earlier process left in dir. It fails with kind
// [imprint.Internal] if it cannot.
func Open(c Config) (*Relay, error) {
	// What a crash left of a key file in the making holds keys.
	if err := durable.Clean(c.Dir); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "open", c.Dir, "%w", err)
	}
	keys, err := seal.OpenFile(filepath.Join(c.Dir, "kek"))
	if err != nil {
		return nil, err
	}
	r := &Relay{Config: c, calls: make(chan struct{}, maxCalls), reads: make(chan struct{}, maxReads)}
	if r.copy, err = openCopy(filepath.Join(c.Dir, "copy"), keys, c.Logger); err != nil {
		return nil, err
	}
	if err := r.copy.settle(); err != nil { // all keys open what is there, and the next key that is followed ends it
		c.Logger.Error("the copy is still sealed with several keys", "error", err)
	}
	r.facts.m = r.copy.facts()
	queue, kept, torn, err := spool.Open(filepath.Join(c.Dir, "reports"))
	if err != nil {
		return nil, err
	}
	if torn > 0 {
		c.Logger.Warn("reports that were being written when the last process ended were dropped; no value had left for them", "count", torn)
	}
	r.reports = newReports(queue, kept, c.ControlPlane.Report, c.Logger)
	return r, nil
}

// Serve makes g the host role that calls are about. It is called once, before Run
// and before the host role runs.
func (r *Relay) Serve(g Guests) { r.guests = g }

// Run sends what is reported until ctx ends. What is left then is on the disk.
func (r *Relay) Run(ctx context.Context) { r.reports.run(ctx) }

// Connected reports whether the control plane is at hand.
func (r *Relay) Connected() bool { return r.stream.Load() == open }

// Queued returns how many reports wait.
func (r *Relay) Queued() int { return r.reports.queue.Len() }

// Pauses between two attempts to open the stream.
const (
	pauseFirst = 200 * time.Millisecond
	pauseLast  = 5 * time.Second
)

// Watch implements host.Instances: what the copy has, then the stream, for ever.
// The copy is no list of all there is: until the control plane said so, nothing
// is taken for gone.
func (r *Relay) Watch(ctx context.Context) iter.Seq2[host.Notice, error] {
	return func(yield func(host.Notice, error) bool) {
		for _, inst := range r.copy.instances() {
			if !yield(host.Notice{Instance: inst}, nil) {
				return
			}
		}
		w := watching{relay: r, yield: yield}
		var calls sync.WaitGroup
		defer calls.Wait()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		w.call = func(ask hostapi.Call) { calls.Go(func() { r.answer(ctx, ask) }) }
		w.follow = func(key string) { calls.Go(func() { r.follow(key) }) }
		said := ""
		for pause := pauseFirst; ; pause = min(2*pause, pauseLast) {
			w.fresh = true
			err := r.ControlPlane.Watch(ctx, hostapi.Position{Run: w.run, Revision: w.seen}, w.notice)
			state := away
			if imprint.KindOf(err) == imprint.Unauthorized {
				state = refused
			}
			r.stream.Store(state)
			if w.left || ctx.Err() != nil {
				return
			}
			if !w.fresh || err.Error() != said { // an outage is said once
				if said = err.Error(); !yield(host.Notice{}, err) {
					return
				}
			}
			if !w.fresh {
				pause = pauseFirst
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause/2 + rand.N(pause)):
			}
		}
	}
}

// watching is one running Watch.
type watching struct {
	relay  *Relay
	yield  func(host.Notice, error) bool
	call   func(hostapi.Call)
	follow func(key string)
	left   bool   // the reader wants no more
	fresh  bool   // the control plane has not answered yet
	run    string // of the control plane, which told all below
	seen   int64  // the revision up to which everything was told
	last   int64  // that of the last notice; more of the same revision may follow
	listed map[imprint.InstanceID]bool
}

// notice acts on one line of the stream.
func (w *watching) notice(n hostapi.Notice) error {
	r := w.relay
	if w.fresh { // the control plane answered
		w.fresh, w.listed = false, map[imprint.InstanceID]bool{}
		r.stream.Store(open)
		r.reports.wake()
		r.Logger.Info("the control plane is connected", "reports", r.Queued())
	}
	out := host.Notice{Relist: n.Relist, Synced: n.Synced, Deleted: n.Deleted}
	switch {
	case n.Tenant != nil:
		r.learn(n.Tenant)
		return nil
	case n.Call != nil:
		w.call(*n.Call)
		return nil
	case n.Sealing != "":
		w.follow(n.Sealing)
		return nil
	case n.Run != "":
		if n.Run == w.run {
			return nil
		}
		w.run = n.Run
		return w.rewind()
	}
	// A list that is older than what was told is of a store that was restored
	// under a server that runs.
	if (n.Relist || n.Synced) && n.Revision < w.last {
		if err := w.rewind(); err != nil {
			return err
		}
	}
	switch {
	case n.Instance != nil:
		out.Instance = n.Instance.Unwrap()
		r.copy.keep(out.Instance)
		if n.Relist {
			w.listed[out.Instance.ID] = true
		}
	case n.Deleted != "":
		r.copy.drop(n.Deleted)
	case n.Synced:
		r.copy.retain(w.listed)
		w.listed = map[imprint.InstanceID]bool{}
	default:
		return nil
	}
	if err := w.tell(out); err != nil {
		return err
	}
	switch {
	case n.Synced:
		w.seen, w.last = n.Revision, n.Revision
	case !n.Relist && n.Revision > w.last: // a list that broke off starts again
		w.seen, w.last = w.last, n.Revision
	}
	return nil
}

// rewind makes the records that follow count, whatever their revisions are.
func (w *watching) rewind() error {
	w.seen, w.last, w.listed = 0, 0, map[imprint.InstanceID]bool{}
	w.relay.copy.rewind()
	return w.tell(host.Notice{Rewound: true})
}

func (w *watching) tell(n host.Notice) error {
	if !w.yield(n, nil) {
		w.left = true
		return imprint.Errorf(imprint.Unavailable, "watch", "control plane", "left")
	}
	return nil
}

// learn keeps what is common to a tenant's instances.
func (r *Relay) learn(t *hostapi.TenantFacts) {
	r.facts.Lock()
	r.facts.m[t.Name] = t.Facts
	r.facts.Unlock()
	r.copy.keepFacts(t)
	r.guests.Refresh()
}

// Facts returns what is common to a tenant's instances. It fails with kind
// [imprint.Unavailable] before the control plane told it.
func (r *Relay) Facts(name imprint.TenantName) (dialect.Facts, error) {
	r.facts.Lock()
	defer r.facts.Unlock()
	if f, ok := r.facts.m[name]; ok {
		return f, nil
	}
	return dialect.Facts{}, imprint.Errorf(imprint.Unavailable, "find", "tenant "+string(name), "the control plane has not told it yet")
}

// Enrol implements host.Control. It waits for nothing: the guest asks again.
func (r *Relay) Enrol(ctx context.Context, s imprint.Submission) (*imprint.Instance, error) {
	if !r.Connected() {
		return nil, imprint.Errorf(imprint.Unavailable, "enrol", string(s.Instance), "the control plane is not connected")
	}
	inst, err := r.ControlPlane.Enrol(ctx, s)
	if inst != nil {
		r.copy.keep(inst)
	}
	return inst, err
}

// Report implements host.Control. The report is on the disk when this returns
// nil; with the control plane at hand it is also on record there. A host that is
// refused reports no read: the value must not leave.
func (r *Relay) Report(ctx context.Context, rep imprint.Report) error {
	if rep.Kind == imprint.ReportRead && r.stream.Load() == refused {
		return errRefused("read", rep.Name)
	}
	rep.Seen = r.Now()
	return r.reports.add(ctx, rep, r.Connected)
}

func errRefused(op, operand string) error {
	return imprint.Errorf(imprint.Unauthorized, op, operand, "the control plane refuses this host")
}

// Param implements host.Params. The value that was fetched last is used only
// while the control plane cannot be asked.
func (r *Relay) Param(ctx context.Context, id imprint.InstanceID, name string) (imprint.Secret, error) {
	if r.stream.Load() == refused {
		return imprint.Secret{}, errRefused("read", name)
	}
	err := error(imprint.Errorf(imprint.Unavailable, "read", name, "the control plane is not connected"))
	if r.Connected() {
		var value imprint.Secret
		if value, err = r.ControlPlane.Param(ctx, id, name); err == nil {
			r.copy.keepValue(id, name, value)
			return value, nil
		}
	}
	switch imprint.KindOf(err) {
	case imprint.Unavailable:
	case imprint.NotFound, imprint.Denied:
		r.copy.dropValue(id, name)
		fallthrough
	default:
		return imprint.Secret{}, err
	}
	if value, ok := r.copy.value(id, name); ok {
		return value, nil
	}
	return imprint.Secret{}, err
}

// answer does what the control plane asks for.
func (r *Relay) answer(ctx context.Context, ask hostapi.Call) {
	slots := r.calls
	if ask.Kind == hostapi.CallRead {
		slots = r.reads
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return
	}
	a, err := r.perform(ctx, &ask)
	clear(ask.Value)
	if err != nil {
		a = hostapi.Failed(err)
	}
	if err := r.ControlPlane.Answer(ctx, ask.ID, a); err != nil && ctx.Err() == nil {
		r.Logger.WarnContext(ctx, "a call of the control plane was not answered", "call", ask.Kind, "instance", ask.Instance, "error", err)
	}
}

// readPatience is how long a call waits for a message; the control plane calls
// again for an operator who waits longer.
const readPatience = 2 * time.Second

func (r *Relay) perform(ctx context.Context, ask *hostapi.Call) (a hostapi.Answer, err error) {
	switch ask.Kind {
	case hostapi.CallSecret:
		if err := r.Secrets.Put(ask.Instance, ask.Generation, ask.Name, imprint.NewSecret(ask.Value)); err != nil {
			return a, err
		}
		r.guests.Refresh()
	case hostapi.CallLook:
		for _, one := range r.guests.Ports(ask.Instance) {
			a.Ports = append(a.Ports, hostapi.Port(one))
		}
		a.Held = r.Secrets.Held(ask.Instance, ask.Generation)
	case hostapi.CallPipes:
		list, err := r.guests.Pipes(ask.Instance)
		for _, one := range list {
			a.Pipes = append(a.Pipes, hostapi.Pipe{Name: one.Name, ToMachine: hostapi.Waiting(one.ToMachine), FromMachine: hostapi.Waiting(one.FromMachine)})
		}
		return a, err
	case hostapi.CallWrite:
		return a, r.guests.WritePipe(ask.Instance, ask.Name, ask.Message, ask.Value, ask.By)
	case hostapi.CallRead:
		ctx, cancel := context.WithTimeout(ctx, readPatience)
		defer cancel()
		a.Message, a.Receipt, err = r.guests.ReadPipe(ctx, ask.Instance, ask.Name)
	case hostapi.CallTake:
		return a, r.guests.TakePipe(ask.Instance, ask.Name, ask.Message, ask.By)
	default:
		return a, imprint.Errorf(imprint.Invalid, "answer", "call", "this host does not know %q", ask.Kind)
	}
	return a, err
}
