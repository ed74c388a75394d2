package daemon_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"imprint"
	"imprint/internal/daemon"
)

// Values are given while the key-encryption key changes, again and again. None
// is sealed with a key that is forgotten.
func TestRotationWhileValuesAreGiven(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	s := site.serve(t)
	const writers, rotations = 4, 5
	spec := serialOnly("web-1")
	values := map[string]imprint.Secret{}
	for n := range writers {
		name := fmt.Sprintf("p%d", n)
		spec.Params = append(spec.Params, imprint.Param{Name: name, Visibility: imprint.Private})
		values[name] = imprint.NewSecret([]byte("first"))
	}
	i := s.create(t, spec, values)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stop := make(chan struct{})
	last := make([]string, writers)
	var writing sync.WaitGroup
	for n := range writers {
		writing.Go(func() {
			for round := 0; ; round++ {
				value := fmt.Sprint("round ", round)
				if err := s.PutParam(ctx, "web-1", fmt.Sprintf("p%d", n), imprint.NewSecret([]byte(value))); err != nil {
					t.Error(err)
					return
				}
				last[n] = value
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for range rotations {
		if _, err := s.RotateSealing(ctx); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	writing.Wait()
	s.stop()
	s = site.serve(t)
	m := newMachine(t, site.config.Run, i.ID)
	if err := m.request(ctx); err != nil {
		t.Fatal(err)
	}
	for n, want := range last {
		if b, err := m.Get(ctx, fmt.Sprintf("imprint:param/p%d", n)); err != nil || string(b) != want {
			t.Errorf("p%d is %q (%v); it was given as %q", n, b, err, want)
		}
	}
}

// The keys of a tenant that the configuration does not name at the moment change
// their key-encryption key too.
func TestRotationWhileATenantIsAway(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	alone := site.config.Tenancy
	site.config.Tenancy = append(slices.Clone(alone), daemon.TenantConfig{Name: "lab", Domains: []string{"lab"}})
	s := site.serve(t)
	before, err := s.Bundle(t.Context(), "lab")
	if err != nil {
		t.Fatal(err)
	}
	s.stop()

	both := site.config.Tenancy
	site.config.Tenancy = alone
	s = site.serve(t)
	if _, err := s.Bundle(t.Context(), "lab"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("a tenant that is away has a bundle: %v", err)
	}
	if _, err := s.RotateSealing(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.stop()

	site.config.Tenancy = both
	s = site.serve(t)
	after, err := s.Bundle(t.Context(), "lab")
	if err != nil || string(after) != string(before) {
		t.Errorf("the tenant's CA is not what it was (%v)", err)
	}
	if _, err := s.ExportRoot(t.Context(), "lab"); err != nil {
		t.Error(err)
	}
}
