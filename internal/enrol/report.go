package enrol

import (
	"bytes"
	"net"
	"slices"
	"time"

	"imprint"
)

// MaxPassword is how many bytes an encrypted password may have: RSA-8192 in
// base64, with line ends.
const MaxPassword = 4 << 10

// report decides about what came up a channel. Like [claim] it returns what to
// write and why the report is refused, or nil.
func report(i *imprint.Instance, r *imprint.Report, now time.Time) (imprint.Change, error) {
	refused := func(err error) (imprint.Change, error) { return refuse(r.Channel, err, "report", clip(string(r.Kind))) }
	if r.ID != "" && r.ID == i.Reported && r.Witness == i.Spec.Host {
		return imprint.Change{Keep: true}, nil // it came before and the reply was lost
	}
	if err := sameGeneration(i, "report", r.Generation); err != nil {
		return refused(err)
	}
	if err := mayReport(i, r, now); err != nil {
		return refused(err)
	}
	if r.Kind == imprint.ReportRefused { // also when the generation is over
		return imprint.Change{Keep: true, Events: []imprint.Event{event(imprint.EventRefused, r.Channel, "reason", clip(r.Name), "from", clip(r.From))}}, nil
	}
	if r.Kind == imprint.ReportMessage { // likewise
		return imprint.Change{Keep: true, Events: []imprint.Event{event(imprint.EventMessage, r.Channel, "what", clip(r.Name), "from", clip(r.From))}}, nil
	}
	if r.Kind == imprint.ReportNIC { // it is the instance's, not the generation's
		return chosen(i, r)
	}
	change, err := ended(i, now)
	if err != nil {
		return change, err
	}
	switch r.Kind {
	case imprint.ReportDelivered:
		change, err = delivered(i, r, now)
	case imprint.ReportConfirmed:
		change, err = confirmed(i, r, now)
	case imprint.ReportReady:
		change, err = ready(i, r, now)
	case imprint.ReportRead:
		change, err = read(i, r)
	case imprint.ReportServed:
		change = served(i, r, now)
	case imprint.ReportHome:
		change = booted(i, r, now)
	case imprint.ReportPassword:
		change, err = password(i, r)
	case imprint.ReportMedium:
		if change, err = ownMedium(i, r, now); imprint.KindOf(err) == imprint.NotFound {
			return change, err // of one that was made by hand, which is asked at every start
		}
	default:
		err = imprint.Errorf(imprint.Invalid, "report", i.Ref(), "unknown kind %q", clip(string(r.Kind)))
	}
	if err != nil {
		return refused(err)
	}
	return change, nil
}

// kept notes with what r writes which report it was, and when its host saw it.
func kept(i *imprint.Instance, r *imprint.Report, c *imprint.Change) {
	if r.ID == "" || len(c.Events) == 0 {
		return // what writes nothing may be repeated
	}
	i.Reported, c.Keep = clip(r.ID), false
	for _, ev := range c.Events {
		ev.Detail["seen"] = stamp(r.Seen)
	}
}

// mayReport checks that the report comes from the machine: up its host's own
// channel, or with its certificate. A signed confirmation speaks for itself.
func mayReport(i *imprint.Instance, r *imprint.Report, now time.Time) error {
	ch, ok := imprint.ChannelOf(r.Channel)
	switch {
	case r.Kind == imprint.ReportMessage && r.Channel == "" && r.Witness != "" && r.Witness == i.Spec.Host:
		return nil // the operator's end of a pipe, which has no channel
	case !ok:
		return imprint.Errorf(imprint.Invalid, "report", i.Ref(), "unknown channel %q", r.Channel)
	case r.Witness != "" && r.Witness == i.Spec.Host && !ch.Live && r.Kind == imprint.ReportDelivered:
		return nil // the host itself put the payload on a medium, which carries nothing back
	case r.Witness != "" && r.Witness == i.Spec.Host && ch.Upward && !ch.Enrols() && mayBeAnybodys(r.Kind):
		return nil
	case r.Witness != "":
		return witnessed(i, r.Channel, r.Witness)
	case r.Serial != "" && holds(&i.Enrolment, r.Serial, now):
		return nil
	case r.Serial == "" && r.Kind == imprint.ReportConfirmed:
		return nil
	}
	return imprint.Errorf(imprint.Unauthorized, "report", i.Ref(), "nothing vouches for this report")
}

// mayBeAnybodys reports whether a report of this kind says what the host itself
// did, or something that is not proven over any channel.
func mayBeAnybodys(kind imprint.ReportKind) bool {
	switch kind {
	case imprint.ReportDelivered, imprint.ReportRead, imprint.ReportServed, imprint.ReportRefused, // what the host did
		imprint.ReportHome, imprint.ReportPassword: // what the guest's stock software says
		return true
	}
	return false
}

// holds reports whether serial is one of the generation's certificates that
// have not ended.
func holds(e *imprint.Enrolment, serial imprint.Serial, now time.Time) bool {
	if c := e.Certificate; c != nil && c.Serial == serial {
		return now.Before(c.NotAfter)
	}
	return slices.ContainsFunc(living(e.Earlier, now), func(l imprint.Lifespan) bool { return l.Serial == serial })
}

// delivered records the first read of the payload.
func delivered(i *imprint.Instance, r *imprint.Report, now time.Time) (imprint.Change, error) {
	e := &i.Enrolment
	switch {
	case e.Delivery != nil:
		return imprint.Change{Keep: true}, nil
	case len(r.Data) == 0 || len(r.Data) > imprint.MaxPayload:
		return imprint.Change{}, imprint.Errorf(imprint.Invalid, "report", i.Ref(), "a payload of %d bytes; it has 1 to %d", len(r.Data), imprint.MaxPayload)
	}
	e.Delivery = &imprint.Delivery{Channel: r.Channel, Payload: imprint.DigestOf(r.Data), At: now}
	if e.State == imprint.Reserved { // the claim may have been quicker than this report
		e.State = imprint.Delivered
	}
	return imprint.Change{Events: []imprint.Event{event(imprint.EventDelivered, r.Channel, "payload", "sha256:"+string(e.Delivery.Payload))}}, nil
}

// confirmed takes the proof that the machine holds the key and has received the
// certificate: a signature that covers both, or that it used them for TLS.
func confirmed(i *imprint.Instance, r *imprint.Report, now time.Time) (imprint.Change, error) {
	e := &i.Enrolment
	if e.Certificate == nil {
		return imprint.Change{}, imprint.Errorf(imprint.Conflict, "confirm", i.Ref(), "no certificate was issued yet").
			WithHint("send the certificate request again")
	}
	proof := "signature"
	switch {
	case r.Serial != "" && r.Witness == "": // mayReport found that it is held; a host may not say so
		proof = "certificate " + string(r.Serial)
	case !verify(e.Claim.PublicKey, imprint.ConfirmationMessage(i.ID, i.Generation, e.Certificate.DER), r.Data):
		return imprint.Change{}, imprint.Errorf(imprint.Invalid, "confirm", i.Ref(), "the enrolled key did not sign the receipt of certificate %s", e.Certificate.Serial).
			WithHint("sign the confirmation of the certificate that was issued last")
	}
	if e.State.Enrolled() {
		return imprint.Change{Keep: true}, nil
	}
	e.State, e.ConfirmedAt = imprint.Confirmed, now
	events := []imprint.Event{event(imprint.EventConfirmed, r.Channel, "by", proof, "key", string(e.Claim.Key))}
	return imprint.Change{Events: append(events, installed(i, "the machine has its identity")...)}, nil
}

// ready closes the enrolment.
func ready(i *imprint.Instance, r *imprint.Report, now time.Time) (imprint.Change, error) {
	e := &i.Enrolment
	switch e.State {
	case imprint.Closed:
		return imprint.Change{Keep: true}, nil
	case imprint.Confirmed:
		e.State, e.ClosedAt = imprint.Closed, now
		return imprint.Change{Events: []imprint.Event{event(imprint.EventClosed, r.Channel)}}, nil
	}
	return imprint.Change{}, imprint.Errorf(imprint.Conflict, "close", i.Ref(), "it is %s, not confirmed", e.State).
		WithHint("confirm the certificate first")
}

// read notes that a value that is not public is about to be sent.
func read(i *imprint.Instance, r *imprint.Report) (imprint.Change, error) {
	if !slices.ContainsFunc(i.Spec.Params, func(p imprint.Param) bool { return p.Name == r.Name }) {
		return imprint.Change{}, imprint.Errorf(imprint.Invalid, "report", i.Ref(), "it has no parameter %q", clip(r.Name))
	}
	return imprint.Change{Keep: true, Events: []imprint.Event{event(imprint.EventRead, r.Channel, "param", r.Name)}}, nil
}

// served notes what was read over the link-local network, and when for the first
// time: from then on the time runs in which stock software may read user data.
func served(i *imprint.Instance, r *imprint.Report, now time.Time) imprint.Change {
	change := imprint.Change{Events: []imprint.Event{event(imprint.EventServed, r.Channel, "what", clip(r.Name), "from", clip(r.From))}}
	if e := &i.Enrolment; e.ServedAt.IsZero() {
		e.ServedAt = now
	} else {
		change.Keep = true
	}
	return change
}

// booted notes that stock software is done with its first boot.
func booted(i *imprint.Instance, r *imprint.Report, now time.Time) imprint.Change {
	e := &i.Enrolment
	if !e.HomeAt.IsZero() {
		return imprint.Change{Keep: true}
	}
	e.HomeAt = now
	return imprint.Change{Events: []imprint.Event{event(imprint.EventHome, r.Channel, "from", clip(r.From))}}
}

// chosen notes the interface that the instance's host chose for it.
func chosen(i *imprint.Instance, r *imprint.Report) (imprint.Change, error) {
	bad := func(why string) (imprint.Change, error) {
		return imprint.Change{Keep: true}, imprint.Errorf(imprint.Invalid, "record interface of", i.Ref(), "%s", why)
	}
	nic := r.NIC
	switch {
	case r.Witness == "" || r.Witness != i.Spec.Host:
		return bad("only its host chooses it")
	case nic == nil || nic.Host != r.Witness:
		return bad("it does not say which")
	case !nic.IPv4.Is4() || !nic.IPv4.IsLinkLocalUnicast():
		return bad("its address is not link-local")
	}
	if mac, err := net.ParseMAC(nic.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() != nic.MAC {
		return bad("its MAC is not that of one interface")
	}
	if i.NIC != nil && *i.NIC == *nic {
		return imprint.Change{Keep: true}, nil
	}
	i.NIC = nic
	return imprint.Change{WakeAt: WakeAt(i), Events: []imprint.Event{event(imprint.EventNIC, r.Channel, "mac", nic.MAC, "ipv4", nic.IPv4.String())}}, nil
}

// password keeps what the guest posted, once a generation.
func password(i *imprint.Instance, r *imprint.Report) (imprint.Change, error) {
	e := &i.Enrolment
	switch {
	case len(r.Data) == 0 || len(r.Data) > MaxPassword:
		return imprint.Change{}, imprint.Errorf(imprint.Invalid, "keep password of", i.Ref(), "%d bytes; 1 to %d are allowed", len(r.Data), MaxPassword)
	case bytes.Equal(e.Password, r.Data):
		return imprint.Change{Keep: true}, nil
	case e.Password != nil:
		return imprint.Change{}, imprint.Errorf(imprint.Conflict, "keep password of", i.Ref(), "that of generation %d is kept already", i.Generation)
	}
	e.Password = r.Data
	return imprint.Change{Events: []imprint.Event{event(imprint.EventPassword, r.Channel)}}, nil
}
