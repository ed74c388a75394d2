package store

import (
	"testing"

	"imprint"
)

// However many records are remembered, their size stays within the limit, and
// those that came last are there.
func TestRecentIsBounded(t *testing.T) {
	const each = maxRecentRecord / 2
	const half = maxRecent / 2 / (each + decodedOverhead)
	r := new(recent)
	var ids []imprint.InstanceID
	for range 4 * half {
		id := imprint.NewInstanceID()
		ids = append(ids, id)
		r.remember(id, new(record), each)
		r.remember(id, new(record), each) // counts once
		if n := len(r.young) + len(r.old); n*(each+decodedOverhead) > maxRecent {
			t.Fatalf("%d records of %d bytes are remembered; the limit is %d bytes", n, each, maxRecent)
		}
		if len(ids)%(half/4) != 0 {
			continue
		}
		for _, last := range ids[max(0, len(ids)-half):] {
			if r.find(last) == nil {
				t.Fatalf("one of the last %d records is not remembered", half)
			}
		}
	}
	for _, id := range ids {
		r.forget(id)
	}
	if r.size != 0 || len(r.young)+len(r.old) != 0 {
		t.Errorf("%d records of %d bytes are left when all were forgotten", len(r.young)+len(r.old), r.size)
	}
	id := imprint.NewInstanceID()
	r.remember(id, new(record), each)
	r.remember(id, new(record), maxRecentRecord+1)
	if r.find(id) != nil {
		t.Error("an old record is found in place of a new one that is too large to remember")
	}
}
