package enrol_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"imprint"
	"imprint/internal/enrol"
)

// model is a small site with everything that can go wrong: two servers, two
// instances, more keys than instances, and messages that are late, doubled,
// stale, forged or lost.
type model struct {
	t       *rapid.T
	ctx     context.Context
	w       *world
	o       *oracle
	engines [2]*enrol.Engine
	ids     []imprint.InstanceID
	keys    []*machine
	tokens  map[imprint.InstanceID][]imprint.Secret // all that were ever handed out
	leaves  map[imprint.InstanceID][][]byte         // all that ever left
	tasks   []*task
}

// TestModel lets servers, machines, operators and time do what they can do in any
// order, each standing still wherever another may get its turn. The oracle sees
// to it that nothing happens that must not; in the end each machine that has a
// right to confirms.
func TestModel(t *testing.T) {
	t.Parallel()
	var pool []*machine
	for range 4 {
		pool = append(pool, newMachine(t))
	}
	pool = append(pool, newMachine(t).asking(t, &x509.CertificateRequest{DNSNames: []string{"www.example.org"}}))
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{
			t: rt, ctx: t.Context(), w: newWorld(), keys: pool,
			tokens: map[imprint.InstanceID][]imprint.Secret{}, leaves: map[imprint.InstanceID][][]byte{},
		}
		m.o = watch(m.w)
		m.engines = [2]*enrol.Engine{m.w.engine, m.w.newEngine()}
		for n := range 2 {
			m.ids = append(m.ids, m.w.reserve(t, func(s *imprint.Spec) {
				s.Name = imprint.InstanceName(fmt.Sprintf("web-%d", n+1))
				s.DNSNames = []string{string(s.Name) + ".example.net"}
				s.Policy.Approval = rapid.Bool().Draw(rt, "approval")
				s.Policy.Window = imprint.Duration(rapid.SampledFrom([]time.Duration{0, time.Hour, 24 * time.Hour}).Draw(rt, "window"))
				s.Policy.Lifetime = imprint.Duration(rapid.SampledFrom([]time.Duration{0, 10 * time.Minute, 3 * time.Hour}).Draw(rt, "lifetime"))
			}))
		}
		// An action is drawn by its name; what happens more often has more names.
		rt.Repeat(map[string]func(*rapid.T){
			"":     func(*rapid.T) { m.sound() },
			"go 1": m.proceed, "go 2": m.proceed, "go 3": m.proceed, "go 4": m.proceed, "go 5": m.proceed,
			"ask 1": m.ask, "ask 2": m.ask, "ask 3": m.ask,
			"report 1": m.report, "report 2": m.report,
			"operate": m.operate,
			"die":     m.die,
			"wait":    m.wait,
			"signer":  func(*rapid.T) { m.w.signer.fail = imprint.Errorf(imprint.Unavailable, "sign", "", "away") },
		})
		for len(m.tasks) > 0 {
			m.advance(0)
		}
		m.sound()
		for _, id := range m.ids {
			m.finish(id)
		}
		if faults := m.o.check(); len(faults) > 0 {
			rt.Fatal(strings.Join(faults, "\n"))
		}
	})
}

func (m *model) sound() {
	if len(m.o.faults) > 0 {
		m.t.Fatal(strings.Join(m.o.faults, "\n"))
	}
}

func (m *model) draw(label string, n int) int { return rapid.IntRange(0, n-1).Draw(m.t, label) }

func (m *model) instance() imprint.InstanceID { return m.ids[m.draw("instance", len(m.ids))] }

func (m *model) server() *enrol.Engine { return m.engines[m.draw("server", len(m.engines))] }

// generation is the present one, none, or a stale one.
func (m *model) generation(id imprint.InstanceID) imprint.Generation {
	g := m.w.get(id).Generation
	return rapid.SampledFrom([]imprint.Generation{g, g, g, g, 0, g - 1}).Draw(m.t, "generation")
}

func (m *model) begin(ctx context.Context, name string, do func(context.Context)) {
	if len(m.tasks) < 6 {
		m.tasks = append(m.tasks, start(ctx, name, do))
	}
}

func (m *model) advance(n int) {
	if !m.tasks[n].step() {
		m.tasks = append(m.tasks[:n:n], m.tasks[n+1:]...)
	}
}

func (m *model) proceed(*rapid.T) {
	if len(m.tasks) > 0 {
		m.advance(m.draw("task", len(m.tasks)))
	}
}

func (m *model) die(*rapid.T) {
	if len(m.tasks) > 0 {
		n := m.draw("task", len(m.tasks))
		m.tasks[n].die()
		m.tasks = append(m.tasks[:n:n], m.tasks[n+1:]...)
	}
}

func (m *model) wait(*rapid.T) {
	m.w.now = m.w.now.Add(rapid.SampledFrom([]time.Duration{
		time.Minute, 10 * time.Minute, 90 * time.Minute, 25 * time.Hour, 4 * 24 * time.Hour, 40 * 24 * time.Hour,
	}).Draw(m.t, "wait"))
}

// ask sends a request, honest or not.
func (m *model) ask(*rapid.T) {
	id, who, server := m.instance(), m.keys[m.draw("key", len(m.keys))], m.server()
	s := who.up(id)
	s.Generation = m.generation(id)
	ctx := m.ctx
	switch how := rapid.SampledFrom([]string{"channel", "channel", "virtio", "token", "old token", "guess", "nothing", "other host"}).Draw(m.t, "how"); how {
	case "virtio":
		s.Channel = imprint.VirtioSerial
	case "token", "old token":
		s.Witness, s.Channel = "", imprint.NetworkEST
		if all := m.tokens[id]; len(all) > 0 && how == "token" {
			s.Token = all[len(all)-1]
		} else if len(all) > 0 {
			s.Token = all[0]
		}
	case "guess":
		s.Witness, s.Channel, s.Token = "", imprint.NetworkEST, imprint.NewSecret([]byte("guess"))
		ctx = context.WithValue(ctx, strangerKey{}, true)
	case "nothing":
		s.Witness, s.Channel = "", imprint.NetworkEST
	case "other host":
		s.Witness = other
		ctx = context.WithValue(ctx, strangerKey{}, true)
	}
	m.begin(ctx, "ask", func(ctx context.Context) {
		i, err := server.Enrol(ctx, s)
		pause(ctx, "reply")
		m.o.replied(who, s, i, err)
		if err == nil {
			m.leaves[id] = append(m.leaves[id], i.Enrolment.Certificate.DER)
		}
	})
}

// report sends what machines and their hosts say, in any order and state.
func (m *model) report(*rapid.T) {
	id, server := m.instance(), m.server()
	r := said(id, "", "db", "data")
	switch kind := rapid.SampledFrom([]imprint.ReportKind{
		imprint.ReportDelivered, imprint.ReportConfirmed, imprint.ReportConfirmed, imprint.ReportReady, imprint.ReportRead,
		imprint.ReportPassword, imprint.ReportRefused,
	}).Draw(m.t, "report"); {
	case kind == imprint.ReportConfirmed && len(m.leaves[id]) > 0:
		leaf := m.leaves[id][m.draw("leaf", len(m.leaves[id]))]
		r = m.keys[m.draw("key", len(m.keys))].confirmation(m.t, id, m.w.get(id).Generation, leaf)
	default:
		r.Kind = kind
	}
	r.Generation = m.generation(id)
	ctx := m.ctx
	if rapid.IntRange(0, 4).Draw(m.t, "other host") == 0 {
		r.Witness = other
		ctx = context.WithValue(ctx, strangerKey{}, true)
	}
	m.begin(ctx, "report", func(ctx context.Context) {
		err := server.Report(ctx, r)
		pause(ctx, "reply")
		if err == nil && r.Witness == other {
			m.o.fault("another host's report was taken")
		}
	})
}

// operate is what operators and reminders do.
func (m *model) operate(*rapid.T) {
	id, server := m.instance(), m.server()
	moves := map[string]func(context.Context){
		"approve": func(ctx context.Context) { server.Approve(ctx, id, "ann") },
		"revoke":  func(ctx context.Context) { server.Revoke(ctx, id, "", "ann") },
		"rebirth": func(ctx context.Context) { server.Rebirth(ctx, id, "ann") },
		"expire":  func(ctx context.Context) { server.Expire(ctx, id) },
		"token": func(ctx context.Context) {
			secret, err := server.Token(ctx, id, time.Hour)
			pause(ctx, "reply")
			if err == nil {
				m.tokens[id] = append(m.tokens[id], secret)
			}
		},
	}
	name := rapid.SampledFrom([]string{"approve", "approve", "expire", "rebirth", "revoke", "token", "token"}).Draw(m.t, "operate")
	m.begin(m.ctx, name, moves[name])
}

// finish lets id's machine repeat the same request until it is confirmed. It
// gets there unless its generation has ended for a reason on record.
func (m *model) finish(id imprint.InstanceID) {
	i := m.w.get(id)
	m.w.signer.fail = nil
	if !i.Enrolment.State.Open() {
		return
	}
	var who *machine
	for _, k := range m.keys {
		if c := i.Enrolment.Claim; c != nil && c.Key == k.id {
			who = k
		}
	}
	if who == nil {
		if e := i.Enrolment.Expires; !e.IsZero() && !m.w.now.Before(e) {
			return // it will expire
		}
		who = newMachine(m.t)
	}
	var err error
	for range 3 { // the first replies get lost
		i, err = m.engines[0].Enrol(m.ctx, who.up(id))
		if imprint.KindOf(err) == imprint.Pending && err != nil {
			if i, err = m.engines[1].Approve(m.ctx, id, "ann"); err != nil {
				m.t.Fatalf("approve: %v", err)
			}
		}
		if err != nil {
			m.t.Fatalf("stranded in state %s: %v", m.w.get(id).Enrolment.State, err)
		}
		m.o.replied(who, who.up(id), i, nil)
	}
	for range 2 {
		r := who.confirmation(m.t, id, i.Generation, i.Enrolment.Certificate.DER)
		if err := m.engines[0].Report(m.ctx, r); err != nil {
			m.t.Fatalf("confirm in state %s: %v", m.w.get(id).Enrolment.State, err)
		}
	}
	if s := m.w.get(id).Enrolment.State; !s.Enrolled() {
		m.t.Fatalf("confirmed, but %s", s)
	}
}
