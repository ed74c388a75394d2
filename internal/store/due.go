package store

import (
	"context"
	"crypto/rand"
	"errors"
	"iter"
	"time"

	"imprint"
)

const (
	// An alarm rings no sooner and no later than this, so that a reminder that
	// its reader did not settle comes again, and a lease that a new leader of
	// the cluster renewed delays nothing for long.
	alarmMin = time.Second
	alarmMax = time.Minute
)

// Due yields the instances whose [imprint.Change.WakeAt] has passed, starting
// with those that passed while nobody asked. A reminder comes a few seconds
// late at most (etcd's leases are that coarse), and again after a minute for as
// long as the instance's WakeAt stays in the past, on every server that asks.
//
// Reminders are an index in the order of time. The server sets one alarm, a key
// with a lease, for the next of them, so that changes of instances cost no
// lease, and looks at the index again when the alarm's lease has deleted it.
//
// The sequence ends when ctx ends or the reader stops; an error does not end it
// and says that the store cannot be reached at the moment.
func (s *Store) Due(ctx context.Context) iter.Seq2[imprint.InstanceID, error] {
	return func(yield func(imprint.InstanceID, error) bool) {
		d := reminders{store: s, alarm: s.keys.alarm(rand.Text()), yield: yield}
		for {
			err := d.run(ctx)
			if err == errStopped || ctx.Err() != nil {
				return
			}
			if err != nil && !errors.Is(err, errCompacted) {
				if !yield("", during(err, "watch", "reminders")) || sleep(ctx, watchPauseMax) != nil {
					return
				}
			}
		}
	}
}

// reminders is one running Due.
type reminders struct {
	store *Store
	alarm string // its key
	given map[string]given
	yield func(imprint.InstanceID, error) bool
}

// given says which write of a reminder was yielded, and when.
type given struct {
	modified int64
	at       time.Time
}

// run yields what is due now and waits until it is worth looking again.
func (d *reminders) run(ctx context.Context) error {
	next, revision, err := d.sweep(ctx)
	if err != nil {
		return err
	}
	return d.sleep(ctx, next, revision)
}

// sweep yields what is due and returns when the next reminder is, or zero, and
// the revision up to which it has looked.
func (d *reminders) sweep(ctx context.Context) (next time.Time, revision int64, err error) {
	keys := d.store.keys
	now := d.store.now()
	before := d.given
	d.given = make(map[string]given)
	for from, more := keys.wakes(), true; more; {
		p, err := d.store.kv.read(ctx, query{key: from, end: after(keys.wakes()), limit: indexPage, keysOnly: true})
		if err != nil {
			return time.Time{}, 0, err
		}
		if revision == 0 {
			revision = p.revision
		}
		for _, entry := range p.pairs {
			at, id, ok := keys.splitWake(entry.key)
			if !ok {
				continue
			}
			if at.After(now) {
				return at, revision, nil
			}
			g := before[entry.key]
			if g.modified != entry.modified || now.Sub(g.at) >= alarmMax {
				g = given{entry.modified, now}
				if !d.yield(id, nil) {
					return time.Time{}, 0, errStopped
				}
			}
			d.given[entry.key] = g
		}
		if more = p.more; more {
			from = p.pairs[len(p.pairs)-1].key + "\x00"
		}
	}
	return time.Time{}, revision, nil
}

// sleep sets the alarm for next and waits until it rings or an earlier
// reminder is written after revision.
func (d *reminders) sleep(ctx context.Context, next time.Time, revision int64) error {
	s := d.store
	now := s.now()
	ttl := alarmMax
	if !next.IsZero() {
		ttl = min(max(next.Sub(now), alarmMin), alarmMax)
	}
	lease, err := s.kv.grant(ctx, ttl)
	if err != nil {
		return err
	}
	defer s.kv.revoke(context.WithoutCancel(ctx), lease) // an alarm that nobody hears ends by itself
	set := txn{then: []op{{verb: put, key: d.alarm, lease: lease}}}
	if _, err := s.committer.commit(ctx, set); err != nil {
		return err
	}
	rings := now.Add(ttl)
	q := watch{key: s.keys.wakes(), end: after(s.keys.wakes()), revision: revision + 1}
	for b, err := range s.kv.watch(ctx, q) {
		if err != nil {
			return err
		}
		for _, c := range b.changes {
			if c.key == d.alarm && c.deleted {
				return nil
			}
			at, _, ok := s.keys.splitWake(c.key)
			if ok && !c.deleted && at.Before(rings.Add(-alarmMin)) {
				return nil
			}
		}
	}
	return nil
}
