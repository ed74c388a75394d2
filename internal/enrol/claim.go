package enrol

import (
	"cmp"
	"crypto/subtle"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"imprint"
)

// Certificates last DefaultLifetime unless the policy says otherwise. They start
// Backdate before they are made, for machines whose clock is behind, but never
// by more than a quarter of their life, so that short ones are not old at once.
const (
	DefaultLifetime = 7 * 24 * time.Hour
	Backdate        = time.Hour
)

// attempt is a certificate request on its way to a decision.
type attempt struct {
	imprint.Submission
	req    *Request
	flaw   error // why the request can never be granted, or nil; then req has no key
	taken  bool  // the store knows the key as another machine's or generation's
	now    time.Time
	serial imprint.Serial // fresh, for the certificate if it comes to one
}

// claim decides about a certificate request. Besides what is to be written it
// returns why the request is refused, or nil if the instance's claim may have
// its certificate. i is changed.
//
// Evidence comes before everything that depends on the state, so that whoever
// has none learns nothing and moves nothing.
func claim(i *imprint.Instance, a *attempt) (imprint.Change, error) {
	first := i.Enrolment.Claim
	second := first != nil && first.Key != a.req.Key
	refused := func(err error) (imprint.Change, error) { return refuse(a.Channel, err, "key", string(a.req.Key)) }

	if err := addressed(i, &a.Submission); err != nil {
		return imprint.Change{Keep: true}, err // and not on the timeline of somebody else's machine
	}
	if err := sameGeneration(i, "enrol", a.Generation); err != nil {
		return refused(err)
	}
	tier, err := evidence(i, a)
	if err != nil {
		return refused(err)
	}
	if a.flaw != nil {
		return refused(a.flaw)
	}
	change, err := ended(i, a.now)
	switch {
	case err != nil && second:
		return refused(err) // a third key, or more; the timeline knows the others
	case err != nil:
		return change, err
	case second:
		return contest(i, a)
	}
	if err := a.req.fits(i); err != nil {
		return refused(err)
	}
	switch {
	case first != nil:
		return repeat(i, a)
	case a.taken:
		return refused(imprint.Errorf(imprint.Conflict, "enrol", i.Ref(), "this public key already belongs to another machine or generation").
			WithHint("make a new key on the machine; an image must not contain one"))
	}
	return bind(i, a, tier)
}

// defaultProfile is the profile of an instance whose policy names none.
const defaultProfile = "machine"

// addressed returns an error of kind [imprint.NotFound] if s was sent where there
// is no i: to another tenant, or under another profile's label.
func addressed(i *imprint.Instance, s *imprint.Submission) error {
	switch {
	case s.Tenant != "" && s.Tenant != i.Spec.Tenant:
		return imprint.Errorf(imprint.NotFound, "enrol", string(i.ID), "an instance of another tenant")
	case s.Profile != "" && s.Profile != cmp.Or(i.Spec.Policy.Profile, defaultProfile):
		return imprint.Errorf(imprint.NotFound, "enrol", i.Ref(), "its profile is not %q", clip(s.Profile))
	}
	return nil
}

// evidence judges what a request brings besides its signature. Possession of the
// claimed key is enough to repeat a request; any other key needs more.
func evidence(i *imprint.Instance, a *attempt) (imprint.Tier, error) {
	first := i.Enrolment.Claim
	if ch, ok := imprint.ChannelOf(a.Channel); !ok || !ch.Enrols() {
		return 0, imprint.Errorf(imprint.Invalid, "enrol", i.Ref(), "no request comes up channel %q", a.Channel)
	}
	switch {
	case a.Witness != "":
		return imprint.TierHost, witnessed(i, a.Channel, a.Witness)
	case !a.Token.IsZero():
		return imprint.TierToken, tokenIsRight(i, a)
	case first != nil && first.Key == a.req.Key:
		return first.Tier, nil
	case first != nil:
		return 0, imprint.Errorf(imprint.Denied, "enrol", i.Ref(), "key %.16s is not the one of generation %d", a.req.Key, i.Generation).
			WithHint("renew with the same key; a new key needs a new generation: imprint rebirth %s", i.Ref())
	case i.Spec.Policy.Approval && slices.Contains(i.Spec.Channels, a.Channel):
		// Only over a channel that the operator listed: a stranger on the network
		// must not be able to claim a machine that is expected on a serial port.
		return imprint.TierApproved, nil
	}
	return 0, imprint.Errorf(imprint.Unauthorized, "enrol", i.Ref(), "nothing vouches for this request").
		WithHint("use a channel of its host, a one-time token, or an approval policy")
}

// witnessed checks that host may vouch for what came up i's channel.
func witnessed(i *imprint.Instance, kind imprint.ChannelKind, host imprint.HostName) error {
	if host != i.Spec.Host {
		return imprint.Errorf(imprint.Denied, "vouch for", i.Ref(), "host %s speaks for it, but it is placed on %q", host, i.Spec.Host).
			WithHint("a host may speak only for the instances placed on it")
	}
	if ch, ok := imprint.ChannelOf(kind); !ok || !ch.Private() {
		return imprint.Errorf(imprint.Denied, "vouch for", i.Ref(), "channel %q is not private, so no host can vouch for it", kind)
	}
	return nil
}

// tokenIsRight judges a one-time token. For a second key it is as good as
// before the claim: whoever was first may be the thief, and the machine's owner
// has to know. Only once its time is over it proves nothing any more, or else an
// old medium could take a machine down.
func tokenIsRight(i *imprint.Instance, a *attempt) error {
	e := &i.Enrolment
	given := imprint.DigestOf(a.Token.Reveal())
	right := subtle.ConstantTimeCompare([]byte(given), []byte(e.TokenHash)) == 1
	known := e.Claim != nil && e.Claim.Key == a.req.Key
	switch {
	case !right: // also when there is none: the hash is then empty
		return imprint.Errorf(imprint.Unauthorized, "enrol", i.Ref(), "wrong token")
	case known && e.State.Enrolled():
		return imprint.Errorf(imprint.Unauthorized, "enrol", i.Ref(), "the token is spent").
			WithHint("renew with the certificate; a machine that lost it needs a new generation: imprint rebirth %s", i.Ref())
	case known: // a lost reply may be asked for again when the token's time is over
		return nil
	case !a.now.Before(e.TokenExpires):
		return imprint.Errorf(imprint.Unauthorized, "enrol", i.Ref(), "the token ended at %s", stamp(e.TokenExpires)).
			WithHint("hand out a new one")
	}
	return nil
}

// bind claims the generation for the request's key.
func bind(i *imprint.Instance, a *attempt, tier imprint.Tier) (imprint.Change, error) {
	e := &i.Enrolment
	c := &imprint.Claim{
		Key: a.req.Key, PublicKey: a.req.SPKI, SSHHost: a.SSHHost,
		Channel: a.Channel, Tier: tier, Witness: a.Witness, At: a.now,
		NeedsApproval: i.Spec.Policy.Approval,
	}
	fix(c, i, a.serial, a.now)
	e.State, e.Claim = imprint.Claimed, c
	change := imprint.Change{BindKey: c.Key, Events: []imprint.Event{event(imprint.EventClaimed, a.Channel,
		"key", string(c.Key), "tier", tierText(tier), "witness", string(a.Witness))}}
	if !c.NeedsApproval {
		return change, nil
	}
	change.Events = append(change.Events, event(imprint.EventWaiting, a.Channel, "for", "approval", "key", string(c.Key)))
	return change, pending(i)
}

// repeat answers the claimed key again, and begins a renewal when it is due. It
// is due as well for a certificate that was never made, or never confirmed: a
// machine that was off for a month finds one that is still good.
func repeat(i *imprint.Instance, a *attempt) (imprint.Change, error) {
	e := &i.Enrolment
	if waits(e.Claim) {
		return imprint.Change{Keep: true}, pending(i)
	}
	if !renewalDue(e, a.now) {
		return imprint.Change{Keep: true}, nil
	}
	next := *e.Claim
	fix(&next, i, a.serial, a.now)
	if a.SSHHost != "" && a.Witness != "" { // it is not covered by the request's signature
		next.SSHHost = a.SSHHost
	}
	e.Claim = &next
	return imprint.Change{}, nil
}

// contest ends an enrolment that two keys want.
func contest(i *imprint.Instance, a *attempt) (imprint.Change, error) {
	e := &i.Enrolment
	first := e.Claim
	change := imprint.Change{
		Events: []imprint.Event{event(imprint.EventContested, a.Channel,
			"firstKey", string(first.Key), "firstChannel", string(first.Channel), "firstAt", stamp(first.At),
			"secondKey", string(a.req.Key), "secondAt", stamp(a.now), "witness", string(a.Witness))},
		Revoke: revocations(e, a.now, reasonKeyCompromise),
	}
	e.State = imprint.InDispute
	e.Reason = fmt.Sprintf("key %.16s claimed it over %s, then key %.16s over %s", first.Key, first.Channel, a.req.Key, a.Channel)
	return change, contested(i)
}

// issued puts cert, which was signed for the claim of i, on record.
func issued(i *imprint.Instance, cert *imprint.Certificate, now time.Time) imprint.Event {
	e := &i.Enrolment
	kind := imprint.EventIssued
	if old := e.Certificate; old != nil {
		kind = imprint.EventRenewed
		e.Earlier = append(living(e.Earlier, now), imprint.Lifespan{Serial: old.Serial, NotAfter: old.NotAfter})
	} else {
		e.State = imprint.Issued
	}
	e.Certificate = cert
	return event(kind, e.Claim.Channel,
		"serial", string(cert.Serial), "names", names(i), "tier", tierText(e.Claim.Tier), "key", string(e.Claim.Key),
		"notAfter", stamp(cert.NotAfter), "log", cert.Log)
}

// grant is what the claim of i allows to be signed.
func grant(i *imprint.Instance) imprint.Grant {
	c := i.Enrolment.Claim
	return imprint.Grant{
		Tenant: i.Spec.Tenant, Instance: i.ID, Name: i.Spec.Name, Generation: i.Generation,
		Tier: c.Tier, Channel: c.Channel, Profile: i.Spec.Policy.Profile,
		DNSNames: i.Spec.DNSNames, IPs: i.Spec.IPs, PublicKey: c.PublicKey, SSHHost: c.SSHHost,
		Serial: c.Serial, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
	}
}

// issuing reports whether the claim's certificate is still to be made.
func issuing(e *imprint.Enrolment) bool {
	return e.Claim != nil && !waits(e.Claim) && (e.Certificate == nil || e.Certificate.Serial != e.Claim.Serial)
}

// waits reports whether an operator has to consent first.
func waits(c *imprint.Claim) bool { return c.NeedsApproval && c.ApprovedBy == "" }

// fix gives c the number and validity of its next certificate, in whole seconds
// as a certificate has them.
func fix(c *imprint.Claim, i *imprint.Instance, serial imprint.Serial, now time.Time) {
	lifetime := time.Duration(i.Spec.Policy.Lifetime)
	if lifetime == 0 {
		lifetime = DefaultLifetime
	}
	now = now.UTC().Truncate(time.Second)
	c.Serial = serial
	c.NotBefore, c.NotAfter = now.Add(-min(Backdate, lifetime/4)).Truncate(time.Second), now.Add(lifetime)
}

// renewalDue reports whether what the claim fixed is past half of its life.
// Agents ask at two thirds; the difference keeps an early clock from asking in
// vain. The signer may have cut the life short to its own. A claim that was
// fixed in the future, by a clock that is right again, is due as well.
func renewalDue(e *imprint.Enrolment, now time.Time) bool {
	c := e.Claim
	end := c.NotAfter
	if !issuing(e) {
		end = e.Certificate.NotAfter
	}
	fixed := c.NotBefore.Add(min(Backdate, c.NotAfter.Sub(c.NotBefore)/5)) // as fix backdated it
	return now.Before(c.NotBefore) || !now.Before(fixed.Add(end.Sub(fixed)/2))
}

// living are the certificates in list that have not ended.
func living(list []imprint.Lifespan, now time.Time) []imprint.Lifespan {
	var out []imprint.Lifespan
	for _, l := range list {
		if now.Before(l.NotAfter) {
			out = append(out, l)
		}
	}
	return out
}

// names are all names in the certificate, for the timeline.
func names(i *imprint.Instance) string {
	all := append([]string(nil), i.Spec.DNSNames...)
	for _, ip := range i.Spec.IPs {
		all = append(all, ip.String())
	}
	return strings.Join(all, ",")
}

func tierText(t imprint.Tier) string { return strconv.Itoa(int(t)) }

// stamp writes a time as errors and events have it.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
