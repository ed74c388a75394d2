package store

import (
	"sync"

	"imprint"
)

// Limits of [recent]: at most 32 MiB.
const (
	recentRecords = 4096
	recentSize    = 8 << 10 // bytes of one record
)

// recent remembers records that this process wrote or read last, because an
// instance that enrols changes several times in a row. What it remembers may be
// out of date: it saves Update a read, and the compare finds out.
type recent struct {
	mu      sync.Mutex
	records map[imprint.InstanceID]*pair // guarded by mu
}

func (r *recent) find(id imprint.InstanceID) *pair {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.records[id]
}

func (r *recent) remember(id imprint.InstanceID, p *pair) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(p.value) > recentSize {
		delete(r.records, id)
		return
	}
	if r.records == nil {
		r.records = make(map[imprint.InstanceID]*pair)
	}
	if _, known := r.records[id]; !known && len(r.records) >= recentRecords {
		for any := range r.records {
			delete(r.records, any)
			break
		}
	}
	r.records[id] = p
}

func (r *recent) forget(id imprint.InstanceID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.records, id)
}
