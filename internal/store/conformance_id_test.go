package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"imprint"
)

func drop(t *testing.T, s *Store, id imprint.InstanceID) {
	t.Helper()
	if err := s.Delete(t.Context(), id, func(*imprint.Instance) (imprint.Change, error) { return imprint.Change{}, nil }); err != nil {
		t.Fatal(err)
	}
}

// wantTaken wants Create, and CheckID before it, to refuse the id of i, and
// nothing of i to be left. It returns Create's reason.
func wantTaken(t *testing.T, s *Store, i *imprint.Instance) string {
	t.Helper()
	before := s.CheckID(t.Context(), i)
	wantKind(t, before, imprint.Exists)
	err := s.Create(t.Context(), i, map[string][]byte{"password": {1}}, reserved())
	wantKind(t, err, imprint.Exists)
	if err.Error() != before.Error() || imprint.HintOf(err) != imprint.HintOf(before) || imprint.HintOf(err) == "" || !strings.Contains(err.Error(), string(i.ID)) {
		t.Errorf("before: %v; then: %v; hint: %s", before, err, imprint.HintOf(err))
	}
	_, err2 := s.Lookup(t.Context(), i.Spec.Tenant, i.Spec.Name)
	wantKind(t, err2, imprint.NotFound)
	return errors.Unwrap(err).Error()
}

func testGivenOnce(t *testing.T, s *Store) {
	first := newInstance("given")
	if err := s.CheckID(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	first.Spec.Params = []imprint.Param{{Name: "password", Visibility: imprint.Private}}
	if err := s.Create(t.Context(), first, map[string][]byte{"password": {1}}, reserved()); err != nil {
		t.Fatal(err)
	}
	again := func(name string, tenant imprint.TenantName) *imprint.Instance {
		i := newInstance(name)
		i.ID, i.Spec.Tenant = first.ID, tenant
		return i
	}
	// While it is there, its own tenant is told whose the id is, and another one
	// is not.
	if said := wantTaken(t, s, again("given-again", imprint.DefaultTenant)); !strings.Contains(said, "that of given already") {
		t.Error(said)
	}
	elsewhere := wantTaken(t, s, again("given-again", "given-elsewhere"))
	if strings.Contains(elsewhere, "given already") || strings.Contains(elsewhere, "default") {
		t.Errorf("another tenant hears %q", elsewhere)
	}

	// Nor is it anybody's after it has gone, on this server or another.
	update(t, s, first.ID, to(imprint.Delivered, imprint.EventDelivered))
	drop(t, s, first.ID)
	for _, server := range []*Store{s, another(s)} {
		for _, tenant := range []imprint.TenantName{imprint.DefaultTenant, "given-elsewhere"} {
			if said := wantTaken(t, server, again("given", tenant)); said != elsewhere {
				t.Errorf("tenant %s hears %q, and %q while the instance was there", tenant, said, elsewhere)
			}
		}
	}
	_, err := s.Instance(t.Context(), first.ID)
	wantKind(t, err, imprint.NotFound)
	if sealed, err := s.SealedParams(t.Context(), first.ID); err != nil || len(sealed) > 0 {
		t.Errorf("sealed parameters %v, %v", sealed, err)
	}
	create(t, s, "given") // the name is free again

	// An instance from before there was the list.
	old := create(t, s, "given-before")
	encoded, err := json.Marshal(record{Instance: *old})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.kv.commit(t.Context(), []*txn{{then: []op{
		{verb: put, key: s.keys.record(old.ID), value: encoded}, {verb: remove, key: s.keys.given(old.ID)},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	drop(t, another(s), old.ID)
	old.Spec.Name = "given-after"
	wantTaken(t, s, old)
}

func testRaceForID(t *testing.T, s *Store) {
	id := imprint.NewInstanceID()
	servers := []*Store{s, another(s)}
	const rivals = 16
	var errs [rivals]error
	var wg sync.WaitGroup
	for n := range rivals {
		wg.Go(func() {
			i := newInstance(fmt.Sprintf("rival-%d", n))
			i.ID, i.Spec.Tenant = id, imprint.TenantName(fmt.Sprintf("rivals-%d", n%2))
			errs[n] = servers[n%len(servers)].Create(context.WithoutCancel(t.Context()), i, map[string][]byte{"n": {byte(n)}}, reserved())
		})
	}
	wg.Wait()
	winner := -1
	for n, err := range errs {
		if err != nil {
			wantKind(t, err, imprint.Exists)
			continue
		}
		if winner >= 0 {
			t.Fatalf("%d and %d got the id", winner, n)
		}
		winner = n
	}
	if winner < 0 {
		t.Fatal("nobody got the id")
	}
	i, err := s.Instance(t.Context(), id)
	if err != nil || i.Spec.Name != imprint.InstanceName(fmt.Sprintf("rival-%d", winner)) || i.Events != 1 {
		t.Errorf("rival %d won, and stored is %+v, %v", winner, i, err)
	}
	if sealed, err := s.SealedParams(t.Context(), id); err != nil || len(sealed) != 1 || sealed["n"][0] != byte(winner) {
		t.Errorf("rival %d won, and sealed is %v, %v", winner, sealed, err)
	}
	for _, tenant := range []imprint.TenantName{"rivals-0", "rivals-1"} {
		if names := listNames(t, s, Query{Tenant: tenant}); len(names) > 1 || len(names) == 1 && names[0] != string(i.Spec.Name) {
			t.Errorf("tenant %s has %v", tenant, names)
		}
	}
}

// TestGivenSurvives: what was given stays given over a compaction and a restart.
func TestGivenSurvives(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openEmbedded(t, dir)
	i := create(t, s, "survives")
	drop(t, s, i.ID)
	if err := s.Reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openEmbedded(t, dir)
	defer s.Close()
	i.Spec.Name = "survives-again"
	wantTaken(t, s, i)
}
