package enrol

import (
	"errors"
	"fmt"
	"math/bits"
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

// refusalsTold is how many refusals of a generation are on the timeline one by
// one. After that only every doubling is, so that whoever repeats a bad request
// cannot push the rest of the story out.
const refusalsTold = 16

// refuse turns a request down and notes why.
func refuse(i *imprint.Instance, over imprint.ChannelKind, kind imprint.Kind, format string, args ...any) (imprint.Change, error) {
	cause := fmt.Errorf(format, args...)
	e := &i.Enrolment
	e.Refusals++
	var change imprint.Change
	if n := e.Refusals; n <= refusalsTold || bits.OnesCount(uint(n)) == 1 {
		change.Events = []imprint.Event{event(imprint.EventRefused, over, "reason", clip(reasonOf(cause)), "count", fmt.Sprint(n))}
	}
	var known *imprint.Error
	if errors.As(cause, &known) && known.Kind == kind {
		return change, cause
	}
	return change, imprint.Errorf(kind, "enrol", i.Ref(), "%w", cause)
}

// reasonOf is the innermost sentence of an error.
func reasonOf(err error) string {
	var e *imprint.Error
	if errors.As(err, &e) && e.Err != nil {
		return reasonOf(e.Err)
	}
	return err.Error()
}

// ended tells that i's generation takes no requests any more; a reservation
// whose window has passed expires here.
func ended(i *imprint.Instance, now time.Time) (imprint.Change, error) {
	e := &i.Enrolment
	if c := expire(i, now); !c.Keep {
		return c, expired(i)
	}
	switch e.State {
	case imprint.InDispute:
		return imprint.Change{Keep: true}, contested(i)
	case imprint.Revoked:
		return imprint.Change{Keep: true}, imprint.Errorf(imprint.Conflict, "enrol", i.Ref(), "generation %d is revoked", i.Generation).
			WithHint("start a new generation: imprint rebirth %s", i.Ref())
	case imprint.Expired:
		return imprint.Change{Keep: true}, expired(i)
	}
	return imprint.Change{}, nil
}

// expire ends a reservation that nobody claimed in time. The change is Keep if
// there is nothing to do.
func expire(i *imprint.Instance, now time.Time) imprint.Change {
	e := &i.Enrolment
	if e.Claim != nil || !e.State.Open() || e.Expires.IsZero() || now.Before(e.Expires) {
		return imprint.Change{Keep: true}
	}
	e.State = imprint.Expired
	e.Reason = "nobody claimed it by " + e.Expires.UTC().Format(time.RFC3339)
	return imprint.Change{Events: []imprint.Event{event(imprint.EventExpired, "", "at", e.Expires.UTC().Format(time.RFC3339))}}
}

func expired(i *imprint.Instance) error {
	return imprint.Errorf(imprint.Conflict, "enrol", i.Ref(), "the reservation expired: %s", i.Enrolment.Reason).
		WithHint("start a new generation: imprint rebirth %s", i.Ref())
}

func contested(i *imprint.Instance) error {
	return imprint.Errorf(imprint.Contested, "enrol", i.Ref(), "generation %d is contested: %s", i.Generation, i.Enrolment.Reason).
		WithHint("find out who the second claimant is, then: imprint rebirth %s", i.Ref())
}

func pending(i *imprint.Instance) error {
	return imprint.Errorf(imprint.Pending, "enrol", i.Ref(), "an operator has to approve key %.16s", i.Enrolment.Claim.Key).
		WithHint("imprint approve %s", i.Ref())
}

// revocations takes back every certificate of a generation that has not ended,
// and the one that may be being signed at this moment.
func revocations(e *imprint.Enrolment, now time.Time, reason int) []imprint.Revocation {
	var list []imprint.Revocation
	add := func(s imprint.Serial, notAfter time.Time) {
		if now.Before(notAfter) {
			list = append(list, imprint.Revocation{Serial: s, At: now.UTC().Truncate(time.Second), NotAfter: notAfter, Reason: reason})
		}
	}
	for _, l := range e.Earlier {
		add(l.Serial, l.NotAfter)
	}
	if c := e.Certificate; c != nil {
		add(c.Serial, c.NotAfter)
	}
	if issuing(e) {
		add(e.Claim.Serial, e.Claim.NotAfter)
	}
	return list
}

// event makes an event with the pairs of details whose value is not empty.
func event(kind imprint.EventKind, over imprint.ChannelKind, pairs ...string) imprint.Event {
	e := imprint.Event{Kind: kind, Channel: over}
	for n := 0; n < len(pairs); n += 2 {
		if pairs[n+1] == "" {
			continue
		}
		if e.Detail == nil {
			e.Detail = map[string]string{}
		}
		e.Detail[pairs[n]] = pairs[n+1]
	}
	return e
}
