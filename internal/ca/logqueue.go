package ca

import (
	"context"
	"crypto/sha256"
	"maps"
	"time"

	"github.com/transparency-dev/tessera"

	"imprint"
)

// How entries get from the queue into the tree.
const (
	logBatch   = 1024             // entries that are read from the queue at once
	logRetry   = time.Second      // after the disk or the queue refused
	doubtTime  = time.Hour        // for which it is remembered that an entry may have been queued
	lingerTime = 10 * time.Second // for which an entry is known that left the queue, to whoever saw it there
)

// arrival is a queued entry on its way into the tree.
type arrival struct {
	entry imprint.LogEntry
	done  chan struct{} // closed when the tree has it, or when that failed
	floor uint64        // its index will be no less
	index uint64        // valid when done, without err
	err   error         // valid when done
	left  time.Time     // when it left the queue; 0 before
}

// landed reports whether the tree has the entry.
func (a *arrival) landed() bool {
	select {
	case <-a.done:
		return a.err == nil
	default:
		return false
	}
}

// remembered reports whether a is of an entry that the tree had when it was
// opened, and that was not seen in the queue.
func (a *arrival) remembered() bool { return a.entry.Log == "" }

// arrival returns the arrival of e. If it is new, land brings it about.
func (l *Log) arrival(e *imprint.LogEntry) (a *arrival, land func()) {
	hash := sha256.Sum256(e.Data)
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.arrivals[hash]; a != nil {
		if a.remembered() {
			a.entry = *e
		}
		return a, nil
	}
	floor, _ := l.driver.IntegratedSize(l.ctx) // never fails
	a = &arrival{entry: *e, done: make(chan struct{}), floor: floor}
	l.arrivals[hash] = a
	future := l.append(l.ctx, tessera.NewEntry(e.Data))
	return a, func() {
		index, err := future()
		l.note(func(f *failures) {
			if a.index = index.Index; err != nil {
				a.err = unwritable(l.name, l.Dir, err)
				delete(l.arrivals, hash)
			}
			f.tree = a.err
		})
		close(a.done)
		if err != nil {
			poke(l.wake)
		}
		poke(l.driver.dirty) // a checkpoint may have covered it before it was known to have landed
	}
}

// run looks into the queue when it is woken, until the log is closed, and once more then.
func (l *Log) run() {
	for {
		select {
		case <-l.wake:
		case <-l.closing:
			l.look()
			return
		}
		if l.look() == nil {
			continue
		}
		select {
		case <-time.After(logRetry):
			poke(l.wake)
		case <-l.closing:
		}
	}
}

// look takes in what is queued and has not arrived by itself: what a crash left,
// what could not be written, and what was in doubt.
func (l *Log) look() error {
	l.mu.Lock()
	l.looks++
	begun := l.looks
	l.mu.Unlock()
	var after imprint.LogEntry
	for more := true; more; {
		queued, err := l.Queue.Queued(l.ctx, l.name, after, logBatch)
		if err == nil {
			err = l.takeInAll(queued)
		}
		if err != nil {
			l.note(func(f *failures) { f.look = err })
			return err
		}
		if more = len(queued) == logBatch; more {
			after = queued[len(queued)-1]
		}
	}
	l.note(func(f *failures) {
		f.look, l.looked = nil, begun
		maps.DeleteFunc(l.arrivals, func(_ [sha256.Size]byte, a *arrival) bool { return a.remembered() })
		maps.DeleteFunc(l.owed, func(_ imprint.Serial, since time.Time) bool { return time.Since(since) > doubtTime })
	})
	poke(l.driver.dirty) // there may be something to take out of the queue
	return nil
}

// takeInAll takes in entries together.
func (l *Log) takeInAll(queued []imprint.LogEntry) error {
	var arrivals []*arrival
	var land []func()
	for i := range queued {
		a, f := l.arrival(&queued[i])
		arrivals = append(arrivals, a)
		if f != nil {
			land = append(land, f)
		}
	}
	for _, f := range land {
		f()
	}
	for _, a := range arrivals {
		if <-a.done; a.err != nil {
			return a.err
		}
	}
	l.note(func(*failures) {
		for i := range queued {
			delete(l.owed, queued[i].Serial)
		}
	})
	return nil
}

// covered takes out of the queue what is under a checkpoint over size entries.
func (l *Log) covered(size uint64) {
	now := time.Now()
	var entries []imprint.LogEntry
	var leaving []*arrival
	signed := size // of entries that left the queue; all before, and none that is still landing
	l.mu.Lock()
	for hash, a := range l.arrivals {
		switch {
		case !a.left.IsZero():
			if now.Sub(a.left) > lingerTime {
				delete(l.arrivals, hash)
			}
		case a.landed() && a.index < size && !a.remembered():
			leaving = append(leaving, a)
			if a.entry.Log == l.name {
				entries = append(entries, a.entry)
			}
		case !a.landed():
			signed = min(signed, a.floor)
		}
	}
	l.mu.Unlock()
	var err error
	if len(entries) > 0 {
		// Only what has no entry left in the queue is noted: after a crash the rest is looked for there.
		err = l.Queue.Dequeue(l.ctx, l.name, entries, max(l.signed, signed))
	}
	l.note(func(f *failures) {
		f.checkpoint, f.dequeue = nil, err
		if err != nil {
			return
		}
		for _, a := range leaving {
			a.left, a.entry.Data = now, nil
		}
		l.signed = max(l.signed, signed)
	})
	if err != nil {
		poke(l.driver.dirty)
	}
}

// takeInOf takes in the entry of a certificate if it is in the queue of another log.
func (l *Log) takeInOf(ctx context.Context, log string, serial imprint.Serial) error {
	var after imprint.LogEntry
	for {
		queued, err := l.Queue.Queued(ctx, log, after, logBatch)
		if err != nil || len(queued) == 0 {
			return err
		}
		for i := range queued {
			if queued[i].Serial == serial {
				return l.TakeIn(&queued[i])
			}
		}
		after = queued[len(queued)-1]
	}
}
