package enrol

import (
	"context"
	"strconv"
	"time"

	"imprint"
)

// GiveOut records a medium that is about to be given to by, and returns its
// number. m says what it is and of which generation. Kinds: Conflict if that is
// over; NotFound.
func (e *Engine) GiveOut(ctx context.Context, id imprint.InstanceID, m imprint.Medium, by string) (uint32, error) {
	inst, err := e.move(ctx, id, func(i *imprint.Instance) (imprint.Change, error) { return giveOut(i, m, by, e.Now()) })
	if err != nil {
		return 0, err
	}
	return inst.Media[len(inst.Media)-1].Number, nil
}

// SettleMedium records what by says became of a medium: it was taken away, or not
// and why. It may be said again, and anew. Kinds: NotFound, also if no medium of that
// number is remembered; Invalid.
func (e *Engine) SettleMedium(ctx context.Context, id imprint.InstanceID, number uint32, state imprint.MediumState, detail, by string) error {
	_, err := e.move(ctx, id, func(i *imprint.Instance) (imprint.Change, error) {
		return settleMedium(i, number, state, detail, by, e.Now())
	})
	return err
}

// ownMedium records what the machine itself says became of its medium, once: it may say
// that one was taken away after all, but not that one is there which is on record as
// gone, or which whoever runs the machine takes away.
func ownMedium(i *imprint.Instance, r *imprint.Report, now time.Time) (imprint.Change, error) {
	keep := imprint.Change{Keep: true}
	if r.Medium == nil || r.Serial == "" || r.Witness != "" {
		return keep, imprint.Errorf(imprint.Invalid, "settle medium of", i.Ref(), "the machine has to say it, with its certificate")
	}
	end := r.Medium
	var m *imprint.Medium
	for n := range i.Media {
		if of := &i.Media[n]; of.Digest == end.Digest && (m == nil || m.State == imprint.MediumTaken) {
			m = of
		}
	}
	switch {
	case m == nil:
		return keep, imprint.Errorf(imprint.NotFound, "settle medium of", i.Ref(), "no medium with the digest %.16s is on record", clip(string(end.Digest)))
	case m.State == imprint.MediumTaken, end.State == imprint.MediumLeft && (m.State == imprint.MediumLeft || m.Attended):
		return keep, nil
	}
	change, err := settleMedium(i, m.Number, end.State, end.Detail, clip(r.From), now)
	for n := range change.Events {
		change.Events[n].Channel = r.Channel
	}
	return change, err
}

func giveOut(i *imprint.Instance, m imprint.Medium, by string, now time.Time) (imprint.Change, error) {
	if m.Generation != i.Generation {
		return imprint.Change{Keep: true}, imprint.Errorf(imprint.Conflict, "give out medium of", i.Ref(), "generation %d began while that of generation %d was made", i.Generation, m.Generation).
			WithHint("ask for it again")
	}
	m.At, m.By, m.State = now, by, imprint.MediumOut
	number := i.Remember(m)
	token := ""
	if m.Token {
		token = "one-time"
	}
	return imprint.Change{Events: []imprint.Event{event(imprint.EventMedium, "", "medium", strconv.FormatUint(uint64(number), 10),
		"dialect", m.Dialect, "carrier", m.Carrier, "token", token, "digest", string(m.Digest), "by", by)}}, nil
}

func settleMedium(i *imprint.Instance, number uint32, state imprint.MediumState, detail, by string, now time.Time) (imprint.Change, error) {
	keep := imprint.Change{Keep: true}
	kind, key := imprint.EventTaken, "how"
	switch {
	case state == imprint.MediumLeft:
		kind, key = imprint.EventLeft, "why"
	case state != imprint.MediumTaken:
		return keep, imprint.Errorf(imprint.Invalid, "settle medium of", i.Ref(), "%.40q is neither %s nor %s", state, imprint.MediumTaken, imprint.MediumLeft)
	}
	if detail == "" {
		return keep, imprint.Errorf(imprint.Invalid, "settle medium of", i.Ref(), "it is not said how, or why not")
	}
	for n := range i.Media {
		m := &i.Media[n]
		if m.Number != number {
			continue
		}
		if state == imprint.MediumTaken && m.State == state && m.Detail == clip(detail) {
			return keep, nil // it was said before and the reply was lost
		}
		m.State, m.Detail, m.Settled = state, clip(detail), now
		return imprint.Change{Events: []imprint.Event{event(kind, "", "medium", strconv.FormatUint(uint64(number), 10),
			"dialect", m.Dialect, "carrier", m.Carrier, key, m.Detail, "by", by)}}, nil
	}
	return keep, imprint.Errorf(imprint.NotFound, "settle medium of", i.Ref(), "no medium %d is on record", number).
		WithHint("imprint describe %s lists those that are out", i.Ref())
}
