package enrol_test

import (
	"strings"
	"testing"

	"imprint"
)

var cd = imprint.InstallSetup{
	Media:     []imprint.InstallMedium{{Drive: imprint.BootCD, Path: "/srv/netinst.iso"}},
	BootOrder: []imprint.BootDevice{imprint.BootCD, imprint.BootDisk},
}

// What holds for one installation is kept while that fails, and gone when it
// succeeded; the machine's boots after that are without it.
func TestSetupEndsWithTheInstallationThatSucceeds(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	setup(t, w, id, &cd)
	i := w.get(id)
	if n := i.Setup(); n == nil || n.By != "ann" || !n.Set.Equal(w.now) || n.Generation != 1 || n.Media[0] != cd.Media[0] {
		t.Fatalf("on record: %+v", n)
	}
	if e := w.last(id); e.Kind != imprint.EventSetup || e.Detail["what"] != "media, boot order" || e.Detail["for"] != "generation 1" {
		t.Errorf("on the timeline: %+v", e)
	}
	step := func(s imprint.InstallStep) {
		t.Helper()
		r := imprint.Installation{ID: imprint.DigestOf(nil), Generation: w.get(id).Generation, Step: s, Detail: "x"}
		if _, err := w.engine.ReportInstallation(t.Context(), id, r); err != nil {
			t.Fatal(err)
		}
	}
	step(imprint.InstallStarted)
	step(imprint.InstallFailed)
	if w.get(id).Setup() == nil {
		t.Error("an installation that failed took it away")
	}
	if _, err := w.engine.Rebirth(t.Context(), id, "ann"); err != nil {
		t.Fatal(err)
	}
	if w.get(id).Setup() == nil {
		t.Error("a next attempt is without it")
	}
	step(imprint.InstallStarted)
	step(imprint.InstallFinished)
	if n := w.get(id).InstallSetup; n != nil {
		t.Errorf("an installation that succeeded left %+v", n)
	}
	if e := w.last(id); e.Kind != imprint.EventSetup || e.Detail["what"] != "cleared" {
		t.Errorf("on the timeline: %+v", e)
	}
}

// A machine that confirms has been installed, whoever did it. What is asked for
// while it runs is for its next life: nothing that it does in this one uses it up,
// and it boots without it until then.
func TestSetupOfARunningMachineIsForItsNextLife(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	m := newMachine(t)
	setup(t, w, id, &cd)
	report := func(s imprint.InstallStep) {
		t.Helper()
		if _, err := w.engine.ReportInstallation(t.Context(), id, imprint.Installation{ID: imprint.DigestOf(nil), Generation: 1, Step: s}); err != nil {
			t.Fatal(err)
		}
	}
	report(imprint.InstallStarted)
	w.enrol(t, id, m)
	if n := w.get(id).InstallSetup; n != nil {
		t.Fatalf("a machine that has its identity is left with %+v", n)
	}
	setup(t, w, id, &cd)
	if i := w.get(id); i.InstallSetup == nil || i.InstallSetup.Generation != 2 || i.Setup() != nil {
		t.Fatalf("a running machine has %+v, and boots with %+v", i.InstallSetup, i.Setup())
	}
	report(imprint.InstallFinished) // the machine was quicker than this report
	if err := w.engine.Report(t.Context(), m.confirmation(t, id, 1, w.get(id).Enrolment.Certificate.DER)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.engine.Rebirth(t.Context(), id, "ann"); err != nil {
		t.Fatal(err)
	}
	if w.get(id).Setup() == nil {
		t.Fatal("the next life is without it")
	}
	w.enrol(t, id, newMachine(t))
	if n := w.get(id).InstallSetup; n != nil {
		t.Errorf("it left %+v", n)
	}
}

func TestSetupIsChecked(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	for what, n := range map[string]imprint.InstallSetup{
		"nothing": {}, "a generation alone": {Generation: 7}, "a relative path": {Kernel: "vmlinuz"},
	} {
		if _, err := w.engine.Setup(t.Context(), id, &n, "ann"); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	setup(t, w, id, nil)
	before := len(w.events(id, 0))
	forged := cd
	forged.Generation, forged.By = 9, "somebody else"
	setup(t, w, id, &forged)
	if n := w.get(id).Setup(); n == nil || n.By != "ann" {
		t.Errorf("the caller chose who asked and for when: %+v", n)
	}
	setup(t, w, id, nil)
	setup(t, w, id, nil)
	if got := len(w.events(id, 0)) - before; got != 2 || w.get(id).InstallSetup != nil {
		t.Errorf("set, cleared, cleared: %d events", got)
	}
	if e := w.last(id); !strings.Contains(e.Detail["by"], "ann") {
		t.Errorf("on the timeline: %+v", e)
	}
}

func setup(t *testing.T, w *world, id imprint.InstanceID, n *imprint.InstallSetup) {
	t.Helper()
	if _, err := w.engine.Setup(t.Context(), id, n, "ann"); err != nil {
		t.Fatal(err)
	}
}
