package guest

import (
	"context"
	"time"

	"imprint"
)

const (
	// clockLook is the longest sleep before a renewal: the clock may be moved, or
	// the machine suspended, meanwhile.
	clockLook = 30 * time.Minute
	// renewRetry is the pause after imprint said that a renewal is not due yet.
	renewRetry = time.Hour
)

// keepRenewed renews the certificate each time it is due, until ctx ends or
// imprint refuses.
func (a *Agent) keepRenewed(ctx context.Context, cred *credential) error {
	due := renewAt(cred.leaf(), a.random())
	a.console.Say("the certificate will be renewed about %s", stamp(due))
	for {
		for left := due.Sub(a.clock.now()); left > 0; left = due.Sub(a.clock.now()) {
			if err := a.sleep(ctx, min(left, clockLook)); err != nil {
				return err
			}
		}
		next, err := a.persist(ctx, func() (*credential, error) {
			rec, cred, err := a.current()
			if err != nil {
				return nil, err
			}
			return a.renew(ctx, rec, cred)
		})
		if err != nil {
			return err
		}
		if next.serial() == cred.serial() {
			due = a.clock.now().Add(renewRetry)
			continue
		}
		cred = next
		a.takeAway(ctx)
		due = renewAt(cred.leaf(), a.random())
		a.enrolled()
		a.console.Say("the certificate was renewed; next about %s", stamp(due))
	}
}

// renew replaces the certificate in use, and leaves it in place until a verified
// one takes over. A new generation that begins meanwhile is taken up instead.
func (a *Agent) renew(ctx context.Context, rec *record, cred *credential) (*credential, error) {
	generation := rec.Payload.Generation
	rec, open, err := a.meet(ctx, rec)
	if err != nil {
		return nil, err
	}
	if rec.Payload.Generation != generation {
		open.Close()
		return a.settle(ctx)
	}
	defer open.Close()
	if a.clock.now().After(cred.leaf().NotAfter) {
		a.console.Say("the certificate ended %s; asking for another", stamp(cred.leaf().NotAfter))
	}
	next, err := a.obtain(ctx, open, &rec.Payload, cred, cred)
	if err != nil {
		return nil, err
	}
	return next, a.complete(ctx, open, rec, next, eventRenewed)
}

// OpenParam asks imprint for one parameter now, with the enrolled key. It
// changes nothing on the machine and fails with kind [imprint.NotFound] if
// imprint has no such value.
func (a *Agent) OpenParam(ctx context.Context, name string) (imprint.Secret, error) {
	if err := checkParamName(name); err != nil {
		return imprint.Secret{}, err
	}
	return a.read(ctx, func(l link, cred *credential) (imprint.Secret, error) {
		params, err := l.Params(ctx, cred)
		if err != nil {
			return imprint.Secret{}, err
		}
		for _, p := range params {
			if p.Name == name {
				return l.Param(ctx, cred, p)
			}
		}
		return imprint.Secret{}, imprint.Errorf(imprint.NotFound, "read parameter", name, "imprint has none of this name")
	})
}

// OpenUserData asks imprint for the user data now, with the enrolled key: stock
// software is not given it once the boot is closed. It fails with kind
// [imprint.NotFound] if there is none.
func (a *Agent) OpenUserData(ctx context.Context) (imprint.Secret, error) {
	return a.read(ctx, func(l link, cred *credential) (imprint.Secret, error) { return l.UserData(ctx, cred) })
}

// read asks imprint for something with the enrolled key.
func (a *Agent) read(ctx context.Context, ask func(link, *credential) (imprint.Secret, error)) (imprint.Secret, error) {
	rec, cred, err := a.current()
	if err != nil {
		return imprint.Secret{}, err
	}
	open, err := a.reopen(ctx, rec)
	if err != nil {
		return imprint.Secret{}, err
	}
	defer open.Close()
	return ask(open, cred)
}

// reopen opens the way to imprint without taking up anything from the payload.
func (a *Agent) reopen(ctx context.Context, rec *record) (link, error) {
	f, err := a.find(ctx, 0)
	if imprint.KindOf(err) == imprint.NotFound {
		return a.checkIn(&rec.Payload)
	}
	if err != nil {
		return nil, err
	}
	if f.live == nil {
		return a.checkIn(&rec.Payload)
	}
	return &tritonLink{metadata: f.live, Closer: f, payload: &rec.Payload, console: a.console, sleep: a.sleep}, nil
}
