package relay

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/hostapi"
)

// TestReportsInOrderAndOnce: whatever is lost on the way, and however often either
// end stops, what was acknowledged to the guests is recorded in order and once.
func TestReportsInOrderAndOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(8) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			dir, p := t.TempDir(), newPlane()
			p.lose = func() bool { return rnd.IntN(3) == 0 } // called with the plane's lock held
			want := map[imprint.InstanceID][]string{}
			for life := range 4 {
				r := start(t, dir, p)
				if life%2 == 0 {
					p.set(errGone)
				} else {
					p.set(nil)
				}
				var guests sync.WaitGroup
				for _, id := range []imprint.InstanceID{one, two} {
					var names []string
					for n := range 6 {
						names = append(names, fmt.Sprintf("life %d, report %d", life, n))
					}
					want[id] = append(want[id], names...)
					guests.Go(func() {
						for _, name := range names {
							if err := r.Report(t.Context(), said(id, name)); err != nil {
								t.Errorf("seed %d: %v", seed, err)
							}
						}
					})
				}
				guests.Wait()
				r.stop()
			}
			p.set(nil)
			r := start(t, dir, p)
			until(t, "the queue to be empty", func() bool { return r.Queued() == 0 })
			r.stop()
			for id, names := range want {
				if got := p.names(id); !slices.Equal(got, names) {
					t.Errorf("seed %d: recorded %q, not %q", seed, got, names)
				}
			}
		}
	})
}

// TestVerdicts: with the control plane at hand a guest hears what it decided; what
// has happened already is sent until it is taken, if that may ever be.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		r := start(t, t.TempDir(), p)
		until(t, "the connection", r.Connected)
		for _, kind := range []imprint.Kind{imprint.Invalid, imprint.Conflict, imprint.Exhausted, imprint.Denied, imprint.Unauthorized} {
			p.mu.Lock()
			p.verdict = func(imprint.Report) error { return imprint.Errorf(kind, "report", "it", "no") }
			p.mu.Unlock()
			if err := r.Report(t.Context(), said(one, "refused")); err == nil || imprint.KindOf(err) != kind {
				t.Errorf("%v arrives as %v", kind, err)
			}
			until(t, "the refused report to go", func() bool { return r.Queued() == 0 })
		}

		// Without it, the report stands. Too early is not never, and a host that is
		// refused keeps what it has to say.
		p.set(errGone)
		p.lines <- hostapi.Notice{Revision: -1}
		until(t, "the outage", func() bool { return !r.Connected() })
		if err := r.Report(t.Context(), said(one, "stands")); err != nil {
			t.Fatal(err)
		}
		tries := make(chan imprint.Kind, 3)
		for _, kind := range []imprint.Kind{imprint.Exhausted, imprint.Unauthorized, imprint.Internal} {
			tries <- kind
		}
		p.mu.Lock()
		p.refuse = nil
		p.verdict = func(imprint.Report) error {
			select {
			case kind := <-tries:
				return imprint.Errorf(kind, "report", "it", "not now")
			default:
				return nil
			}
		}
		p.mu.Unlock()
		until(t, "the report to arrive", func() bool { return slices.Equal(p.names(one), []string{"stands"}) })
		until(t, "the queue to be empty", func() bool { return r.Queued() == 0 })
	})
}

// TestOneGuestCannotFillTheQueue: its own reports have a bound, and its neighbour's
// have room.
func TestOneGuestCannotFillTheQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		p.set(errGone)
		r := start(t, t.TempDir(), p)
		var err error
		n := 0
		for ; err == nil && n <= maxPending; n++ {
			err = r.Report(t.Context(), said(one, "read"))
		}
		if imprint.KindOf(err) != imprint.Exhausted || n != maxPending+1 {
			t.Errorf("report %d: %v", n, err)
		}
		if err := r.Report(t.Context(), said(two, "read")); err != nil {
			t.Errorf("the neighbour's report: %v", err)
		}
	})
}

// TestOneGuestDelaysNobody: reports of one instance that the control plane does not
// take yet stand in the way of no other's.
func TestOneGuestDelaysNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		p.verdict = func(r imprint.Report) error {
			if r.Instance == one {
				return imprint.Errorf(imprint.Exhausted, "report", "it", "too often")
			}
			return nil
		}
		p.set(errGone)
		r := start(t, t.TempDir(), p)
		for range 20 {
			if err := r.Report(t.Context(), said(one, "read")); err != nil {
				t.Fatal(err)
			}
		}
		p.set(nil)
		until(t, "the connection", r.Connected)
		for n := range 32 {
			began := time.Now()
			id := imprint.InstanceID(fmt.Sprintf("00000000-0000-4000-8000-1000000000%02d", n))
			if err := r.Report(t.Context(), said(id, "read")); err != nil || time.Since(began) >= verdictPatience {
				t.Errorf("a neighbour's report took %s: %v", time.Since(began), err)
			}
		}
		until(t, "the neighbours' reports to go", func() bool { return r.Queued() == 20 })
	})
}

// TestCopy: what the stream said is there after a restart without it, and what the
// stream took back is not; nothing of it can be read on the disk.
func TestCopy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir, p := t.TempDir(), newPlane()
		p.values[string(one)+"db"], p.values[string(two)+"db"] = "private-canary", "private-canary"
		r := start(t, dir, p)
		facts := dialect.Facts{CA: "ca-canary", CheckIn: []string{"https://imprint.example.net"}}
		send := func(r *running, lines ...hostapi.Notice) {
			t.Helper()
			for _, n := range lines {
				p.lines <- n
				if n.Tenant == nil {
					<-r.notices
				}
			}
		}
		wired := func(id imprint.InstanceID, revision int64, relist bool) hostapi.Notice {
			return hostapi.Notice{Revision: revision, Relist: relist, Instance: &hostapi.Instance{Revision: revision, Instance: *record(id, revision)}}
		}
		send(r, hostapi.Notice{Tenant: &hostapi.TenantFacts{Name: "default", Facts: facts}},
			wired(one, 1, true), wired(two, 2, true), hostapi.Notice{Revision: 3, Synced: true})
		for _, id := range []imprint.InstanceID{one, two} {
			if v, err := r.Param(t.Context(), id, "db"); err != nil || string(v.Reveal()) != "private-canary" {
				t.Errorf("%q, %v", v.Reveal(), err)
			}
		}
		if _, err := r.Enrol(t.Context(), imprint.Submission{Instance: one}); err != nil {
			t.Error(err)
		}
		send(r, hostapi.Notice{Revision: 4, Deleted: two})
		r.stop()

		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if strings.Contains(string(b), "canary") {
				t.Errorf("%s shows what it holds", path)
			}
			if info, err := d.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}

		p.set(errGone)
		r = start(t, dir, p)
		if n := <-r.notices; n.Instance == nil || n.Instance.ID != one || n.Instance.Revision != 9 || n.Instance.Spec.UserData != "user-data-canary" || n.Synced || n.Relist {
			t.Errorf("the copy tells %+v", n)
		}
		if f, err := r.Facts("default"); err != nil || f.CA != "ca-canary" {
			t.Errorf("facts %+v, %v", f, err)
		}
		if v, err := r.Param(t.Context(), one, "db"); err != nil || string(v.Reveal()) != "private-canary" {
			t.Errorf("the value without the control plane: %q, %v", v.Reveal(), err)
		}
		if _, err := r.Param(t.Context(), two, "db"); imprint.KindOf(err) != imprint.Unavailable {
			t.Errorf("the value of an instance that left: %v", err)
		}
		if _, err := r.Enrol(t.Context(), imprint.Submission{Instance: one}); imprint.KindOf(err) != imprint.Unavailable {
			t.Errorf("an enrolment without the control plane: %v", err)
		}
		r.stop()

		// A control plane that refuses this host is not one that is away.
		p.set(imprint.Errorf(imprint.Unauthorized, "accept", "host", "revoked"))
		r = start(t, dir, p)
		until(t, "the refusal", func() bool { return r.stream.Load() == refused })
		if _, err := r.Param(t.Context(), one, "db"); imprint.KindOf(err) != imprint.Unauthorized {
			t.Errorf("the value on a host that is refused: %v", err)
		}
		if err := r.Report(t.Context(), said(one, "secret")); imprint.KindOf(err) != imprint.Unauthorized || r.Queued() != 0 {
			t.Errorf("a read on a host that is refused: %v, %d reports", err, r.Queued())
		}
		r.stop()

		// What a list does not name is gone, also from the disk; so is a value whose
		// parameter has none any more.
		p.set(nil)
		r = start(t, dir, p)
		<-r.notices // the copy
		until(t, "the connection", r.Connected)
		delete(p.values, string(one)+"db")
		if _, err := r.Param(t.Context(), one, "db"); imprint.KindOf(err) != imprint.NotFound {
			t.Errorf("a value that was removed: %v", err)
		}
		send(r, wired(two, 10, true), hostapi.Notice{Revision: 11, Synced: true})
		r.stop()
		files, err := filepath.Glob(filepath.Join(dir, "copy", "*"))
		if err != nil || len(files) != 2 || !strings.Contains(strings.Join(files, " "), string(two)) {
			t.Errorf("the copy has %q, %v", files, err)
		}
	})
}

// TestResume: a stream that broke goes on where it was, also between two notices of
// one revision, and one that broke within a list begins again.
func TestResume(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		r := start(t, t.TempDir(), p)
		change := func(id imprint.InstanceID, revision int64, relist bool) hostapi.Notice {
			return hostapi.Notice{Revision: revision, Relist: relist, Instance: &hostapi.Instance{Revision: revision, Instance: *record(id, revision)}}
		}
		broken := hostapi.Notice{Revision: -1}
		for _, n := range []hostapi.Notice{
			change(one, 5, true), broken,
			change(one, 5, true), change(two, 3, true), {Revision: 5, Synced: true}, broken,
			change(one, 6, false), change(one, 7, false), broken, // and two, at 7
			change(one, 7, false), change(two, 7, false), change(one, 8, false), broken,
		} {
			p.lines <- n
			if n.Revision > 0 {
				<-r.notices
			}
		}
		until(t, "the last stream", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.from) == 5
		})
		if want := []int64{0, 0, 5, 6, 7}; !slices.Equal(p.from, want) {
			t.Errorf("streams began at %v, not %v", p.from, want)
		}
	})
}

// TestSecretsComeAsCalls: a value is in memory for its generation, and the answer
// says what is held.
func TestSecretsComeAsCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		r := start(t, t.TempDir(), p)
		p.lines <- hostapi.Notice{Call: &hostapi.Call{ID: "1", Kind: hostapi.CallSecret, Instance: one, Generation: 2, Name: "key", Value: []byte("v")}}
		if a := <-p.answers; a.Error != nil {
			t.Errorf("%+v", a)
		}
		if v, ok := r.Secrets.Get(one, 2, "key"); !ok || string(v.Reveal()) != "v" {
			t.Errorf("held %q, %v", v.Reveal(), ok)
		}
		for generation, want := range map[imprint.Generation][]string{1: nil, 2: {"key"}} {
			p.lines <- hostapi.Notice{Call: &hostapi.Call{ID: "2", Kind: hostapi.CallLook, Instance: one, Generation: generation}}
			if a := <-p.answers; !slices.Equal(a.Held, want) {
				t.Errorf("generation %d: held %q", generation, a.Held)
			}
		}
		for _, bad := range []hostapi.Call{
			{Kind: "unknown"},
			{Kind: hostapi.CallSecret, Instance: one, Generation: 1, Name: "key"}, // an earlier life
			{Kind: hostapi.CallSecret, Instance: one, Generation: 2, Name: "big", Value: make([]byte, imprint.MaxParamLen+1)},
		} {
			p.lines <- hostapi.Notice{Call: &bad}
			if a := <-p.answers; a.Error == nil {
				t.Errorf("%s was done", bad.Kind)
			}
		}
	})
}

// Operators who wait for machines to write something keep no other call waiting.
func TestReadersKeepNoSecretWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		p.answers = make(chan hostapi.Answer, 2*maxReads)
		start(t, t.TempDir(), p)
		for range maxReads {
			p.lines <- hostapi.Notice{Call: &hostapi.Call{ID: "read", Kind: hostapi.CallRead, Instance: one, Name: "default"}}
		}
		synctest.Wait()
		p.lines <- hostapi.Notice{Call: &hostapi.Call{ID: "secret", Kind: hostapi.CallSecret, Instance: one, Generation: 1, Name: "key", Value: []byte("v")}}
		synctest.Wait() // no time passes
		if n := len(p.answers); n != 1 {
			t.Errorf("%d answers while %d wait for a message", n, maxReads)
		}
	})
}
