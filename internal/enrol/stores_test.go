package enrol_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"imprint"
	"imprint/internal/enrol"
	"imprint/internal/store"
)

// overStores runs a test over the stores that imprint has: what an engine
// relies on must be what they do.
func overStores(t *testing.T, test func(*testing.T, *pair)) {
	t.Parallel()
	for kind, open := range map[string]func(*testing.T) (*store.Store, error){
		"memory": func(*testing.T) (*store.Store, error) { return store.OpenMemory(), nil },
		"embedded": func(t *testing.T) (*store.Store, error) {
			return store.OpenEmbedded(t.Context(), store.Embedded{Dir: t.TempDir(), Reserve: 1})
		},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			db, err := open(t)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			s := &pair{store: db, issuer: &signer{}}
			for n := range s.servers {
				s.servers[n] = enrol.New(enrol.Config{Store: db, Issuer: s.issuer, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
			}
			test(t, s)
		})
	}
}

// pair is two servers that share a store and an issuer.
type pair struct {
	store   *store.Store
	issuer  *signer
	servers [2]*enrol.Engine
}

func (s *pair) reserve(t testing.TB, name string) imprint.InstanceID {
	t.Helper()
	i, change, err := enrol.Reserve(spec(name), site, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.store.Create(t.Context(), &i, nil, change); err != nil {
		t.Fatal(err)
	}
	return i.ID
}

func (s *pair) get(t testing.TB, id imprint.InstanceID) *imprint.Instance {
	t.Helper()
	i, err := s.store.Instance(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// revoked is the tenant's revocation list.
func (s *pair) revoked(t testing.TB) map[imprint.Serial]imprint.Revocation {
	t.Helper()
	list, err := s.store.Revocations(t.Context(), imprint.DefaultTenant)
	if err != nil {
		t.Fatal(err)
	}
	entries := map[imprint.Serial]imprint.Revocation{}
	for _, r := range list {
		entries[r.Serial] = r
	}
	return entries
}

// logged is what is queued for the log, by serial number.
func (s *pair) logged(t testing.TB) map[imprint.Serial]string {
	t.Helper()
	list, err := s.store.Queued(t.Context(), "test", imprint.LogEntry{}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	entries := map[imprint.Serial]string{}
	for _, e := range list {
		entries[e.Serial] = string(e.Data)
	}
	return entries
}

// One life and the beginning of the next, each step at the other server and
// said twice, as the timeline tells it.
func TestLifeOverStores(t *testing.T) {
	overStores(t, func(t *testing.T, s *pair) {
		ctx := t.Context()
		id := s.reserve(t, "web-1")
		first, second := s.servers[0], s.servers[1]
		twice := func(f func(*enrol.Engine) error) {
			t.Helper()
			for _, e := range s.servers {
				if err := f(e); err != nil {
					t.Fatal(err)
				}
			}
		}
		m := newMachine(t)
		token, err := second.Token(ctx, id, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		twice(func(e *enrol.Engine) error {
			return e.Report(ctx, said(id, imprint.ReportDelivered, "", "payload"))
		})
		twice(func(e *enrol.Engine) error { _, err := e.Enrol(ctx, m.est(id, token)); return err })
		leaf := s.get(t, id).Enrolment.Certificate
		twice(func(e *enrol.Engine) error { return e.Report(ctx, m.confirmation(t, id, 1, leaf.DER)) })
		twice(func(e *enrol.Engine) error { return e.Report(ctx, said(id, imprint.ReportReady, "", "")) })
		wantState(t, s.get(t, id), imprint.Closed)
		if logged := s.logged(t); len(s.issuer.grants) != 1 || len(logged) != 1 || logged[leaf.Serial] != string(leaf.DER) {
			t.Fatalf("%d certificates were signed, and the log tells of %v", len(s.issuer.grants), logged)
		}

		if _, err := first.Rebirth(ctx, id, "ann"); err != nil {
			t.Fatal(err)
		}
		if r, ok := s.revoked(t)[leaf.Serial]; !ok || !r.NotAfter.Equal(leaf.NotAfter) {
			t.Fatalf("the revocation list says %+v of the first life's certificate", r)
		}
		for range 2 { // a disk that survived brings its key along
			_, err := second.Enrol(ctx, m.up(id))
			wantKind(t, err, imprint.Conflict)
		}
		wantState(t, s.get(t, id), imprint.Reserved)
		if _, err := second.Enrol(ctx, newMachine(t).up(id)); err != nil {
			t.Fatal(err)
		}

		events, err := s.store.Events(ctx, id, 0)
		if err != nil {
			t.Fatal(err)
		}
		var kinds []imprint.EventKind
		for _, e := range events {
			kinds = append(kinds, e.Kind)
		}
		wantEvents(t, kinds, imprint.EventReserved, imprint.EventToken, imprint.EventDelivered, imprint.EventClaimed, imprint.EventIssued,
			imprint.EventConfirmed, imprint.EventClosed, imprint.EventReborn, imprint.EventRefused, imprint.EventRefused,
			imprint.EventClaimed, imprint.EventIssued)
		if e := events[8]; e.Detail["key"] != string(m.id) || e.Generation != 2 {
			t.Errorf("the reused key is told as %+v", e)
		}

		if err := s.store.Delete(ctx, id, func(i *imprint.Instance) (imprint.Change, error) { return enrol.Delete(i, time.Now()), nil }); err != nil {
			t.Fatal(err)
		}
		if list := s.revoked(t); len(list) != 2 || list[leaf.Serial].Reason != 4 {
			t.Errorf("after the deletion the revocation list is %+v", list)
		}
		_, err = first.Enrol(ctx, m.up(id))
		wantKind(t, err, imprint.NotFound)
	})
}

// Two servers are asked for the same 50 machines at the same time, by each
// machine twice and for every fifth by somebody else too. Nobody is issued twice.
func TestRaceOverStores(t *testing.T) {
	overStores(t, func(t *testing.T, s *pair) {
		const machines = 50
		type reply struct {
			id   imprint.InstanceID
			cert *imprint.Certificate
			key  imprint.KeyID
		}
		replies := make(chan reply, 3*machines)
		contested := map[imprint.InstanceID]bool{}
		start := make(chan struct{})
		var running sync.WaitGroup
		ask := func(server int, id imprint.InstanceID, m *machine) {
			running.Go(func() {
				<-start
				i, err := s.servers[server].Enrol(t.Context(), m.up(id))
				switch {
				case err == nil:
					replies <- reply{id, i.Enrolment.Certificate, m.id}
				case !contested[id] || imprint.KindOf(err) != imprint.Contested:
					t.Errorf("%s: %v", id, err)
				}
			})
		}
		for n := range machines {
			id := s.reserve(t, fmt.Sprintf("web-%d", n))
			m := newMachine(t)
			contested[id] = n%5 == 0
			ask(0, id, m)
			ask(1, id, m)
			if contested[id] {
				ask(n%2, id, newMachine(t))
			}
		}
		close(start)
		running.Wait()
		close(replies)

		got := map[imprint.InstanceID]reply{}
		for r := range replies {
			if before, ok := got[r.id]; ok && (before.key != r.key || string(before.cert.DER) != string(r.cert.DER)) {
				t.Errorf("%s: two certificates left: %s and %s", r.id, before.cert.DER, r.cert.DER)
			}
			got[r.id] = r
		}
		logged := s.logged(t)
		if len(logged) > machines {
			t.Errorf("the log tells of %d certificates for %d machines", len(logged), machines)
		}
		revoked := s.revoked(t)
		for id, twoKeys := range contested {
			i := s.get(t, id)
			if twoKeys {
				wantState(t, i, imprint.InDispute)
				if c := i.Enrolment.Certificate; c != nil && (logged[c.Serial] != string(c.DER) || revoked[c.Serial].Reason != 1) {
					t.Errorf("%s: serial %s was issued, and is not in the log or not revoked", id, c.Serial)
				}
				continue
			}
			wantState(t, i, imprint.Issued)
			if c := i.Enrolment.Certificate; logged[c.Serial] != string(c.DER) {
				t.Errorf("%s: the log tells of another certificate", id)
			}
			if got[id].cert == nil || string(got[id].cert.DER) != string(i.Enrolment.Certificate.DER) {
				t.Errorf("%s: the certificate that left is not the one on record", id)
			}
		}
	})
}

// Enrol and confirm over the store in memory, with an issuer that signs nothing.
func BenchmarkEnrolment(b *testing.B) {
	db := store.OpenMemory()
	defer db.Close()
	s := &pair{store: db}
	e := enrol.New(enrol.Config{Store: db, Issuer: copier{}, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		id, m := s.reserve(b, fmt.Sprintf("web-%d", n)), newMachine(b)
		b.StartTimer()
		i, err := e.Enrol(b.Context(), m.up(id))
		if err == nil {
			err = e.Report(b.Context(), m.confirmation(b, id, 1, i.Enrolment.Certificate.DER))
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// copier makes a certificate of about the usual size.
type copier struct{}

func (copier) Issue(_ context.Context, g imprint.Grant) (*imprint.Certificate, *imprint.LogEntry, error) {
	cert := &imprint.Certificate{Serial: g.Serial, DER: make([]byte, 700), NotBefore: g.NotBefore, NotAfter: g.NotAfter, Log: "copies"}
	return cert, &imprint.LogEntry{Log: cert.Log, Serial: g.Serial, Data: cert.DER}, nil
}
