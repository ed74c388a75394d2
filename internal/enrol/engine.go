package enrol

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"log/slog"
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
	// Issue turns a grant into a certificate, which is on the issuance log before
	// Issue returns. The same grant may be given again, also on another server.
	Issue(ctx context.Context, g imprint.Grant) (imprint.Certificate, error)
}

// Config is what an [Engine] needs; every field must be set.
type Config struct {
	Store  Store
	Issuer Issuer
	Now    func() time.Time
	Logger *slog.Logger
}

// Engine runs decisions. It keeps nothing itself, so that several engines, in
// one process or many, may work on one store.
type Engine struct{ Config }

// New returns an engine.
func New(c Config) *Engine { return &Engine{c} }

// move runs one decision as a compare-and-swap. What decide refuses is written
// too (an event, a state) and then returned as the error.
func (e *Engine) move(ctx context.Context, id imprint.InstanceID, decide func(*imprint.Instance) (imprint.Change, error)) (*imprint.Instance, error) {
	var refusal error
	inst, err := e.Store.Update(ctx, id, func(i *imprint.Instance) (imprint.Change, error) {
		var c imprint.Change
		c, refusal = decide(i)
		c.WakeAt = WakeAt(i)
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	if refusal != nil {
		e.Logger.LogAttrs(ctx, slog.LevelInfo, "refused", slog.String("instance", string(id)), slog.Any("reason", refusal))
	}
	return inst, refusal
}

// Enrol decides about a certificate request and returns the instance with its
// certificate. The claimed key may repeat its request at any time and gets the
// same certificate, or a renewal when that is due.
//
// Kinds: Invalid for a request that can never be granted, Unauthorized if
// nothing or a wrong token vouches for it, Denied if the witness may not speak for
// the instance, Pending until an operator approved, Contested for a second key
// and ever after, Conflict in a generation that ended, NotFound.
func (e *Engine) Enrol(ctx context.Context, s imprint.Submission) (*imprint.Instance, error) {
	req, err := ParseRequest(s.CSR)
	if err != nil {
		return nil, e.noteUnreadable(ctx, &s, err)
	}
	a := &attempt{Submission: s, req: req, now: e.Now(), serial: imprint.NewSerial()}
	inst, err := e.move(ctx, s.Instance, func(i *imprint.Instance) (imprint.Change, error) { return claim(i, a) })
	if imprint.KindOf(err) == imprint.Exists && err != nil {
		return nil, e.noteReusedKey(ctx, &s)
	}
	if err != nil {
		return nil, err
	}
	return e.issue(ctx, inst)
}

// issue has the claim's certificate signed if it is not there yet.
func (e *Engine) issue(ctx context.Context, inst *imprint.Instance) (*imprint.Instance, error) {
	if !issuing(&inst.Enrolment) {
		return inst, nil
	}
	cert, err := e.Issuer.Issue(ctx, grant(inst))
	if err != nil {
		return nil, err
	}
	return e.move(ctx, inst.ID, func(i *imprint.Instance) (imprint.Change, error) { return issued(i, &cert, e.Now()) })
}

// noteUnreadable puts a request that cannot be read on the timeline, if somebody
// vouches for where it came from; others could write anything there.
func (e *Engine) noteUnreadable(ctx context.Context, s *imprint.Submission, cause error) error {
	if s.Witness == "" {
		return cause
	}
	_, err := e.move(ctx, s.Instance, func(i *imprint.Instance) (imprint.Change, error) {
		return refuse(i, s.Channel, imprint.Invalid, "%w", cause)
	})
	return err
}

func (e *Engine) noteReusedKey(ctx context.Context, s *imprint.Submission) error {
	_, err := e.move(ctx, s.Instance, func(i *imprint.Instance) (imprint.Change, error) {
		return refuse(i, s.Channel, imprint.Conflict, "%w",
			imprint.Errorf(imprint.Conflict, "enrol", i.Ref(), "this public key belongs to another machine or generation").
				WithHint("make a new key on the machine; images must not contain one"))
	})
	return err
}

// Report records what came up a channel; a report may be repeated. Kinds:
// Unauthorized, Denied if nothing vouches for it; Conflict if the enrolment is
// not so far, or over; Invalid; NotFound.
func (e *Engine) Report(ctx context.Context, r imprint.Report) error {
	_, err := e.move(ctx, r.Instance, func(i *imprint.Instance) (imprint.Change, error) { return report(i, &r, e.Now()) })
	return err
}

// Authenticate returns the instance that a certificate names, if the
// certificate is one of its present generation's and was not revoked. Kinds:
// Denied, NotFound.
func (e *Engine) Authenticate(ctx context.Context, who imprint.Identity) (*imprint.Instance, error) {
	inst, err := e.Store.Instance(ctx, who.Instance)
	if err != nil {
		return nil, err
	}
	return inst, authenticate(inst, who)
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

// Approve lets the claim that waits have its certificate. by says who consented.
// Kind: Conflict if nothing waits.
func (e *Engine) Approve(ctx context.Context, id imprint.InstanceID, by string) (*imprint.Instance, error) {
	inst, err := e.move(ctx, id, func(i *imprint.Instance) (imprint.Change, error) { return approve(i, by) })
	if err != nil {
		return nil, err
	}
	return e.issue(ctx, inst)
}

// Revoke takes back what the present generation has and refuses it from now on.
func (e *Engine) Revoke(ctx context.Context, id imprint.InstanceID, reason, by string) (*imprint.Instance, error) {
	return e.move(ctx, id, func(i *imprint.Instance) (imprint.Change, error) { return revoke(i, reason, by, e.Now()) })
}

// Rebirth starts the next generation and revokes the certificates of this one.
func (e *Engine) Rebirth(ctx context.Context, id imprint.InstanceID, by string) (*imprint.Instance, error) {
	return e.move(ctx, id, func(i *imprint.Instance) (imprint.Change, error) { return rebirth(i, by, e.Now()) })
}

// Expire ends the reservation if its window has passed; it does nothing otherwise.
func (e *Engine) Expire(ctx context.Context, id imprint.InstanceID) (*imprint.Instance, error) {
	return e.move(ctx, id, func(i *imprint.Instance) (imprint.Change, error) { return expire(i, e.Now()), nil })
}
