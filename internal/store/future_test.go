package store

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"imprint"
)

// Whoever is told of a change and then reads sees it. etcd tells watchers of a
// revision before it can be read: a certificate's revocation would pass unseen.
func TestWatchIsNotAheadOfReads(t *testing.T) {
	t.Parallel()
	s := openEmbedded(t, t.TempDir())
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const instances = 2000
	var writers sync.WaitGroup
	defer writers.Wait()
	for w := range 2 {
		writers.Go(func() {
			for n := range instances / 2 {
				i := newInstance(fmt.Sprintf("web-%d-%d", w, n))
				i.Spec.Host = "host-0.example"
				if err := s.Create(t.Context(), i, nil, imprint.Change{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, scope := range []Scope{{}, {Host: "host-0.example"}} {
		seen, early := 0, 0
		for n, err := range s.Watch(ctx, scope, 0) {
			if err != nil {
				t.Fatalf("after %d instances: %v", seen, err)
			}
			if n.Instance != nil {
				if _, err := s.Instance(ctx, n.Instance.ID); err != nil {
					early++
				}
				seen++
			}
			if seen == instances {
				break
			}
		}
		if early > 0 {
			t.Errorf("%+v: %d of %d instances could not be read when the watch told of them", scope, early, seen)
		}
	}
}
