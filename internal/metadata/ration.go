package metadata

import (
	"sync"
	"time"
)

// ration bounds what one guest can make its host report: a burst, and then one
// more each reportEvery.
type ration struct {
	mu    sync.Mutex
	used  int       // guarded by mu; of the burst
	since time.Time // guarded by mu; when used was last reduced
}

// take reports whether there is one left.
func (r *ration) take(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used == 0 || now.Before(r.since) {
		r.since = now
	}
	earned := min(int(now.Sub(r.since)/reportEvery), r.used)
	r.used -= earned
	r.since = r.since.Add(time.Duration(earned) * reportEvery)
	if r.used >= reportBurst {
		return false
	}
	r.used++
	return true
}
