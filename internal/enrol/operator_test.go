package enrol_test

import (
	"encoding/base64"
	"net/netip"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/enrol"
)

func TestReserve(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, test := range map[string]struct {
		change func(*imprint.Spec)
		names  string // in the refusal; "" if there is none
	}{
		"as it should be": {func(*imprint.Spec) {}, ""},
		"the domain":      {func(s *imprint.Spec) { s.DNSNames = []string{"example.net"} }, ""},
		"another domain":  {func(s *imprint.Spec) { s.DNSNames = []string{"a.example.org"} }, "a.example.org"},
		"a domain's end":  {func(s *imprint.Spec) { s.DNSNames = []string{"badexample.net"} }, "badexample.net"},
		"another network": {func(s *imprint.Spec) { s.IPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")} }, "192.0.2.1"},
		"the endpoint's":  {func(s *imprint.Spec) { s.DNSNames = []string{"imprint.example.net"} }, "imprint.example.net"},
	} {
		s := spec("web-1")
		s.Policy.Window = imprint.Duration(time.Hour)
		test.change(&s)
		i, c, err := enrol.Reserve(s, site, now)
		if test.names != "" {
			if err == nil || imprint.KindOf(err) != imprint.Denied || !strings.Contains(err.Error(), test.names) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || i.Generation != 1 || !imprint.ValidID(string(i.ID)) || i.Enrolment.State != imprint.Reserved ||
			!c.WakeAt.Equal(now.Add(time.Hour)) || len(c.Events) != 1 || c.Events[0].Kind != imprint.EventReserved {
			t.Errorf("%s: %v, %+v, %+v", name, err, i, c)
		}
	}
}

// TestWindow: a reservation ends with its window, whether or not the reminder
// comes, and a claim in time stops the clock.
func TestWindow(t *testing.T) {
	t.Parallel()
	hour := func(s *imprint.Spec) { s.Policy.Window = imprint.Duration(time.Hour) }
	ends := map[string]func(*testing.T, *world, imprint.InstanceID){
		"by the reminder": func(t *testing.T, w *world, id imprint.InstanceID) {
			if _, err := w.engine.Expire(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		},
		"by a claim": func(t *testing.T, w *world, id imprint.InstanceID) {
			_, err := w.engine.Enrol(t.Context(), newMachine(t).up(id))
			wantKind(t, err, imprint.Conflict)
		},
		"by a report": func(t *testing.T, w *world, id imprint.InstanceID) {
			wantKind(t, w.engine.Report(t.Context(), said(id, imprint.ReportDelivered, "", "payload")), imprint.Conflict)
		},
		"by asking for a token": func(t *testing.T, w *world, id imprint.InstanceID) {
			_, err := w.engine.Token(t.Context(), id, 0)
			wantKind(t, err, imprint.Conflict)
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			id := w.reserve(t, hour)
			if _, err := w.engine.Expire(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			wantState(t, w.get(id), imprint.Reserved)
			w.now = w.now.Add(time.Hour)
			// Somebody who has nothing to show does not decide even this.
			_, err := w.engine.Enrol(t.Context(), newMachine(t).est(id, imprint.NewSecret([]byte("guess"))))
			wantKind(t, err, imprint.Unauthorized)
			end(t, w, id)
			wantState(t, w.get(id), imprint.Expired)
			if e := w.last(id); e.Kind != imprint.EventExpired || !w.store.records[id].wake.IsZero() {
				t.Errorf("event %+v, wakes at %s", e, w.store.records[id].wake)
			}
			_, err = w.engine.Revoke(t.Context(), id, "", "ann")
			wantKind(t, err, imprint.Conflict)
			_, err = w.engine.Approve(t.Context(), id, "ann")
			wantKind(t, err, imprint.Conflict)
			i, err := w.engine.Rebirth(t.Context(), id, "ann")
			if err != nil || i.Generation != 2 || !w.store.records[id].wake.Equal(w.now.Add(time.Hour)) {
				t.Fatalf("%v, %+v", err, i)
			}
			w.enrol(t, id, newMachine(t))
		})
	}
	t.Run("claimed in time", func(t *testing.T) {
		t.Parallel()
		w, m := newWorld(), newMachine(t)
		id := w.reserve(t, hour)
		if err := w.engine.Report(t.Context(), said(id, imprint.ReportDelivered, "", "payload")); err != nil {
			t.Fatal(err)
		}
		if !w.store.records[id].wake.Equal(w.now.Add(time.Hour)) {
			t.Error("a delivery takes the reminder away")
		}
		w.signer.fail = imprint.Errorf(imprint.Unavailable, "sign", "", "away")
		_, err := w.engine.Enrol(t.Context(), m.up(id))
		wantKind(t, err, imprint.Unavailable)
		if !w.store.records[id].wake.IsZero() {
			t.Error("a claim leaves the reminder")
		}
		w.now = w.now.Add(24 * time.Hour)
		if _, err := w.engine.Expire(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		w.enrol(t, id, m)
	})
}

func TestToken(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	secret := token(t, w, id)
	raw, err := base64.RawURLEncoding.DecodeString(string(secret.Reveal()))
	if err != nil || len(raw) < 16 {
		t.Errorf("%d bytes, %v", len(raw), err)
	}
	if e := w.get(id).Enrolment; e.TokenHash != imprint.DigestOf(secret.Reveal()) || !e.TokenExpires.Equal(w.now.Add(time.Hour)) {
		t.Errorf("%+v", e)
	}
	if strings.Contains(string(w.store.records[id].record), string(secret.Reveal())) {
		t.Error("the record has the token itself")
	}
	for _, life := range []time.Duration{-1, 31 * 24 * time.Hour} {
		_, err := w.engine.Token(t.Context(), id, life)
		wantKind(t, err, imprint.Invalid)
	}
	if _, err := w.engine.Token(t.Context(), id, 0); err != nil || w.get(id).Enrolment.TokenExpires.Sub(w.now) != enrol.DefaultTokenLife {
		t.Errorf("%v", err)
	}
	_, err = w.engine.Token(t.Context(), imprint.NewInstanceID(), 0)
	wantKind(t, err, imprint.NotFound)
}

// TestApproval: the machine waits, and then has its certificate.
func TestApproval(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t, func(s *imprint.Spec) { s.Policy.Approval = true })
	_, err := w.engine.Approve(t.Context(), id, "ann")
	wantKind(t, err, imprint.Conflict) // of what?
	for range 3 {
		i, err := w.engine.Enrol(t.Context(), m.est(id, imprint.Secret{}))
		wantKind(t, err, imprint.Pending)
		wantState(t, i, imprint.Claimed)
	}
	wantEvents(t, w.events(id, 1), imprint.EventClaimed, imprint.EventWaiting)
	w.signer.fail = imprint.Errorf(imprint.Unavailable, "sign", "", "away")
	_, err = w.engine.Approve(t.Context(), id, "ann")
	wantKind(t, err, imprint.Unavailable)
	i, err := w.engine.Approve(t.Context(), id, "bob") // the consent stands
	if err != nil {
		t.Fatal(err)
	}
	if c := i.Enrolment.Claim; c.ApprovedBy != "ann" || i.Enrolment.Certificate == nil {
		t.Errorf("%+v", i.Enrolment)
	}
	wantEvents(t, w.events(id, 3), imprint.EventApproved, imprint.EventIssued)
	if i, err = w.engine.Enrol(t.Context(), m.est(id, imprint.Secret{})); err != nil || i.Enrolment.Certificate == nil {
		t.Errorf("%v", err)
	}
	if g := w.signer.grants[0]; g.Tier != imprint.TierApproved {
		t.Errorf("tier %d", g.Tier)
	}
}

// TestRevoke: it ends every open state, and only a new generation follows.
func TestRevoke(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	cert := w.enrol(t, id, m).Enrolment.Certificate
	for range 2 {
		i, err := w.engine.Revoke(t.Context(), id, "stolen", "ann")
		if err != nil {
			t.Fatal(err)
		}
		wantState(t, i, imprint.Revoked)
	}
	if r := w.store.revoked[cert.Serial]; !r.NotAfter.Equal(cert.NotAfter) || r.Reason != 9 {
		t.Errorf("revocation %+v", r)
	}
	wantEvents(t, w.events(id, 4), imprint.EventRevoked)
	_, err := w.engine.Enrol(t.Context(), m.up(id))
	wantKind(t, err, imprint.Conflict)
	if !strings.Contains(imprint.HintOf(err), "rebirth") {
		t.Errorf("hint %q", imprint.HintOf(err))
	}
	wantKind(t, w.engine.Report(t.Context(), m.confirmation(t, id, 1, cert.DER)), imprint.Conflict)
	i, err := w.engine.Rebirth(t.Context(), id, "ann")
	if err != nil || i.Generation != 2 || i.Enrolment.Claim != nil || i.Enrolment.Reason != "" {
		t.Fatalf("%v, %+v", err, i)
	}
	if r := w.store.revoked[cert.Serial]; r.Reason != 9 {
		t.Error("the reason was replaced")
	}
}

// TestContestedStays: the operator cannot turn a dispute into something else.
func TestContestedStays(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	w.enrol(t, id, newMachine(t))
	_, err := w.engine.Enrol(t.Context(), newMachine(t).up(id))
	wantKind(t, err, imprint.Contested)
	_, err = w.engine.Revoke(t.Context(), id, "", "ann")
	wantKind(t, err, imprint.Conflict)
	_, err = w.engine.Token(t.Context(), id, 0)
	wantKind(t, err, imprint.Contested)
	wantState(t, w.get(id), imprint.InDispute)
}

// TestRebirth: a new life owes the old one nothing and revokes it, unless it
// has ended anyway.
func TestRebirth(t *testing.T) {
	t.Parallel()
	for _, later := range []time.Duration{0, 8 * 24 * time.Hour} {
		w, m := newWorld(), newMachine(t)
		id := w.reserve(t)
		w.enrol(t, id, m)
		w.now = w.now.Add(later)
		i, err := w.engine.Rebirth(t.Context(), id, "ann")
		if err != nil || i.Generation != 2 || i.Enrolment.Certificate != nil || i.Enrolment.Claim != nil {
			t.Fatalf("%v, %+v", err, i)
		}
		if revoked := len(w.store.revoked) == 1; revoked == (later > 0) {
			t.Errorf("after %s: revoked %v", later, w.store.revoked)
		}
		if e := w.last(id); e.Kind != imprint.EventReborn || e.Generation != 2 || e.Detail["by"] != "ann" {
			t.Errorf("event %+v", e)
		}
	}
}

// TestDelete: what a deleted machine had is revoked.
func TestDelete(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	i := w.enrol(t, id, newMachine(t))
	c := enrol.Delete(i, w.now)
	if len(c.Revoke) != 1 || c.Revoke[0].Serial != i.Enrolment.Certificate.Serial {
		t.Errorf("%+v", c)
	}
}

func TestAuthenticate(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	i, err := w.engine.Enrol(t.Context(), m.up(id))
	if err != nil {
		t.Fatal(err)
	}
	good := imprint.Identity{Tenant: imprint.DefaultTenant, Instance: id, Generation: 1, Serial: i.Enrolment.Certificate.Serial, Key: m.id}
	if got, err := w.engine.Authenticate(t.Context(), good); err != nil || got.ID != id {
		t.Errorf("%v", err)
	}
	for name, change := range map[string]func(*imprint.Identity){
		"tenant":     func(who *imprint.Identity) { who.Tenant = "other" },
		"instance":   func(who *imprint.Identity) { who.Instance = imprint.NewInstanceID() },
		"generation": func(who *imprint.Identity) { who.Generation = 2 },
		"serial":     func(who *imprint.Identity) { who.Serial = "1" },
		"key":        func(who *imprint.Identity) { who.Key = newMachine(t).id },
	} {
		who := good
		change(&who)
		if got, err := w.engine.Authenticate(t.Context(), who); got != nil || imprint.KindOf(err) != imprint.Denied || err == nil {
			t.Errorf("another %s: %v", name, err)
		}
	}
	w.now = w.now.Add(7 * 24 * time.Hour)
	_, err = w.engine.Authenticate(t.Context(), good)
	wantKind(t, err, imprint.Denied)
}

func TestUnknownInstance(t *testing.T) {
	t.Parallel()
	w, m, id := newWorld(), newMachine(t), imprint.NewInstanceID()
	_, err := w.engine.Enrol(t.Context(), m.up(id))
	wantKind(t, err, imprint.NotFound)
	wantKind(t, w.engine.Report(t.Context(), said(id, imprint.ReportReady, "", "")), imprint.NotFound)
}
