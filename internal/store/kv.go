package store

import (
	"context"
	"errors"
	"iter"
	"slices"
	"time"
)

// kv is what the typed operations need of a key-value store: revisions that
// count transactions, reads of the past until it is compacted, one-shot
// transactions, watches and leases, all with the semantics of etcd. Errors are
// those of the package comment, or wrap errCompacted. Keys and values that were
// handed over or returned are not changed afterwards.
type kv interface {
	// read returns the pairs of q in key order.
	read(ctx context.Context, q query) (page, error)
	// readAll reads each of queries, at most maxTxnOps, at one moment.
	readAll(ctx context.Context, queries []query) ([]page, error)
	// commit takes transactions that touch no key in common and says what came
	// of each: its then is applied if all of its when hold, and else its
	// otherwise is read. All of them happen at one revision, or none does: an
	// error of another kind than Unavailable says that nothing was written.
	// One alone may have maxTxnOps operations, several maxGroupedOps each, and
	// within one each key is written once.
	commit(ctx context.Context, txns []*txn) ([]outcome, error)
	// watch yields what changed in w at and after w.revision, one batch a
	// revision and whole, with its changes in the order of the operations that
	// made them, until ctx ends or an error: errCompacted if w.revision is
	// gone. It always ends with an error.
	watch(ctx context.Context, w watch) iter.Seq2[batch, error]
	// grant makes a lease that ends after about ttl, and then deletes the keys
	// that were put with it.
	grant(ctx context.Context, ttl time.Duration) (lease int64, err error)
	// revoke ends a lease now. Revoking one that has ended is no error.
	revoke(ctx context.Context, lease int64) error
	// close releases everything; it is called once.
	close() error
}

// errCompacted says that a revision is older than the history that is kept.
var errCompacted = errors.New("the revision has been compacted")

// Limits of one transaction: etcd's defaults (128 operations, 1.5 MiB), with
// room for the keys, so that every cluster takes what this package sends.
const (
	maxTxnOps  = 128
	maxTxnSize = 1400 << 10
)

// query asks for one key, or for the keys in [key, end).
type query struct {
	key, end string // end "": only key
	limit    int    // 0: no limit
	revision int64  // 0: now
	stale    bool   // may lag behind other servers' writes, and costs no round trip to them
	keysOnly bool
}

type pair struct {
	key      string
	value    []byte
	modified int64 // revision of the last write
}

type page struct {
	pairs    []pair
	more     bool  // limit cut the answer short
	revision int64 // at which the answer holds
}

// first returns the page's only or first pair, or nil.
func (p *page) first() *pair {
	if len(p.pairs) == 0 {
		return nil
	}
	return &p.pairs[0]
}

type txn struct {
	when      []compare
	then      []op
	otherwise []string // keys
}

// touched yields the keys that t compares, writes or reads, and the ranges, with
// their ends, that it removes. A key may come several times.
func (t *txn) touched() iter.Seq2[string, string] {
	return func(yield func(key, end string) bool) {
		for _, c := range t.when {
			if !yield(c.key, "") {
				return
			}
		}
		for i := range t.then {
			if !yield(t.then[i].key, t.then[i].end) {
				return
			}
		}
		for _, key := range t.otherwise {
			if !yield(key, "") {
				return
			}
		}
	}
}

// ops is how many operations t has in etcd's count.
func (t *txn) ops() int { return max(len(t.when), len(t.then), len(t.otherwise)) }

// size is how many bytes the keys and values of t have.
func (t *txn) size() int {
	n := 0
	for key, end := range t.touched() {
		n += len(key) + len(end)
	}
	for i := range t.then {
		n += len(t.then[i].value)
	}
	return n
}

// grows reports whether t stores something, and so needs room.
func (t *txn) grows() bool {
	return slices.ContainsFunc(t.then, func(o op) bool { return o.verb == put })
}

// compare holds if key was last written at revision modified; 0: if it does not exist.
type compare struct {
	key      string
	modified int64
}

type verb uint8

const (
	put verb = iota
	remove
)

type op struct {
	verb     verb
	key, end string // end: only for remove, as in query
	value    []byte // only for put
	lease    int64  // only for put
}

type outcome struct {
	applied  bool
	revision int64
	// pages has what the keys of txn.otherwise hold, unless it was applied.
	pages []page
}

type watch struct {
	key, end string
	revision int64
	previous bool // fill in change.previous
}

type batch struct {
	revision int64
	changes  []change
}

type change struct {
	pair
	deleted bool
	// previous is the value before the change; nil if it is unknown or there was none.
	previous []byte
}
