package store

import (
	"context"
	"encoding/json"
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
	// Revision is that of the store. All that happened up to it has been told,
	// except while Relist is set; a watch that starts there continues.
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
		if w.scope.Host != "" {
			err = w.placements(ctx, b)
		} else {
			err = w.changes(b)
		}
		if err != nil {
			return err
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

// changes tells one revision of an instance's prefix. One revision is the
// change of one instance, because one transaction is.
func (w *watcher) changes(b batch) error {
	n := Notice{Revision: b.revision}
	tenant := w.scope.Tenant
	for i := range b.changes {
		c := &b.changes[i]
		switch id, leaf := w.store.keys.splitInstance(c.key); {
		case leaf == recordLeaf && c.deleted:
			n.Deleted = id
			if w.scope.Tenant != "" {
				if c.previous == nil {
					return errCompacted // whose it was cannot be known any more
				}
				r, err := decodeRecord(&pair{key: c.key, value: c.previous})
				if err != nil {
					return err
				}
				tenant = r.Spec.Tenant
			}
		case leaf == recordLeaf:
			r, err := decodeRecord(&c.pair)
			if err != nil {
				return err
			}
			n.Instance, tenant = &r.Instance, r.Spec.Tenant
		case !c.deleted: // an event
			var ev imprint.Event
			if err := json.Unmarshal(c.value, &ev); err != nil {
				return imprint.Errorf(imprint.Internal, "decode", c.key, "%w", err)
			}
			n.Events = append(n.Events, ev)
		}
	}
	if n.Instance == nil && n.Deleted == "" || w.scope.Tenant != "" && tenant != w.scope.Tenant {
		return nil
	}
	return w.tell(n)
}

// placements tells one revision of a host's prefix.
func (w *watcher) placements(ctx context.Context, b batch) error {
	for i := range b.changes {
		c := &b.changes[i]
		id := imprint.InstanceID(leaf(c.key))
		n := Notice{Revision: b.revision, Deleted: id}
		if !c.deleted {
			instances, err := w.store.listed(ctx, []pair{c.pair}, b.revision)
			if err != nil {
				return err
			}
			if len(instances) == 0 {
				continue
			}
			n = Notice{Revision: b.revision, Instance: instances[0]}
		}
		if err := w.tell(n); err != nil {
			return err
		}
	}
	return nil
}
