package enrol

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"slices"
	"time"

	"imprint"
)

// MaxPassword is how many bytes an encrypted password may have: RSA-8192 in
// base64, with line ends.
const MaxPassword = 2 << 10

// report decides about what came up a channel. Like [claim] it returns what to
// write and why the report is refused, or nil.
func report(i *imprint.Instance, r *imprint.Report, now time.Time) (imprint.Change, error) {
	keep := imprint.Change{Keep: true}
	if r.Generation != 0 && r.Generation != i.Generation {
		return keep, imprint.Errorf(imprint.Conflict, "report", i.Ref(), "it is of generation %d, the instance is in generation %d", r.Generation, i.Generation)
	}
	if err := mayReport(i, r); err != nil {
		return refuse(i, r.Channel, imprint.KindOf(err), "%w", err)
	}
	if r.Kind == imprint.ReportRefused {
		c, _ := refuse(i, r.Channel, imprint.Denied, "%s", r.Name)
		return c, nil
	}
	if c, ended := ended(i, now); ended != nil {
		return c, ended
	}
	switch r.Kind {
	case imprint.ReportDelivered:
		return delivered(i, r, now)
	case imprint.ReportConfirmed:
		return confirmed(i, r, now)
	case imprint.ReportReady:
		return ready(i, r, now)
	case imprint.ReportRead:
		return imprint.Change{Events: []imprint.Event{event(imprint.EventRead, r.Channel, "param", clip(r.Name))}}, nil
	case imprint.ReportPassword:
		return password(i, r)
	}
	return keep, imprint.Errorf(imprint.Invalid, "report", i.Ref(), "unknown kind %q", r.Kind)
}

// mayReport checks that the report comes from the machine: up its host's own
// channel, or with its certificate.
func mayReport(i *imprint.Instance, r *imprint.Report) error {
	ch, ok := imprint.ChannelOf(r.Channel)
	switch {
	case !ok:
		return imprint.Errorf(imprint.Invalid, "report", i.Ref(), "unknown channel %q", r.Channel)
	case r.Witness != "" && !ch.Live && r.Witness == i.Spec.Host:
		return nil // the host itself put the payload on a medium
	case r.Witness != "":
		return witnessed(i, ch, r.Witness)
	case r.Serial != "" && holds(&i.Enrolment, r.Serial):
		return nil
	}
	return imprint.Errorf(imprint.Unauthorized, "report", i.Ref(), "nothing vouches for this report")
}

// holds reports whether serial is one of the generation's certificates.
func holds(e *imprint.Enrolment, serial imprint.Serial) bool {
	return e.Certificate != nil && e.Certificate.Serial == serial ||
		slices.ContainsFunc(e.Earlier, func(l imprint.Lifespan) bool { return l.Serial == serial })
}

func delivered(i *imprint.Instance, r *imprint.Report, now time.Time) (imprint.Change, error) {
	e := &i.Enrolment
	if e.Delivery != nil {
		return imprint.Change{Keep: true}, nil
	}
	e.Delivery = &imprint.Delivery{Channel: r.Channel, Payload: imprint.DigestOf(r.Data), At: now}
	if e.State == imprint.Reserved {
		e.State = imprint.Delivered
	}
	return imprint.Change{Events: []imprint.Event{event(imprint.EventDelivered, r.Channel, "payload", "sha256:"+string(e.Delivery.Payload))}}, nil
}

// confirmed takes the proof that the machine holds the key and has the certificate.
func confirmed(i *imprint.Instance, r *imprint.Report, now time.Time) (imprint.Change, error) {
	e := &i.Enrolment
	if e.Certificate == nil {
		return imprint.Change{Keep: true}, imprint.Errorf(imprint.Conflict, "confirm", i.Ref(), "no certificate was issued yet")
	}
	proof := "certificate " + string(r.Serial) // that it was used is proof of both
	if r.Serial == "" {
		if err := verify(e.Claim.PublicKey, imprint.ConfirmationMessage(i.ID, i.Generation, e.Certificate.DER), r.Data); err != nil {
			return refuse(i, r.Channel, imprint.Invalid, "confirmation: %w", err)
		}
		proof = "signature"
	}
	if e.State.Enrolled() {
		return imprint.Change{Keep: true}, nil
	}
	e.State, e.ConfirmedAt = imprint.Confirmed, now
	return imprint.Change{Events: []imprint.Event{event(imprint.EventConfirmed, r.Channel, "by", proof, "key", string(e.Claim.Key))}}, nil
}

// verify checks a signature over message by the key in spki.
func verify(spki, message, signature []byte) error {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(message)
	ok := false
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, digest[:], signature)
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, message, signature)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(k, crypto.SHA256, digest[:], signature) == nil
	}
	if !ok {
		return errors.New("it is not signed by the enrolled key for this certificate")
	}
	return nil
}

func ready(i *imprint.Instance, r *imprint.Report, now time.Time) (imprint.Change, error) {
	e := &i.Enrolment
	switch e.State {
	case imprint.Closed:
		return imprint.Change{Keep: true}, nil
	case imprint.Confirmed:
		e.State, e.ClosedAt = imprint.Closed, now
		return imprint.Change{Events: []imprint.Event{event(imprint.EventClosed, r.Channel)}}, nil
	}
	return imprint.Change{Keep: true}, imprint.Errorf(imprint.Conflict, "close", i.Ref(), "it is %s, not confirmed", e.State).
		WithHint("confirm the certificate first")
}

func password(i *imprint.Instance, r *imprint.Report) (imprint.Change, error) {
	e := &i.Enrolment
	switch {
	case len(r.Data) == 0 || len(r.Data) > MaxPassword:
		return refuse(i, r.Channel, imprint.Invalid, "a password of %d bytes; 1 to %d are allowed", len(r.Data), MaxPassword)
	case slices.Equal(e.Password, r.Data):
		return imprint.Change{Keep: true}, nil
	case e.Password != nil:
		return refuse(i, r.Channel, imprint.Conflict, "the password of generation %d is set already", i.Generation)
	}
	e.Password = r.Data
	return imprint.Change{Events: []imprint.Event{event(imprint.EventPassword, r.Channel)}}, nil
}
