package enrol

import (
	"reflect"
	"slices"
	"time"

	"imprint"
)

// fixture is whose certificate was issued under a serial number.
type fixture struct {
	gen      imprint.Generation
	key      imprint.KeyID
	notAfter time.Time
}

// evident is the model's own judgement of what came with a request.
func evident(i *imprint.Instance, s *imprint.Submission, now time.Time) bool {
	ch, _ := imprint.ChannelOf(s.Channel)
	if !ch.Enrols() {
		return false
	}
	if s.Witness != "" {
		return s.Witness == i.Spec.Host && ch.Private()
	}
	return !s.Token.IsZero() && imprint.DigestOf(s.Token.Reveal()) == i.Enrolment.TokenHash && now.Before(i.Enrolment.TokenExpires)
}

// checkChange holds one write against the rules.
func (l *lab) checkChange(c *call, before, after *imprint.Instance, change *imprint.Change) {
	was, is := &before.Enrolment, &after.Enrolment
	same := string(marshal(before)) == string(marshal(after))
	fatal := func(why string) {
		l.t.Helper()
		l.t.Fatalf("%s: %s\nbefore: %s\nafter:  %s\nchange: %+v", c.name, why, marshal(before), marshal(after), *change)
	}

	// What nobody may do.
	if before.Generation == after.Generation {
		switch {
		case !was.State.Open() && !same:
			fatal("a generation that ended has changed")
		case was.Claim != nil && (is.Claim == nil || is.Claim.Key != was.Claim.Key || is.Claim.Tier != was.Claim.Tier):
			fatal("a claim changed hands")
		case was.Certificate != nil && is.Certificate == nil:
			fatal("a certificate is forgotten")
		}
	} else if c.name != "rebirth" || after.Generation != before.Generation+1 || is.State != imprint.Reserved || is.Claim != nil || is.TokenHash != "" {
		fatal("the next generation does not start afresh")
	}
	if is.Claim != nil && imprint.KeyIDOf(is.Claim.PublicKey) != is.Claim.Key {
		fatal("the claim's key is not its key")
	}
	if unclaimed := is.State == imprint.Reserved || is.State == imprint.Delivered; !change.Keep && unclaimed != (is.Claim == nil && is.State.Open()) {
		fatal("state and claim do not fit")
	} else if !change.Keep && !change.WakeAt.Equal(is.Expires) && unclaimed || !change.Keep && !unclaimed && !change.WakeAt.IsZero() {
		fatal("the reminder is wrong")
	}
	if is.Claim != nil && (was.Claim == nil || before.Generation != after.Generation) && change.BindKey != is.Claim.Key {
		fatal("the claimed key is not bound")
	}

	l.checkIssued(before, after, change, fatal)
	switch {
	case c.enrols != nil:
		l.checkClaim(c, before, after, change, fatal)
	case c.report != nil:
		l.checkReport(c, before, after, fatal)
	}

	ends := was.State.Open() && (before.Generation != after.Generation || !is.State.Open())
	switch {
	case ends && is.State == imprint.InDispute:
		l.checkRevocations(c, before, change.Revoke, reasonKeyCompromise)
	case ends && is.State == imprint.Revoked:
		l.checkRevocations(c, before, change.Revoke, reasonPrivilegeWithdrawn)
	case ends && is.State == imprint.Reserved:
		l.checkRevocations(c, before, change.Revoke, reasonSuperseded)
	case len(change.Revoke) > 0:
		fatal("a certificate that is good is revoked")
	}
}

// checkIssued: a certificate comes with its entry for the log or not at all, and
// is the issuer's, for the claim beside it. At most one key is ever issued for a
// generation, and a serial number stands for one certificate.
func (l *lab) checkIssued(before, after *imprint.Instance, change *imprint.Change, fatal func(string)) {
	was, is := &before.Enrolment, &after.Enrolment
	cert := is.Certificate
	if cert == nil || was.Certificate != nil && cert.Serial == was.Certificate.Serial {
		if change.Log != nil {
			fatal("the log tells of a certificate that there is not")
		}
		return
	}
	g, signed := l.signed[string(cert.DER)]
	switch {
	case !signed || !reflect.DeepEqual(cert, certificate(g)):
		fatal("a certificate is stored that was not signed")
	case is.Claim == nil || !reflect.DeepEqual(g, grant(after)):
		fatal("a certificate is stored that is not the claim's")
	case waits(is.Claim):
		fatal("a certificate is stored that nobody approved")
	case was.Certificate == nil && is.State != imprint.Issued, was.Certificate != nil && is.State != was.State:
		fatal("the wrong state follows")
	case change.Log == nil || change.Log.Serial != cert.Serial || string(change.Log.Data) != string(cert.DER):
		fatal("the log does not tell of the certificate")
	}
	if old := was.Certificate; old != nil && !slices.ContainsFunc(is.Earlier, func(s imprint.Lifespan) bool { return s.Serial == old.Serial }) {
		fatal("an earlier certificate is forgotten")
	}
	for _, other := range l.issued {
		if other.gen == after.Generation && other.key != is.Claim.Key {
			fatal("two keys are issued for one generation")
		}
	}
	if _, known := l.issued[cert.Serial]; known {
		fatal("a serial number is used again")
	}
	l.issued[cert.Serial] = fixture{after.Generation, is.Claim.Key, cert.NotAfter}
}

// checkClaim: what a request does to an instance.
func (l *lab) checkClaim(c *call, before, after *imprint.Instance, change *imprint.Change, fatal func(string)) {
	was, is := &before.Enrolment, &after.Enrolment
	same := string(marshal(before)) == string(marshal(after))
	good := evident(before, c.enrols, c.now)
	passed := was.Claim == nil && !was.Expires.IsZero() && !c.now.Before(was.Expires)
	unread := string(c.enrols.CSR) == "noise"
	nothing := c.enrols.Witness == "" && c.enrols.Token.IsZero()
	ch, _ := imprint.ChannelOf(c.enrols.Channel)
	life, bound := l.keys[c.key]
	switch {
	case c.enrols.Generation != 0 && c.enrols.Generation != before.Generation, !was.State.Open(), unread:
		if !same || len(change.Revoke) > 0 {
			fatal("a request that is out of place has an effect")
		}
	case was.Claim != nil && was.Claim.Key != c.key && good:
		last := change.Events[len(change.Events)-1]
		if is.State != imprint.InDispute || last.Kind != imprint.EventContested ||
			last.Detail["firstKey"] != string(was.Claim.Key) || last.Detail["secondKey"] != string(c.key) {
			fatal("a second key with evidence is not a dispute")
		}
	case was.Claim != nil && was.Claim.Key != c.key:
		if !same || len(change.Revoke) > 0 {
			fatal("a second key without evidence has an effect")
		}
	case was.Claim == nil && !good && !(before.Spec.Policy.Approval && nothing && ch.Enrols()):
		if !same {
			fatal("a request without evidence has an effect")
		}
	case was.Claim == nil && bound && life != before.Generation:
		if !same && !(passed && is.State == imprint.Expired) {
			fatal("a key has two lives")
		}
	case passed:
		if is.State != imprint.Expired {
			fatal("a reservation outlives its window")
		}
	case was.Claim == nil:
		if is.State != imprint.Claimed && is.State != imprint.Issued || is.Claim.Key != c.key || is.Claim.NeedsApproval != before.Spec.Policy.Approval {
			fatal("a good request claims nothing")
		}
	default: // the claimed key again
		next := *was.Claim
		next.Serial, next.NotBefore, next.NotAfter = is.Claim.Serial, is.Claim.NotBefore, is.Claim.NotAfter
		if string(next.PublicKey) != string(is.Claim.PublicKey) || next.ApprovedBy != is.Claim.ApprovedBy ||
			is.State != was.State && !(was.State == imprint.Claimed && is.State == imprint.Issued) {
			fatal("a repeated request has an effect")
		}
		rightToken := c.enrols.Witness == "" && imprint.DigestOf(c.enrols.Token.Reveal()) == was.TokenHash
		refused := slices.ContainsFunc(change.Events, func(e imprint.Event) bool { return e.Kind == imprint.EventRefused })
		if rightToken && !was.State.Enrolled() && refused {
			fatal("a lost reply is not given again")
		}
		if is.Claim.Serial != was.Claim.Serial && !c.now.Before(was.Claim.NotBefore.Add(Backdate)) && c.now.Before(was.Claim.NotBefore.Add(was.Claim.NotAfter.Sub(was.Claim.NotBefore)/2)) {
			fatal("a renewal comes too early")
		}
	}
}

// checkReport: what a report does to an instance.
func (l *lab) checkReport(c *call, before, after *imprint.Instance, fatal func(string)) {
	was, is := &before.Enrolment, &after.Enrolment
	switch {
	case is.State == was.State:
	case is.State == imprint.Confirmed:
		byCertificate := c.report.Serial != "" && c.report.Witness == "" && l.left[c.report.Serial] != ""
		if !byCertificate && !verify(was.Claim.PublicKey, imprint.ConfirmationMessage(before.ID, before.Generation, was.Certificate.DER), c.report.Data) {
			fatal("confirmed without proof")
		}
	case is.State == imprint.Closed && was.State == imprint.Confirmed, is.State == imprint.Delivered && was.State == imprint.Reserved:
	case is.State == imprint.Expired && was.Claim == nil && !c.now.Before(was.Expires):
	default:
		fatal("a report moves it there")
	}
}

// answered: what a request's sender is told.
func (l *lab) answered(c *call, i *imprint.Instance, err error) {
	if err == nil {
		if i.Enrolment.Claim.Key != c.key {
			l.t.Fatalf("%s: it was given the certificate of key %.8s", c.name, i.Enrolment.Claim.Key)
		}
		l.delivered(c, i)
		return
	}
	if now := c.last; now != nil && now.Enrolment.State == imprint.InDispute && imprint.KindOf(err) == imprint.Internal {
		l.t.Fatalf("%s: %v", c.name, err)
	}
}

// delivered: a certificate leaves only if it was stored and valid at the call's
// last access, and all copies are the same bytes.
func (l *lab) delivered(c *call, i *imprint.Instance) {
	if c.dead {
		return
	}
	cert, stored := i.Enrolment.Certificate, c.last.Enrolment
	switch {
	case cert == nil:
		l.t.Fatalf("%s: success without a certificate", c.name)
	case !stored.State.Open() || stored.Certificate == nil || stored.Certificate.Serial != cert.Serial:
		l.t.Fatalf("%s: a certificate leaves in state %s", c.name, stored.State)
	}
	if before, ok := l.left[cert.Serial]; ok && before != string(cert.DER) {
		l.t.Fatalf("%s: serial %s left in two forms", c.name, cert.Serial)
	}
	l.left[cert.Serial] = string(cert.DER)
}

// checkRevocations: the list has all that was issued for i's generation and has
// not ended, and nothing else.
func (l *lab) checkRevocations(c *call, i *imprint.Instance, list []imprint.Revocation, reason int) {
	for _, r := range list {
		f, ok := l.issued[r.Serial]
		_, twice := l.revoked[r.Serial]
		if !ok || twice || f.gen != i.Generation || !r.NotAfter.Equal(f.notAfter) || !c.now.Before(r.NotAfter) ||
			r.Reason != reason || !r.At.Equal(c.now.Truncate(time.Second)) {
			l.t.Fatalf("%s: revocation %+v of %+v (twice: %t)", c.name, r, f, twice)
		}
	}
	for serial, f := range l.issued {
		listed := slices.ContainsFunc(list, func(r imprint.Revocation) bool { return r.Serial == serial })
		if _, before := l.revoked[serial]; f.gen == i.Generation && l.latest.Before(f.notAfter) && !listed && !before {
			l.t.Fatalf("%s: serial %s is not revoked", c.name, serial)
		}
	}
}

// checkOrder holds the newest event against those before it.
func (l *lab) checkOrder() {
	last := l.events[len(l.events)-1]
	had := func(kind imprint.EventKind) int {
		n := 0
		for _, e := range l.events[:len(l.events)-1] {
			if e.Generation == last.Generation && e.Kind == kind {
				n++
			}
		}
		return n
	}
	ended := had(imprint.EventContested)+had(imprint.EventRevoked)+had(imprint.EventExpired) > 0
	ok := !ended
	switch last.Kind {
	case imprint.EventRefused:
		ok = true
	case imprint.EventDelivered, imprint.EventReborn:
		ok = ok && had(last.Kind) == 0
	case imprint.EventClaimed:
		ok = ok && had(last.Kind) == 0
	case imprint.EventToken, imprint.EventExpired:
		ok = ok && had(imprint.EventClaimed) == 0
	case imprint.EventWaiting, imprint.EventContested:
		ok = ok && had(imprint.EventClaimed) == 1
	case imprint.EventApproved:
		ok = ok && had(imprint.EventWaiting) == 1 && had(last.Kind) == 0
	case imprint.EventIssued:
		ok = ok && had(imprint.EventClaimed) == 1 && had(last.Kind) == 0 && had(imprint.EventWaiting) == had(imprint.EventApproved)
	case imprint.EventRenewed:
		ok = ok && had(imprint.EventIssued) == 1
	case imprint.EventConfirmed:
		ok = ok && had(imprint.EventIssued) == 1 && had(last.Kind) == 0
	case imprint.EventClosed:
		ok = ok && had(imprint.EventConfirmed) == 1 && had(last.Kind) == 0
	}
	if !ok {
		l.t.Fatalf("event %s comes out of order in %v", last.Kind, l.events)
	}
}

// checkEnd: what is left when everybody is done.
func (l *lab) checkEnd() {
	i := l.instance()
	for serial, f := range l.issued {
		_, revoked := l.revoked[serial]
		over := i == nil || f.gen != i.Generation || !i.Enrolment.State.Open()
		if over && !revoked && l.latest.Before(f.notAfter) {
			l.t.Fatalf("serial %s of generation %d is alive and not revoked", serial, f.gen)
		}
		if _, left := l.left[serial]; !over && revoked && left {
			l.t.Fatalf("serial %s of the living generation %d is revoked", serial, f.gen)
		}
	}
	refusals := 0
	for _, e := range l.events {
		if e.Kind == imprint.EventRefused {
			refusals++
		}
	}
	const sorts = 12 // channels and kinds that the acts can meet
	if allowed := len(l.engines) * sorts * refusalBurst; refusals > allowed {
		l.t.Fatalf("%d refusals are on the timeline, more than %d", refusals, allowed)
	}
}
