package enrol_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"imprint"
)

// TestRenewal: past half of its life a certificate is renewed for the same key,
// once, and both are usable until the older ends.
func TestRenewal(t *testing.T) {
	t.Parallel()
	for _, lifetime := range []time.Duration{10 * time.Minute, time.Hour, 7 * 24 * time.Hour} {
		t.Run(lifetime.String(), func(t *testing.T) {
			t.Parallel()
			w, m := newWorld(), newMachine(t)
			id := w.reserve(t, func(s *imprint.Spec) { s.Policy.Lifetime = imprint.Duration(lifetime) })
			old := w.enrol(t, id, m).Enrolment.Certificate
			w.now = w.now.Add(lifetime/2 - time.Second)
			i, err := w.engine.Enrol(t.Context(), m.est(id, imprint.Secret{}))
			if err != nil || i.Enrolment.Certificate.Serial != old.Serial {
				t.Fatalf("%v, serial %s before half of the life", err, i.Enrolment.Certificate.Serial)
			}
			// The agent asks at two thirds of what is in the certificate, less 5 %.
			w.now = old.NotBefore.Add(old.NotAfter.Sub(old.NotBefore) * 61 / 100)
			for range 2 {
				if i, err = w.engine.Enrol(t.Context(), m.est(id, imprint.Secret{})); err != nil {
					t.Fatal(err)
				}
			}
			next := i.Enrolment.Certificate
			if next.Serial == old.Serial || !next.NotAfter.After(old.NotAfter) || len(w.signer.grants) != 2 {
				t.Fatalf("%d signed, %+v after %+v", len(w.signer.grants), next, old)
			}
			wantState(t, i, imprint.Confirmed)
			if e := w.last(id); e.Kind != imprint.EventRenewed || e.Detail["serial"] != string(next.Serial) {
				t.Errorf("event %+v", e)
			}
			usable := func(serial imprint.Serial) error {
				_, err := w.engine.Authenticate(t.Context(), imprint.Identity{
					Tenant: imprint.DefaultTenant, Instance: id, Generation: 1, Serial: serial, Key: m.id,
				})
				return err
			}
			if err := usable(old.Serial); err != nil {
				t.Errorf("the old certificate: %v", err)
			}
			if err := usable(next.Serial); err != nil {
				t.Errorf("the new certificate: %v", err)
			}
			if err := w.engine.Report(t.Context(), m.confirmation(t, id, 1, next.DER)); err != nil {
				t.Errorf("confirming the renewal: %v", err)
			}
			if _, err := w.engine.Revoke(t.Context(), id, "sold", "ann"); err != nil {
				t.Fatal(err)
			}
			if got := slices.Collect(maps.Keys(w.store.revoked)); len(got) != 2 {
				t.Errorf("revoked %v", got)
			}
			wantKind(t, usable(old.Serial), imprint.Conflict) // it holds the claimed key, so it is told
			wantKind(t, usable(next.Serial), imprint.Conflict)
		})
	}
}

// TestLateMachine: one that comes back after its certificate has ended, at
// whatever step it was, gets a fresh one.
func TestLateMachine(t *testing.T) {
	t.Parallel()
	valid := func(t *testing.T, w *world, i *imprint.Instance) {
		t.Helper()
		if c := i.Enrolment.Certificate; !c.NotAfter.After(w.now) || !c.NotBefore.Before(w.now) {
			t.Errorf("valid from %s to %s at %s", c.NotBefore, c.NotAfter, w.now)
		}
	}
	t.Run("claimed", func(t *testing.T) {
		t.Parallel()
		w, m := newWorld(), newMachine(t)
		id := w.reserve(t)
		w.signer.fail = imprint.Errorf(imprint.Unavailable, "sign", "", "away")
		_, err := w.engine.Enrol(t.Context(), m.up(id))
		wantKind(t, err, imprint.Unavailable)
		w.now = w.now.AddDate(0, 1, 0)
		valid(t, w, w.enrol(t, id, m))
		if a, b := w.signer.grants[0], w.signer.grants[1]; a.Serial == b.Serial {
			t.Error("two certificates of one number")
		}
	})
	t.Run("waiting", func(t *testing.T) {
		t.Parallel()
		w, m := newWorld(), newMachine(t)
		id := w.reserve(t, func(s *imprint.Spec) { s.Policy.Approval = true })
		_, err := w.engine.Enrol(t.Context(), m.up(id))
		wantKind(t, err, imprint.Pending)
		w.now = w.now.AddDate(0, 1, 0)
		if _, err := w.engine.Approve(t.Context(), id, "ann"); err != nil {
			t.Fatal(err)
		}
		valid(t, w, w.enrol(t, id, m))
	})
	t.Run("issued", func(t *testing.T) {
		t.Parallel()
		w, m := newWorld(), newMachine(t)
		id := w.reserve(t)
		if _, err := w.engine.Enrol(t.Context(), m.up(id)); err != nil {
			t.Fatal(err)
		}
		w.now = w.now.AddDate(0, 1, 0)
		valid(t, w, w.enrol(t, id, m))
	})
	t.Run("a clock that was wrong", func(t *testing.T) {
		t.Parallel()
		for _, year := range []int{1970, 2100} {
			w, m := newWorld(), newMachine(t)
			right := w.now
			w.now = time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
			id := w.reserve(t)
			if _, err := w.engine.Enrol(t.Context(), m.up(id)); err != nil {
				t.Fatal(err)
			}
			w.now = right
			valid(t, w, w.enrol(t, id, m))
		}
	})
}

// TestShortenedLife: near the issuing CA's end, which cuts certificates short,
// machines renew more often, but no more than once in half of what is left.
func TestShortenedLife(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	w.signer.cut = 3 * time.Hour // of which one is past
	w.enrol(t, id, m)
	for range 3 {
		w.enrol(t, id, m)
	}
	if n := len(w.signer.grants); n != 1 {
		t.Fatalf("%d signed at once", n)
	}
	w.now = w.now.Add(time.Hour)
	w.enrol(t, id, m)
	if n := len(w.signer.grants); n != 2 {
		t.Errorf("%d signed after half of the two hours", n)
	}
}

// TestSSHHostKey: the host key is fixed by the claim; at a renewal a witnessed
// request may bring another, as from a machine that had none at first.
func TestSSHHostKey(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	w.enrol(t, id, m)
	with := func(s imprint.Submission) *imprint.Instance {
		t.Helper()
		s.SSHHost = sshEd25519
		i, err := w.engine.Enrol(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	if ssh := with(m.up(id)).Enrolment.Certificate.SSH; ssh != "" {
		t.Errorf("a repeated request got %q", ssh)
	}
	w.now = w.now.Add(4 * 24 * time.Hour)
	if ssh := with(m.est(id, imprint.Secret{})).Enrolment.Certificate.SSH; ssh != "" {
		t.Errorf("a request that nobody vouches for got %q", ssh)
	}
	w.now = w.now.Add(4 * 24 * time.Hour)
	if ssh := with(m.up(id)).Enrolment.Certificate.SSH; ssh == "" {
		t.Error("no SSH certificate")
	}
	s := newMachine(t).up(w.reserve(t, func(s *imprint.Spec) { s.Name = "web-2" }))
	s.SSHHost = "ssh-ed25519 AAAA"
	_, err := w.engine.Enrol(t.Context(), s)
	wantKind(t, err, imprint.Invalid)
}

// TestSignerRefuses: what the signer says about the reservation is on the
// timeline, and the machine is not stranded once the cause is gone.
func TestSignerRefuses(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	w.signer.fail = imprint.Errorf(imprint.Denied, "issue", "certificate", "outside the constraint")
	_, err := w.engine.Enrol(t.Context(), m.up(id))
	wantKind(t, err, imprint.Denied)
	if e := w.last(id); e.Kind != imprint.EventRefused || e.Detail["reason"] != "outside the constraint" {
		t.Errorf("event %+v", e)
	}
	wantState(t, w.enrol(t, id, m), imprint.Confirmed)
}

// TestRefusalsDoNotFloodTheTimeline: neither guest nor stranger can push the
// rest of the story out; what was left out is counted, and one sort does not
// hide another.
func TestRefusalsDoNotFloodTheTimeline(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	stranger := newMachine(t).est(id, imprint.NewSecret([]byte("guess")))
	for range 500 {
		_, err := w.engine.Enrol(t.Context(), stranger)
		wantKind(t, err, imprint.Unauthorized)
	}
	if n := len(w.events(id, 1)); n != 8 {
		t.Errorf("%d events", n)
	}
	s := newMachine(t).up(id)
	s.Witness = other
	_, err := w.engine.Enrol(t.Context(), s)
	wantKind(t, err, imprint.Denied)
	if e := w.last(id); e.Channel != imprint.Serial2 {
		t.Errorf("one sort hid another: %+v", e)
	}
	w.now = w.now.Add(30 * time.Minute)
	_, err = w.engine.Enrol(t.Context(), stranger)
	wantKind(t, err, imprint.Unauthorized)
	if e := w.last(id); e.Detail["omitted"] != "492" {
		t.Errorf("event %+v", e)
	}
	for range 100 {
		w.now = w.now.Add(24 * time.Hour)
		for range 20 {
			_, err = w.engine.Enrol(t.Context(), stranger)
			wantKind(t, err, imprint.Unauthorized)
		}
	}
	if n := len(w.events(id, 0)); n > 900 { // 8 a day
		t.Errorf("%d events", n)
	}
}
