package store

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"imprint"
)

// Limits on what is stored.
const (
	MaxRecord   = 1 << 20 // bytes of an instance's record, encoded
	MaxSealed   = 1 << 20 // bytes of all sealed parameters of an instance, encoded
	MaxDocument = 1 << 20 // bytes of a document

	// One change may hold this many.
	MaxChangeEvents      = 32
	MaxChangeRevocations = 64

	DefaultPage = 100   // instances that List returns if no limit is given
	MaxPage     = 1_000 // instances that List returns at most
)

// Store keeps instances. Its methods may be called concurrently.
type Store struct {
	kv        kv
	committer *committer // of all that is written to kv
	keys      layout
	now       func() time.Time
	// recent holds records that Update need not read again.
	recent *recent
	// failed is closed when the embedded etcd has stopped by itself; nil elsewhere.
	failed <-chan struct{}
	// reclaim gives space that the embedded etcd no longer needs to the disk;
	// nil elsewhere.
	reclaim func(context.Context) error
}

func newStore(kv kv, prefix string, failed <-chan struct{}) *Store {
	return &Store{kv: kv, committer: &committer{kv: kv, maxFlights: flightsOfOne}, keys: layout(prefix), now: time.Now, recent: new(recent), failed: failed}
}

// Close ends the store. Watches end with an error of kind [imprint.Unavailable].
// It is called once, after everything that uses the store has ended. Its error
// says why the store had [Store.Failed], if it had.
func (s *Store) Close() error {
	s.committer.close()
	return s.kv.close()
}

// Failed is closed when the embedded etcd met a fault that it cannot go on
// after, such as a disk that refused a write; the cause is in the log and in
// the error of every later operation. Nothing that was acknowledged is lost,
// but the process has to end and start again. It is nil for other stores.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Reclaim forgets the past of the embedded store, gives the freed space back to
// the disk, and ends the state in which a store that reached its quota refuses
// writes. It blocks other operations for seconds per gigabyte. Other stores
// leave that to whoever runs the cluster.
func (s *Store) Reclaim(ctx context.Context) error {
	if s.reclaim == nil {
		return nil
	}
	if err := s.reclaim(ctx); err != nil {
		return imprint.Errorf(imprint.Internal, "reclaim", "store", "%w", err)
	}
	return nil
}

// record is the stored form of an instance.
type record struct {
	imprint.Instance
	// Wake is the time of the reminder in the index, in Unix seconds; 0: none.
	Wake int64 `json:"wake,omitempty"`
	// Given says that the id is on the list of those that were given, as it is
	// of every instance since there is the list.
	Given bool `json:"given,omitempty"`
}

// decodeRecord reads a stored instance.
func decodeRecord(p *pair) (*record, error) {
	var r record
	if err := json.Unmarshal(p.value, &r); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "decode", p.key, "%w", err)
	}
	r.Revision = p.modified
	return &r, nil
}

// Instance returns the instance with this id. It fails with kind
// [imprint.NotFound] if there is none.
func (s *Store) Instance(ctx context.Context, id imprint.InstanceID) (*imprint.Instance, error) {
	p, err := s.kv.read(ctx, query{key: s.keys.record(id)})
	if err != nil {
		return nil, during(err, "read", string(id))
	}
	found := p.first()
	if found == nil {
		return nil, noInstance("read", id)
	}
	r, err := decodeRecord(found)
	if err != nil {
		return nil, err
	}
	return &r.Instance, nil
}

// Lookup returns the id of the instance that has this name. It fails with kind
// [imprint.NotFound] if there is none.
func (s *Store) Lookup(ctx context.Context, tenant imprint.TenantName, name imprint.InstanceName) (imprint.InstanceID, error) {
	p, err := s.kv.read(ctx, query{key: s.keys.name(tenant, name)})
	if err != nil {
		return "", during(err, "find", string(name))
	}
	found := p.first()
	if found == nil {
		return "", imprint.Errorf(imprint.NotFound, "find", string(name), "tenant %s has no instance of that name", tenant).
			WithHint("list the names with: imprint get")
	}
	return imprint.InstanceID(found.value), nil
}

// Query selects instances. Tenant and Host narrow it down; both may be given.
type Query struct {
	Tenant imprint.TenantName
	Host   imprint.HostName
	After  string // the next of an earlier page, or ""
	Limit  int    // at most this many; 0 is DefaultPage, more than MaxPage is MaxPage
}

// List returns one page of the instances that q selects and where the next one
// starts, or "". With a Host they are in the order of their ids, else in that
// of tenant and name. A page may be shorter than the limit, or empty, though
// there is a next one. An instance that is there throughout is listed once.
// A cluster counts the rest of the index with each page (about 0.2 µs an
// entry), so whoever wants all of it should ask for large pages.
func (s *Store) List(ctx context.Context, q Query) ([]*imprint.Instance, string, error) {
	limit := min(q.Limit, MaxPage)
	if limit <= 0 {
		limit = DefaultPage
	}
	index := s.index(q.Tenant, q.Host)
	from := index
	if q.After != "" {
		from = index + q.After + "\x00"
	}
	p, err := s.kv.read(ctx, query{key: from, end: after(index), limit: limit})
	if err != nil {
		return nil, "", during(err, "list", "instances")
	}
	instances, err := s.listed(ctx, p.pairs, 0)
	if err != nil {
		return nil, "", during(err, "list", "instances")
	}
	kept := instances[:0]
	for _, i := range instances {
		if q.Tenant == "" || i.Spec.Tenant == q.Tenant {
			kept = append(kept, i)
		}
	}
	next := ""
	if p.more {
		next = strings.TrimPrefix(p.pairs[len(p.pairs)-1].key, index)
	}
	return kept, next, nil
}

// index returns the prefix of the narrowest index over tenant and host.
func (s *Store) index(tenant imprint.TenantName, host imprint.HostName) string {
	switch {
	case host != "":
		return s.keys.host(host)
	case tenant != "":
		return s.keys.tenant(tenant)
	}
	return s.keys.names()
}

// listed returns the instances behind the entries of the name or host index,
// as they were at revision (0: now). Those that are gone are left out.
func (s *Store) listed(ctx context.Context, entries []pair, revision int64) ([]*imprint.Instance, error) {
	instances := make([]*imprint.Instance, 0, len(entries))
	for len(entries) > 0 {
		n := min(len(entries), maxTxnOps)
		queries := make([]query, n)
		for i, e := range entries[:n] {
			id := string(e.value) // the name index has it as the value,
			if id == "" {
				id = leaf(e.key) // the host index in the key
			}
			queries[i] = query{key: s.keys.record(imprint.InstanceID(id)), revision: revision}
		}
		pages, err := s.kv.readAll(ctx, queries)
		if err != nil {
			return nil, err
		}
		for i := range pages {
			found := pages[i].first()
			if found == nil {
				continue
			}
			r, err := decodeRecord(found)
			if err != nil {
				return nil, err
			}
			instances = append(instances, &r.Instance)
		}
		entries = entries[n:]
	}
	return instances, nil
}

// Events returns the timeline of an instance after the event numbered after,
// oldest first; at most [imprint.MaxEvents]. An unknown instance has none.
func (s *Store) Events(ctx context.Context, id imprint.InstanceID, seen uint64) ([]imprint.Event, error) {
	p, err := s.kv.read(ctx, query{key: s.keys.events(id, seen+1), end: after(s.keys.timeline(id))})
	if err != nil {
		return nil, during(err, "read", "timeline of "+string(id))
	}
	var events []imprint.Event
	for i := range p.pairs {
		together, err := decodeEvents(&p.pairs[i])
		if err != nil {
			return nil, err
		}
		events = append(events, together...)
	}
	// The first change may have begun with older ones.
	if n := len(events); n > 0 {
		oldest := max(seen, events[n-1].Seq-min(events[n-1].Seq, imprint.MaxEvents)) + 1
		events = events[slices.IndexFunc(events, func(e imprint.Event) bool { return e.Seq >= oldest }):]
	}
	return events, nil
}

// decodeEvents returns the events of one change, or the one event that was stored
// under a key when each had a key of its own.
func decodeEvents(p *pair) ([]imprint.Event, error) {
	var events []imprint.Event
	value := p.value
	if bytes.HasPrefix(value, []byte("{")) {
		value = slices.Concat([]byte("["), value, []byte("]"))
	}
	if err := json.Unmarshal(value, &events); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "decode", p.key, "%w", err)
	}
	return events, nil
}

func noInstance(op string, id imprint.InstanceID) error {
	return imprint.Errorf(imprint.NotFound, op, string(id), "there is no such instance").
		WithHint("list the instances with: imprint get")
}

// during says what was being done when the key-value store failed with err.
func during(err error, op, operand string) error {
	return imprint.Errorf(imprint.KindOf(err), op, operand, "%w", err)
}
