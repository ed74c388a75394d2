package enrol

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"imprint"
)

const home = imprint.HostName("hv1.example.net")

// person is somebody with a key of his own.
type person struct {
	name string
	key  ed25519.PrivateKey
	id   imprint.KeyID
	csr  []byte
	got  map[imprint.Generation][]byte // the last certificate that arrived
}

// lives is how many generations have a machine with its own key.
const lives = 4

// people are made once: their keys and requests do not change.
var people = sync.OnceValue(func() []person {
	var all []person
	for _, name := range []string{"machine 1", "machine 2", "machine 3", "machine 4", "thief", "stranger"} {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			panic(err)
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			panic(err)
		}
		spki, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			panic(err)
		}
		all = append(all, person{name: name, key: key, id: imprint.KeyIDOf(spki), csr: csr})
	}
	return all
})

type actors struct {
	machines        []*person
	thief, stranger *person
}

func newActors() (a actors) {
	for _, p := range people() {
		p.got = map[imprint.Generation][]byte{}
		a.machines = append(a.machines, &p)
	}
	a.thief, a.stranger = a.machines[lives], a.machines[lives+1]
	a.machines = a.machines[:lives]
	return a
}

// machine is the guest of generation gen.
func (l *lab) machine(gen imprint.Generation) *person { return l.machines[(int(gen)-1)%lives] }

func (l *lab) generation() imprint.Generation {
	if l.record == nil {
		return l.gone.Generation
	}
	return l.instance().Generation
}

func (l *lab) id() imprint.InstanceID {
	if l.record == nil {
		return l.gone.ID
	}
	return l.instance().ID
}

// request sends p's certificate request, changed by alter.
func (l *lab) request(e *Engine, p *person, alter func(*imprint.Submission)) {
	s := imprint.Submission{Instance: l.id(), Generation: l.generation(), Channel: imprint.VirtioSerial, CSR: p.csr}
	alter(&s)
	l.begin(&call{name: p.name + " requests over " + string(s.Channel), enrols: &s, key: p.id}, func(ctx context.Context, c *call) {
		i, err := e.Enrol(ctx, s)
		l.answered(c, i, err)
		if err == nil && !c.dead {
			p.got[i.Generation] = i.Enrolment.Certificate.DER
		}
	})
}

func vouched(s *imprint.Submission) { s.Witness = home }

// over the check-in endpoint with a token; the sender does not know the generation.
func withToken(token imprint.Secret) func(*imprint.Submission) {
	return func(s *imprint.Submission) { s.Channel, s.Generation, s.Token = imprint.NetworkEST, 0, token }
}

func (l *lab) latestToken() imprint.Secret {
	if len(l.tokens) == 0 {
		return imprint.NewSecret([]byte("none was handed out"))
	}
	return l.tokens[len(l.tokens)-1]
}

// report sends a report, changed by alter.
func (l *lab) report(e *Engine, name string, kind imprint.ReportKind, alter func(*imprint.Report)) {
	r := imprint.Report{Instance: l.id(), Generation: l.generation(), Channel: imprint.VirtioSerial, Kind: kind, Witness: home}
	alter(&r)
	l.begin(&call{name: name + " reports " + string(kind), report: &r}, func(ctx context.Context, c *call) {
		e.Report(ctx, r)
	})
}

// confirm proves with p's key the receipt of what arrived last.
func (l *lab) confirm(e *Engine, p *person) {
	l.report(e, p.name, imprint.ReportConfirmed, func(r *imprint.Report) {
		r.Data = ed25519.Sign(p.key, imprint.ConfirmationMessage(r.Instance, r.Generation, p.got[r.Generation]))
	})
}

// operate is a call by the operator.
func (l *lab) operate(name string, f func(context.Context, *call)) { l.begin(&call{name: name}, f) }

// handOut makes a token; it is known only if the reply arrives.
func (l *lab) handOut(e *Engine, life time.Duration) {
	l.operate("token", func(ctx context.Context, c *call) {
		if token, err := e.Token(ctx, l.id(), life); err == nil && !c.dead {
			l.tokens = append(l.tokens, token)
		}
	})
}

func (l *lab) approve(e *Engine) {
	l.operate("approve", func(ctx context.Context, c *call) {
		i, err := e.Approve(ctx, l.id(), "alice")
		if err == nil && i.Enrolment.Certificate != nil { // else the claim has moved on to another one
			l.delivered(c, i)
		}
	})
}

// act begins one of the things that happen in the life of an instance.
func (l *lab) act(t *rapid.T) {
	e := l.engines[rapid.IntRange(0, 1).Draw(t, "server")]
	guest := l.machine(l.generation())
	switch rapid.SampledFrom(acts()).Draw(t, "act") {
	case "request":
		l.request(e, guest, vouched)
	case "request with token":
		l.request(e, guest, withToken(l.latestToken()))
	case "request with the certificate":
		l.request(e, guest, func(s *imprint.Submission) { s.Channel = imprint.NetworkEST })
	case "request of the life before":
		l.request(e, l.machine(max(l.generation(), 2)-1), vouched)
	case "confirm":
		l.confirm(e, guest)
	case "confirm by certificate":
		if i := l.instance(); i != nil && i.Enrolment.Certificate != nil {
			serial := i.Enrolment.Certificate.Serial
			if guest.got[i.Generation] != nil && l.left[serial] != "" {
				l.report(e, guest.name, imprint.ReportConfirmed, func(r *imprint.Report) {
					r.Channel, r.Witness, r.Serial = imprint.NetworkEST, "", serial
				})
			}
		}
	case "forge confirmation":
		if i := l.instance(); i != nil && i.Enrolment.Certificate != nil {
			l.report(e, "host", imprint.ReportConfirmed, func(r *imprint.Report) {
				r.Serial = i.Enrolment.Certificate.Serial
				r.Data = ed25519.Sign(l.thief.key, imprint.ConfirmationMessage(r.Instance, r.Generation, i.Enrolment.Certificate.DER))
			})
		}
	case "ready":
		l.report(e, guest.name, imprint.ReportReady, func(*imprint.Report) {})
	case "delivered":
		l.report(e, "host", imprint.ReportDelivered, func(r *imprint.Report) { r.Data = []byte("payload") })
	case "thief at the port":
		l.request(e, l.thief, vouched)
	case "thief with token":
		if n := len(l.tokens); n > 0 {
			l.request(e, l.thief, withToken(l.tokens[rapid.IntRange(0, n-1).Draw(t, "token")]))
		}
	case "stranger":
		l.request(e, l.stranger, rapid.SampledFrom(strangeWays(guest)).Draw(t, "way"))
	case "token":
		l.handOut(e, rapid.SampledFrom([]time.Duration{0, time.Minute, 48 * time.Hour}).Draw(t, "life"))
	case "approve":
		l.approve(e)
	case "expire":
		l.operate("expire", func(ctx context.Context, c *call) { e.Expire(ctx, l.id()) })
	case "clock":
		l.clock = l.clock.Add(rapid.SampledFrom(leaps()).Draw(t, "leap"))
	case "operator ends it":
		switch rapid.IntRange(0, 4).Draw(t, "how") {
		case 0:
			l.operate("delete", func(ctx context.Context, c *call) { l.delete(ctx) })
		case 1, 2:
			l.operate("revoke", func(ctx context.Context, c *call) { e.Revoke(ctx, l.id(), "lost", "alice") })
		default:
			l.operate("rebirth", func(ctx context.Context, c *call) { e.Rebirth(ctx, l.id(), "alice") })
		}
	}
}

// acts lists what may happen; what is there more often happens more often.
func acts() []string {
	return []string{
		"request", "request", "request", "request with token", "request with token", "request with the certificate",
		"request of the life before", "confirm", "confirm", "confirm by certificate", "forge confirmation", "ready", "delivered",
		"thief at the port", "thief with token", "stranger", "stranger", "token", "token", "approve", "approve",
		"expire", "clock", "clock", "operator ends it",
	}
}

func leaps() []time.Duration {
	const day = 24 * time.Hour
	return []time.Duration{time.Second, 10 * time.Minute, 3 * time.Hour, day, 4 * day, 8 * day, 40 * day, -2 * time.Hour, -5 * day}
}

// strangeWays are requests of which none is evidence.
func strangeWays(guest *person) []func(*imprint.Submission) {
	return []func(*imprint.Submission){
		func(s *imprint.Submission) {},
		func(s *imprint.Submission) { s.Channel, s.Generation = imprint.NetworkEST, 0 },
		withToken(imprint.NewSecret([]byte("guessed"))),
		withToken(imprint.NewSecret(nil)),
		func(s *imprint.Submission) { s.Witness = "hv2.example.net" },
		func(s *imprint.Submission) { s.Witness, s.Channel = home, imprint.NetworkEST },
		func(s *imprint.Submission) { s.Witness, s.Channel = home, imprint.File },
		func(s *imprint.Submission) { s.Witness, s.Channel = home, imprint.Neutron },
		func(s *imprint.Submission) { s.Channel = imprint.Neutron },
		func(s *imprint.Submission) { s.Witness = home; s.Generation++ },
		func(s *imprint.Submission) { s.Witness, s.CSR = home, []byte("noise") },
	}
}

// rescue is a machine that keeps trying, with an operator who helps as far as
// policy asks: whatever was lost, it ends up confirmed, unless its generation was
// ended, or belongs to another key.
func (l *lab) rescue() {
	i := l.instance()
	if i == nil || !i.Enrolment.State.Open() {
		return
	}
	p := l.machine(i.Generation)
	if c := i.Enrolment.Claim; c != nil && c.Key != p.id {
		return
	}
	if gen, bound := l.keys[p.id]; bound && gen != i.Generation {
		return // it kept the key of an earlier life
	}
	if e := i.Enrolment.Expires; i.Enrolment.Claim == nil && !e.IsZero() && !l.clock.Before(e) {
		return
	}
	e := l.engines[0]
	if len(l.events)%2 == 0 { // half of them have no channel but the network
		if i.Enrolment.Claim == nil {
			l.handOut(e, 0)
			l.settle()
		}
		way := withToken(l.latestToken())
		if i.Enrolment.State.Enrolled() || i.Enrolment.Claim != nil && i.Enrolment.TokenHash == "" {
			way = func(s *imprint.Submission) { s.Channel = imprint.NetworkEST }
		} else if c := i.Enrolment.Claim; c != nil && imprint.DigestOf(l.latestToken().Reveal()) != i.Enrolment.TokenHash {
			way = vouched // the token is lost: its reply never came
		}
		l.request(e, p, way)
	} else {
		l.request(e, p, vouched)
	}
	l.settle()
	if c := l.instance().Enrolment.Claim; c != nil && waits(c) {
		l.approve(e)
		l.settle()
	}
	l.request(e, p, func(s *imprint.Submission) { s.Channel = imprint.NetworkEST }) // the key is enough now
	l.settle()
	l.confirm(e, p)
	l.settle()
	i = l.instance()
	if !i.Enrolment.State.Enrolled() {
		l.t.Fatalf("the machine is stranded: %s (%s)", i.Enrolment.State, i.Enrolment.Reason)
	}
	if c := i.Enrolment.Certificate; l.clock.Before(c.NotBefore) || !l.clock.Before(c.NotAfter) {
		l.t.Fatalf("at %s the machine has a certificate from %s to %s", l.clock, c.NotBefore, c.NotAfter)
	}
}

// Whatever two servers, the network, the clock, thieves, strangers and the
// operator do to an enrolment, in whatever order: see the rules. Long stories are
// drawn here; exhaustive_test.go goes through all orders of short ones.
func TestLab(t *testing.T) {
	t.Parallel()
	for range 8 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, story)
		})
	}
}

// story draws a life and holds it against the rules.
func story(t *rapid.T) {
	s := imprint.Spec{Name: "web-1", Tenant: imprint.DefaultTenant, Host: home, Channels: allChannels()}
	s.Policy.Approval = rapid.IntRange(0, 3).Draw(t, "policy") == 0
	s.Policy.Window = rapid.SampledFrom([]imprint.Duration{0, 0, imprint.Duration(2 * time.Hour)}).Draw(t, "window")
	s.Policy.Lifetime = rapid.SampledFrom([]imprint.Duration{0, imprint.Duration(10 * time.Minute)}).Draw(t, "lifetime")
	l := newLab(t, s)
	defer func() {
		for _, c := range l.calls {
			c.kill()
		}
	}()
	if rapid.Bool().Draw(t, "enrolled before") {
		for range 2 { // with an operator's consent in between, if it takes one
			l.request(l.engines[0], l.machines[0], vouched)
			l.settle()
			l.approve(l.engines[1])
			l.settle()
		}
		l.confirm(l.engines[0], l.machines[0])
		l.settle()
	}
	for range rapid.IntRange(1, 80).Draw(t, "steps") {
		if n := len(l.calls); n > 0 && (n == 4 || rapid.IntRange(0, 3).Draw(t, "turn") > 0) {
			next := rapid.IntRange(0, n-1).Draw(t, "call")
			f := rapid.SampledFrom([]fate{goesOn, goesOn, goesOn, goesOn, goesOn, goesOn, goesOn, fails, fails, dies}).Draw(t, "fate")
			l.step(next, f)
		} else {
			l.act(t)
		}
	}
	l.settle()
	l.rescue()
	l.checkEnd()
}

// allChannels lets a machine be expected on any channel.
func allChannels() (kinds []imprint.ChannelKind) {
	for _, c := range imprint.Channels() {
		kinds = append(kinds, c.Kind)
	}
	return kinds
}
