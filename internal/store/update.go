package store

import (
	"context"
	"math/rand/v2"
	"time"

	"imprint"
)

const (
	// maxConflicts is how often a change that lost against another one is
	// decided again before it is given up.
	maxConflicts = 64
	// The wait before the n-th repetition is random, up to min(n*backoffStep, backoffLimit).
	backoffStep  = 500 * time.Microsecond
	backoffLimit = 20 * time.Millisecond
)

// Update reads an instance, lets decide change it and say what else to write,
// and stores all of it in one transaction, provided that nobody changed the
// instance in between; else decide is asked again with the newer one. So decide
// must have no effects of its own. An error of decide is returned as it is and
// nothing is written. With [imprint.Change.Keep] the record's own fields and
// its reminder stay as they were, while events, key, revocations and log entry,
// if there are any, are written.
//
// Update returns the instance as stored, whose Updated is now. It fails with
// kind [imprint.NotFound] if there is no such instance, [imprint.Exists] if the
// key or a new name is taken, [imprint.Invalid] if decide changed the id, the
// tenant or a name to something malformed, and [imprint.Unavailable] if others
// kept changing the instance.
func (s *Store) Update(ctx context.Context, id imprint.InstanceID, decide func(*imprint.Instance) (imprint.Change, error)) (*imprint.Instance, error) {
	return s.change(ctx, "update", id, decide, s.rewrite)
}

// Delete removes an instance as Update changes one: its record, timeline, name,
// placement, reminder and sealed parameters go, together with writing the
// change's revocations. Key bindings, revocations and the id stay taken, so that
// no key, no certificate and no identity comes back to life. It fails like Update.
func (s *Store) Delete(ctx context.Context, id imprint.InstanceID, decide func(*imprint.Instance) (imprint.Change, error)) error {
	_, err := s.change(ctx, "delete", id, decide, s.erase)
	return err
}

// planner turns a decision into an edit: cur is the stored instance, which it
// does not change, and next what decide left of a copy, which it may keep. A nil
// edit means that there is nothing to write.
type planner func(cur *record, next *imprint.Instance, c *imprint.Change) (*edit, error)

func (s *Store) change(ctx context.Context, op string, id imprint.InstanceID, decide func(*imprint.Instance) (imprint.Change, error), plan planner) (*imprint.Instance, error) {
	// The first read may lag behind other servers: a change is compared with
	// the newest record anyway. An answer that writes nothing is confirmed.
	found, err := s.find(ctx, op, id, true)
	if err != nil {
		return nil, err
	}
	confirmed := false
	var owned binding // found to be in the store already
	for conflicts := range maxConflicts {
		next, c, e, err := decideOnce(found, decide, plan, owned)
		if e == nil {
			if confirmed {
				return next, err
			}
			newest, readErr := s.find(ctx, op, id, false)
			switch {
			case readErr != nil:
				return nil, readErr
			case newest.Revision == found.Revision:
				return next, err
			}
			found, confirmed = newest, true
			continue
		}
		out, err := s.committer.commit(ctx, e.txn)
		if err != nil {
			return nil, during(err, op, next.Ref())
		}
		if out.applied {
			return e.applied(s, out.revision), nil
		}
		newest, err := s.present(op, id, out.pages[0])
		if err != nil {
			return nil, err
		}
		if newest.Revision == found.Revision { // so it was the key or the name
			mine := binding{c.BindKey, id, next.Generation}
			switch owner, bound, err := e.owner(out, c.BindKey); {
			case err != nil:
				return nil, err
			case !bound:
				return nil, nameTaken(op, next)
			case owner != mine:
				return nil, keyTaken(op, next, c.BindKey)
			}
			owned = mine
			continue
		}
		found, confirmed = newest, true
		if err := pause(ctx, conflicts); err != nil {
			return nil, during(err, op, next.Ref())
		}
	}
	return nil, imprint.Errorf(imprint.Unavailable, op, string(id), "it was changed by others %d times in a row", maxConflicts)
}

// decideOnce asks decide about a copy of found and plans what to write.
func decideOnce(found *record, decide func(*imprint.Instance) (imprint.Change, error), plan planner, owned binding) (*imprint.Instance, *imprint.Change, *edit, error) {
	next := found.Clone()
	c, err := decide(next)
	if err != nil {
		return nil, nil, nil, err
	}
	if c.Keep { // what decide did to its copy does not count
		next = found.Clone()
	}
	if owned == (binding{c.BindKey, next.ID, next.Generation}) {
		c.BindKey = ""
	}
	e, err := plan(found, next, &c)
	if err != nil {
		return nil, nil, nil, err
	}
	return next, &c, e, nil
}

// find reads an instance, which nobody may change; if it may be stale, first
// from memory.
func (s *Store) find(ctx context.Context, op string, id imprint.InstanceID, stale bool) (*record, error) {
	if stale {
		if found := s.recent.find(id); found != nil {
			return found, nil
		}
	}
	p, err := s.kv.read(ctx, query{key: s.keys.record(id), stale: stale})
	if err != nil {
		return nil, during(err, op, string(id))
	}
	if stale && len(p.pairs) == 0 {
		return s.find(ctx, op, id, false)
	}
	return s.present(op, id, p)
}

// present returns the instance that p, a page of its record, has.
func (s *Store) present(op string, id imprint.InstanceID, p page) (*record, error) {
	if found := p.first(); found != nil {
		return decodeRecord(found)
	}
	s.recent.forget(id)
	return nil, noInstance(op, id)
}

// pause waits a random time that grows with the number of conflicts.
func pause(ctx context.Context, conflicts int) error {
	limit := min(time.Duration(conflicts)*backoffStep, backoffLimit)
	if limit == 0 {
		return nil
	}
	return sleep(ctx, rand.N(limit))
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return imprint.Errorf(imprint.Unavailable, "wait", "", "%w", ctx.Err())
	}
}
