package guest

import (
	"context"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"imprint"
	"imprint/internal/durable"
)

// Options say what [New]'s agent does; the zero value is a machine's usual agent.
type Options struct {
	// Root is put before every path of the agent.
	Root string
	// PayloadFile is the only source, if it is not "".
	PayloadFile string
	// Wait is how long to look for a payload on a machine that has no identity yet.
	Wait time.Duration
	// Once ends [Agent.Run] when the machine is enrolled.
	Once bool
	// TrustCA adds the CA to those that every program on the machine trusts.
	TrustCA bool
	// SSH has the machine's SSH host key certified too.
	SSH bool
	// TakeAway overwrites the volume that the payload was on, if imprint made it, once
	// the machine is enrolled.
	TakeAway bool
	// IdentityOnly leaves everything but key and certificate alone: the clock,
	// parameters, hooks, the volume that the payload was on.
	IdentityOnly bool
	// Dial connects to the check-in endpoint; nil is the usual way.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Enrolled is called each time the machine has a certificate in use.
	Enrolled func()
}

// Agent enrols the machine that it runs on and keeps it enrolled.
type Agent struct {
	o        Options
	layout   Layout
	console  *Console
	clock    *clock
	sources  []source
	volumes  volumeSource
	sleep    sleeper
	random   func() float64
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
	hookTime time.Duration
	// boundary is called after each step that changes something; a test ends the
	// run there, as a crash would.
	boundary func(step string) error
}

// sleeper waits for d, or fails with the context's cause.
type sleeper func(ctx context.Context, d time.Duration) error

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// New returns an agent that says what it does on console.
func New(o Options, console *Console) *Agent {
	layout := Layout{Root: o.Root}
	a := &Agent{
		o: o, layout: layout, console: console, clock: systemClock(), sleep: sleep,
		random: rand.Float64, dial: (&net.Dialer{}).DialContext, hookTime: hookTime,
		boundary: func(string) error { return nil }, volumes: newVolumeSource(layout),
	}
	a.sources = slices.Concat([]source{newVirtioSource(layout), newSerialSource(layout), a.volumes}, firmwareSources(layout),
		[]source{fileSource{layout.Payload()}, linkLocalSource{layout}})
	if o.Dial != nil {
		a.dial = o.Dial
	}
	if o.IdentityOnly {
		a.clock.set = func(time.Time) error { return errors.New("it is not the agent's to set") }
	}
	if o.PayloadFile != "" {
		a.sources = []source{fileSource{o.PayloadFile}}
	}
	return a
}

// Pauses between two attempts when imprint cannot be reached.
const (
	retryFirst = time.Second
	retryLast  = 2 * time.Minute
)

// Run enrols the machine, or takes up what an earlier run left, and then renews
// the certificate until ctx ends, which is no error. It survives outages: only a
// refusal, or the lack of any payload for Options.Wait, ends it with an error.
func (a *Agent) Run(ctx context.Context) error {
	release, err := a.lock()
	if err != nil {
		return err
	}
	defer release()
	cred, err := a.persist(ctx, func() (*credential, error) {
		cred, err := a.settle(ctx)
		if err != nil && mayPass(err) && a.usable() {
			// An outage must not keep an enrolled machine from booting.
			a.console.About("outage", "going on with the certificate that the machine has")
			a.enrolled()
		}
		return cred, err
	})
	if err != nil {
		return ended(ctx, err)
	}
	a.enrolled()
	a.takeAway(ctx)
	if a.o.Once {
		return nil
	}
	return ended(ctx, a.keepRenewed(ctx, cred))
}

// Renew asks for a renewal now. It returns the serial of the certificate in use
// and whether it is a new one: imprint renews only when it is due.
func (a *Agent) Renew(ctx context.Context) (serial imprint.Serial, renewed bool, err error) {
	release, err := a.lock()
	if err != nil {
		return "", false, err
	}
	defer release()
	rec, cred, err := a.current()
	if err != nil {
		return "", false, err
	}
	next, err := a.renew(ctx, rec, cred)
	if err != nil {
		return "", false, err
	}
	return next.serial(), next.serial() != cred.serial(), nil
}

func (a *Agent) lock() (release func(), err error) {
	if err := makeConfigDir(a.layout.Config()); err != nil {
		return nil, err
	}
	if err := makePrivateDir(a.layout.Run()); err != nil {
		return nil, err
	}
	if release, err = takeLock(a.layout.Lock()); err != nil {
		return nil, err
	}
	if err := durable.Clean(a.layout.Config()); err != nil {
		release()
		return nil, imprint.Errorf(imprint.Internal, "clean", a.layout.Config(), "%w", err)
	}
	return release, nil
}

func (a *Agent) enrolled() {
	if a.o.Enrolled != nil {
		a.o.Enrolled()
	}
}

// ended hides the error of a run that was asked to stop.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// persist repeats try for as long as the reason of its failure may go away.
func (a *Agent) persist(ctx context.Context, try func() (*credential, error)) (*credential, error) {
	for pause := retryFirst; ; pause = min(2*pause, retryLast) {
		cred, err := try()
		if err == nil {
			return cred, nil
		}
		if ctx.Err() != nil || !mayPass(err) {
			return nil, err
		}
		delay := pause + time.Duration(a.random()*float64(pause)/4)
		a.console.Say("%v; trying again in %s", err, delay.Round(100*time.Millisecond))
		if err := a.sleep(ctx, delay); err != nil {
			return nil, err
		}
	}
}

// mayPass reports whether trying again later may help.
func mayPass(err error) bool {
	switch imprint.KindOf(err) {
	case imprint.Unavailable, imprint.Pending, imprint.Exhausted:
		return true
	}
	return false
}

// settle brings the machine from whatever state it is in to one with a verified
// certificate in use. Each step is skipped if an earlier run did it.
func (a *Agent) settle(ctx context.Context) (*credential, error) {
	rec, err := a.layout.loadRecord()
	if err != nil && imprint.KindOf(err) != imprint.NotFound {
		return nil, err
	}
	rec, open, err := a.meet(ctx, rec)
	if err != nil {
		return nil, err
	}
	defer open.Close()
	p := &rec.Payload
	key, err := a.layout.loadKey()
	if imprint.KindOf(err) == imprint.NotFound {
		a.console.Say("making a key for %s, generation %d", p.Name, p.Generation)
		key, err = a.layout.makeKey()
	}
	if err != nil {
		return nil, err
	}
	if err := a.boundary("key"); err != nil {
		return nil, err
	}

	cred := &credential{key: key}
	if cred.chain, err = a.storedChain(); err == nil {
		err = verify(cred.chain, p, key, a.clock.now())
	}
	if err != nil {
		if imprint.KindOf(err) != imprint.NotFound {
			a.console.Say("the stored certificate is of no use: %v", err)
		}
		if cred, err = a.obtain(ctx, open, p, cred, nil); err != nil {
			return nil, err
		}
	}
	return cred, a.complete(ctx, open, rec, cred, eventEnrolled)
}

// meet finds out who the machine is and opens the way to imprint: from a payload
// if a source has one, else from what an earlier run recorded.
func (a *Agent) meet(ctx context.Context, rec *record) (*record, link, error) {
	wait := a.o.Wait
	if rec != nil && rec.Confirmed != "" {
		wait = 0 // the machine has what it needs to go on without a payload
	}
	f, err := a.find(ctx, wait)
	if err != nil {
		if _, noCert := a.storedChain(); rec == nil || noCert != nil || ctx.Err() != nil || imprint.KindOf(err) != imprint.NotFound {
			return nil, nil, err
		}
		a.console.Say("no payload; going on as %s, generation %d", rec.Payload.Name, rec.Payload.Generation)
		a.clock.learn(rec.Payload.Time, false, a.console)
		l, err := a.checkIn(&rec.Payload)
		return rec, l, err
	}
	rec, l, err := a.accept(ctx, f, rec)
	if err != nil {
		f.Close()
	}
	return rec, l, err
}

// accept checks a payload that was found, sets the clock by it and records
// whose it is. It owns f's connection only if it succeeds.
func (a *Agent) accept(ctx context.Context, f *finding, rec *record) (*record, link, error) {
	p, err := imprint.DecodePayload(f.payload)
	if err != nil {
		return nil, nil, err
	}
	if _, err := trustedRoots(p); err != nil {
		return nil, nil, err
	}
	what, err := rec.succeed(p, f.live != nil)
	if err != nil {
		return nil, nil, err
	}
	a.console.Say("this machine is %s (%s), generation %d", p.Name, p.Instance, p.Generation)
	a.clock.learn(p.Time, false, a.console)
	token := p.Token
	switch what {
	case nextLife:
		a.console.Say("generation %d begins; the files of generation %d go to %s",
			p.Generation, rec.Payload.Generation, a.layout.aside(rec.Payload.Generation))
		if err := a.layout.setAside(rec.Payload.Generation); err != nil {
			return nil, nil, err
		}
		rec = &record{}
	case firstLife:
		rec = &record{}
	}
	rec.Payload, rec.Source = *p, f.source
	if f.files != "" {
		rec.brought(f.files)
	}
	if err := a.layout.saveRecord(rec); err != nil { // before the key: a key always has an owner
		return nil, nil, err
	}
	if err := a.boundary("record"); err != nil {
		return nil, nil, err
	}
	if f.live == nil {
		withToken := rec.Payload
		withToken.Token = token
		l, err := a.checkIn(&withToken)
		return rec, l, err
	}
	if b, err := f.live.Get(ctx, keyTime); err == nil {
		t, err := parseTime(b)
		if err != nil {
			return nil, nil, err
		}
		a.clock.learn(t, true, a.console)
	} else if imprint.KindOf(err) != imprint.NotFound {
		return nil, nil, err
	}
	return rec, &tritonLink{metadata: f.live, Closer: f, payload: &rec.Payload, console: a.console, sleep: a.sleep}, nil
}

// checkIn returns the way to imprint for a payload from a one-way carrier.
func (a *Agent) checkIn(p *imprint.Payload) (*estLink, error) {
	if len(p.CheckIn) == 0 {
		return nil, imprint.Errorf(imprint.Unavailable, "reach", "imprint", "no live channel answers, and the payload names no check-in endpoint")
	}
	roots, err := trustedRoots(p)
	if err != nil {
		return nil, err
	}
	return &estLink{
		payload: p, roots: roots, now: a.clock.now, dial: a.dial, random: a.random, console: a.console, sleep: a.sleep,
	}, nil
}

// obtain asks for a certificate, or with current for its renewal, checks it and
// only then puts it in the place of the old one.
func (a *Agent) obtain(ctx context.Context, l enroller, p *imprint.Payload, cred, current *credential) (*credential, error) {
	req, err := newRequest(p, cred.key, a.sshHostKey())
	if err != nil {
		return nil, err
	}
	a.console.Say("asking for a certificate for key %s…", keyID(cred.key)[:16])
	chain, err := l.Enrol(ctx, req, current)
	if err != nil {
		return nil, err
	}
	if err := a.boundary("issued"); err != nil {
		return nil, err
	}
	if err := verify(chain, p, cred.key, a.clock.now()); err != nil {
		return nil, err
	}
	if current != nil && chain[0].Equal(current.leaf()) {
		return current, nil
	}
	if err := writeFile(a.layout.CA(), []byte(p.CA), 0o644); err != nil {
		return nil, err
	}
	if err := writeFile(a.layout.Cert(), encodeChain(chain), 0o644); err != nil {
		return nil, err
	}
	next := &credential{key: cred.key, chain: chain}
	a.console.Say("certificate %s is valid until %s", next.serial(), stamp(next.leaf().NotAfter))
	return next, a.boundary("certificate")
}

// complete takes a certificate that is on disk through all that follows. The
// record says after each step how far it got.
func (a *Agent) complete(ctx context.Context, l link, rec *record, cred *credential, event string) error {
	serial := cred.serial()
	if rec.Confirmed != serial {
		if err := l.Confirm(ctx, cred); err != nil {
			return err
		}
		if err := a.boundary("confirmed"); err != nil {
			return err
		}
		rec.Confirmed = serial
		if err := a.layout.saveRecord(rec); err != nil {
			return err
		}
		a.console.Say("confirmed: imprint knows that %s holds its key", rec.Payload.Name)
	}
	if !a.o.IdentityOnly {
		if err := a.putParams(ctx, l, cred); err != nil {
			return err
		}
		if err := a.boundary("parameters"); err != nil {
			return err
		}
		if err := a.apply(ctx, l, rec, cred); err != nil {
			return err
		}
		if err := a.boundary("applied"); err != nil {
			return err
		}
	}
	if rec.Closed != serial {
		if err := l.Ready(ctx, cred); err != nil {
			return err
		}
		if err := a.boundary("ready"); err != nil {
			return err
		}
		rec.Closed = serial
		if err := a.layout.saveRecord(rec); err != nil {
			return err
		}
	}
	if rec.Applied != serial {
		if !a.o.IdentityOnly {
			if err := a.runHooks(ctx, event, &rec.Payload); err != nil {
				return err
			}
		}
		if err := a.boundary("hooks"); err != nil {
			return err
		}
		rec.Applied = serial
		if err := a.layout.saveRecord(rec); err != nil {
			return err
		}
	}
	a.console.Say("%s is enrolled, generation %d, certificate %s", rec.Payload.Name, rec.Payload.Generation, serial)
	return nil
}

// usable reports whether the machine has a certificate that went through
// [Agent.complete] once and is valid.
func (a *Agent) usable() bool {
	rec, cred, err := a.current()
	return err == nil && rec.Applied == cred.serial() && verify(cred.chain, &rec.Payload, cred.key, a.clock.now()) == nil
}

func (a *Agent) storedChain() ([]*x509.Certificate, error) {
	b, err := readFile(a.layout.Cert(), maxChainPEM)
	if err != nil {
		return nil, err
	}
	return parseChain(b)
}

// current returns the identity of a machine that is enrolled.
func (a *Agent) current() (*record, *credential, error) {
	rec, err := a.layout.loadRecord()
	if imprint.KindOf(err) == imprint.NotFound {
		return nil, nil, imprint.Errorf(imprint.NotFound, "read", "identity", "this machine is not enrolled").
			WithHint("run imprint-agent")
	}
	if err != nil {
		return nil, nil, err
	}
	cred := &credential{}
	if cred.key, err = a.layout.loadKey(); err != nil {
		return nil, nil, err
	}
	if cred.chain, err = a.storedChain(); err != nil {
		return nil, nil, err
	}
	return rec, cred, nil
}
