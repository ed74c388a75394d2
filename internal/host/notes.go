package host

import (
	"bytes"
	"maps"
	"slices"
	"sync"

	"imprint"
)

// Limits on what a guest keeps with its host.
const (
	maxNotes     = 64       // keys
	maxNotesSize = 64 << 10 // bytes of all keys and values together
)

// notes are the keys that a guest put for itself, as mdata-put does. They are
// in memory only and live as long as the generation.
type notes struct {
	mu   sync.Mutex
	m    map[string][]byte
	size int
}

func newNotes() *notes { return &notes{m: map[string][]byte{}} }

func (n *notes) get(key string) ([]byte, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	value, ok := n.m[key]
	return value, ok
}

func (n *notes) put(key string, value []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	old, known := n.m[key]
	size := n.size + len(key) + len(value)
	if known {
		size -= len(key) + len(old)
	}
	switch {
	case !known && len(n.m) >= maxNotes:
		return imprint.Errorf(imprint.Exhausted, "put", key, "%d keys are kept; delete one first", maxNotes)
	case size > maxNotesSize:
		return imprint.Errorf(imprint.Exhausted, "put", key, "all keys together may have %d bytes; delete one first", maxNotesSize)
	}
	n.m[key], n.size = bytes.Clone(value), size
	return nil
}

func (n *notes) delete(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if value, ok := n.m[key]; ok {
		n.size -= len(key) + len(value)
		delete(n.m, key)
	}
}

func (n *notes) keys() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Keys(n.m))
}

func (n *notes) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.m)
	n.size = 0
}
