package enrol

import (
	"crypto/subtle"
	"fmt"
	"strconv"
	"strings"
	"time"

	"imprint"
)

// Certificates start this long before they are made, for machines whose clock
// is behind, and last this long unless the policy says otherwise.
const (
	Backdate        = time.Hour
	DefaultLifetime = 7 * 24 * time.Hour
)

// attempt is a certificate request on its way to a decision.
type attempt struct {
	imprint.Submission
	req    *Request
	now    time.Time
	serial imprint.Serial // for the certificate, if it comes to one
}

// claim decides about a certificate request. Besides what is to be written it
// returns why the request is refused, or nil if a certificate may be issued for
// the instance's claim. i is changed.
func claim(i *imprint.Instance, a *attempt) (imprint.Change, error) {
	e := &i.Enrolment
	if a.Generation != 0 && a.Generation != i.Generation {
		return refuse(i, a.Channel, imprint.Conflict, "the request is of generation %d, the instance is in generation %d", a.Generation, i.Generation)
	}
	if c, ended := ended(i, a.now); ended != nil {
		return c, ended
	}
	known := e.Claim != nil && e.Claim.Key == a.req.Key
	tier, err := evidence(i, a, known)
	switch {
	case err != nil:
		return refuse(i, a.Channel, imprint.KindOf(err), "%w", err)
	case e.Claim != nil && !known:
		return contest(i, a)
	}
	if err := a.req.fits(i); err != nil {
		return refuse(i, a.Channel, imprint.Invalid, "%w", err)
	}
	if known {
		return repeat(i, a)
	}
	return bind(i, a, tier)
}

// evidence judges what a request brings besides its signature; known says that
// the signature is the claimed key's.
func evidence(i *imprint.Instance, a *attempt, known bool) (imprint.Tier, error) {
	ch, ok := imprint.ChannelOf(a.Channel)
	switch {
	case !ok:
		return 0, imprint.Errorf(imprint.Invalid, "enrol", i.Ref(), "unknown channel %q", a.Channel)
	case a.Witness != "":
		return imprint.TierHost, witnessed(i, ch, a.Witness)
	case !a.Token.IsZero():
		return imprint.TierToken, tokenIsRight(i, a, known)
	case known:
		return i.Enrolment.Claim.Tier, nil // possession of the key is enough to repeat
	case i.Spec.Policy.Approval:
		return imprint.TierApproved, nil
	}
	return 0, imprint.Errorf(imprint.Unauthorized, "enrol", i.Ref(), "nothing vouches for this request").
		WithHint("use a channel of its host, a one-time token, or an approval policy")
}

// witnessed checks that host may speak for i over ch.
func witnessed(i *imprint.Instance, ch imprint.Channel, host imprint.HostName) error {
	switch {
	case host != i.Spec.Host:
		return imprint.Errorf(imprint.Denied, "enrol", i.Ref(), "host %s speaks for it, but it is placed on %s", host, i.Spec.Host)
	case !ch.Private():
		return imprint.Errorf(imprint.Denied, "enrol", i.Ref(), "channel %s is not private, so no host can vouch for it", ch.Kind)
	}
	return nil
}

// tokenIsRight judges a one-time token. For the right token a second key does
// not get off with "spent": whoever was first may be the thief.
func tokenIsRight(i *imprint.Instance, a *attempt, known bool) error {
	e := &i.Enrolment
	given := imprint.DigestOf(a.Token.Reveal())
	right := subtle.ConstantTimeCompare([]byte(given), []byte(e.TokenHash)) == 1
	switch second := e.Claim != nil && !known; {
	case !right: // also when there is none: the hash is then empty
		return imprint.Errorf(imprint.Unauthorized, "enrol", i.Ref(), "wrong token")
	case second:
		return nil
	case e.State.Enrolled():
		return imprint.Errorf(imprint.Unauthorized, "enrol", i.Ref(), "the token is spent").
			WithHint("renew with the certificate; a machine that lost its key needs a new generation: imprint rebirth")
	case !a.now.Before(e.TokenExpires):
		return imprint.Errorf(imprint.Unauthorized, "enrol", i.Ref(), "the token ended at %s", e.TokenExpires.UTC().Format(time.RFC3339)).
			WithHint("hand out a new one: imprint payload")
	}
	return nil
}

// bind claims the generation for the request's key.
func bind(i *imprint.Instance, a *attempt, tier imprint.Tier) (imprint.Change, error) {
	e := &i.Enrolment
	e.State = imprint.Claimed
	e.Claim = &imprint.Claim{
		Key: a.req.Key, PublicKey: a.req.SPKI, SSHHost: a.SSHHost,
		Channel: a.Channel, Tier: tier, Witness: a.Witness, At: a.now,
		Serial: a.serial, NeedsApproval: i.Spec.Policy.Approval,
	}
	e.Claim.NotBefore, e.Claim.NotAfter = validity(i, a.now)
	change := imprint.Change{BindKey: a.req.Key, Events: []imprint.Event{event(imprint.EventClaimed, a.Channel,
		"key", string(a.req.Key), "tier", strconv.Itoa(int(tier)), "witness", string(a.Witness))}}
	if !e.Claim.NeedsApproval {
		return change, nil
	}
	change.Events = append(change.Events, event(imprint.EventWaiting, a.Channel, "for", "approval", "key", string(a.req.Key)))
	return change, pending(i)
}

// repeat answers the claimed key again, and starts a renewal when it is due.
func repeat(i *imprint.Instance, a *attempt) (imprint.Change, error) {
	e := &i.Enrolment
	if waits(e.Claim) {
		return imprint.Change{Keep: true}, pending(i)
	}
	if !e.State.Enrolled() || issuing(e) || !renewalDue(e.Certificate, a.now) {
		return imprint.Change{Keep: true}, nil
	}
	next := *e.Claim
	next.Serial = a.serial
	next.NotBefore, next.NotAfter = validity(i, a.now)
	if a.SSHHost != "" {
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
			"firstKey", string(first.Key), "firstChannel", string(first.Channel), "firstAt", first.At.Format(time.RFC3339),
			"secondKey", string(a.req.Key), "witness", string(a.Witness))},
		Revoke: revocations(e, a.now, reasonKeyCompromise),
	}
	e.State = imprint.InDispute
	e.Reason = fmt.Sprintf("key %.16s claimed over %s, then key %.16s over %s", first.Key, first.Channel, a.req.Key, a.Channel)
	return change, contested(i)
}

// issued stores the certificate for the claim, unless the claim is not what it
// was when the certificate was signed.
func issued(i *imprint.Instance, cert *imprint.Certificate, now time.Time) (imprint.Change, error) {
	e := &i.Enrolment
	if c, ended := ended(i, now); ended != nil {
		return c, ended
	}
	if e.Claim == nil || e.Claim.Serial != cert.Serial {
		return imprint.Change{Keep: true}, imprint.Errorf(imprint.Conflict, "enrol", i.Ref(), "the claim changed while its certificate was signed").
			WithHint("send the request again")
	}
	if !issuing(e) {
		return imprint.Change{Keep: true}, nil // another server, or this one in an earlier life, was quicker
	}
	kind := imprint.EventIssued
	if old := e.Certificate; old != nil {
		kind = imprint.EventRenewed
		e.Earlier = append(living(e.Earlier, now), imprint.Lifespan{Serial: old.Serial, NotAfter: old.NotAfter})
	} else {
		e.State = imprint.Issued
	}
	e.Certificate = cert
	return imprint.Change{Events: []imprint.Event{event(kind, e.Claim.Channel,
		"serial", string(cert.Serial), "names", names(i), "tier", strconv.Itoa(int(e.Claim.Tier)),
		"notAfter", cert.NotAfter.Format(time.RFC3339), "log", cert.Log, "entry", strconv.FormatUint(cert.LogIndex, 10))}}, nil
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
	return e.Claim != nil && (e.Certificate == nil || e.Certificate.Serial != e.Claim.Serial)
}

func waits(c *imprint.Claim) bool { return c.NeedsApproval && c.ApprovedBy == "" }

// renewalDue reports whether a certificate is past half of its life. Agents ask
// at two thirds; the difference keeps an early clock from asking in vain.
func renewalDue(c *imprint.Certificate, now time.Time) bool {
	return now.After(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2))
}

// validity is in whole seconds, as a certificate is.
func validity(i *imprint.Instance, now time.Time) (notBefore, notAfter time.Time) {
	lifetime := time.Duration(i.Spec.Policy.Lifetime)
	if lifetime == 0 {
		lifetime = DefaultLifetime
	}
	now = now.UTC().Truncate(time.Second)
	return now.Add(-Backdate), now.Add(lifetime)
}

func living(list []imprint.Lifespan, now time.Time) []imprint.Lifespan {
	var out []imprint.Lifespan
	for _, l := range list {
		if now.Before(l.NotAfter) {
			out = append(out, l)
		}
	}
	return out
}

func names(i *imprint.Instance) string {
	all := append([]string(nil), i.Spec.DNSNames...)
	for _, ip := range i.Spec.IPs {
		all = append(all, ip.String())
	}
	return strings.Join(all, ",")
}
