package enrol

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"reflect"
	"time"

	"pgregory.net/rapid"

	"imprint"
)

// This file runs calls of several engines as coroutines over one store and one
// issuer. A call stops before and after every access to either; somebody else
// decides which call goes on, and whether what it just asked for happened and
// whether it hears so. lab_rules_test.go says what must hold, and
// lab_acts_test.go who does what.

// fate is what becomes of an access at which a call had stopped.
type fate int

const (
	goesOn fate = iota
	fails       // with Unavailable: before an access nothing happened, after it everything did
	dies        // with its server; nobody hears of it again
)

// call is one call of an engine.
type call struct {
	name   string
	now    time.Time // the clock of its server; one instant for the whole call
	enrols *imprint.Submission
	key    imprint.KeyID
	report *imprint.Report

	resume func() (string, bool)
	kill   func()
	yield  func(string) bool
	fate   fate
	dead   bool
	failed bool // its decision could not have something signed
	last   *imprint.Instance
}

type callKey struct{}

func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// stop lets others have their turn and returns whether c may go on.
func (c *call) stop(where string) error {
	if !c.dead && !c.yield(where) {
		c.dead = true
	}
	if c.dead || c.fate == fails {
		return imprint.Errorf(imprint.Unavailable, "reach", where, "cut off")
	}
	return nil
}

// lab is a small world with one instance.
type lab struct {
	t      *rapid.T
	clock  time.Time
	latest time.Time // the latest that any clock ever showed
	calls  []*call
	run    *call // whose turn it is

	engines [2]*Engine
	record  []byte // the instance as stored; nil once deleted
	gone    *imprint.Instance
	events  []imprint.Event
	keys    map[imprint.KeyID]imprint.Generation
	revoked map[imprint.Serial]imprint.Revocation
	signed  map[string]imprint.Grant // by the bytes that the issuer made
	issued  map[imprint.Serial]fixture
	left    map[imprint.Serial]string // the certificates that somebody was given
	tokens  []imprint.Secret
	actors
}

func newLab(t *rapid.T, s imprint.Spec) *lab {
	l := &lab{
		t: t, clock: time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC),
		keys: map[imprint.KeyID]imprint.Generation{}, revoked: map[imprint.Serial]imprint.Revocation{},
		signed: map[string]imprint.Grant{}, issued: map[imprint.Serial]fixture{}, left: map[imprint.Serial]string{},
		actors: newActors(),
	}
	l.latest = l.clock
	for n := range l.engines {
		l.engines[n] = New(Config{Store: l, Issuer: l, Now: func() time.Time { return l.run.now }, Logger: slog.New(slog.DiscardHandler)})
	}
	i, c, err := Reserve(s, imprint.Tenant{Name: imprint.DefaultTenant}, l.clock)
	if err != nil {
		t.Fatal(err)
	}
	l.record = marshal(&i)
	l.append(&i, c.Events)
	return l
}

// begin adds a call, which stops at its first access.
func (l *lab) begin(c *call, f func(context.Context, *call)) {
	c.now = l.clock
	if c.now.After(l.latest) {
		l.latest = c.now
	}
	ctx := context.WithValue(context.Background(), callKey{}, c)
	c.resume, c.kill = iter.Pull(func(yield func(string) bool) {
		c.yield = yield
		f(ctx, c)
	})
	l.calls = append(l.calls, c)
	l.step(len(l.calls)-1, goesOn)
}

// step lets the n-th call run to its next stop.
func (l *lab) step(n int, f fate) {
	c := l.calls[n]
	c.fate, l.run = f, c
	over := f == dies
	if over {
		c.kill()
	} else if _, more := c.resume(); !more {
		over = true
	}
	if over {
		l.calls = append(l.calls[:n], l.calls[n+1:]...)
	}
}

// settle lets all calls end without further accidents.
func (l *lab) settle() {
	for len(l.calls) > 0 {
		l.step(0, goesOn)
	}
}

func (l *lab) instance() *imprint.Instance {
	if l.record == nil {
		return nil
	}
	return unmarshal(l.record)
}

func marshal(i *imprint.Instance) []byte {
	b, err := json.Marshal(i)
	if err != nil {
		panic(err)
	}
	return b
}

func unmarshal(b []byte) *imprint.Instance {
	i := new(imprint.Instance)
	if err := json.Unmarshal(b, i); err != nil {
		panic(err)
	}
	return i
}

func noInstance(id imprint.InstanceID) error {
	return imprint.Errorf(imprint.NotFound, "read", string(id), "there is no such instance")
}

// Instance implements [Store].
func (l *lab) Instance(ctx context.Context, id imprint.InstanceID) (*imprint.Instance, error) {
	c := callOf(ctx)
	if err := c.stop("before read"); err != nil {
		return nil, err
	}
	if l.record == nil {
		return nil, noInstance(id)
	}
	return l.instance(), nil
}

// Update implements [Store] with the compare-and-swap of internal/store. It
// asks every decision twice, because decisions have no effects of their own.
func (l *lab) Update(ctx context.Context, id imprint.InstanceID, decide func(*imprint.Instance) (imprint.Change, error)) (*imprint.Instance, error) {
	c := callOf(ctx)
	for {
		if err := c.stop("before read"); err != nil {
			return nil, err
		}
		if l.record == nil {
			return nil, noInstance(id)
		}
		before := l.record
		c.failed = false
		rehearsed := unmarshal(before)
		changeThen, _ := decide(rehearsed)
		after := unmarshal(before)
		change, err := decide(after)
		if err != nil {
			return nil, err
		}
		if !c.failed && (!reflect.DeepEqual(change, changeThen) || string(marshal(rehearsed)) != string(marshal(after))) {
			l.t.Fatalf("%s: one decision came out in two ways", c.name)
		}
		if change.Keep {
			after = unmarshal(before)
		}
		if err := c.stop("before write"); err != nil {
			return nil, err
		}
		if l.record == nil || string(l.record) != string(before) {
			continue
		}
		if gen, bound := l.keys[change.BindKey]; bound && gen != after.Generation {
			return nil, imprint.Errorf(imprint.Exists, "update", string(id), "the key is bound to generation %d", gen)
		}
		l.write(c, unmarshal(before), after, &change)
		c.last = l.instance()
		if err := c.stop("after write"); err != nil {
			return nil, err
		}
		return c.last, nil
	}
}

// write applies a change and checks it against the rules.
func (l *lab) write(c *call, before, after *imprint.Instance, change *imprint.Change) {
	l.checkChange(c, before, after, change)
	if change.Keep && len(change.Events) == 0 {
		return
	}
	if change.BindKey != "" {
		l.keys[change.BindKey] = after.Generation
	}
	for _, r := range change.Revoke {
		l.revoked[r.Serial] = r
	}
	l.append(after, change.Events)
	after.Events = uint64(len(l.events)) // makes every write another revision
	l.record = marshal(after)
}

func (l *lab) append(i *imprint.Instance, events []imprint.Event) {
	for _, e := range events {
		e.Generation, e.Seq = i.Generation, uint64(len(l.events)+1)
		l.events = append(l.events, e)
		l.checkOrder()
	}
}

// delete removes the instance as internal/store does.
func (l *lab) delete(ctx context.Context) {
	c := callOf(ctx)
	if c.stop("before delete") != nil || l.record == nil {
		return
	}
	i := l.instance()
	change := Delete(i, c.now)
	l.checkRevocations(c, i, change.Revoke, reasonCessationOfOperation)
	for _, r := range change.Revoke {
		l.revoked[r.Serial] = r
	}
	l.gone, l.record = i, nil
}

// Issue implements [Issuer]: the same grant gives the same bytes.
func (l *lab) Issue(ctx context.Context, g imprint.Grant) (*imprint.Certificate, *imprint.LogEntry, error) {
	c := callOf(ctx)
	for _, where := range []string{"before sign", "after sign"} {
		if err := c.stop(where); err != nil {
			c.failed = true
			return nil, nil, err
		}
	}
	cert := certificate(g)
	l.signed[string(cert.DER)] = g
	return cert, &imprint.LogEntry{Log: cert.Log, Serial: g.Serial, Data: cert.DER}, nil
}

func certificate(g imprint.Grant) *imprint.Certificate {
	return &imprint.Certificate{Serial: g.Serial, DER: fmt.Appendf(nil, "%+v", g), NotBefore: g.NotBefore, NotAfter: g.NotAfter, Log: "lab"}
}
