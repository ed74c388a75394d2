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

// The machine says with its certificate what became of its medium, which is known by its
// files. It does not gainsay whoever took the medium away, or is about to.
func TestTheMachineSettlesItsMedium(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	for n, m := range []imprint.Medium{{Carrier: "partition", Digest: "d1"}, {Carrier: "iso", Digest: "d2", Attended: true}, {Carrier: "fat", Digest: "d3"}, {Carrier: "fat", Digest: "d1"}} {
		m.Generation, m.Dialect = 1, "native"
		if number, err := w.engine.GiveOut(t.Context(), id, m, "root"); err != nil || number != uint32(n+1) {
			t.Fatal(number, err)
		}
	}
	serial := w.enrol(t, id, newMachine(t)).Enrolment.Certificate.Serial
	say := func(digest imprint.Digest, state imprint.MediumState, detail string) error {
		return w.engine.Report(t.Context(), imprint.Report{
			Instance: id, Generation: 1, Channel: imprint.NetworkEST, Kind: imprint.ReportMedium, Serial: serial, From: "the machine",
			Medium: &imprint.MediumEnd{Digest: digest, State: state, Detail: detail},
		})
	}
	expect := func(number int, state imprint.MediumState, detail string) {
		t.Helper()
		if m := w.get(id).Media[number-1]; m.State != state || m.Detail != detail {
			t.Errorf("medium %d: %+v", number, m)
		}
	}
	events := func() int { return len(w.events(id, 0)) }

	if err := say("d1", imprint.MediumLeft, "it is mounted"); err != nil {
		t.Fatal(err)
	}
	expect(1, imprint.MediumLeft, "it is mounted")
	if e := w.last(id); e.Kind != imprint.EventLeft || e.Channel != imprint.NetworkEST || e.Detail["why"] != "it is mounted" || e.Detail["by"] != "the machine" || e.Detail["medium"] != "1" {
		t.Errorf("on the timeline: %+v", e)
	}
	n := events()
	if err := say("d1", imprint.MediumLeft, "it is still mounted"); err != nil || events() != n {
		t.Errorf("said again: %v, %d events more", err, events()-n)
	}
	if err := say("d1", imprint.MediumTaken, "zeroed"); err != nil {
		t.Fatal(err)
	}
	expect(1, imprint.MediumTaken, "zeroed")
	expect(4, imprint.MediumOut, "")
	if e := w.last(id); e.Kind != imprint.EventTaken || e.Detail["how"] != "zeroed" {
		t.Errorf("on the timeline: %+v", e)
	}

	// Whoever runs the machine takes it away: that it is read-only is no news.
	n = events()
	if err := say("d2", imprint.MediumLeft, "for reading only"); err != nil || events() != n {
		t.Errorf("an attended one: %v", err)
	}
	expect(2, imprint.MediumOut, "")
	if err := w.engine.SettleMedium(t.Context(), id, 2, imprint.MediumTaken, "CD ejected", "root"); err != nil {
		t.Fatal(err)
	}
	n = events()
	for _, state := range []imprint.MediumState{imprint.MediumLeft, imprint.MediumTaken} {
		if err := say("d2", state, "something else"); err != nil || events() != n {
			t.Errorf("after it was taken: %v", err)
		}
	}
	expect(2, imprint.MediumTaken, "CD ejected")

	wantKind(t, say("d9", imprint.MediumTaken, "zeroed"), imprint.NotFound)
	if events() != n {
		t.Error("what is on no record is on the timeline")
	}
	wantKind(t, say("d3", imprint.MediumOut, "here it is"), imprint.Invalid)
	wantKind(t, say("d3", imprint.MediumTaken, ""), imprint.Invalid)
	for name, change := range map[string]func(*imprint.Report){
		"no certificate":   func(r *imprint.Report) { r.Serial = "" },
		"another's":        func(r *imprint.Report) { r.Serial = "123456" },
		"its host":         func(r *imprint.Report) { r.Serial, r.Channel, r.Witness = "", imprint.Serial2, placed },
		"nothing said":     func(r *imprint.Report) { r.Medium = nil },
		"of another life":  func(r *imprint.Report) { r.Generation = 2 },
		"host and serial":  func(r *imprint.Report) { r.Witness = placed },
		"unknown channels": func(r *imprint.Report) { r.Channel = "smoke" },
	} {
		r := imprint.Report{Instance: id, Generation: 1, Channel: imprint.NetworkEST, Kind: imprint.ReportMedium, Serial: serial, Medium: &imprint.MediumEnd{Digest: "d3", State: imprint.MediumTaken, Detail: "zeroed"}}
		change(&r)
		if err := w.engine.Report(t.Context(), r); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	expect(3, imprint.MediumOut, "")
}
