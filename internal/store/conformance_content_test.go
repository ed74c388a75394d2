package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imprint"
)

func testRevocations(t *testing.T, s *Store) {
	i := create(t, s, "revoke", func(i *imprint.Instance) { i.Spec.Tenant = "revoke" })
	now := time.Now().UTC().Truncate(time.Second)
	old := imprint.Revocation{Serial: "a1", At: now, NotAfter: now.Add(-time.Hour), Reason: 4}
	current := imprint.Revocation{Serial: "b2", At: now, NotAfter: now.Add(time.Hour)}
	update(t, s, i.ID, func(*imprint.Instance) (imprint.Change, error) {
		return imprint.Change{Revoke: []imprint.Revocation{current, old}}, nil
	})
	list, err := s.Revocations(t.Context(), "revoke")
	if err != nil || !slices.Equal(list, []imprint.Revocation{old, current}) {
		t.Errorf("list %+v, %v", list, err)
	}
	if n, err := s.DropRevocations(t.Context(), "revoke", now); n != 1 || err != nil {
		t.Errorf("dropped %d, %v", n, err)
	}
	list, err = s.Revocations(t.Context(), "revoke")
	if err != nil || !slices.Equal(list, []imprint.Revocation{current}) {
		t.Errorf("list %+v, %v", list, err)
	}
	if list, err = s.Revocations(t.Context(), "revok"); err != nil || len(list) != 0 {
		t.Errorf("another tenant's list %+v, %v", list, err)
	}
}

func testDelete(t *testing.T, s *Store) {
	i := newInstance("delete-1")
	i.Spec.Tenant, i.Spec.Host = "delete", "delete.example"
	change := reserved()
	change.BindKey = keyID(200)
	change.WakeAt = time.Now().Add(time.Hour)
	if err := s.Create(t.Context(), i, map[string][]byte{"p": {1}}, change); err != nil {
		t.Fatal(err)
	}
	refusal := errors.New("no")
	if err := s.Delete(t.Context(), i.ID, func(*imprint.Instance) (imprint.Change, error) { return imprint.Change{}, refusal }); err != refusal {
		t.Errorf("error %v, want decide's own", err)
	}
	err := s.Delete(t.Context(), i.ID, func(i *imprint.Instance) (imprint.Change, error) {
		return imprint.Change{Revoke: []imprint.Revocation{{Serial: "c3"}}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Instance(t.Context(), i.ID)
	wantKind(t, err, imprint.NotFound)
	_, err = s.Lookup(t.Context(), "delete", i.Spec.Name)
	wantKind(t, err, imprint.NotFound)
	wantKind(t, s.Delete(t.Context(), i.ID, to("", "")), imprint.NotFound)
	if events, err := s.Events(t.Context(), i.ID, 0); err != nil || len(events) != 0 {
		t.Errorf("events %v, %v", events, err)
	}
	if params, err := s.SealedParams(t.Context(), i.ID); err != nil || len(params) != 0 {
		t.Errorf("parameters %v, %v", params, err)
	}
	if names := listNames(t, s, Query{Host: "delete.example"}); len(names) != 0 {
		t.Errorf("host still has %v", names)
	}
	if list, err := s.Revocations(t.Context(), "delete"); err != nil || len(list) != 1 {
		t.Errorf("revocations %v, %v", list, err)
	}
	again := newInstance("delete-1")
	wantKind(t, s.Create(t.Context(), again, nil, change), imprint.Exists) // the key stays bound
	if err := s.Create(t.Context(), again, nil, reserved()); err != nil {
		t.Errorf("the name is not free again: %v", err)
	}
}

func testLimits(t *testing.T, s *Store) {
	i := create(t, s, "limits")
	before, err := s.Instance(t.Context(), i.ID)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Update(t.Context(), i.ID, func(i *imprint.Instance) (imprint.Change, error) {
		i.Spec.UserData = strings.Repeat("x", MaxRecord)
		return imprint.Change{Events: []imprint.Event{event(imprint.EventChanged)}}, nil
	})
	wantKind(t, err, imprint.Exhausted)
	if after, err := s.Instance(t.Context(), i.ID); err != nil || after.Revision != before.Revision {
		t.Errorf("a refused change was written: %+v, %v", after, err)
	}
	big := newInstance("limits-big")
	big.Spec.UserData = strings.Repeat("x", MaxRecord-4096)
	if err := s.Create(t.Context(), big, nil, reserved()); err != nil {
		t.Errorf("a record just within the limit: %v", err)
	}
	both := newInstance("limits-both")
	both.Spec.UserData = big.Spec.UserData
	wantKind(t, s.Create(t.Context(), both, map[string][]byte{"p": make([]byte, MaxSealed/2)}, reserved()), imprint.Exhausted)
	wantKind(t, s.PutSealedParam(t.Context(), i.ID, "p", make([]byte, MaxSealed)), imprint.Exhausted)
	wantKind(t, s.PutSealedParam(t.Context(), i.ID, strings.Repeat("n", imprint.MaxParamNameLen+1), []byte{1}), imprint.Invalid)
	wantKind(t, s.PutDocument(t.Context(), "limits", make([]byte, MaxDocument+1), 0), imprint.Exhausted)
	wantKind(t, s.PutDocument(t.Context(), "", nil, 0), imprint.Invalid)
}

// listNames returns the names on all pages of q.
func listNames(t *testing.T, s *Store, q Query) []string {
	t.Helper()
	var names []string
	for {
		page, next, err := s.List(t.Context(), q)
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		for _, i := range page {
			names = append(names, string(i.Spec.Name))
		}
		if next == "" {
			return names
		}
		q.After = next
	}
}

func testList(t *testing.T, s *Store) {
	var want []string
	for n := range 25 {
		i := create(t, s, fmt.Sprintf("list-%02d", n), func(i *imprint.Instance) {
			i.Spec.Tenant, i.Spec.Host = "list", imprint.HostName(fmt.Sprintf("list-%d.example", n%2))
		})
		want = append(want, string(i.Spec.Name))
	}
	create(t, s, "list-00", func(i *imprint.Instance) { i.Spec.Tenant, i.Spec.Host = "list-2", "list-0.example" })
	for _, limit := range []int{0, 1, 7, 25, 1 << 30} {
		if got := listNames(t, s, Query{Tenant: "list", Limit: limit}); !slices.Equal(got, want) {
			t.Errorf("limit %d: %v", limit, got)
		}
	}
	if got := listNames(t, s, Query{Host: "list-1.example", Limit: 5}); len(got) != 12 {
		t.Errorf("host: %v", got)
	}
	if got := listNames(t, s, Query{Tenant: "list", Host: "list-0.example", Limit: 5}); len(got) != 13 {
		t.Errorf("tenant and host: %v", got)
	}
	if got := listNames(t, s, Query{Tenant: "lis"}); len(got) != 0 {
		t.Errorf("a tenant without instances: %v", got)
	}
	if all := listNames(t, s, Query{Limit: 10}); len(all) < 26 {
		t.Errorf("all: %v", all)
	}
	page, next, err := s.List(t.Context(), Query{Tenant: "list", Limit: 10})
	if err != nil || len(page) != 10 || next == "" {
		t.Errorf("a page has %d, next %q, %v", len(page), next, err)
	}
}

func testSealed(t *testing.T, s *Store) {
	i := create(t, s, "sealed")
	for _, p := range []struct {
		name string
		blob []byte
	}{{"a", []byte("1")}, {"b", []byte("2")}, {"a", []byte("3")}, {"c", []byte{}}, {"b", nil}} {
		if err := s.PutSealedParam(t.Context(), i.ID, p.name, p.blob); err != nil {
			t.Fatal(err)
		}
	}
	rewrite := func(id imprint.InstanceID, name string, blob []byte) ([]byte, bool, error) {
		if id != i.ID || name != "a" {
			return nil, false, nil
		}
		return append(blob, '!'), true, nil
	}
	if n, err := s.RewriteSealed(t.Context(), rewrite); n != 1 || err != nil {
		t.Errorf("rewrote %d, %v", n, err)
	}
	params, err := s.SealedParams(t.Context(), i.ID)
	if err != nil || len(params) != 2 || string(params["a"]) != "3!" || len(params["c"]) != 0 {
		t.Errorf("parameters %q, %v", params, err)
	}
	fault := errors.New("no key")
	if _, err := s.RewriteSealed(t.Context(), func(imprint.InstanceID, string, []byte) ([]byte, bool, error) { return nil, false, fault }); err != fault {
		t.Errorf("error %v, want the rewriter's own", err)
	}
	wantKind(t, s.PutSealedParam(t.Context(), imprint.NewInstanceID(), "a", []byte("1")), imprint.NotFound)

	var wg sync.WaitGroup
	for n := range 10 {
		wg.Go(func() {
			if err := s.PutSealedParam(t.Context(), i.ID, fmt.Sprint("n", n), []byte("x")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if params, err = s.SealedParams(t.Context(), i.ID); err != nil || len(params) != 12 {
		t.Errorf("%d parameters after concurrent writes, %v", len(params), err)
	}
}

func testDocuments(t *testing.T, s *Store) {
	_, _, err := s.Document(t.Context(), "ca/default")
	wantKind(t, err, imprint.NotFound)
	if err := s.PutDocument(t.Context(), "ca/default", []byte("one"), 0); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.PutDocument(t.Context(), "ca/default", []byte("two"), 0), imprint.Conflict)
	data, rev, err := s.Document(t.Context(), "ca/default")
	if err != nil || string(data) != "one" || rev == 0 {
		t.Fatalf("%q at %d, %v", data, rev, err)
	}
	if err := s.PutDocument(t.Context(), "ca/default", []byte("two"), rev); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.PutDocument(t.Context(), "ca/default", []byte("three"), rev), imprint.Conflict)
	if data, _, err = s.Document(t.Context(), "ca/default"); err != nil || string(data) != "two" {
		t.Errorf("%q, %v", data, err)
	}
}

// testRace has two servers on one cluster claim the same instance with
// different keys again and again: one claim has effect.
func testRace(t *testing.T, s *Store) {
	second := another(s)
	for round := range 20 {
		i := create(t, s, fmt.Sprintf("race-%d", round))
		refused := errors.New("claimed already")
		var wg sync.WaitGroup
		won := make([]bool, 2)
		for n, server := range []*Store{s, second} {
			wg.Go(func() {
				key := keyID(1000 + 2*round + n)
				_, err := server.Update(t.Context(), i.ID, func(i *imprint.Instance) (imprint.Change, error) {
					if i.Enrolment.Claim != nil {
						return imprint.Change{}, refused
					}
					i.Enrolment.Claim = &imprint.Claim{Key: key}
					return imprint.Change{BindKey: key, Events: []imprint.Event{event(imprint.EventClaimed)}}, nil
				})
				if err != nil && err != refused {
					t.Error(err)
				}
				won[n] = err == nil
			})
		}
		wg.Wait()
		got, err := s.Instance(t.Context(), i.ID)
		if err != nil || won[0] == won[1] || got.Events != 2 {
			t.Fatalf("round %d: won %v, %d events, %v", round, won, got.Events, err)
		}
		if winner := keyID(1000 + 2*round); (got.Enrolment.Claim.Key == winner) != won[0] {
			t.Fatalf("round %d: the claim is not the winner's", round)
		}
	}
}

// testStale has one server change an instance that another one remembers: what
// the other one answers without writing is decided on the newest record.
func testStale(t *testing.T, s *Store) {
	second := another(s)
	i := create(t, s, "stale")
	update(t, second, i.ID, to(imprint.Delivered, imprint.EventDelivered))
	kept := update(t, s, i.ID, func(*imprint.Instance) (imprint.Change, error) { return imprint.Change{Keep: true}, nil })
	if kept.Enrolment.State != imprint.Delivered {
		t.Errorf("kept an instance in state %s, want delivered", kept.Enrolment.State)
	}
	update(t, s, i.ID, to(imprint.Claimed, imprint.EventClaimed))
	_, err := second.Update(t.Context(), i.ID, func(i *imprint.Instance) (imprint.Change, error) {
		return imprint.Change{}, errors.New(string(i.Enrolment.State))
	})
	if err == nil || err.Error() != string(imprint.Claimed) {
		t.Errorf("refused in state %v, want claimed", err)
	}
	none := func(*imprint.Instance) (imprint.Change, error) { return imprint.Change{}, nil }
	if err := second.Delete(t.Context(), i.ID, none); err != nil {
		t.Fatal(err)
	}
	_, err = s.Update(t.Context(), i.ID, none)
	wantKind(t, err, imprint.NotFound)
}
