package store

import (
	"sync"

	"imprint"
)

// Limits of [recent]: at most 32 MiB.
const (
	recentRecords = 4096
	recentSize    = 8 << 10 // bytes of one record, encoded
)

// recent remembers records that this process wrote or read last, because an
// instance that enrols changes several times in a row. What it remembers may be
// out of date: it saves Update a read, and the compare finds out.
type recent struct {
	mu      sync.Mutex
	records map[imprint.InstanceID]*record // guarded by mu
}

func (r *recent) find(id imprint.InstanceID) *record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.records[id]
}

// remember keeps rec, which nobody changes any more; size is its encoded length.
func (r *recent) remember(id imprint.InstanceID, rec *record, size int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if size > recentSize {
		delete(r.records, id)
		return
	}
	if r.records == nil {
		r.records = make(map[imprint.InstanceID]*record)
	}
	if _, known := r.records[id]; !known && len(r.records) >= recentRecords {
		for any := range r.records {
			delete(r.records, any)
			break
		}
	}
	r.records[id] = rec
}

func (r *recent) forget(id imprint.InstanceID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.records, id)
}
