package store

import (
	"context"
	"fmt"
	"testing"
	"time"

	"imprint"
)

// newInstance returns an instance that is ready to be created.
func newInstance(name string) *imprint.Instance {
	return &imprint.Instance{
		ID:         imprint.NewInstanceID(),
		Generation: 1,
		Spec: imprint.Spec{
			Name:     imprint.InstanceName(name),
			Tenant:   imprint.DefaultTenant,
			DNSNames: []string{name + ".example"},
			Metadata: map[string]string{"role": "web"},
		},
		Enrolment: imprint.Enrolment{State: imprint.Reserved},
	}
}

func event(kind imprint.EventKind) imprint.Event { return imprint.Event{Kind: kind} }

// reserved is the change that comes with a new instance.
func reserved() imprint.Change {
	return imprint.Change{Events: []imprint.Event{event(imprint.EventReserved)}}
}

// create stores a new instance and returns it.
func create(t testing.TB, s *Store, name string, edits ...func(*imprint.Instance)) *imprint.Instance {
	t.Helper()
	i := newInstance(name)
	for _, edit := range edits {
		edit(i)
	}
	if err := s.Create(t.Context(), i, nil, reserved()); err != nil {
		t.Fatalf("Create: %v", err)
	}
	return i
}

// to returns a decision that moves an instance to state and records kind.
func to(state imprint.State, kind imprint.EventKind) func(*imprint.Instance) (imprint.Change, error) {
	return func(i *imprint.Instance) (imprint.Change, error) {
		i.Enrolment.State = state
		return imprint.Change{Events: []imprint.Event{event(kind)}}, nil
	}
}

func update(t testing.TB, s *Store, id imprint.InstanceID, decide func(*imprint.Instance) (imprint.Change, error)) *imprint.Instance {
	t.Helper()
	i, err := s.Update(t.Context(), id, decide)
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
	return i
}

// wantKind fails the test unless err is of kind.
func wantKind(t testing.TB, err error, kind imprint.Kind) {
	t.Helper()
	if err == nil || imprint.KindOf(err) != kind {
		t.Fatalf("error %v (%v), want kind %v", err, imprint.KindOf(err), kind)
	}
}

// another returns another server's handle on the key-value store of s.
func another(s *Store) *Store { return newStore(s.kv, string(s.keys), s.failed) }

// soon returns a context that ends the test rather than let it hang.
func soon(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func keyID(n int) imprint.KeyID { return imprint.KeyIDOf(fmt.Appendf(nil, "key %d", n)) }

// openEmbedded opens an embedded store, which the caller closes.
func openEmbedded(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := OpenEmbedded(t.Context(), Embedded{Dir: dir})
	if err != nil {
		t.Fatalf("OpenEmbedded: %v", err)
	}
	return s
}
