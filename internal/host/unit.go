package host

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/metadata"
	"imprint/internal/triton"
)

// unit is one instance on this host: its record as last heard, what is rendered
// from it, and its ports.
type unit struct {
	host *Host
	id   imprint.InstanceID
	log  *slog.Logger
	ctx  context.Context // ends with the unit
	end  context.CancelFunc
	runs sync.WaitGroup // listeners and their sessions

	notes   *notes  // keys that the guest put
	pipes   pipes   // messages to and from the guest
	traffic traffic // what went through them
	seed    []byte  // what its generator of random numbers may begin with

	complaints complaints // about the guest, in the log

	mu        sync.Mutex
	snapshot  *snapshot                     // guarded by mu; nil until the record is heard
	revision  int64                         // guarded by mu; of the record, or 0 for one of another past
	changed   chan struct{}                 // guarded by mu; closed and replaced with each snapshot
	delivered imprint.Generation            // guarded by mu; whose delivery is on record
	ports     map[imprint.ChannelKind]*port // guarded by mu

	// ways has how each channel arrives; only Run's goroutine changes it, with mu held.
	ways map[imprint.ChannelKind]*way
	nic  *nic // guarded by mu; nil without the channel
	// proxied is the instance behind Neutron; guarded by mu, nil without the channel.
	proxied *metadataGuest
}

// way is how one channel arrives: by a socket on which this host listens, or by
// one that it dials.
type way struct {
	dialled string // the socket to dial; "" if this host listens
	stop    func() // ends it and returns when it has ended
}

// snapshot is an instance with everything that is rendered from it. It is never changed.
type snapshot struct {
	inst   *imprint.Instance
	facts  dialect.Facts
	stock  *imprint.View
	native map[imprint.ChannelKind]*imprint.View
	// network is rendered when it is first asked for, off the way of what waits for
	// this snapshot; nil for an instance that has neither of the channels nic and neutron.
	network func() *metadata.Snapshot
	// userData is the user data, sealed to the enrolled key, in base64. It is sealed
	// when it is first asked for, and once for a key, because any process may ask.
	userData func() ([]byte, error)
	// payload is nil if it could not be made; err says why.
	payload *imprint.Payload
	encoded []byte
	err     error
}

func newUnit(ctx context.Context, h *Host, id imprint.InstanceID) *unit {
	ctx, end := context.WithCancel(ctx)
	seed := make([]byte, dialect.SeedSize)
	rand.Read(seed) // never fails since Go 1.24
	return &unit{
		seed: seed, host: h, id: id, log: h.c.Logger.With("instance", id), ctx: ctx, end: end,
		notes:   newNotes(),
		changed: make(chan struct{}),
		ports:   map[imprint.ChannelKind]*port{},
		ways:    map[imprint.ChannelKind]*way{},
	}
}

// stop ends all sessions and listeners and waits for them.
func (u *unit) stop() {
	u.end()
	u.traffic.end() // an operator may be writing to a pipe, and what reports that is in runs
	u.runs.Wait()
}

// observe takes a newer record of the instance.
func (u *unit) observe(inst *imprint.Instance) {
	u.mu.Lock()
	defer u.mu.Unlock()
	old := u.snapshot
	if old != nil && inst.Revision <= u.revision {
		return
	}
	u.revision = inst.Revision
	if old != nil && inst.Generation < old.inst.Generation { // only after a rewind
		u.host.c.Secrets.Drop(inst.ID)
	}
	if old != nil && inst.Generation != old.inst.Generation {
		u.notes.reset()
		u.pipes.reset()
	}
	u.host.c.Secrets.expire(inst.ID, inst.Generation)
	u.publish(u.rendered(inst, old))
}

// rewind makes the next record count, whatever its revision is, and what is on
// record count only as that record says.
func (u *unit) rewind() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.revision, u.delivered = 0, 0
}

// render renders the same record again.
func (u *unit) render() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.snapshot != nil {
		u.publish(u.rendered(u.snapshot.inst, u.snapshot))
	}
}

// publish is called with mu held.
func (u *unit) publish(s *snapshot) {
	u.snapshot = s
	close(u.changed)
	u.changed = make(chan struct{})
}

// rendered makes a snapshot. The payload's bytes stay those of old, whatever
// the time is now, unless something else in it changed: what a guest reads twice
// and what the log has a digest of is one document.
func (u *unit) rendered(inst *imprint.Instance, old *snapshot) *snapshot {
	s := &snapshot{inst: inst, native: map[imprint.ChannelKind]*imprint.View{}}
	if s.facts, s.err = u.host.c.Facts(inst.Spec.Tenant); s.err == nil {
		s.payload = dialect.Payload(inst, s.facts, u.host.c.Now())
		s.encoded, s.err = s.payload.Encode()
	}
	if s.err != nil {
		u.log.Error("the payload cannot be rendered", "error", s.err)
	} else if old != nil && old.err == nil {
		again := *s.payload
		again.Time = old.payload.Time
		if b, err := again.Encode(); err == nil && string(b) == string(old.encoded) {
			s.payload, s.encoded = old.payload, old.encoded
		}
	}
	s.userData = sync.OnceValues(func() ([]byte, error) { return sealedUserData(inst) })
	if old != nil && sameUserData(old.inst, inst) { // what else changed, a guest can cause
		s.userData = old.userData
	}
	s.stock = dialect.Triton(inst, s.facts)
	for _, c := range imprint.Channels() {
		s.native[c.Kind] = dialect.Native(inst, s.facts, s.encoded, c.Readers)
	}
	if slices.Contains(inst.Spec.Channels, imprint.LinkLocal) || slices.Contains(inst.Spec.Channels, imprint.Neutron) {
		s.network = sync.OnceValue(func() *metadata.Snapshot { return u.network(inst, s.facts) })
	}
	return s
}

// current returns the latest snapshot, nil if there is none, and a channel that
// is closed when there is a newer one.
func (u *unit) current() (*snapshot, <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.snapshot, u.changed
}

// await returns the first snapshot that is wanted; nil if ctx ends before.
func (u *unit) await(ctx context.Context, wanted func(*snapshot) bool) *snapshot {
	for {
		s, changed := u.current()
		if s != nil && wanted(s) {
			return s
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// serve speaks with the guest over conn until that ends.
func (u *unit) serve(ctx context.Context, kind imprint.ChannelKind, conn io.ReadWriteCloser) error {
	channel, ok := imprint.ChannelOf(kind)
	if !ok || !channel.Live || !channel.Upward {
		conn.Close()
		return imprint.Errorf(imprint.Invalid, "serve", string(kind), "not a channel that serves a stream")
	}
	p := u.port(kind)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(u.ctx, cancel)()
	ctx, leave := p.take(ctx)
	defer leave()

	// Silence until the record is here: the guest asks again, whereas it would
	// believe a wrong answer.
	s := u.await(ctx, func(*snapshot) bool { return true })
	if s == nil {
		conn.Close()
		return context.Cause(ctx)
	}
	if !slices.Contains(s.inst.Spec.Channels, kind) {
		conn.Close()
		return imprint.Errorf(imprint.Denied, "serve", s.inst.Ref(), "the instance has no channel %s", kind)
	}
	log := u.log.With("channel", kind)
	log.InfoContext(ctx, "guest's port connected")
	p.connect(true)
	defer p.connect(false)
	options := u.host.c.Session
	options.Logger = log
	err := triton.Serve(ctx, conn, &session{unit: u, channel: channel, log: log}, options)
	log.InfoContext(ctx, "guest's port disconnected", "because", err)
	return err
}

// bindPause is how long to wait before trying again to bind a socket.
const bindPause = 5 * time.Second

// open makes the unit serve these channels and no others, each by the socket to
// dial or, if that is "", by its own.
func (u *unit) open(ways map[imprint.ChannelKind]string) {
	for kind, w := range u.ways {
		if dialled, wanted := ways[kind]; !wanted || dialled != w.dialled {
			w.stop()
			u.setWay(kind, nil)
		}
	}
	for kind, dialled := range ways {
		if u.ways[kind] != nil {
			continue
		}
		switch kind {
		case imprint.LinkLocal:
			u.setWay(kind, u.link())
			continue
		case imprint.Neutron:
			u.setWay(kind, u.proxy())
			continue
		}
		ctx, cancel := context.WithCancel(u.ctx)
		done := make(chan struct{})
		if dialled != "" {
			u.setWay(kind, &way{dialled: dialled, stop: func() { cancel(); <-done }})
			u.runs.Go(func() {
				defer close(done)
				u.dial(ctx, kind, dialled)
			})
			continue
		}
		path := u.host.Socket(u.id, kind)
		u.setWay(kind, &way{stop: func() { cancel(); <-done; removeSocket(path) }})
		// The first attempt is made here, so that the socket exists when this returns.
		listener, err := bind(path, u.host.c.Owner)
		u.runs.Go(func() {
			defer close(done)
			u.accept(ctx, kind, path, listener, err)
		})
	}
}

func (u *unit) setNIC(n *nic) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.nic = n
}

func (u *unit) setWay(kind imprint.ChannelKind, w *way) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if w == nil {
		delete(u.ways, kind)
	} else {
		u.ways[kind] = w
	}
}

// accept serves connections to path until ctx ends. It starts from what the
// first attempt to bind gave.
func (u *unit) accept(ctx context.Context, kind imprint.ChannelKind, path string, l *net.UnixListener, err error) {
	var sessions sync.WaitGroup
	defer sessions.Wait()
	p := u.port(kind)
	for {
		if err == nil {
			p.trouble(nil)
			stop := context.AfterFunc(ctx, func() { l.Close() })
			for {
				conn, aerr := l.Accept()
				if aerr != nil {
					err = aerr
					break
				}
				sessions.Go(func() {
					if err := u.serve(ctx, kind, conn); err != nil && ctx.Err() == nil {
						u.log.DebugContext(ctx, "session over", "channel", kind, "because", err)
					}
				})
			}
			stop()
			l.Close()
		}
		if ctx.Err() != nil {
			return
		}
		if p.trouble(err) {
			u.log.ErrorContext(ctx, "the guest's socket does not work", "channel", kind, "error", err, "hint", imprint.HintOf(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(bindPause):
		}
		l, err = bind(path, u.host.c.Owner)
	}
}
