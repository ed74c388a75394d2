package store

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"

	"imprint"
)

// gate holds the first commit until it is opened, and notes which groups come.
// It may refuse some of them.
type gate struct {
	kv
	refuse  func(txns []*txn) error
	arrived chan struct{} // closed when the first commit is held
	open    chan struct{}
	first   sync.Once

	mu     sync.Mutex
	groups [][]string // the first key that each transaction writes; guarded by mu
}

func (g *gate) commit(ctx context.Context, txns []*txn) ([]outcome, error) {
	g.first.Do(func() { close(g.arrived); <-g.open })
	keys := make([]string, len(txns))
	for i, t := range txns {
		keys[i] = t.then[0].key
	}
	g.mu.Lock()
	g.groups = append(g.groups, keys)
	g.mu.Unlock()
	if g.refuse != nil {
		if err := g.refuse(txns); err != nil {
			return nil, err
		}
	}
	return g.kv.commit(ctx, txns)
}

// gated returns another server's handle on the store whose first write is on
// its way and held at the gate, so that what is written until it opens waits.
func gated(t *testing.T, s *Store) (*Store, *gate) {
	t.Helper()
	g := &gate{kv: s.kv, arrived: make(chan struct{}), open: make(chan struct{})}
	held := newStore(g, string(s.keys), nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := held.committer.commit(t.Context(), putAt("held", 0)); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { <-done })
	<-g.arrived
	return held, g
}

// putAt writes key if it is at a revision.
func putAt(key string, revision int64) txn {
	return txn{
		when:      []compare{{key, revision}},
		then:      []op{{verb: put, key: key, value: []byte("x")}},
		otherwise: []string{key},
	}
}

// queue runs each of work in turn as soon as the one before waits at the gate,
// and returns a function that opens it and waits for all.
func queue(s *Store, g *gate, work ...func()) (run func()) {
	var wg sync.WaitGroup
	waiting := func() int {
		s.committer.mu.Lock()
		defer s.committer.mu.Unlock()
		return len(s.committer.waiting)
	}
	for _, w := range work {
		before := waiting()
		wg.Go(w)
		for waiting() == before {
			runtime.Gosched()
		}
	}
	return func() {
		close(g.open)
		wg.Wait()
	}
}

// testGroup has transactions wait for one another and checks that each has the
// outcome that it would have had alone.
func testGroup(t *testing.T, s *Store) {
	held, g := gated(t, s)
	prefix := string(s.keys) + "document/group/"
	commits := map[string]txn{
		"a":           putAt(prefix+"a", 0),
		"b":           putAt(prefix+"b", 0),
		"b again":     putAt(prefix+"b", 0),
		"stale":       putAt(prefix+"c", 1),
		"d":           putAt(prefix+"d", 0),
		"remove a, b": {then: []op{{verb: remove, key: prefix + "a", end: prefix + "c"}}},
		"e":           putAt(prefix+"e", 0),
	}
	order := []string{"a", "stale", "b", "b again", "d", "remove a, b", "e"}
	outcomes := make(map[string]outcome)
	var mu sync.Mutex // guards outcomes
	var work []func()
	for _, name := range order {
		work = append(work, func() {
			out, err := held.committer.commit(t.Context(), commits[name])
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			outcomes[name] = out
		})
	}
	queue(held, g, work...)()

	for _, name := range order {
		out := outcomes[name]
		if refused := name == "b again" || name == "stale"; out.applied == refused {
			t.Errorf("%s: applied %v", name, out.applied)
		}
	}
	if found := outcomes["b again"].pages[0].first(); found == nil || found.modified != outcomes["b"].revision {
		t.Errorf("the second writer of b found %+v", found)
	}
	if found := outcomes["stale"].pages[0].first(); found != nil {
		t.Errorf("the stale writer found %+v", found)
	}
	for _, name := range []string{"b", "d", "e"} {
		if outcomes[name].revision != outcomes["a"].revision {
			t.Errorf("%s and a went at revisions %d and %d", name, outcomes[name].revision, outcomes["a"].revision)
		}
	}
	p, err := s.kv.read(t.Context(), query{key: prefix, end: after(prefix), keysOnly: true})
	var keys []string
	for _, found := range p.pairs {
		keys = append(keys, leaf(found.key))
	}
	if err != nil || !slices.Equal(keys, []string{"d", "e"}) {
		t.Errorf("in the end there are %v, %v", keys, err)
	}
	want := [][]string{{"held"}, {prefix + "a", prefix + "c", prefix + "b", prefix + "d", prefix + "e"}, {prefix + "b"}, {prefix + "a"}}
	if !slices.EqualFunc(g.groups, want, slices.Equal) {
		t.Errorf("groups %q, want %q", g.groups, want)
	}
}

// testGroupWatched changes many instances at one revision: each watch is told
// all of them, once, and in the same order whenever it asks.
func testGroupWatched(t *testing.T, s *Store) {
	const n = 20
	ids := make([]imprint.InstanceID, n)
	for i := range ids {
		ids[i] = create(t, s, fmt.Sprintf("together-%02d", i), func(inst *imprint.Instance) {
			inst.Spec.Host, inst.Spec.Tenant = "together.example", "together"
		}).ID
	}
	before := create(t, s, "apart").Revision
	scopes := []Scope{{}, {Tenant: "together"}, {Host: "together.example"}, {Instance: ids[n/2]}}
	live := make([]func() Notice, len(scopes))
	for i, scope := range scopes {
		live[i] = follow(t, s, scope, before)
	}

	held, g := gated(t, s)
	var work []func()
	for i, id := range ids {
		work = append(work, func() {
			decide := to(imprint.Claimed, imprint.EventClaimed)
			if i == 3 {
				if err := held.Delete(t.Context(), id, decide); err != nil {
					t.Error(err)
				}
				return
			}
			if _, err := held.Update(t.Context(), id, decide); err != nil {
				t.Error(err)
			}
		})
	}
	queue(held, g, work...)()

	for i, scope := range scopes {
		want := ids
		if scope.Instance != "" {
			want = []imprint.InstanceID{scope.Instance}
		}
		for when, next := range map[string]func() Notice{"live": live[i], "later": follow(t, s, scope, before)} {
			var revision int64
			for _, id := range want {
				var notice Notice
				for { // of the suite's other tests
					notice = next()
					if notice.Deleted == ids[3] || notice.Instance != nil && notice.Instance.Spec.Tenant == "together" {
						break
					}
				}
				got := notice.Deleted
				if notice.Instance != nil {
					got = notice.Instance.ID
				}
				if id == ids[3] != (notice.Deleted != "") || got != id {
					t.Fatalf("%+v %s: notice %+v, want %s", scope, when, notice, id)
				}
				if wantEvents := scope.Host == "" && notice.Deleted == ""; wantEvents != (len(notice.Events) == 1) {
					t.Errorf("%+v %s: events %+v", scope, when, notice.Events)
				}
				if revision != 0 && notice.Revision != revision {
					t.Errorf("%+v %s: revision %d, want %d", scope, when, notice.Revision, revision)
				}
				revision = notice.Revision
			}
		}
	}
}

// testGroupLeft has a caller leave while it waits to go with a neighbour: its
// transaction never goes, and the neighbour's does.
func testGroupLeft(t *testing.T, s *Store) {
	held, g := gated(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	key := func(name string) string { return string(s.keys) + "document/left/" + name }
	var left sync.WaitGroup
	left.Add(1)
	run := queue(held, g,
		func() {
			if out, err := held.committer.commit(t.Context(), putAt(key("stays"), 0)); err != nil || !out.applied {
				t.Errorf("a neighbour: %+v, %v", out, err)
			}
		},
		func() {
			defer left.Done()
			_, err := held.committer.commit(ctx, putAt(key("leaves"), 0))
			wantKind(t, err, imprint.Unavailable)
		})
	cancel()
	left.Wait()
	run()
	p, err := s.kv.read(t.Context(), query{key: key(""), end: after(key(""))})
	if err != nil || len(p.pairs) != 1 || leaf(p.pairs[0].key) != "stays" {
		t.Errorf("there are %+v, %v", p.pairs, err)
	}
}

// TestGroupAbandoned has a caller leave while its transaction is on its way,
// which arrives all the same.
func TestGroupAbandoned(t *testing.T) {
	t.Parallel()
	s := OpenMemory()
	g := &gate{kv: s.kv, arrived: make(chan struct{}), open: make(chan struct{})}
	held := newStore(g, string(s.keys), nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-g.arrived; cancel() }()
	_, err := held.committer.commit(ctx, putAt("abandoned", 0))
	wantKind(t, err, imprint.Unavailable)
	close(g.open)
	held.committer.close()
	if p, err := s.kv.read(t.Context(), query{key: "abandoned"}); err != nil || p.first() == nil {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestGroupLimits checks that what does not fit into a group goes alone, and
// that one that the store refuses does no harm to its neighbours.
func TestGroupLimits(t *testing.T) {
	t.Parallel()
	s := openEmbedded(t, t.TempDir())
	defer s.Close()
	held, g := gated(t, s)
	large := func(key string, n int) txn {
		return txn{then: []op{{verb: put, key: key, value: make([]byte, n)}}}
	}
	many := txn{}
	for n := range maxTxnOps {
		many.then = append(many.then, op{verb: put, key: fmt.Sprintf("many/%d", n)})
	}
	commits := map[string]txn{
		"1":       putAt("1", 0),
		"too-big": large("too-big", maxTxnSize+400<<10),
		"lease":   {then: []op{{verb: put, key: "lease", lease: 12345}}}, // which nobody granted
		"2":       putAt("2", 0),
		"big/1":   large("big/1", maxTxnSize-5),
		"big/2":   large("big/2", maxTxnSize-5),
		"many/0":  many,
		"3":       putAt("3", 0),
		"1 again": large("1", 1),
	}
	refused := map[string]imprint.Kind{"too-big": imprint.Exhausted, "lease": imprint.Internal}
	var work []func()
	for _, name := range []string{"1", "too-big", "lease", "2", "big/1", "big/2", "many/0", "3", "1 again"} {
		work = append(work, func() {
			out, err := held.committer.commit(t.Context(), commits[name])
			if kind, bad := refused[name]; bad {
				wantKind(t, err, kind)
			} else if err != nil || !out.applied {
				t.Errorf("%s: %+v, %v", name, out, err)
			}
		})
	}
	queue(held, g, work...)()
	want := [][]string{{"held"},
		{"1", "lease", "2", "3"}, {"1"}, {"lease"}, {"2"}, {"3"}, // which one was bad is found out
		{"too-big"}, {"big/1"}, {"big/2"}, {"many/0"}, {"1"}}
	if !slices.EqualFunc(g.groups, want, slices.Equal) {
		t.Errorf("groups %q, want %q", g.groups, want)
	}
	if total := maxGroup + maxGroupedOps; total > maxTxnOps {
		t.Errorf("a full group counts %d operations; etcd takes %d", total, maxTxnOps)
	}
}

// TestGroupFull sends as many transactions with as many operations as a group
// takes: etcd accepts them as one.
func TestGroupFull(t *testing.T) {
	t.Parallel()
	s := openEmbedded(t, t.TempDir())
	defer s.Close()
	held, g := gated(t, s)
	work := make([]func(), maxGroup+1)
	for n := range work {
		var full txn
		for k := range maxGroupedOps {
			full.then = append(full.then, op{verb: put, key: fmt.Sprintf("%d/%d", n, k)})
		}
		work[n] = func() {
			if out, err := held.committer.commit(t.Context(), full); err != nil || !out.applied {
				t.Errorf("%+v, %v", out, err)
			}
		}
	}
	queue(held, g, work...)()
	if len(g.groups) != 3 || len(g.groups[1]) != maxGroup || len(g.groups[2]) != 1 {
		t.Errorf("groups of %q", g.groups)
	}
}

// TestGroupUnavailable has the store not answer: all of the group are told so,
// and nothing is sent again, because it may have been written.
func TestGroupUnavailable(t *testing.T) {
	t.Parallel()
	s := OpenMemory()
	defer s.Close()
	held, g := gated(t, s)
	g.refuse = func(txns []*txn) error {
		if len(txns) > 1 {
			return imprint.Errorf(imprint.Unavailable, "use", "etcd", "no answer")
		}
		return nil
	}
	work := make([]func(), 3)
	for n := range work {
		work[n] = func() {
			_, err := held.committer.commit(t.Context(), putAt(fmt.Sprint(n), 0))
			wantKind(t, err, imprint.Unavailable)
		}
	}
	queue(held, g, work...)()
	if want := [][]string{{"held"}, {"0", "1", "2"}}; !slices.EqualFunc(g.groups, want, slices.Equal) {
		t.Errorf("groups %q, want %q", g.groups, want)
	}
}

// TestFootprint checks which transactions have a key in common.
func TestFootprint(t *testing.T) {
	t.Parallel()
	of := func(o ...op) txn { return txn{then: o} }
	txns := map[string]txn{
		"put b":        of(op{verb: put, key: "b"}),
		"compare b":    {when: []compare{{"b", 0}}},
		"read b":       {otherwise: []string{"b"}},
		"remove b":     of(op{verb: remove, key: "b"}),
		"remove [a,c)": of(op{verb: remove, key: "a", end: "c"}),
		"remove [b,d)": of(op{verb: remove, key: "b", end: "d"}),
		"put c":        of(op{verb: put, key: "c"}),
		"put a":        of(op{verb: put, key: "a"}),
		"remove [c,e)": of(op{verb: remove, key: "c", end: "e"}),
	}
	together := map[string]bool{}
	for _, pair := range [][2]string{
		{"put b", "put c"}, {"put b", "put a"}, {"put b", "remove [c,e)"}, {"compare b", "put c"}, {"compare b", "put a"},
		{"compare b", "remove [c,e)"}, {"read b", "put c"}, {"read b", "put a"}, {"read b", "remove [c,e)"}, {"remove b", "put c"},
		{"remove b", "put a"}, {"remove b", "remove [c,e)"}, {"remove [a,c)", "put c"}, {"remove [a,c)", "remove [c,e)"},
		{"remove [b,d)", "put a"}, {"put c", "put a"}, {"put a", "remove [c,e)"},
	} {
		together[pair[0]+" and "+pair[1]], together[pair[1]+" and "+pair[0]] = true, true
	}
	for first := range maps.Keys(txns) {
		for second := range maps.Keys(txns) {
			var f footprint
			a, b := txns[first], txns[second]
			if !f.add(&a) || f.add(&b) != together[first+" and "+second] {
				t.Errorf("%s and %s: together %v is wrong", first, second, !together[first+" and "+second])
			}
		}
	}
}
