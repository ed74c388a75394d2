package enrol

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"imprint"
)

// Lifetimes of one-time tokens.
const (
	DefaultTokenLife = 24 * time.Hour
	MaxTokenLife     = 30 * 24 * time.Hour
)

// Reserve returns a new instance for spec, which belongs to tenant, and what to
// write with it. Its ID is drawn; nothing else follows from it, so that a machine
// that has one already may have that put in its place. It fails with kind
// [imprint.Denied] if spec names what the tenant may not certify. The spec itself
// was checked before.
func Reserve(spec imprint.Spec, tenant imprint.Tenant, now time.Time) (imprint.Instance, imprint.Change, error) {
	if err := withinTenant(&spec, tenant); err != nil {
		return imprint.Instance{}, imprint.Change{}, err
	}
	i := imprint.Instance{
		ID: imprint.NewInstanceID(), Spec: spec, Generation: 1,
		Enrolment: reservation(&spec, now), Created: now, Updated: now,
	}
	return i, imprint.Change{WakeAt: WakeAt(&i), Events: []imprint.Event{reservedEvent(imprint.EventReserved, &i)}}, nil
}

// WakeAt is when i has to be looked at without anybody asking; see [imprint.Change].
// Whoever changes an instance passes it on.
func WakeAt(i *imprint.Instance) time.Time {
	switch i.Enrolment.State {
	case imprint.Reserved, imprint.Delivered:
		return i.Enrolment.Expires
	}
	return time.Time{}
}

func reservation(spec *imprint.Spec, now time.Time) imprint.Enrolment {
	e := imprint.Enrolment{State: imprint.Reserved}
	if w := time.Duration(spec.Policy.Window); w > 0 {
		e.Expires = now.Add(w)
	}
	return e
}

func reservedEvent(kind imprint.EventKind, i *imprint.Instance, more ...string) imprint.Event {
	approval := ""
	if i.Spec.Policy.Approval {
		approval = "needed"
	}
	until := ""
	if !i.Enrolment.Expires.IsZero() {
		until = stamp(i.Enrolment.Expires)
	}
	return event(kind, "", append(more, "names", names(i), "host", string(i.Spec.Host), "approval", approval, "until", until)...)
}

func withinTenant(spec *imprint.Spec, t imprint.Tenant) error {
	for _, name := range spec.DNSNames {
		if !belongs(name, t.Domains) {
			return imprint.Errorf(imprint.Denied, "reserve", string(spec.Name), "DNS name %s is outside tenant %s", name, t.Name).
				WithHint("tenant %s may name %s and what is below", t.Name, strings.Join(t.Domains, ", "))
		}
		if name == t.CheckIn {
			return imprint.Errorf(imprint.Denied, "reserve", string(spec.Name), "DNS name %s is the check-in endpoint's", name)
		}
	}
	for _, ip := range spec.IPs {
		if !within(ip, t.Networks) {
			return imprint.Errorf(imprint.Denied, "reserve", string(spec.Name), "address %s is outside tenant %s", ip, t.Name).
				WithHint("tenant %s may name addresses in %s", t.Name, strings.Trim(fmt.Sprint(t.Networks), "[]"))
		}
	}
	return nil
}

func belongs(name string, domains []string) bool {
	for _, d := range domains {
		if name == d || strings.HasSuffix(name, "."+d) {
			return true
		}
	}
	return false
}

func within(ip netip.Addr, networks []netip.Prefix) bool {
	for _, n := range networks {
		if n.Contains(ip) {
			return true
		}
	}
	return false
}

// Delete decides what to write when i is deleted: its certificates are revoked.
func Delete(i *imprint.Instance, now time.Time) imprint.Change {
	return imprint.Change{Revoke: revocations(&i.Enrolment, now, reasonCessationOfOperation)}
}

// approve lets the claim that waits have its certificate, whose life begins now.
// Nothing was signed for it before.
func approve(i *imprint.Instance, by string, now time.Time) (imprint.Change, error) {
	e := &i.Enrolment
	keep := imprint.Change{Keep: true}
	switch {
	case by == "": // or else it would go on waiting
		return keep, imprint.Errorf(imprint.Invalid, "approve", i.Ref(), "nobody is named who consents")
	case e.Claim == nil || !e.State.Open() || !e.Claim.NeedsApproval:
		return keep, imprint.Errorf(imprint.Conflict, "approve", i.Ref(), "nothing waits for approval; it is %s", e.State)
	case !waits(e.Claim):
		return keep, nil // said again
	}
	approved := *e.Claim
	approved.ApprovedBy = by
	fix(&approved, i, approved.Serial, now)
	e.Claim = &approved
	return imprint.Change{Events: []imprint.Event{event(imprint.EventApproved, "", "by", by, "key", string(approved.Key))}}, nil
}

// revoke takes back what the generation has. A generation that ended otherwise
// has nothing left, and its end stays on record.
func revoke(i *imprint.Instance, reason, by string, now time.Time) (imprint.Change, error) {
	e := &i.Enrolment
	switch {
	case e.State == imprint.Revoked:
		return imprint.Change{Keep: true}, nil
	case !e.State.Open():
		return imprint.Change{Keep: true}, imprint.Errorf(imprint.Conflict, "revoke", i.Ref(), "generation %d is %s already and has no certificate that is valid", i.Generation, e.State)
	}
	change := imprint.Change{
		Revoke: revocations(e, now, reasonPrivilegeWithdrawn),
		Events: []imprint.Event{event(imprint.EventRevoked, "", "by", by, "reason", clip(reason))},
	}
	e.State, e.Reason = imprint.Revoked, clip(reason)
	return change, nil
}

// rebirth starts the next generation, from any state.
func rebirth(i *imprint.Instance, by string, now time.Time) (imprint.Change, error) {
	change := imprint.Change{Revoke: revocations(&i.Enrolment, now, reasonSuperseded)}
	before := i.Enrolment.State
	i.Generation++
	i.Enrolment = reservation(&i.Spec, now)
	change.Events = []imprint.Event{reservedEvent(imprint.EventReborn, i, "by", by, "before", string(before))}
	return change, nil
}

// arm stores the hash of a one-time token.
func arm(i *imprint.Instance, hash imprint.Digest, life time.Duration, now time.Time) (imprint.Change, error) {
	if c, err := ended(i, now); err != nil {
		return c, err
	}
	e := &i.Enrolment
	if e.Claim != nil {
		return imprint.Change{Keep: true}, imprint.Errorf(imprint.Conflict, "hand out token for", i.Ref(), "key %.16s has claimed generation %d already", e.Claim.Key, i.Generation).
			WithHint("start a new generation first: imprint rebirth %s", i.Ref())
	}
	e.TokenHash, e.TokenExpires = hash, now.Add(life)
	return imprint.Change{Events: []imprint.Event{event(imprint.EventToken, "", "until", stamp(e.TokenExpires))}}, nil
}

// authenticate judges a certificate that names i.
func authenticate(i *imprint.Instance, who imprint.Identity, now time.Time) error {
	e := &i.Enrolment
	denied := func(format string, args ...any) error {
		return imprint.Errorf(imprint.Denied, "authenticate", i.Ref(), format, args...)
	}
	switch {
	case who.Tenant != i.Spec.Tenant:
		return denied("the certificate is of tenant %s", who.Tenant)
	case who.Generation != i.Generation:
		return denied("the certificate is of generation %d, the instance is in generation %d", who.Generation, i.Generation)
	case e.Claim == nil || e.Claim.Key != who.Key:
		return denied("its key is not the one of generation %d", i.Generation)
	case !e.State.Open(): // told only to the holder of the claimed key
		return over(i)
	case !holds(e, who.Serial, now):
		return denied("serial %s is not one of its certificates that are valid", who.Serial)
	}
	return nil
}
