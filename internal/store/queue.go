package store

import (
	"bytes"
	"context"
	"strconv"

	"imprint"
)

// The issuance logs' queues: what was issued is queued by the change that records
// it ([imprint.Change.Log]) and leaves the queue when the log has it.

// Enqueue queues an entry that belongs to no instance.
func (s *Store) Enqueue(ctx context.Context, e imprint.LogEntry) error {
	_, err := s.committer.commit(ctx, txn{then: []op{{verb: put, key: s.keys.logEntry(&e), value: e.Data}}})
	if err != nil {
		return during(err, "queue for", e.Log)
	}
	return nil
}

// Queued returns the oldest entries that wait for a log, at most limit, after
// another one; the zero entry is before all.
func (s *Store) Queued(ctx context.Context, log string, last imprint.LogEntry, limit int) ([]imprint.LogEntry, error) {
	prefix := s.keys.logQueue(log)
	first := prefix
	if last.Log != "" {
		first = s.keys.logEntry(&last) + "\x00"
	}
	p, err := s.kv.read(ctx, query{key: first, end: after(prefix), limit: limit})
	if err != nil {
		return nil, during(err, "read queue of", log)
	}
	entries := make([]imprint.LogEntry, len(p.pairs))
	for i := range p.pairs {
		at, serial, err := s.keys.splitLogEntry(log, p.pairs[i].key)
		if err != nil {
			return nil, imprint.Errorf(imprint.Internal, "decode", p.pairs[i].key, "%w", err)
		}
		entries[i] = imprint.LogEntry{Log: log, At: at, Serial: serial, Data: bytes.Clone(p.pairs[i].value)}
	}
	return entries, nil
}

// Dequeue takes entries out of a log's queue and notes that the log has size
// entries. It may be called again with the same ones.
func (s *Store) Dequeue(ctx context.Context, log string, entries []imprint.LogEntry, size uint64) error {
	const atOnce = maxGroupedOps - 1 // so that other changes can go in the same group
	for {
		n := min(len(entries), atOnce)
		var t txn
		if n == len(entries) { // not before all have left
			t.then = append(t.then, op{verb: put, key: s.keys.logSize(log), value: strconv.AppendUint(nil, size, 10)})
		}
		for i := range entries[:n] {
			t.then = append(t.then, op{verb: remove, key: s.keys.logEntry(&entries[i])})
		}
		if _, err := s.committer.commit(ctx, t); err != nil {
			return during(err, "take from queue of", log)
		}
		if entries = entries[n:]; len(entries) == 0 {
			return nil
		}
	}
}

// LogSize returns the size that Dequeue noted last for a log, or 0: a log that is
// smaller was cut back.
func (s *Store) LogSize(ctx context.Context, log string) (uint64, error) {
	p, err := s.kv.read(ctx, query{key: s.keys.logSize(log)})
	if err != nil {
		return 0, during(err, "read size of", log)
	}
	found := p.first()
	if found == nil {
		return 0, nil
	}
	size, err := strconv.ParseUint(string(found.value), 10, 64)
	if err != nil {
		return 0, imprint.Errorf(imprint.Internal, "decode", found.key, "%w", err)
	}
	return size, nil
}
