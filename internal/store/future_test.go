package store

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"imprint"
)

// A host that watches its placements reads each record at the revision that the
// watch told of, which etcd announces before it can be read. The watch must not
// break off for that.
func TestWatchIsNotAheadOfReads(t *testing.T) {
	t.Parallel()
	s := openEmbedded(t, t.TempDir())
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const instances = 300
	var writer sync.WaitGroup
	defer writer.Wait()
	writer.Go(func() {
		for n := range instances {
			i := newInstance(fmt.Sprintf("web-%d", n))
			i.Spec.Host = "host-0.example"
			if err := s.Create(t.Context(), i, nil, imprint.Change{}); err != nil {
				t.Error(err)
			}
		}
	})
	seen := 0
	for n, err := range s.Watch(ctx, Scope{Host: "host-0.example"}, 0) {
		if err != nil {
			t.Fatalf("after %d instances: %v", seen, err)
		}
		if n.Instance != nil {
			seen++
		}
		if seen == instances {
			return
		}
	}
}
