package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"imprint"
)

// TestConformance runs one suite over every kind of store.
func TestConformance(t *testing.T) {
	for kind, open := range map[string]func(t *testing.T) *Store{
		"memory":   func(t *testing.T) *Store { return OpenMemory() },
		"embedded": func(t *testing.T) *Store { return openEmbedded(t, t.TempDir()) },
		"cluster":  func(t *testing.T) *Store { return newCluster(t).open(t) },
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			t.Run("suite", func(t *testing.T) {
				for _, test := range conformance {
					t.Run(test.name, func(t *testing.T) {
						t.Parallel()
						test.run(t, s)
					})
				}
			})
			// The suite has ended: nobody else minds when history is forgotten.
			t.Run("watch survives compaction", func(t *testing.T) { testWatchCompaction(t, s) })
		})
	}
}

// conformance is the suite. Its tests share one store, so each uses names,
// hosts and tenants of its own.
var conformance = []struct {
	name string
	run  func(t *testing.T, s *Store)
}{
	{"create and read", testCreate},
	{"create refuses what is taken", testCreateTaken},
	{"no id is given twice", testGivenOnce},
	{"one of those who want an id gets it", testRaceForID},
	{"update", testUpdate},
	{"rename and move", testRename},
	{"a key belongs to one generation", testBindKey},
	{"the timeline is bounded", testTimeline},
	{"revocations", testRevocations},
	{"queues of logs", testLogQueue},
	{"delete", testDelete},
	{"limits", testLimits},
	{"list", testList},
	{"sealed parameters", testSealed},
	{"documents", testDocuments},
	{"concurrent updates all count", testConcurrent},
	{"two servers race for one instance", testRace},
	{"events that have a key each", testEventsApart},
	{"answers without a write are confirmed", testStale},
	{"watch by scope", testWatchScopes},
	{"watch resumes", testWatchResume},
	{"a slow watcher delays nobody", testWatchSlow},
	{"watch ends", testWatchEnds},
	{"reminders", testDue},
	{"grouped changes have an outcome each", testGroup},
	{"grouped changes are watched one by one", testGroupWatched},
	{"who waits in a group may leave", testGroupLeft},
}

func testCreate(t *testing.T, s *Store) {
	i := newInstance("create-1")
	sealed := map[string][]byte{"password": {0, 1, 255}}
	if err := s.Create(t.Context(), i, sealed, reserved()); err != nil {
		t.Fatal(err)
	}
	got, err := s.Instance(t.Context(), i.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.Spec.Name != i.Spec.Name || got.Revision != i.Revision || got.Revision == 0 || got.Events != 1 || got.Created.IsZero() {
		t.Errorf("read %+v, want %+v", got, i)
	}
	id, err := s.Lookup(t.Context(), i.Spec.Tenant, i.Spec.Name)
	if err != nil || id != i.ID {
		t.Errorf("Lookup: %v, %v; want %v", id, err, i.ID)
	}
	events, err := s.Events(t.Context(), i.ID, 0)
	if err != nil || len(events) != 1 || events[0].Seq != 1 || events[0].Kind != imprint.EventReserved ||
		events[0].Instance != i.ID || events[0].Generation != 1 || events[0].At.IsZero() {
		t.Errorf("events %+v, %v", events, err)
	}
	params, err := s.SealedParams(t.Context(), i.ID)
	if err != nil || !slices.Equal(params["password"], sealed["password"]) || len(params) != 1 {
		t.Errorf("sealed parameters %v, %v", params, err)
	}
	_, err = s.Instance(t.Context(), imprint.NewInstanceID())
	wantKind(t, err, imprint.NotFound)
	_, err = s.Lookup(t.Context(), imprint.DefaultTenant, "nobody")
	wantKind(t, err, imprint.NotFound)
}

func testCreateTaken(t *testing.T, s *Store) {
	first := newInstance("taken")
	change := reserved()
	change.BindKey = keyID(1)
	if err := s.Create(t.Context(), first, nil, change); err != nil {
		t.Fatal(err)
	}
	for what, edit := range map[string]func(i *imprint.Instance, c *imprint.Change){
		"id":   func(i *imprint.Instance, c *imprint.Change) { i.ID = first.ID },
		"name": func(i *imprint.Instance, c *imprint.Change) { i.Spec.Name = first.Spec.Name },
		"key":  func(i *imprint.Instance, c *imprint.Change) { c.BindKey = keyID(1) },
	} {
		i, c := newInstance("not-taken"), reserved()
		edit(i, &c)
		err := s.Create(t.Context(), i, nil, c)
		wantKind(t, err, imprint.Exists)
		if !strings.Contains(err.Error(), what) {
			t.Errorf("error %q does not name the %s", err, what)
		}
		if what != "id" {
			_, err = s.Instance(t.Context(), i.ID)
			wantKind(t, err, imprint.NotFound)
		}
	}
	other := newInstance("taken")
	other.Spec.Tenant = "elsewhere"
	if err := s.Create(t.Context(), other, nil, reserved()); err != nil {
		t.Errorf("the same name in another tenant: %v", err)
	}
	bad := newInstance("Has/Slash")
	wantKind(t, s.Create(t.Context(), bad, nil, reserved()), imprint.Invalid)
}

func testUpdate(t *testing.T, s *Store) {
	i := create(t, s, "update-1")
	got := update(t, s, i.ID, to(imprint.Delivered, imprint.EventDelivered))
	if got.Enrolment.State != imprint.Delivered || got.Events != 2 || got.Revision <= i.Revision {
		t.Errorf("Update returned %+v", got)
	}
	stored, err := s.Instance(t.Context(), i.ID)
	if err != nil || stored.Enrolment.State != imprint.Delivered || stored.Revision != got.Revision {
		t.Errorf("stored %+v, %v", stored, err)
	}

	refusal := errors.New("no")
	_, err = s.Update(t.Context(), i.ID, func(i *imprint.Instance) (imprint.Change, error) {
		i.Enrolment.State = imprint.Revoked
		return imprint.Change{}, refusal
	})
	if err != refusal {
		t.Errorf("error %v, want decide's own", err)
	}
	kept := update(t, s, i.ID, func(i *imprint.Instance) (imprint.Change, error) {
		i.Enrolment.State = imprint.Revoked
		return imprint.Change{Keep: true}, nil
	})
	if kept.Revision != got.Revision || kept.Enrolment.State != imprint.Delivered {
		t.Errorf("Keep wrote %+v", kept)
	}
	kept = update(t, s, i.ID, func(i *imprint.Instance) (imprint.Change, error) {
		i.Enrolment.State = imprint.Revoked
		return imprint.Change{Keep: true, Events: []imprint.Event{event(imprint.EventRefused)}}, nil
	})
	if kept.Events != 3 || kept.Enrolment.State != imprint.Delivered {
		t.Errorf("Keep with an event stored %+v", kept)
	}
	_, err = s.Update(t.Context(), imprint.NewInstanceID(), to(imprint.Revoked, imprint.EventRevoked))
	wantKind(t, err, imprint.NotFound)
	_, err = s.Update(t.Context(), i.ID, func(i *imprint.Instance) (imprint.Change, error) {
		i.Spec.Tenant = "elsewhere"
		return imprint.Change{}, nil
	})
	wantKind(t, err, imprint.Invalid)
}

func testConcurrent(t *testing.T, s *Store) {
	i := create(t, s, "concurrent")
	const writers, each = 8, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				_, err := s.Update(t.Context(), i.ID, func(i *imprint.Instance) (imprint.Change, error) {
					i.Spec.Metadata[fmt.Sprintf("%d-%d", w, n)] = "x"
					return imprint.Change{Events: []imprint.Event{event(imprint.EventChanged)}}, nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := s.Instance(t.Context(), i.ID)
	if err != nil || got.Events != 1+writers*each || len(got.Spec.Metadata) != 1+writers*each {
		t.Errorf("%d events, %d entries, %v", got.Events, len(got.Spec.Metadata), err)
	}
	events, err := s.Events(t.Context(), i.ID, 0)
	for n, ev := range events {
		if ev.Seq != uint64(n+1) {
			t.Fatalf("event %d has number %d", n, ev.Seq)
		}
	}
	if err != nil || len(events) != 1+writers*each {
		t.Errorf("%d events, %v", len(events), err)
	}
}

func testRename(t *testing.T, s *Store) {
	other := create(t, s, "rename-other")
	i := create(t, s, "rename-old", func(i *imprint.Instance) { i.Spec.Host = "rename-a.example" })
	update(t, s, i.ID, func(i *imprint.Instance) (imprint.Change, error) {
		i.Spec.Name, i.Spec.Host = "rename-new", "rename-b.example"
		return imprint.Change{}, nil
	})
	_, err := s.Lookup(t.Context(), i.Spec.Tenant, "rename-old")
	wantKind(t, err, imprint.NotFound)
	if id, err := s.Lookup(t.Context(), i.Spec.Tenant, "rename-new"); err != nil || id != i.ID {
		t.Errorf("new name: %v, %v", id, err)
	}
	if names := listNames(t, s, Query{Host: "rename-a.example"}); len(names) != 0 {
		t.Errorf("old host has %v", names)
	}
	if names := listNames(t, s, Query{Host: "rename-b.example"}); !slices.Equal(names, []string{"rename-new"}) {
		t.Errorf("new host has %v", names)
	}
	_, err = s.Update(t.Context(), i.ID, func(i *imprint.Instance) (imprint.Change, error) {
		i.Spec.Name = other.Spec.Name
		return imprint.Change{}, nil
	})
	wantKind(t, err, imprint.Exists)
	_, err = s.Update(t.Context(), i.ID, func(i *imprint.Instance) (imprint.Change, error) {
		i.Spec.Host = "not a host"
		return imprint.Change{}, nil
	})
	wantKind(t, err, imprint.Invalid)
}

func testBindKey(t *testing.T, s *Store) {
	bind := func(k imprint.KeyID, gen imprint.Generation) func(*imprint.Instance) (imprint.Change, error) {
		return func(i *imprint.Instance) (imprint.Change, error) {
			i.Generation = gen
			return imprint.Change{BindKey: k, Events: []imprint.Event{event(imprint.EventClaimed)}}, nil
		}
	}
	a, b := create(t, s, "bind-a"), create(t, s, "bind-b")
	update(t, s, a.ID, bind(keyID(100), 1))
	if again := update(t, s, a.ID, bind(keyID(100), 1)); again.Events != 3 {
		t.Errorf("binding a key again: %d events, want 3", again.Events)
	}
	_, err := s.Update(t.Context(), b.ID, bind(keyID(100), 1))
	wantKind(t, err, imprint.Exists)
	_, err = s.Update(t.Context(), a.ID, bind(keyID(100), 2))
	wantKind(t, err, imprint.Exists)
	if got, err := s.Instance(t.Context(), b.ID); err != nil || got.Events != 1 {
		t.Errorf("a refused change left %d events, %v", got.Events, err)
	}
	update(t, s, a.ID, bind(keyID(101), 2))
}

func testTimeline(t *testing.T, s *Store) {
	i := create(t, s, "timeline")
	const total = imprint.MaxEvents + 40
	for n := 1; n < total; {
		var c imprint.Change
		for ; n < total && len(c.Events) < MaxChangeEvents; n++ {
			c.Events = append(c.Events, event(imprint.EventMessage))
		}
		update(t, s, i.ID, func(*imprint.Instance) (imprint.Change, error) { return c, nil })
	}
	events, err := s.Events(t.Context(), i.ID, 0)
	if err != nil || len(events) != imprint.MaxEvents || events[0].Seq != 41 || events[len(events)-1].Seq != total {
		t.Fatalf("%d events from %d, %v", len(events), events[0].Seq, err)
	}
	stored, err := s.kv.read(t.Context(), query{key: s.keys.timeline(i.ID), end: after(s.keys.timeline(i.ID))})
	if n := len(stored.pairs); err != nil || n > imprint.MaxEvents/MaxChangeEvents+2 {
		t.Errorf("the events of %d changes are stored, %v", n, err)
	}
	middle, err := s.Events(t.Context(), i.ID, 100)
	if err != nil || len(middle) != total-100 || middle[0].Seq != 101 {
		t.Errorf("those after the 100th: %d, %v", len(middle), err)
	}
	for n, e := range middle {
		if e.Seq != uint64(101+n) {
			t.Fatalf("event %d is number %d", 101+n, e.Seq)
		}
	}
	rest, err := s.Events(t.Context(), i.ID, total-2)
	if err != nil || len(rest) != 2 || rest[0].Seq != total-1 {
		t.Errorf("the last two: %+v, %v", rest, err)
	}
	_, err = s.Update(t.Context(), i.ID, func(*imprint.Instance) (imprint.Change, error) {
		return imprint.Change{Events: make([]imprint.Event, MaxChangeEvents+1)}, nil
	})
	wantKind(t, err, imprint.Internal)
}

// An older store has a key for each event.
func testEventsApart(t *testing.T, s *Store) {
	i := create(t, s, "key-each")
	next := follow(t, s, Scope{Instance: i.ID}, i.Revision)
	record := record{Instance: *i}
	record.Events = 3
	ops := []op{}
	for _, kind := range []imprint.EventKind{imprint.EventDelivered, imprint.EventClaimed} {
		e := event(kind)
		e.Instance, e.Seq = i.ID, uint64(2+len(ops))
		value, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		ops = append(ops, op{verb: put, key: s.keys.events(i.ID, e.Seq), value: value})
	}
	encoded, err := json.Marshal(record)
	if err == nil {
		_, err = s.kv.commit(t.Context(), []*txn{{then: append(ops, op{verb: put, key: s.keys.record(i.ID), value: encoded})}})
	}
	if err != nil {
		t.Fatal(err)
	}
	wantNotices(t, next, "key-each reserved 2:delivered 3:claimed")
	update(t, another(s), i.ID, to(imprint.Issued, imprint.EventIssued))
	wantNotices(t, next, "key-each issued 4:issued")
	var kinds []imprint.EventKind
	events, err := s.Events(t.Context(), i.ID, 0)
	for _, e := range events {
		kinds = append(kinds, e.Kind)
	}
	if want := []imprint.EventKind{imprint.EventReserved, imprint.EventDelivered, imprint.EventClaimed, imprint.EventIssued}; err != nil || !slices.Equal(kinds, want) {
		t.Errorf("events %v, %v; want %v", kinds, err, want)
	}
}
