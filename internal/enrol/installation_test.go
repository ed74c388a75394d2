package enrol_test

import (
	"strings"
	"testing"
	"time"

	"imprint"
)

// What installs a machine says how far it is, and the record has the latest and the
// timeline all of it.
func TestInstallationIsOnRecord(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	plan := imprint.Installation{ID: imprint.DigestOf([]byte("plan")), Generation: 1, Host: "hv-1", Disk: "/dev/vg/web-1",
		Image: "https://images.example/debian.qcow2", Digest: imprint.DigestOf([]byte("image")), By: "root"}
	report := func(change ...func(*imprint.Installation)) error {
		t.Helper()
		r := plan
		for _, f := range change {
			f(&r)
		}
		_, err := w.engine.ReportInstallation(t.Context(), id, r)
		return err
	}
	step := func(s imprint.InstallStep) func(*imprint.Installation) {
		return func(r *imprint.Installation) { r.Step = s }
	}
	wantKind(t, report(step(imprint.InstallWritten)), imprint.Conflict) // it was not started
	if err := report(step(imprint.InstallStarted)); err != nil {
		t.Fatal(err)
	}
	if d := w.last(id).Detail; d["step"] != "started" || d["disk"] != "/dev/vg/web-1" || d["image"] != plan.Image || d["id"] != string(plan.ID) || d["host"] != "hv-1" {
		t.Errorf("on the timeline: %+v", d)
	}
	if err := report(step(imprint.InstallFetched)); err != nil || w.last(id).Detail["digest"] != string(plan.Digest) {
		t.Errorf("on the timeline: %v, %+v", err, w.last(id).Detail)
	}
	if err := report(step(imprint.InstallWritten), func(r *imprint.Installation) { r.Detail = "2 GiB" }); err != nil {
		t.Fatal(err)
	}
	if e := w.last(id); e.Kind != imprint.EventInstall || e.Detail["step"] != "written" || e.Detail["detail"] != "2 GiB" || e.Detail["by"] != "root" {
		t.Errorf("on the timeline: %+v", e)
	}
	if i := w.get(id).Installation; i == nil || i.Step != imprint.InstallWritten || !i.At.Equal(w.now) {
		t.Errorf("on record: %+v", i)
	}
	events := len(w.events(id, 0))
	w.now = w.now.Add(time.Minute)
	if err := report(step(imprint.InstallWritten), func(r *imprint.Installation) { r.Detail = "2 GiB" }); err != nil || len(w.events(id, 0)) != events {
		t.Errorf("a repeated report: %v, %d events", err, len(w.events(id, 0))-events)
	}
	if err := report(step(imprint.InstallStarted), func(r *imprint.Installation) { r.Detail = "again" }); err != nil || len(w.events(id, 0)) != events+1 {
		t.Errorf("it is taken up again: %v", err)
	}

	other := func(r *imprint.Installation) { r.ID = imprint.DigestOf([]byte("another plan")) }
	wantKind(t, report(step(imprint.InstallFinished), other), imprint.Conflict)
	if err := report(step(imprint.InstallFinished), other); !strings.Contains(err.Error(), "another installation was started since, on /dev/vg/web-1 of hv-1") {
		t.Errorf("a step of an installation that another one followed: %v", err)
	}
	wantKind(t, report(step(imprint.InstallStarted), func(r *imprint.Installation) { r.Generation = 2 }), imprint.Conflict)
	for name, wrong := range map[string]func(*imprint.Installation){
		"a step":           step("formatted"),
		"no id":            func(r *imprint.Installation) { r.ID = "" },
		"a digest":         func(r *imprint.Installation) { r.Digest = "0123" },
		"a control":        func(r *imprint.Installation) { r.Disk = "/dev/\x1b[2J" },
		"a long name":      func(r *imprint.Installation) { r.Host = strings.Repeat("a", 1025) },
		"no reason":        func(r *imprint.Installation) { r.Step = imprint.InstallFailed },
		"a user in a URL":  func(r *imprint.Installation) { r.Image = "https://ann:pw@images.example/d.raw" },
		"a query in a URL": func(r *imprint.Installation) { r.Image = "https://images.example/d.raw?token=1" },
	} {
		before := len(w.events(id, 0))
		if err := report(step(imprint.InstallStarted), wrong); imprint.KindOf(err) != imprint.Invalid || strings.Contains(err.Error(), "pw@") || len(w.events(id, 0)) != before {
			t.Errorf("%s: %v, %d events", name, err, len(w.events(id, 0))-before)
		}
	}
	if err := report(step(imprint.InstallFailed), func(r *imprint.Installation) { r.Detail = "disk\nfull" + strings.Repeat("!", 2000) }); err != nil {
		t.Fatal(err)
	}
	if d := w.get(id).Installation.Detail; !strings.HasPrefix(d, "disk?full!") || len(d) > 1100 {
		t.Errorf("kept of a long reason: %q", d)
	}
}

// A machine that has enrolled is not installed beside itself: that would be a second
// key for its generation, and everything would be revoked.
func TestInstallationOfAnEnrolledMachineIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	w.enrol(t, id, newMachine(t))
	start := imprint.Installation{ID: imprint.DigestOf(nil), Generation: 1, Step: imprint.InstallStarted}
	_, err := w.engine.ReportInstallation(t.Context(), id, start)
	wantKind(t, err, imprint.Conflict)
	if !strings.Contains(imprint.HintOf(err), "imprint rebirth web-1") {
		t.Errorf("hint %q", imprint.HintOf(err))
	}
	if _, err := w.engine.Rebirth(t.Context(), id, "ann"); err != nil {
		t.Fatal(err)
	}
	start.Generation = 2
	if _, err := w.engine.ReportInstallation(t.Context(), id, start); err != nil {
		t.Error(err)
	}
}
