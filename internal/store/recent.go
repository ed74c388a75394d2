package store

import (
	"sync"

	"imprint"
)

// Limits of [recent] in bytes.
const (
	maxRecent       = 48 << 20 // of memory, about, for all records
	maxRecentRecord = 8 << 10  // of one, encoded
	decodedOverhead = 1 << 10  // what a record takes in memory beyond its encoded size, about
)

// recent remembers records that this process wrote or read last, because an
// instance that enrols changes several times in a row. What it remembers may be
// out of date: it saves Update a read, and the compare finds out.
type recent struct {
	mu sync.Mutex
	// Records are remembered among the young. Once these take half of the room
	// they become the old, and the old are forgotten. Guarded by mu.
	young, old map[imprint.InstanceID]remembered
	size       int // of the young; guarded by mu
}

type remembered struct {
	*record
	size int // in memory, about
}

// find returns a record that nobody may change, or nil.
func (r *recent) find(id imprint.InstanceID) *record {
	r.mu.Lock()
	defer r.mu.Unlock()
	if found, ok := r.young[id]; ok {
		return found.record
	}
	return r.old[id].record
}

// remember keeps rec, which nobody changes any more; size is its encoded length.
func (r *recent) remember(id imprint.InstanceID, rec *record, size int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(id)
	if size > maxRecentRecord {
		return
	}
	size += decodedOverhead
	if r.size+size > maxRecent/2 {
		r.old, r.young, r.size = r.young, nil, 0
	}
	if r.young == nil {
		r.young = make(map[imprint.InstanceID]remembered)
	}
	r.young[id] = remembered{rec, size}
	r.size += size
}

func (r *recent) forget(id imprint.InstanceID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(id)
}

// drop forgets a record; mu is held.
func (r *recent) drop(id imprint.InstanceID) {
	r.size -= r.young[id].size
	delete(r.young, id)
	delete(r.old, id)
}
