package store

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"imprint"
)

// follow starts a watch and returns a function that waits for its next notice,
// as a reader does that sits outages out.
func follow(t *testing.T, s *Store, scope Scope, from int64) func() Notice {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	next, stop := iter.Pull2(s.Watch(ctx, scope, from))
	t.Cleanup(func() { cancel(); stop() })
	return func() Notice {
		t.Helper()
		for {
			n, err, ok := next()
			switch {
			case ok && err == nil:
				return n
			case !ok || imprint.KindOf(err) != imprint.Unavailable:
				t.Fatalf("watch %+v: %v, %v", scope, err, ok)
			}
		}
	}
}

// describe puts a notice into words.
func describe(n Notice) string {
	var s []string
	if n.Relist {
		s = append(s, "list")
	}
	if n.Instance != nil {
		s = append(s, string(n.Instance.Spec.Name), string(n.Instance.Enrolment.State))
	}
	for _, ev := range n.Events {
		s = append(s, fmt.Sprintf("%d:%s", ev.Seq, ev.Kind))
	}
	if n.Deleted != "" {
		s = append(s, "deleted")
	}
	if n.Synced {
		s = append(s, "synced")
	}
	return strings.Join(s, " ")
}

func wantNotices(t *testing.T, next func() Notice, want ...string) (last Notice) {
	t.Helper()
	for _, w := range want {
		if last = next(); describe(last) != w {
			t.Fatalf("notice %q, want %q", describe(last), w)
		}
	}
	return last
}

func testWatchScopes(t *testing.T, s *Store) {
	place := func(host imprint.HostName) func(*imprint.Instance) {
		return func(i *imprint.Instance) { i.Spec.Tenant, i.Spec.Host = "watch", host }
	}
	a := create(t, s, "watch-a", place("watch-1.example"))
	tenant := follow(t, s, Scope{Tenant: "watch"}, 0)
	first := follow(t, s, Scope{Host: "watch-1.example"}, 0)
	second := follow(t, s, Scope{Host: "watch-2.example"}, 0)
	only := follow(t, s, Scope{Instance: a.ID}, 0)
	for _, next := range []func() Notice{tenant, first, only} {
		wantNotices(t, next, "list watch-a reserved", "synced")
	}
	wantNotices(t, second, "synced")

	update(t, s, a.ID, to(imprint.Delivered, imprint.EventDelivered))
	b := create(t, s, "watch-b", place("watch-2.example"))
	other := create(t, s, "watch-other", func(i *imprint.Instance) { i.Spec.Tenant = "watch-other" })
	update(t, s, a.ID, func(i *imprint.Instance) (imprint.Change, error) {
		i.Spec.Host = "watch-2.example"
		return imprint.Change{Events: []imprint.Event{event(imprint.EventChanged), event(imprint.EventMessage)}}, nil
	})
	none := func(*imprint.Instance) (imprint.Change, error) { return imprint.Change{}, nil }
	for _, id := range []imprint.InstanceID{other.ID, b.ID, a.ID} {
		if err := s.Delete(t.Context(), id, none); err != nil {
			t.Fatal(err)
		}
	}

	moved := "watch-a delivered 3:changed 4:message"
	last := wantNotices(t, tenant, "watch-a delivered 2:delivered", "watch-b reserved 1:reserved", moved, "deleted", "deleted")
	if last.Deleted != a.ID {
		t.Errorf("deleted %s, want %s", last.Deleted, a.ID)
	}
	wantNotices(t, only, "watch-a delivered 2:delivered", moved, "deleted")
	wantNotices(t, first, "watch-a delivered", "deleted")
	wantNotices(t, second, "watch-b reserved", "watch-a delivered", "deleted", "deleted")
}

func testWatchResume(t *testing.T, s *Store) {
	i := create(t, s, "resume")
	next := follow(t, s, Scope{Instance: i.ID}, 0)
	synced := wantNotices(t, next, "list resume reserved", "synced")
	seen := update(t, s, i.ID, to(imprint.Delivered, imprint.EventDelivered)).Revision
	update(t, s, i.ID, to(imprint.Claimed, imprint.EventClaimed))
	wantNotices(t, follow(t, s, Scope{Instance: i.ID}, synced.Revision), "resume delivered 2:delivered", "resume claimed 3:claimed")
	wantNotices(t, follow(t, s, Scope{Instance: i.ID}, seen), "resume claimed 3:claimed")
	// A revision that the store has not reached, as after restoring a backup.
	wantNotices(t, follow(t, s, Scope{Instance: i.ID}, seen+1_000_000), "list resume claimed", "synced")
}

func testWatchSlow(t *testing.T, s *Store) {
	i := create(t, s, "slow")
	slow := follow(t, s, Scope{Instance: i.ID}, 0)
	fast := follow(t, s, Scope{Instance: i.ID}, 0)
	wantNotices(t, slow, "list slow reserved", "synced")
	wantNotices(t, fast, "list slow reserved", "synced")
	const changes = 500
	for n := range changes {
		update(t, s, i.ID, to(imprint.Delivered, imprint.EventMessage))
		wantNotices(t, fast, fmt.Sprintf("slow delivered %d:message", n+2))
	}
	for n := range changes { // the slow one gets all of it when it comes round to it
		wantNotices(t, slow, fmt.Sprintf("slow delivered %d:message", n+2))
	}
}

func testWatchEnds(t *testing.T, s *Store) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	i := create(t, s, "ends")
	for n, err := range s.Watch(ctx, Scope{Instance: i.ID}, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if n.Synced {
			cancel()
		}
	}
	for range s.Watch(t.Context(), Scope{Instance: i.ID}, 0) {
		break // and this one because its reader wants no more
	}
}

// testWatchCompaction lets history be forgotten while a reader is away.
func testWatchCompaction(t *testing.T, s *Store) {
	a, b := create(t, s, "compact-a"), create(t, s, "compact-b")
	scope := Scope{Tenant: imprint.DefaultTenant}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var seen int64
	for n, err := range s.Watch(ctx, scope, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if n.Synced {
			seen = n.Revision
			cancel()
		}
	}
	update(t, s, a.ID, to(imprint.Delivered, imprint.EventDelivered))
	none := func(*imprint.Instance) (imprint.Change, error) { return imprint.Change{}, nil }
	if err := s.Delete(t.Context(), b.ID, none); err != nil {
		t.Fatal(err)
	}
	compact(t, s)

	next := follow(t, s, scope, seen)
	listed := map[imprint.InstanceID]imprint.State{}
	n := next()
	for ; n.Relist; n = next() {
		listed[n.Instance.ID] = n.Instance.Enrolment.State
	}
	if !n.Synced || n.Revision <= seen {
		t.Fatalf("the list ends with %+v", n)
	}
	if _, there := listed[b.ID]; there || listed[a.ID] != imprint.Delivered {
		t.Errorf("the list has %v", listed)
	}
	update(t, s, a.ID, to(imprint.Claimed, imprint.EventClaimed))
	wantNotices(t, next, "compact-a claimed 3:claimed")
	compact(t, s) // a running watch does not notice
	update(t, s, a.ID, to(imprint.Issued, imprint.EventIssued))
	wantNotices(t, next, "compact-a issued 4:issued")
}

// compact makes the store forget all but the present.
func compact(t *testing.T, s *Store) {
	t.Helper()
	p, err := s.kv.read(t.Context(), query{key: s.keys.format()})
	if err != nil {
		t.Fatal(err)
	}
	switch kv := s.kv.(type) {
	case *memory:
		kv.compact(p.revision)
	case *etcd:
		if _, err := kv.client.Compact(t.Context(), p.revision, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
	}
}

func testDue(t *testing.T, s *Store) {
	wake := func(at time.Time) func(*imprint.Instance) (imprint.Change, error) {
		return func(*imprint.Instance) (imprint.Change, error) { return imprint.Change{WakeAt: at}, nil }
	}
	var missed, sooner, cancelled, moved, deleted imprint.InstanceID
	for name, id := range map[string]*imprint.InstanceID{
		"due-missed": &missed, "due-sooner": &sooner, "due-cancelled": &cancelled, "due-moved": &moved, "due-deleted": &deleted,
	} {
		*id = create(t, s, name).ID
	}
	past, future := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	update(t, s, missed, wake(past))
	update(t, s, cancelled, wake(past))
	update(t, s, cancelled, wake(time.Time{}))
	update(t, s, moved, wake(past))
	update(t, s, moved, wake(future))
	update(t, s, deleted, wake(past))
	if err := s.Delete(t.Context(), deleted, wake(time.Time{})); err != nil {
		t.Fatal(err)
	}

	var got []imprint.InstanceID
	for id, err := range s.Due(soon(t)) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, id)
		switch id {
		case missed: // passed while nobody asked; now one while somebody does
			update(t, s, missed, wake(time.Time{}))
			update(t, s, sooner, wake(time.Now().Add(time.Second)))
			continue
		case sooner:
			update(t, s, sooner, wake(time.Time{}))
		}
		break
	}
	if !slices.Equal(got, []imprint.InstanceID{missed, sooner}) {
		t.Errorf("due: %v, want %v and %v", got, missed, sooner)
	}
}
