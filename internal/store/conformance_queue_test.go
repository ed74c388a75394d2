package store

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"imprint"
)

// testLogQueue: an entry is queued with the change that issued it or not at all,
// comes out oldest first, and stays until the log has it.
func testLogQueue(t *testing.T, s *Store) {
	const log = "imprint/queue.example"
	ctx := t.Context()
	entry := func(n int) imprint.LogEntry {
		return imprint.LogEntry{Log: log, At: time.UnixMilli(int64(1000 + n)).UTC(), Serial: imprint.Serial(fmt.Sprintf("%02x", 99-n)), Data: fmt.Appendf(nil, "entry %d", n)}
	}
	waiting := func(want ...int) []imprint.LogEntry {
		t.Helper()
		queued, err := s.Queued(ctx, log, imprint.LogEntry{}, 100)
		if err != nil {
			t.Fatal(err)
		}
		if len(queued) != len(want) {
			t.Fatalf("%d entries wait, want %d", len(queued), len(want))
		}
		for i, n := range want {
			if fmt.Sprint(queued[i]) != fmt.Sprint(entry(n)) {
				t.Fatalf("entry %d is %+v", n, queued[i])
			}
		}
		return queued
	}
	waiting()

	i := create(t, s, "queued")
	second, first, lost := entry(2), entry(1), entry(3)
	for _, e := range []imprint.LogEntry{second, first} {
		update(t, s, i.ID, func(*imprint.Instance) (imprint.Change, error) {
			return imprint.Change{Log: &e, Keep: e.Serial == first.Serial}, nil
		})
	}
	other := entry(0)
	other.Log = "imprint/queue.example.net"
	if err := s.Enqueue(ctx, other); err != nil {
		t.Fatal(err)
	}
	declined := errors.New("declined")
	if _, err := s.Update(ctx, i.ID, func(*imprint.Instance) (imprint.Change, error) { return imprint.Change{Log: &lost}, declined }); !errors.Is(err, declined) {
		t.Fatal(err)
	}
	taken := imprint.KeyID("queue-key")
	if err := s.Create(ctx, newInstance("queue-owner"), nil, imprint.Change{BindKey: taken}); err != nil {
		t.Fatal(err)
	}
	_, err := s.Update(ctx, i.ID, func(*imprint.Instance) (imprint.Change, error) {
		return imprint.Change{BindKey: taken, Log: &lost}, nil
	})
	wantKind(t, err, imprint.Exists)
	queued := waiting(1, 2)
	if few, err := s.Queued(ctx, log, imprint.LogEntry{}, 1); err != nil || len(few) != 1 || few[0].Serial != first.Serial {
		t.Fatalf("%+v, %v", few, err)
	}
	if rest, err := s.Queued(ctx, log, queued[0], 10); err != nil || len(rest) != 1 || rest[0].Serial != queued[1].Serial {
		t.Fatalf("after the first: %+v, %v", rest, err)
	}

	if size, err := s.LogSize(ctx, log); size != 0 || err != nil {
		t.Fatalf("a log that took nothing has %d entries: %v", size, err)
	}
	for range 2 { // a reply may get lost
		if err := s.Dequeue(ctx, log, queued[:1], 7); err != nil {
			t.Fatal(err)
		}
	}
	waiting(2)
	if size, err := s.LogSize(ctx, log); size != 7 || err != nil {
		t.Fatalf("size %d, %v", size, err)
	}

	var many []int
	for n := 10; n < 160; n++ { // more than one transaction takes
		if err := s.Enqueue(ctx, entry(n)); err != nil {
			t.Fatal(err)
		}
		many = append(many, n)
	}
	queued, err = s.Queued(ctx, log, imprint.LogEntry{}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Dequeue(ctx, log, queued[:1], 8); err != nil {
		t.Fatal(err)
	}
	if err := s.Dequeue(ctx, log, queued[1:], 158); err != nil {
		t.Fatal(err)
	}
	waiting()
	if size, err := s.LogSize(ctx, log); size != 158 || err != nil {
		t.Fatalf("size %d after %d entries, %v", size, len(many), err)
	}
}
