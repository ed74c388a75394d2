package ca

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	tag "golang.org/x/crypto/cryptobyte/asn1"

	"imprint"
)

// Limits of the enrolment extension.
const (
	enrolmentVersion = 1
	maxEnrolment     = 64 // bytes of DER
	maxChannel       = 32 // bytes of a channel's name
)

// OIDEnrolment returns the identifier of the [Enrolment] extension; see the
// package comment for what it is.
func OIDEnrolment() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 25, 1768779890, 1} }

// Enrolment is the extension that says how well imprint knew whom it certified.
type Enrolment struct {
	Tier       imprint.Tier
	Generation imprint.Generation
	Channel    imprint.ChannelKind
}

// enrolmentSyntax is the ASN.1 form of an Enrolment, for reading.
type enrolmentSyntax struct {
	Version    int
	Tier       int
	Generation int64
	Channel    string `asn1:"utf8"`
}

// Encode returns the extension. It fails with kind [imprint.Invalid] if a field
// is outside its bounds.
func (e Enrolment) Encode() (pkix.Extension, error) {
	if err := e.check(); err != nil {
		return pkix.Extension{}, err
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, maxEnrolment))
	b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(enrolmentVersion)
		b.AddASN1Int64(int64(e.Tier))
		b.AddASN1Int64(int64(e.Generation))
		b.AddASN1(tag.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(e.Channel)) })
	})
	der, err := b.Bytes()
	if err != nil {
		return pkix.Extension{}, imprint.Errorf(imprint.Internal, "encode", "enrolment extension", "%w", err)
	}
	return pkix.Extension{Id: OIDEnrolment(), Value: der}, nil
}

// DecodeEnrolment reads the value of an enrolment extension. It fails with kind
// [imprint.Invalid] on anything but the DER that [Enrolment.Encode] writes.
func DecodeEnrolment(der []byte) (Enrolment, error) {
	if len(der) > maxEnrolment {
		return Enrolment{}, imprint.Errorf(imprint.Invalid, "decode", "enrolment extension", "%d bytes; the limit is %d", len(der), maxEnrolment)
	}
	var s enrolmentSyntax
	if rest, err := asn1.Unmarshal(der, &s); err != nil || len(rest) > 0 {
		return Enrolment{}, imprint.Errorf(imprint.Invalid, "decode", "enrolment extension", "not the expected DER")
	}
	if s.Version != enrolmentVersion {
		return Enrolment{}, imprint.Errorf(imprint.Invalid, "decode", "enrolment extension", "version %d; this program reads version %d", s.Version, enrolmentVersion)
	}
	e := Enrolment{imprint.Tier(s.Tier), imprint.Generation(s.Generation), imprint.ChannelKind(s.Channel)}
	if int(e.Tier) != s.Tier || int64(e.Generation) != s.Generation {
		return Enrolment{}, imprint.Errorf(imprint.Invalid, "decode", "enrolment extension", "tier %d, generation %d", s.Tier, s.Generation)
	}
	// Encoding again refuses fields out of bounds and DER that is not canonical.
	if again, err := e.Encode(); err != nil {
		return Enrolment{}, err
	} else if !bytes.Equal(again.Value, der) {
		return Enrolment{}, imprint.Errorf(imprint.Invalid, "decode", "enrolment extension", "not canonical")
	}
	return e, nil
}

func (e Enrolment) check() error {
	switch {
	case e.Tier > imprint.TierHost:
		return imprint.Errorf(imprint.Invalid, "check", "enrolment extension", "tier %d", e.Tier)
	case e.Generation == 0:
		return imprint.Errorf(imprint.Invalid, "check", "enrolment extension", "generation 0")
	case e.Channel == "" || len(e.Channel) > maxChannel || !utf8.ValidString(string(e.Channel)):
		return imprint.Errorf(imprint.Invalid, "check", "enrolment extension", "channel %q", e.Channel)
	}
	return nil
}
