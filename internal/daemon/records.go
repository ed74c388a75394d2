package daemon

import (
	"context"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"imprint"
	"imprint/internal/ca"
	"imprint/internal/enrol"
	"imprint/internal/store"
)

// How long who serves a machine waits for the issuance log to have its
// certificate, and how long until a certificate that was withheld is tried again.
const (
	logWait  = 2 * time.Second
	logRetry = time.Second
)

// records is the store as those see it who speak for machines: the enrolment
// engine, and the hosts. A certificate is in it when the issuance log has it.
type records struct {
	*store.Store
	log    *ca.Log
	logger *slog.Logger

	mu       sync.Mutex
	withheld map[imprint.InstanceID]struct{} // whose certificate hosts were not told
}

func newRecords(s *store.Store, log *ca.Log, logger *slog.Logger) *records {
	return &records{Store: s, log: log, logger: logger, withheld: map[imprint.InstanceID]struct{}{}}
}

// Update is the store's. What is issued it takes into the log. It fails if that
// cannot be written; the certificate is on record then and leaves later.
func (r *records) Update(ctx context.Context, id imprint.InstanceID, decide func(*imprint.Instance) (imprint.Change, error)) (*imprint.Instance, error) {
	var queued *imprint.LogEntry
	inst, err := r.Store.Update(ctx, id, func(i *imprint.Instance) (imprint.Change, error) {
		c, err := decide(i)
		if queued = c.Log; queued != nil {
			r.log.Expect(queued) // whoever watches must not be earlier
		}
		return c, err
	})
	switch {
	case err != nil && queued != nil:
		r.log.Doubt()
	case err != nil:
	case queued != nil:
		err = r.log.TakeIn(queued)
	default:
		err = r.logged(ctx, inst)
	}
	if err != nil {
		return nil, err
	}
	return inst, nil
}

// logged returns when the issuance log has i's certificate, if there is one.
func (r *records) logged(ctx context.Context, i *imprint.Instance) error {
	if c := i.Enrolment.Certificate; c != nil {
		return r.log.Await(ctx, c.Log, c.Serial)
	}
	return nil
}

// Watch is the store's, for hosts. Of an instance whose certificate the log does
// not get for some time, because it cannot be written, they hear without it, and
// again when the log has it.
func (r *records) Watch(ctx context.Context, scope store.Scope, from int64) iter.Seq2[store.Notice, error] {
	return func(yield func(store.Notice, error) bool) {
		for n, err := range r.Store.Watch(ctx, scope, from) {
			if n.Instance != nil && !r.loggedSoon(ctx, n.Instance) {
				n.Instance = r.withhold(n.Instance)
			}
			if !yield(n, err) {
				return
			}
		}
	}
}

func (r *records) loggedSoon(ctx context.Context, i *imprint.Instance) bool {
	ctx, cancel := context.WithTimeout(ctx, logWait)
	defer cancel()
	return r.logged(ctx, i) == nil
}

func (r *records) withhold(i *imprint.Instance) *imprint.Instance {
	i = i.Clone()
	i.Enrolment.Certificate = nil
	r.mu.Lock()
	defer r.mu.Unlock()
	r.withheld[i.ID] = struct{}{}
	return i
}

// release tells hosts of certificates that were withheld, until ctx ends.
func (r *records) release(ctx context.Context) error {
	tick := time.NewTicker(logRetry)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		r.mu.Lock()
		ids := slices.Collect(maps.Keys(r.withheld))
		r.mu.Unlock()
		for _, id := range ids {
			if err := r.tell(ctx, id); err != nil {
				r.logger.WarnContext(ctx, "certificate withheld", "instance", id, "error", err)
				break // the log is the same for all
			}
		}
	}
}

// tell has hosts hear of an instance again, if the log has its certificate.
func (r *records) tell(ctx context.Context, id imprint.InstanceID) error {
	i, err := r.Store.Instance(ctx, id)
	if err == nil {
		err = r.logged(ctx, i)
	}
	if err == nil {
		r.forget(id) // before the notice, for that may be withheld again
		_, err = r.Store.Update(ctx, id, func(i *imprint.Instance) (imprint.Change, error) {
			return imprint.Change{WakeAt: enrol.WakeAt(i)}, nil
		})
	}
	if imprint.KindOf(err) == imprint.NotFound { // deleted meanwhile
		r.forget(id)
		return nil
	}
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.withheld[id] = struct{}{}
	}
	return err
}

func (r *records) forget(id imprint.InstanceID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.withheld, id)
}
