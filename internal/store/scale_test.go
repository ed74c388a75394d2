//go:build bench

package store

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imprint"
)

// scale is how many instances TestScale reserves; try a million with
// go test -tags bench -run TestScale -v ./internal/store -store.scale=1000000
var scale = flag.Int("store.scale", 100_000, "instances that TestScale reserves")

// TestScale reports how an embedded store bears many reserved instances, and
// fails if anything grows worse than linearly.
func TestScale(t *testing.T) {
	dir := t.TempDir()
	empty := resident()
	s := openEmbedded(t, dir)
	ids := make([]imprint.InstanceID, *scale)

	half := reserve(t, s, ids[:*scale/2], 0)
	report(t, "create, first half", "%.0f/s", half)
	rest := reserve(t, s, ids[*scale/2:], *scale/2)
	report(t, "create, second half", "%.0f/s", rest)
	if rest < half/2 {
		t.Errorf("creating slows down from %.0f/s to %.0f/s", half, rest)
	}
	report(t, "memory after creating", "%d MiB", (resident()-empty)>>20)

	began := time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	report(t, "close", "%v", time.Since(began))
	empty = resident()
	began = time.Now()
	s = openEmbedded(t, dir)
	defer s.Close()
	report(t, "open again", "%v", time.Since(began))
	report(t, "memory after opening", "%d MiB", (resident()-empty)>>20)

	measure(t, "get", 5000, func() {
		if _, err := s.Instance(t.Context(), ids[rand.N(len(ids))]); err != nil {
			t.Error(err)
		}
	})
	next := follow(t, s, Scope{Host: "host-0.example"}, 0)
	began = time.Now()
	for next(); !next().Synced; {
	}
	report(t, "watch, list of one host in 100", "%v", time.Since(began))
	measure(t, "watch, change to notice", 500, func() {
		want := update(t, s, ids[100*rand.N(len(ids)/100)], to(imprint.Delivered, imprint.EventDelivered)).Revision
		for next().Revision != want {
		}
	})
	began = time.Now()
	listed := 0
	for q := (Query{Limit: MaxPage}); ; {
		page, after, err := s.List(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		listed += len(page)
		if q.After = after; after == "" {
			break
		}
	}
	report(t, "list all", "%v", time.Since(began))
	if listed != len(ids) {
		t.Errorf("listed %d of %d", listed, len(ids))
	}
	measure(t, "list, one page of 100", 200, func() {
		if _, _, err := s.List(t.Context(), Query{Tenant: imprint.DefaultTenant, After: fmt.Sprintf("scale-%07d", rand.N(len(ids)))}); err != nil {
			t.Error(err)
		}
	})
}

// reserve creates an instance for each id, named from first on, with 32 writers,
// and returns how many a second.
func reserve(t *testing.T, s *Store, ids []imprint.InstanceID, first int) float64 {
	began := time.Now()
	var started atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for n := int(started.Add(1)) - 1; n < len(ids); n = int(started.Add(1)) - 1 {
				i := newInstance(fmt.Sprintf("scale-%07d", first+n))
				i.Spec.Host = imprint.HostName(fmt.Sprintf("host-%d.example", n%100))
				c := reserved()
				c.WakeAt = began.Add(24 * time.Hour)
				if err := s.Create(context.Background(), i, nil, c); err != nil {
					t.Error(err)
				}
				ids[n] = i.ID
			}
		})
	}
	wg.Wait()
	return float64(len(ids)) / time.Since(began).Seconds()
}

func report(t *testing.T, what, format string, args ...any) {
	t.Logf("%-32s %s", what, fmt.Sprintf(format, args...))
}

// measure reports how long n calls took each.
func measure(t *testing.T, what string, n int, call func()) {
	took := make([]time.Duration, n)
	for i := range took {
		began := time.Now()
		call()
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	report(t, what, "p50 %v  p99 %v", took[n/2], took[n*99/100])
}

// resident returns the process's memory in bytes, without what could be freed.
func resident() int64 {
	debug.FreeOSMemory()
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.Sys)
}
