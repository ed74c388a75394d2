package store

import (
	"context"
	"runtime"
	"sync"
	"time"

	"imprint"
)

const (
	// maxGroup is how many transactions are committed as one.
	maxGroup = 64
	// maxGroupedOps is how many operations a transaction of a group may have:
	// etcd counts those of a nested transaction on top of its parent's.
	maxGroupedOps = maxTxnOps - maxGroup
	// flightsOfOne is how many groups are on their way to an etcd in this
	// process at the same time, which handles one after the other anyway, and
	// flightsOfCluster to a cluster, so that one that waits for a member that
	// died does not hold up all others.
	flightsOfOne     = 1
	flightsOfCluster = 4
)

// committer commits transactions in groups: those that arrive while others are
// on their way wait, and then go together as one. What a transaction costs is
// mostly the way through etcd's log, and a group goes it once; a transaction
// that comes alone waits for nobody.
//
// The transactions of a group touch no key in common, so that each has the
// outcome that it would have had by itself; they share a revision. Two that
// have a key in common go in different groups.
type committer struct {
	kv kv
	// patience bounds how long a transaction waits for its outcome; 0 leaves
	// that to kv.
	patience time.Duration
	// maxFlights is how many groups are on their way at the same time at most.
	maxFlights int

	mu      sync.Mutex
	waiting []*request // in the order of their arrival; guarded by mu
	flights int        // how many goroutines commit; guarded by mu
	landed  sync.WaitGroup
}

// request is a transaction and who waits for its outcome.
type request struct {
	txn
	ctx    context.Context
	answer chan answer // has room for one
}

type answer struct {
	outcome
	err error
}

// commit is [kv.commit] for one transaction. When ctx ends before the outcome
// is known, the transaction may have been applied or not.
func (c *committer) commit(ctx context.Context, t txn) (outcome, error) {
	if c.patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.patience)
		defer cancel()
	}
	r := &request{t, ctx, make(chan answer, 1)}
	c.mu.Lock()
	c.waiting = append(c.waiting, r)
	if c.flights < c.maxFlights {
		c.flights++
		c.landed.Go(c.fly)
	}
	c.mu.Unlock()
	select {
	case a := <-r.answer:
		return a.outcome, a.err
	case <-ctx.Done():
		return outcome{}, imprint.Errorf(imprint.Unavailable, "use", "store", "no answer in time: %w", ctx.Err())
	}
}

// close waits until nothing is on its way any more.
func (c *committer) close() { c.landed.Wait() }

// fly commits groups until nobody waits.
func (c *committer) fly() {
	for group := c.next(); len(group) > 0; group = c.next() {
		c.commitAll(group)
		if len(group) > 1 {
			runtime.Gosched() // whoever goes on at once comes along
		}
	}
}

// next takes a group from those that wait: the first of them, and the others
// that go with it. Who waits no more is left behind. If nobody waits, the
// caller's flight ends.
func (c *committer) next() []*request {
	c.mu.Lock()
	defer c.mu.Unlock()
	var group []*request
	var taken footprint
	left := c.waiting[:0]
	for _, r := range c.waiting {
		switch {
		case r.ctx.Err() != nil:
		case len(group) < maxGroup && taken.add(&r.txn):
			group = append(group, r)
		default:
			left = append(left, r)
		}
	}
	clear(c.waiting[len(left):])
	c.waiting = left
	if len(group) == 0 {
		c.flights--
	}
	return group
}

// commitAll commits a group and answers its requests. No context of theirs
// bounds it, because it is for all of them.
func (c *committer) commitAll(group []*request) {
	txns := make([]*txn, len(group))
	for i, r := range group {
		txns[i] = &r.txn
	}
	outcomes, err := c.kv.commit(context.Background(), txns)
	switch {
	case err == nil:
		for i, r := range group {
			r.answer <- answer{outcome: outcomes[i]}
		}
	case len(group) == 1 || imprint.KindOf(err) == imprint.Unavailable: // may have been written
		for _, r := range group {
			r.answer <- answer{err: err}
		}
	default: // nothing was written, maybe because of one of them
		for i := range group {
			c.commitAll(group[i : i+1])
		}
	}
}

// footprint is what the transactions of a group touch and weigh.
type footprint struct {
	keys   map[string]struct{}
	ranges []op // removals
	size   int
}

// add adds t unless it does not go with those that were added before.
func (f *footprint) add(t *txn) bool {
	size := t.size()
	if len(f.keys)+len(f.ranges) > 0 && (f.size+size > maxTxnSize || t.ops() > maxGroupedOps || f.touches(t)) {
		return false
	}
	if t.ops() > maxGroupedOps {
		f.size = maxTxnSize // nobody goes with it
	}
	f.size += size
	if f.keys == nil {
		f.keys = make(map[string]struct{})
	}
	for key, end := range t.touched() {
		if end == "" {
			f.keys[key] = struct{}{}
		} else {
			f.ranges = append(f.ranges, op{key: key, end: end})
		}
	}
	return true
}

// touches reports whether t has a key in common with what was added.
func (f *footprint) touches(t *txn) bool {
	for key, end := range t.touched() {
		for _, r := range f.ranges {
			if key < r.end && (key >= r.key || end > r.key) {
				return true
			}
		}
		if end == "" {
			if _, there := f.keys[key]; there {
				return true
			}
			continue
		}
		for there := range f.keys {
			if there >= key && there < end {
				return true
			}
		}
	}
	return false
}
