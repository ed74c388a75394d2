package enrol

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"log/slog"
	"reflect"
	"time"

	"imprint"
)

// Store keeps instances. Kinds: NotFound if there is no such instance;
// Unavailable if it cannot be reached, when a write may or may not have happened.
type Store interface {
	Instance(ctx context.Context, id imprint.InstanceID) (*imprint.Instance, error)
	// Update lets decide change an instance and stores the result, if nobody
	// changed it meanwhile; else decide is asked again. Kind Exists means that
	// the key of the change belongs to another instance or generation.
	Update(ctx context.Context, id imprint.InstanceID, decide func(*imprint.Instance) (imprint.Change, error)) (*imprint.Instance, error)
}

// Issuer signs.
type Issuer interface {
	// Issue turns a grant into a certificate and its entry for the issuance log.
	// Both are stored in one change, or forgotten. The same grant may be given
	// again, also on another server.
	Issue(ctx context.Context, g imprint.Grant) (*imprint.Certificate, *imprint.LogEntry, error)
}

// Config is what an [Engine] needs; every field must be set.
type Config struct {
	Store  Store
	Issuer Issuer
	Now    func() time.Time
	Logger *slog.Logger
}

// Engine runs decisions. All it keeps itself is how often it refused what, so
// that several engines, in one process or many, may work on one store.
type Engine struct {
	Config
	notes notes
}

// New returns an engine.
func New(c Config) *Engine { return &Engine{Config: c} }

// move runs one decision as a compare-and-swap. What decide refuses is written
// too (an event, a state) and then returned as the error, with the instance.
func (e *Engine) move(ctx context.Context, id imprint.InstanceID, decide func(*imprint.Instance) (imprint.Change, error)) (*imprint.Instance, error) {
	return e.moveNoting(ctx, id, decide, func(*imprint.Instance, *imprint.Change) {})
}

// moveNoting is move; note may add to what is written of a decision that was
// not refused, after its events were rationed.
func (e *Engine) moveNoting(ctx context.Context, id imprint.InstanceID, decide func(*imprint.Instance) (imprint.Change, error), note func(*imprint.Instance, *imprint.Change)) (*imprint.Instance, error) {
	var refusal error
	var ration ration
	inst, err := e.Store.Update(ctx, id, func(i *imprint.Instance) (imprint.Change, error) {
		var c imprint.Change
		c, refusal = decide(i)
		if c.Keep && len(c.Events) == 1 && !ration.allows(&e.notes, i, &c.Events[0], refusal, e.Now()) {
			c.Events = nil
			if refusal == nil && ration.sort.event == imprint.EventRead {
				refusal = imprint.Errorf(imprint.Exhausted, "read parameters of", i.Ref(), "more than %d reads at once", readBurst).
					WithHint("read each parameter once; the next may be read in %s", readEvery)
			}
		}
		if refusal == nil {
			note(i, &c)
		}
		c.WakeAt = WakeAt(i)
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	if kind := imprint.KindOf(refusal); refusal != nil && kind != imprint.Pending && kind != imprint.Unavailable {
		level := slog.LevelInfo
		if !ration.loud(&e.notes, id, refusal, e.Now()) {
			level = slog.LevelDebug
		}
		e.Logger.LogAttrs(ctx, level, "refused", slog.String("instance", string(id)), slog.Any("reason", refusal))
	}
	return inst, refusal
}

// Enrol decides about a certificate request and returns the instance with its
// certificate. The claimed key may repeat its request at any time and gets the
// same certificate, or a renewal when that is due.
//
// Kinds: Invalid for a request that can never be granted, Unauthorized if
// nothing or a wrong token vouches for it, Denied if the witness may not speak for
// the instance or a second key has no evidence at all, Pending until an operator
// approved, Contested for a second key with evidence and for everybody ever after,
// Conflict for another or an ended generation and for a key that belongs
// elsewhere, NotFound; and what Store and Issuer fail with. With Pending and
// Contested the instance is returned too.
func (e *Engine) Enrol(ctx context.Context, s imprint.Submission) (*imprint.Instance, error) {
	req, flaw := ParseRequest(s.CSR)
	if flaw == nil && s.SSHHost != "" {
		s.SSHHost, flaw = parseSSHHost(s.SSHHost)
	}
	if flaw != nil {
		req = &Request{}
	}
	a := &attempt{Submission: s, req: req, flaw: flaw, now: e.Now(), serial: imprint.NewSerial()}
	decide := e.issuing(ctx, func(i *imprint.Instance) (imprint.Change, error) { return claim(i, a) })
	inst, err := e.move(ctx, s.Instance, decide)
	if imprint.KindOf(err) == imprint.Exists {
		a.taken = true // decide again, for somebody else may have claimed meanwhile
		inst, err = e.move(ctx, s.Instance, decide)
	}
	return inst, err
}

// issuing returns decide with what follows from it: if it lets i's claim have a
// certificate that is still to be made, that is made and becomes part of the
// change. If it cannot be made, the claim stands without, and its key may ask
// again. Like decide it may be asked several times; what is the same grant is
// signed once.
func (e *Engine) issuing(ctx context.Context, decide func(*imprint.Instance) (imprint.Change, error)) func(*imprint.Instance) (imprint.Change, error) {
	var granted imprint.Grant
	var cert *imprint.Certificate
	var entry *imprint.LogEntry
	return func(i *imprint.Instance) (imprint.Change, error) {
		change, err := decide(i)
		if err != nil || !issuing(&i.Enrolment) {
			return change, err
		}
		if g := grant(i); cert == nil || !reflect.DeepEqual(g, granted) {
			if cert, entry, err = e.Issuer.Issue(ctx, g); err != nil {
				cert = nil
				if kind := imprint.KindOf(err); kind == imprint.Invalid || kind == imprint.Denied { // the reservation cannot be certified as it is
					change.Events = append(change.Events, refusal(i.Enrolment.Claim.Channel, err))
				}
				return change, err
			}
			granted = g
		}
		change.Events = append(change.Events, issued(i, cert, e.Now()))
		change.Keep, change.Log = false, entry
		return change, nil
	}
}

// Report records what came up a channel; a report may be repeated, and one that
// has an ID is recorded once if nothing else with an ID came between. Kinds:
// Unauthorized or Denied if nothing vouches for it; Conflict if the enrolment is
// not so far, or over, or of another generation; Contested; Invalid, also for a
// confirmation that the enrolled key did not sign; Exhausted if values are read
// too often; NotFound.
func (e *Engine) Report(ctx context.Context, r imprint.Report) error {
	decide := func(i *imprint.Instance) (imprint.Change, error) { return report(i, &r, e.Now()) }
	_, err := e.moveNoting(ctx, r.Instance, decide, func(i *imprint.Instance, c *imprint.Change) { kept(i, &r, c) })
	return err
}

// Authenticate returns the instance that a verified certificate names, if the
// certificate is one of its present generation's, has not ended and was not
// revoked; else it fails with kind Denied. To the holder of the claimed key, who
// may know, it fails with Contested or Conflict if the generation is over, and
// returns the instance too.
func (e *Engine) Authenticate(ctx context.Context, who imprint.Identity) (*imprint.Instance, error) {
	inst, err := e.Store.Instance(ctx, who.Instance)
	if err == nil {
		err = authenticate(inst, who, e.Now())
	} else if imprint.KindOf(err) == imprint.NotFound {
		err = imprint.Errorf(imprint.Denied, "authenticate", string(who.Instance), "there is no such instance")
	}
	if err != nil {
		e.Logger.LogAttrs(ctx, slog.LevelInfo, "certificate refused", slog.String("instance", string(who.Instance)),
			slog.String("serial", string(who.Serial)), slog.Any("reason", err))
		if imprint.KindOf(err) == imprint.Denied {
			inst = nil
		}
		return inst, err
	}
	return inst, nil
}

// Token makes a one-time token for the present generation, in place of an
// earlier one; life 0 is [DefaultTokenLife]. Kind: Conflict once a key has claimed.
func (e *Engine) Token(ctx context.Context, id imprint.InstanceID, life time.Duration) (imprint.Secret, error) {
	if life == 0 {
		life = DefaultTokenLife
	}
	if life < 0 || life > MaxTokenLife {
		return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "hand out token for", string(id), "a life of %s; at most %s", life, imprint.Duration(MaxTokenLife))
	}
	random := make([]byte, 20)
	rand.Read(random) // never fails since Go 1.24
	token := []byte(base64.RawURLEncoding.EncodeToString(random))
	hash := imprint.DigestOf(token)
	if _, err := e.move(ctx, id, func(i *imprint.Instance) (imprint.Change, error) { return arm(i, hash, life, e.Now()) }); err != nil {
		return imprint.Secret{}, err
	}
	return imprint.NewSecret(token), nil
}

// Approve lets the claim that waits have its certificate and has it made; if that
// fails the consent stands and the machine's next request makes it. by says who
// consented. Kind: Conflict if nothing waits.
func (e *Engine) Approve(ctx context.Context, id imprint.InstanceID, by string) (*imprint.Instance, error) {
	return e.move(ctx, id, e.issuing(ctx, func(i *imprint.Instance) (imprint.Change, error) { return approve(i, by, e.Now()) }))
}

// Revoke takes back what the present generation has and refuses it from now on.
// Kind: Conflict if it expired or is contested already.
func (e *Engine) Revoke(ctx context.Context, id imprint.InstanceID, reason, by string) (*imprint.Instance, error) {
	return e.move(ctx, id, func(i *imprint.Instance) (imprint.Change, error) { return revoke(i, reason, by, e.Now()) })
}

// Rebirth starts the next generation, from any state, and revokes the
// certificates of this one.
func (e *Engine) Rebirth(ctx context.Context, id imprint.InstanceID, by string) (*imprint.Instance, error) {
	return e.move(ctx, id, func(i *imprint.Instance) (imprint.Change, error) { return rebirth(i, by, e.Now()) })
}

// Expire ends the reservation if its window has passed; it does nothing otherwise.
func (e *Engine) Expire(ctx context.Context, id imprint.InstanceID) (*imprint.Instance, error) {
	return e.move(ctx, id, func(i *imprint.Instance) (imprint.Change, error) { return expire(i, e.Now()), nil })
}
