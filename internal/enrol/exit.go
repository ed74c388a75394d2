package enrol

import (
	"errors"
	"time"

	"imprint"
)

// Reasons in revocation lists (RFC 5280 section 5.3.1).
const (
	reasonKeyCompromise        = 1
	reasonSuperseded           = 4
	reasonCessationOfOperation = 5
	reasonPrivilegeWithdrawn   = 9
)

// refuse turns a request down for the reason err and notes it with the pairs of
// details. The record stays as it is.
func refuse(over imprint.ChannelKind, err error, pairs ...string) (imprint.Change, error) {
	return imprint.Change{Keep: true, Events: []imprint.Event{refusal(over, err, pairs...)}}, err
}

// refusal is the event of a request that is turned down for the reason err.
func refusal(over imprint.ChannelKind, err error, pairs ...string) imprint.Event {
	return event(imprint.EventRefused, over, append([]string{"reason", clip(reasonOf(err))}, pairs...)...)
}

// reasonOf is the innermost sentence of an error.
func reasonOf(err error) string {
	var e *imprint.Error
	if errors.As(err, &e) && e.Err != nil {
		return reasonOf(e.Err)
	}
	return err.Error()
}

// sameGeneration checks that a message which says its generation (0 does not)
// means the present one.
func sameGeneration(i *imprint.Instance, op string, said imprint.Generation) error {
	if said == 0 || said == i.Generation {
		return nil
	}
	return imprint.Errorf(imprint.Conflict, op, i.Ref(), "this is of generation %d, the instance is in generation %d", said, i.Generation).
		WithHint("read the payload again")
}

// ended returns an error if i's generation is over. A reservation whose window
// has passed expires here, with what that writes.
func ended(i *imprint.Instance, now time.Time) (imprint.Change, error) {
	change := expire(i, now)
	return change, over(i)
}

// over says how i's generation ended, or returns nil while it has not.
func over(i *imprint.Instance) error {
	switch i.Enrolment.State {
	case imprint.InDispute:
		return contested(i)
	case imprint.Revoked, imprint.Expired:
		return imprint.Errorf(imprint.Conflict, "enrol", i.Ref(), "generation %d is %s: %s", i.Generation, i.Enrolment.State, i.Enrolment.Reason).
			WithHint("start a new generation: imprint rebirth %s", i.Ref())
	}
	return nil
}

// expire ends a reservation that nobody claimed in time, else it keeps i.
func expire(i *imprint.Instance, now time.Time) imprint.Change {
	e := &i.Enrolment
	if wake := WakeAt(i); wake.IsZero() || now.Before(wake) {
		return imprint.Change{Keep: true}
	}
	e.State = imprint.Expired
	e.Reason = "nobody claimed it by " + stamp(e.Expires)
	return imprint.Change{Events: []imprint.Event{event(imprint.EventExpired, "", "window", stamp(e.Expires))}}
}

func contested(i *imprint.Instance) error {
	return imprint.Errorf(imprint.Contested, "enrol", i.Ref(), "generation %d is contested: %s", i.Generation, i.Enrolment.Reason).
		WithHint("find out who the second claimant is, then: imprint rebirth %s", i.Ref())
}

func pending(i *imprint.Instance) error {
	return imprint.Errorf(imprint.Pending, "enrol", i.Ref(), "an operator has to approve key %.16s", i.Enrolment.Claim.Key).
		WithHint("imprint approve %s", i.Ref())
}

// revocations takes back every certificate of a generation that has not ended.
// One that is being signed at this moment will not be stored, and so not leave.
func revocations(e *imprint.Enrolment, now time.Time, reason int) []imprint.Revocation {
	if !e.State.Open() {
		return nil // whatever there was is revoked already
	}
	var list []imprint.Revocation
	for _, l := range e.Earlier {
		list = revocation(list, l.Serial, l.NotAfter, now, reason)
	}
	if c := e.Certificate; c != nil {
		list = revocation(list, c.Serial, c.NotAfter, now, reason)
	}
	return list
}

// revocation adds the entry for serial to list, unless it has ended by itself.
func revocation(list []imprint.Revocation, serial imprint.Serial, notAfter, now time.Time, reason int) []imprint.Revocation {
	if !now.Before(notAfter) {
		return list
	}
	return append(list, imprint.Revocation{Serial: serial, At: now.UTC().Truncate(time.Second), NotAfter: notAfter, Reason: reason})
}

// event makes an event with the pairs of details whose value is not empty.
func event(kind imprint.EventKind, over imprint.ChannelKind, pairs ...string) imprint.Event {
	e := imprint.Event{Kind: kind, Channel: over, Detail: make(map[string]string, len(pairs)/2)}
	for n := 0; n < len(pairs); n += 2 {
		if pairs[n+1] != "" {
			e.Detail[pairs[n]] = pairs[n+1]
		}
	}
	return e
}
