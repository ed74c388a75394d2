package store

import (
	"context"
	"iter"
	"slices"
	"sync"
	"time"

	"imprint"
)

// memoryHistory is how many revisions the twin in memory keeps for watchers
// and reads of the past before it compacts.
const memoryHistory = 10_000

// OpenMemory returns an empty store that lives in this process only, with the
// semantics of the others, for tests. Its reminders use the time package, so
// that testing/synctest drives them.
func OpenMemory() *Store {
	return newStore(newMemory(memoryHistory), defaultPrefix, nil)
}

// memory is the twin of etcd: every key keeps its versions until they are
// compacted, and the log of commits feeds the watchers.
type memory struct {
	history int

	mu        sync.Mutex // guards all below
	versions  map[string][]version
	sorted    []string // the keys of versions in order, except for added
	added     []string // keys of versions that are not in sorted yet
	log       []batch  // the commits after compacted
	revision  int64
	compacted int64
	leases    map[int64]*memoryLease
	lastLease int64
	changed   chan struct{} // closed and replaced at each commit
	closed    bool
}

type version struct {
	modified int64
	value    []byte
	deleted  bool
	lease    int64
}

type memoryLease struct {
	keys  map[string]struct{}
	timer *time.Timer
}

func newMemory(history int) *memory {
	return &memory{
		history:  history,
		versions: make(map[string][]version),
		revision: 1, // as a new etcd
		leases:   make(map[int64]*memoryLease),
		changed:  make(chan struct{}),
	}
}

var errClosed = imprint.Errorf(imprint.Unavailable, "use", "store", "it is closed")

// check returns why a request cannot be served; the caller holds m.mu.
func (m *memory) check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return imprint.Errorf(imprint.Unavailable, "use", "store", "%w", err)
	}
	if m.closed {
		return errClosed
	}
	return nil
}

func (m *memory) read(ctx context.Context, q query) (page, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(ctx); err != nil {
		return page{}, err
	}
	return m.readLocked(q)
}

func (m *memory) readLocked(q query) (page, error) {
	at := q.revision
	switch {
	case at == 0:
		at = m.revision
	case at > m.revision:
		return page{}, imprint.Errorf(imprint.Internal, "read", q.key, "revision %d is in the future", at)
	case at < m.compacted:
		return page{}, errCompacted
	}
	p := page{revision: m.revision}
	for _, key := range m.keys(q.key, q.end) {
		v, ok := m.at(key, at)
		if !ok {
			continue
		}
		if q.limit > 0 && len(p.pairs) == q.limit {
			p.more = true
			break
		}
		if q.keysOnly {
			v.value = nil
		}
		p.pairs = append(p.pairs, pair{key, v.value, v.modified})
	}
	return p, nil
}

// keys returns the keys in [key, end), or only key, that have any version.
func (m *memory) keys(key, end string) []string {
	if end == "" {
		return []string{key}
	}
	m.sort()
	from, _ := slices.BinarySearch(m.sorted, key)
	to, _ := slices.BinarySearch(m.sorted, end)
	return m.sorted[from:max(from, to)]
}

// sort moves added to sorted: a few keys one by one, and many at once.
func (m *memory) sort() {
	if len(m.added) > 64 {
		m.sorted = append(m.sorted, m.added...)
		slices.Sort(m.sorted)
		m.sorted = slices.Compact(m.sorted)
	} else {
		for _, key := range m.added {
			if i, there := slices.BinarySearch(m.sorted, key); !there {
				m.sorted = slices.Insert(m.sorted, i, key)
			}
		}
	}
	m.added = m.added[:0]
}

// at returns the version of key that was current at revision; ok is false, and
// the version zero, if the key did not exist then.
func (m *memory) at(key string, revision int64) (v version, ok bool) {
	versions := m.versions[key]
	for i := len(versions) - 1; i >= 0; i-- {
		if versions[i].modified <= revision {
			if versions[i].deleted {
				break
			}
			return versions[i], true
		}
	}
	return version{}, false
}

func (m *memory) readAll(ctx context.Context, queries []query) ([]page, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	pages := make([]page, len(queries))
	for i, q := range queries {
		p, err := m.readLocked(q)
		if err != nil {
			return nil, err
		}
		pages[i] = p
	}
	return pages, nil
}

func (m *memory) commit(ctx context.Context, txns []*txn) ([]outcome, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	outcomes := make([]outcome, len(txns))
	for i, t := range txns { // before anything changes
		if outcomes[i].applied = m.holds(t.when); outcomes[i].applied {
			if err := m.checkLeases(t.then); err != nil {
				return nil, err
			}
			continue
		}
		for _, key := range t.otherwise {
			p, err := m.readLocked(query{key: key})
			if err != nil {
				return nil, err
			}
			outcomes[i].pages = append(outcomes[i].pages, p)
		}
	}
	b := batch{revision: m.revision + 1}
	for i, t := range txns {
		if outcomes[i].applied {
			b.changes = m.apply(t.then, b)
		}
	}
	m.publish(b)
	for i := range outcomes {
		outcomes[i].revision = m.revision
	}
	return outcomes, nil
}

// holds reports whether all of when hold now.
func (m *memory) holds(when []compare) bool {
	return !slices.ContainsFunc(when, func(c compare) bool {
		v, _ := m.at(c.key, m.revision)
		return v.modified != c.modified
	})
}

// checkLeases refuses to put keys with a lease that has ended.
func (m *memory) checkLeases(then []op) error {
	for _, o := range then {
		if o.lease != 0 && m.leases[o.lease] == nil {
			return imprint.Errorf(imprint.Internal, "write", o.key, "lease %d has ended", o.lease)
		}
	}
	return nil
}

// apply does the operations of one transaction and returns the changes of b
// with theirs.
func (m *memory) apply(then []op, b batch) []change {
	for _, o := range then {
		if o.verb == put {
			b.changes = append(b.changes, m.put(o, b.revision))
			continue
		}
		for _, key := range m.keys(o.key, o.end) {
			if _, ok := m.at(key, m.revision); ok {
				b.changes = append(b.changes, m.delete(key, b.revision))
			}
		}
	}
	return b.changes
}

func (m *memory) put(o op, revision int64) change {
	old, existed := m.at(o.key, m.revision)
	if len(m.versions[o.key]) == 0 {
		m.added = append(m.added, o.key)
	}
	if existed && old.lease != 0 {
		delete(m.leases[old.lease].keys, o.key)
	}
	if o.lease != 0 {
		m.leases[o.lease].keys[o.key] = struct{}{}
	}
	value := slices.Clone(o.value)
	m.versions[o.key] = append(m.versions[o.key], version{revision, value, false, o.lease})
	return change{pair: pair{o.key, value, revision}, previous: old.value}
}

// delete removes key, which exists.
func (m *memory) delete(key string, revision int64) change {
	old, _ := m.at(key, m.revision)
	if old.lease != 0 {
		delete(m.leases[old.lease].keys, key)
	}
	m.versions[key] = append(m.versions[key], version{modified: revision, deleted: true})
	return change{pair: pair{key: key, modified: revision}, deleted: true, previous: old.value}
}

// publish makes b the newest revision, unless it changes nothing.
func (m *memory) publish(b batch) {
	if len(b.changes) == 0 {
		return
	}
	m.revision = b.revision
	m.log = append(m.log, b)
	if len(m.log) > m.history {
		m.compactLocked(m.log[len(m.log)-m.history/2-1].revision)
	}
	close(m.changed)
	m.changed = make(chan struct{})
}

// compact forgets what was overwritten or deleted at or before revision.
func (m *memory) compact(revision int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.compactLocked(revision)
}

func (m *memory) compactLocked(revision int64) {
	n := 0
	for n < len(m.log) && m.log[n].revision <= revision {
		n++
	}
	for _, b := range m.log[:n] {
		for _, c := range b.changes {
			m.prune(c.key, revision)
		}
	}
	m.log = slices.Clone(m.log[n:])
	m.compacted = revision
	m.sorted = slices.DeleteFunc(m.sorted, func(key string) bool { return m.versions[key] == nil })
}

// prune drops the versions of key that nobody can read after a compaction at revision.
func (m *memory) prune(key string, revision int64) {
	versions := m.versions[key]
	keep := 0 // the first version that stays
	for keep+1 < len(versions) && versions[keep+1].modified <= revision {
		keep++
	}
	if keep < len(versions) && versions[keep].deleted && versions[keep].modified <= revision {
		keep++
	}
	if keep == len(versions) {
		delete(m.versions, key)
		return
	}
	m.versions[key] = slices.Delete(versions, 0, keep)
}

func (m *memory) watch(ctx context.Context, w watch) iter.Seq2[batch, error] {
	return func(yield func(batch, error) bool) {
		next := w.revision
		for {
			batches, changed, err := m.since(ctx, next)
			if err != nil {
				yield(batch{}, err)
				return
			}
			for _, b := range batches {
				if b = within(b, w); len(b.changes) > 0 && !yield(b, nil) {
					return
				}
				next = b.revision + 1
			}
			if len(batches) > 0 {
				continue
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}
}

// since returns the commits at and after revision and a channel that is closed
// at the next one.
func (m *memory) since(ctx context.Context, revision int64) ([]batch, <-chan struct{}, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(ctx); err != nil {
		return nil, nil, err
	}
	if revision <= m.compacted {
		return nil, nil, errCompacted
	}
	i, _ := slices.BinarySearchFunc(m.log, revision, func(b batch, r int64) int { return int(b.revision - r) })
	return m.log[i:len(m.log):len(m.log)], m.changed, nil
}

// within returns the part of b that w asked for.
func within(b batch, w watch) batch {
	out := batch{revision: b.revision}
	for _, c := range b.changes {
		if c.key == w.key || w.end != "" && c.key >= w.key && c.key < w.end {
			if !w.previous {
				c.previous = nil
			}
			out.changes = append(out.changes, c)
		}
	}
	return out
}

func (m *memory) grant(ctx context.Context, ttl time.Duration) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(ctx); err != nil {
		return 0, err
	}
	m.lastLease++
	id := m.lastLease
	m.leases[id] = &memoryLease{
		keys:  make(map[string]struct{}),
		timer: time.AfterFunc(ttl, func() { m.end(id) }),
	}
	return id, nil
}

func (m *memory) revoke(_ context.Context, lease int64) error {
	m.end(lease)
	return nil
}

// end deletes a lease and its keys.
func (m *memory) end(id int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	lease := m.leases[id]
	if lease == nil || m.closed {
		return
	}
	lease.timer.Stop()
	b := batch{revision: m.revision + 1}
	for key := range lease.keys {
		b.changes = append(b.changes, m.delete(key, b.revision))
	}
	delete(m.leases, id)
	m.publish(b)
}

func (m *memory) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, lease := range m.leases {
		lease.timer.Stop()
	}
	close(m.changed)
	return nil
}
