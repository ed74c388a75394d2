package store

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"time"

	"imprint"
)

// Scope selects what to watch: one instance, the instances placed on a host,
// those of a tenant, or, if it is zero, all. Only one field may be set.
type Scope struct {
	Tenant   imprint.TenantName
	Host     imprint.HostName
	Instance imprint.InstanceID
}

// Notice is one thing that a watch tells. A change of an instance is one notice
// with its record and the events that came with it; other notices have one field.
type Notice struct {
	// Revision is that of the store. All that happened before it has been told,
	// except while Relist is set. Several notices may have one revision, always
	// in the same order; a watch that starts at it continues after the last.
	Revision int64
	// Instance was created, changed, or came to the watched host.
	Instance *imprint.Instance
	// Events were added to its timeline; not told when a host is watched, or
	// by a list.
	Events []imprint.Event
	// Deleted is an instance that was deleted or left the watched host.
	Deleted imprint.InstanceID
	// Relist marks an instance that is part of a list: what there is, changed
	// or not. A watch that starts at revision 0 begins with one, and so does
	// one that fell behind what the store remembers.
	Relist bool
	// Synced ends a list: an instance that the list did not name is gone.
	Synced bool
}

// Pauses before a watch tries again after an error.
const (
	watchPauseMin = 100 * time.Millisecond
	watchPauseMax = 2 * time.Second
)

// Watch tells what happens in scope after the revision from; 0 asks for a list
// of what there is first. The final state of every instance is always told, and
// no change twice; the states in between are told unless the store has
// forgotten them, which shows as another list. A slow reader delays nobody else.
//
// The sequence ends when ctx ends or the reader stops. An error does not end
// it: it says that the store cannot be reached, and a reader that goes on gets
// what it missed as soon as the store is back.
func (s *Store) Watch(ctx context.Context, scope Scope, from int64) iter.Seq2[Notice, error] {
	return func(yield func(Notice, error) bool) {
		w := watcher{store: s, scope: scope, seen: from, yield: yield}
		wait := watchPauseMin
		for {
			before := w.seen
			err := w.run(ctx)
			switch {
			case err == errStopped || ctx.Err() != nil:
				return
			case errors.Is(err, errCompacted):
				w.seen = 0
				continue
			case !yield(Notice{Revision: w.seen}, during(err, "watch", "instances")):
				return
			case w.seen != before:
				wait = watchPauseMin
			}
			if sleep(ctx, wait/2+rand.N(wait/2)) != nil {
				return
			}
			wait = min(2*wait, watchPauseMax)
		}
	}
}

// errStopped says that the reader of a sequence wants no more.
var errStopped = errors.New("the reader stopped")

// indexPage is how many entries of an index a list reads at a time.
const indexPage = 10_000

// watcher is one running Watch.
type watcher struct {
	store *Store
	scope Scope
	seen  int64 // the revision up to which everything was told; 0: nothing
	yield func(Notice, error) bool
}

func (w *watcher) tell(n Notice) error {
	if !w.yield(n, nil) {
		return errStopped
	}
	return nil
}

// run tells a list if one is due and then what changes, until an error.
func (w *watcher) run(ctx context.Context) error {
	s := w.store
	head, err := s.kv.read(ctx, query{key: s.keys.format()})
	if err != nil {
		return err
	}
	// A store that was restored from a backup is behind what the reader saw.
	if w.seen == 0 || w.seen > head.revision {
		if err := w.list(ctx, head.revision); err != nil {
			return err
		}
	}
	q := watch{revision: w.seen + 1}
	switch {
	case w.scope.Instance != "":
		q.key = s.keys.instance(w.scope.Instance)
	case w.scope.Host != "":
		q.key = s.keys.host(w.scope.Host)
	default:
		q.key = s.keys.instances()
		q.previous = w.scope.Tenant != "" // a deletion names no tenant
	}
	q.end = after(q.key)
	for b, err := range s.kv.watch(ctx, q) {
		if err != nil {
			return err
		}
		var notices []Notice
		if w.scope.Host != "" {
			notices, err = w.placements(ctx, b)
		} else {
			notices, err = w.changes(b)
		}
		if err != nil {
			return err
		}
		for _, n := range notices { // all of a revision or, after an error, none
			if err := w.tell(n); err != nil {
				return err
			}
		}
		w.seen = b.revision
	}
	return nil
}

// list tells what there was at revision.
func (w *watcher) list(ctx context.Context, revision int64) error {
	s := w.store
	tell := func(instances []*imprint.Instance) error {
		for _, i := range instances {
			if err := w.tell(Notice{Revision: revision, Instance: i, Relist: true}); err != nil {
				return err
			}
		}
		return nil
	}
	if id := w.scope.Instance; id != "" {
		instances, err := s.listed(ctx, []pair{{value: []byte(id)}}, revision)
		if err == nil {
			err = tell(instances)
		}
		if err != nil {
			return err
		}
	} else {
		index := s.index(w.scope.Tenant, w.scope.Host)
		for from := index; from != ""; {
			p, err := s.kv.read(ctx, query{key: from, end: after(index), limit: indexPage, revision: revision})
			if err != nil {
				return err
			}
			instances, err := s.listed(ctx, p.pairs, revision)
			if err == nil {
				err = tell(instances)
			}
			if err != nil {
				return err
			}
			from = ""
			if p.more {
				from = p.pairs[len(p.pairs)-1].key + "\x00"
			}
		}
	}
	w.seen = revision
	return w.tell(Notice{Revision: revision, Synced: true})
}

// changes returns the notices of one revision of the instances' prefix. The
// changes of an instance are side by side, because one transaction makes them.
func (w *watcher) changes(b batch) ([]Notice, error) {
	var notices []Notice
	for from := 0; from < len(b.changes); {
		id, _ := w.store.keys.splitInstance(b.changes[from].key)
		to := from + 1
		for ; to < len(b.changes); to++ {
			if next, _ := w.store.keys.splitInstance(b.changes[to].key); next != id {
				break
			}
		}
		n, tenant, err := w.change(id, b.changes[from:to])
		if err != nil {
			return nil, err
		}
		n.Revision = b.revision
		if (n.Instance != nil || n.Deleted != "") && (w.scope.Tenant == "" || tenant == w.scope.Tenant) {
			notices = append(notices, n)
		}
		from = to
	}
	return notices, nil
}

// change returns the notice of what changed under one instance's prefix, and
// its tenant, which for a deletion is known only when a tenant is watched.
func (w *watcher) change(id imprint.InstanceID, changes []change) (n Notice, tenant imprint.TenantName, err error) {
	for i := range changes {
		c := &changes[i]
		switch _, leaf := w.store.keys.splitInstance(c.key); {
		case leaf == recordLeaf && c.deleted:
			n.Deleted = id
			if w.scope.Tenant != "" {
				if c.previous == nil {
					return Notice{}, "", errCompacted // whose it was cannot be known any more
				}
				r, err := decodeRecord(&pair{key: c.key, value: c.previous})
				if err != nil {
					return Notice{}, "", err
				}
				tenant = r.Spec.Tenant
			}
		case leaf == recordLeaf:
			r, err := decodeRecord(&c.pair)
			if err != nil {
				return Notice{}, "", err
			}
			n.Instance, tenant = &r.Instance, r.Spec.Tenant
		case !c.deleted:
			together, err := decodeEvents(&c.pair)
			if err != nil {
				return Notice{}, "", err
			}
			n.Events = append(n.Events, together...)
		}
	}
	return n, tenant, nil
}

// placements returns the notices of one revision of a host's prefix.
func (w *watcher) placements(ctx context.Context, b batch) ([]Notice, error) {
	var placed []pair
	for i := range b.changes {
		if !b.changes[i].deleted {
			placed = append(placed, b.changes[i].pair)
		}
	}
	instances, err := w.store.listed(ctx, placed, b.revision)
	if err != nil {
		return nil, err
	}
	var notices []Notice
	for i := range b.changes {
		id := imprint.InstanceID(leaf(b.changes[i].key))
		switch {
		case b.changes[i].deleted:
			notices = append(notices, Notice{Revision: b.revision, Deleted: id})
		case len(instances) > 0 && instances[0].ID == id:
			notices = append(notices, Notice{Revision: b.revision, Instance: instances[0]})
			instances = instances[1:]
		}
	}
	return notices, nil
}
