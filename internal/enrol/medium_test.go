package enrol_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"imprint"
)

// What was given out is on record until somebody says what became of it, and
// longer than its generation.
func TestMediaAreRemembered(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	give := func(gen imprint.Generation) (uint32, error) {
		return w.engine.GiveOut(t.Context(), id, imprint.Medium{Generation: gen, Dialect: "native", Carrier: "iso", Digest: "d1", Token: true}, "root")
	}
	settle := func(number uint32, state imprint.MediumState, detail string) error {
		return w.engine.SettleMedium(t.Context(), id, number, state, detail, "ann")
	}
	for want := range uint32(2) {
		if n, err := give(1); err != nil || n != want+1 {
			t.Fatalf("number %d, %v; want %d", n, err, want+1)
		}
	}
	if _, err := give(2); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("of another generation: %v", err)
	}
	got := w.get(id).Media
	want := imprint.Medium{Number: 1, Generation: 1, Dialect: "native", Carrier: "iso", Digest: "d1", Token: true, At: w.now, By: "root", State: imprint.MediumOut}
	if len(got) != 2 || got[0] != want {
		t.Fatalf("on record: %+v", got)
	}
	if e := w.last(id); e.Kind != imprint.EventMedium || e.Detail["medium"] != "2" || e.Detail["token"] != "one-time" || e.Detail["by"] != "root" || e.Detail["digest"] != "d1" {
		t.Errorf("on the timeline: %+v", e)
	}
	if _, err := w.engine.Rebirth(t.Context(), id, "root"); err != nil {
		t.Fatal(err)
	}
	if len(w.get(id).Media) != 2 {
		t.Error("a rebirth forgot the media of the generation before")
	}

	wantKind(t, settle(3, imprint.MediumTaken, "x"), imprint.NotFound)
	wantKind(t, settle(1, imprint.MediumOut, "x"), imprint.Invalid)
	wantKind(t, settle(1, "lost", "x"), imprint.Invalid)
	wantKind(t, settle(1, imprint.MediumTaken, ""), imprint.Invalid)
	if err := settle(1, imprint.MediumLeft, "in\nuse"+strings.Repeat("!", 1000)); err != nil {
		t.Fatal(err)
	}
	if m := w.get(id).Media[0]; m.State != imprint.MediumLeft || !strings.HasPrefix(m.Detail, "in?use!") || len(m.Detail) > 300 || !m.Settled.Equal(w.now) {
		t.Errorf("left: %+v", m)
	}
	if e := w.last(id); e.Kind != imprint.EventLeft || !strings.HasPrefix(e.Detail["why"], "in?use") || e.Detail["by"] != "ann" {
		t.Errorf("on the timeline: %+v", e)
	}
	if err := settle(1, imprint.MediumTaken, "blanked"); err != nil {
		t.Fatal(err)
	}
	if m := w.get(id).Media[0]; m.State != imprint.MediumTaken || m.Detail != "blanked" || w.get(id).Media[1].State != imprint.MediumOut {
		t.Errorf("taken: %+v", w.get(id).Media)
	}
	if e := w.last(id); e.Kind != imprint.EventTaken || e.Detail["how"] != "blanked" {
		t.Errorf("on the timeline: %+v", e)
	}
	at := w.now
	w.now = w.now.Add(time.Minute)
	if err := settle(1, imprint.MediumTaken, "blanked"); err != nil {
		t.Fatal(err)
	}
	if m, e := w.get(id).Media[0], w.last(id); !m.Settled.Equal(at) || !e.At.Equal(at) {
		t.Errorf("said again: %+v, %+v", m, e)
	}
}

// The record stays small. What was taken away goes first, and what goes although
// it is out is counted.
func TestMediaAreBounded(t *testing.T) {
	t.Parallel()
	var i imprint.Instance
	for n := range imprint.MaxMedia {
		i.Remember(imprint.Medium{State: imprint.MediumOut, By: fmt.Sprint(n)})
	}
	i.Media[5].State = imprint.MediumTaken
	before := i.Media // as a copy of the record has it
	if n := i.Remember(imprint.Medium{State: imprint.MediumOut}); n != imprint.MaxMedia+1 || len(i.Media) != imprint.MaxMedia || i.Media[0].Number != 1 || i.Media[5].Number != 7 || i.MediaForgotten != 0 {
		t.Errorf("number %d, %d on record, %d forgotten", n, len(i.Media), i.MediaForgotten)
	}
	if before[5].Number != 6 {
		t.Error("what shared the record's memory has changed")
	}
	if n := i.Remember(imprint.Medium{State: imprint.MediumOut}); n != imprint.MaxMedia+2 || len(i.Media) != imprint.MaxMedia || i.Media[0].Number != 2 || i.MediaForgotten != 1 {
		t.Errorf("number %d, %d on record, %d forgotten", n, len(i.Media), i.MediaForgotten)
	}
}

// A digest tells files apart that differ only in where one ends and the next begins.
func TestDigestOfFiles(t *testing.T) {
	t.Parallel()
	seen := map[imprint.Digest]int{}
	for n, files := range []map[string][]byte{
		nil, {"": nil}, {"a": []byte("b")}, {"ab": nil}, {"a": nil, "b": nil}, {"a": []byte("b"), "c": nil}, {"a": nil, "b": []byte("c")},
	} {
		d := imprint.DigestOfFiles(files)
		if earlier, twice := seen[d]; twice {
			t.Errorf("%d and %d have the same digest", earlier, n)
		}
		if seen[d] = n; d != imprint.DigestOfFiles(files) {
			t.Errorf("%d has two digests", n)
		}
	}
}
