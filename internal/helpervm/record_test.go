//go:build vm

package helpervm_test

import (
	"bytes"
	"sync"
)

// floodEnough is when a [record] is full.
const floodEnough = 900 << 10

// record keeps what is written to it.
type record struct {
	mu   sync.Mutex
	b    bytes.Buffer
	full func() // called with much of it; may be nil
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full != nil && r.b.Len() > floodEnough {
		r.full()
	}
	return r.b.Write(b)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}
