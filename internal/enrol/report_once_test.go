package enrol_test

import (
	"testing"
	"time"

	"imprint"
)

// TestReportSentAgain: a host that does not know whether a report arrived sends
// it again, and it is on the timeline once, with the time at which it was made.
func TestReportSentAgain(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	seen := w.now.Add(-time.Hour)
	read := func(number string) {
		t.Helper()
		r := said(id, imprint.ReportRead, "db", "")
		r.ID, r.Seen = number, seen
		if err := w.engine.Report(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	before := len(w.events(id, 0))
	for range 3 {
		read("one")
	}
	if got := len(w.events(id, 0)) - before; got != 1 {
		t.Errorf("one report that came three times is %d events", got)
	}
	if e := w.last(id); e.Kind != imprint.EventRead || e.Detail["seen"] != seen.UTC().Format(time.RFC3339) {
		t.Errorf("the event is %+v", e)
	}
	read("two")
	if got := len(w.events(id, 0)) - before; got != 2 {
		t.Errorf("two reports are %d events", got)
	}

	// A report of a host that the instance is not placed on leaves no trace of its ID.
	foreign := said(id, imprint.ReportRead, "db", "")
	foreign.ID, foreign.Witness = "three", "elsewhere"
	wantKind(t, w.engine.Report(t.Context(), foreign), imprint.Denied)
	before = len(w.events(id, 0))
	read("three")
	if got := len(w.events(id, 0)) - before; got != 1 {
		t.Errorf("a report whose ID another host had used is %d events", got)
	}
}
