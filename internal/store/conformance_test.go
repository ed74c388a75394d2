package store

import (
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
	kinds := map[string]func(t *testing.T) *Store{
		"memory": func(t *testing.T) *Store { return OpenMemory() },
		"embedded": func(t *testing.T) *Store {
			s, err := OpenEmbedded(t.Context(), Embedded{Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
	}
	for kind, open := range kinds {
		t.Run(kind, func(t *testing.T) {
			s := open(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			for _, test := range conformance {
				t.Run(test.name, func(t *testing.T) { test.run(t, s) })
			}
		})
	}
}

// conformance is the suite. Tests share one store, so each uses names, hosts
// and tenants of its own.
var conformance = []struct {
	name string
	run  func(t *testing.T, s *Store)
}{
	{"create and read", testCreate},
	{"create refuses what is taken", testCreateTaken},
	{"update", testUpdate},
	{"concurrent updates all count", testConcurrent},
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
