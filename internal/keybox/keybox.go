// Package keybox seals a value to an instance's enrolled key, so that it may
// travel over any channel: whoever carries it, only the holder of the key reads it.
//
// A box is one version byte followed by an HPKE ciphertext (RFC 9180, single
// shot, base mode): DHKEM over the key's curve with its HKDF, AES-256-GCM. The
// enrolled key signs and decapsulates; the two uses do not meet, because HPKE
// separates its inputs by the suite and by Info.
package keybox

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/x509"
	"fmt"

	"imprint"
)

const version = 1

// MaxValue is the size limit of a sealed value in bytes, and Overhead is by how
// much a box may exceed its value.
const (
	MaxValue = imprint.MaxParamLen
	Overhead = 1 + 97 + 16 // version, P-384 point, GCM tag
)

// Info names what is sealed, for whom. A box opens only with the Info it was
// sealed with, so that one value cannot be passed off as another or as the same
// value of an earlier life.
type Info struct {
	Instance   imprint.InstanceID
	Generation imprint.Generation
	Name       string
}

func (i Info) bytes() []byte {
	return fmt.Appendf(nil, "imprint keybox v1\n%s\n%d\n%s", i.Instance, i.Generation, i.Name)
}

// Seal returns value sealed to the public key in spki, a DER
// SubjectPublicKeyInfo of a P-256 or P-384 key. It fails with kind [imprint.Invalid]
// for other keys: their holders read values over TLS with their certificate.
func Seal(spki []byte, info Info, value imprint.Secret) ([]byte, error) {
	if len(value.Reveal()) > MaxValue {
		return nil, imprint.Errorf(imprint.Exhausted, "seal", info.Name, "%d bytes; the limit is %d", len(value.Reveal()), MaxValue)
	}
	pub, err := publicKey(spki)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "seal", info.Name, "to the enrolled key: %w", err).
			WithHint("read this value over the check-in endpoint with the certificate instead")
	}
	key, err := hpke.NewDHKEMPublicKey(pub)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "seal", info.Name, "%w", err)
	}
	box, err := hpke.Seal(key, kdfFor(pub.Curve()), hpke.AES256GCM(), info.bytes(), value.Reveal())
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "seal", info.Name, "%w", err)
	}
	return append([]byte{version}, box...), nil
}

// Open returns the value in box. It fails with kind [imprint.Invalid] if box was
// not sealed to key for exactly this info, or was changed.
func Open(key *ecdsa.PrivateKey, info Info, box []byte) (imprint.Secret, error) {
	if len(box) > MaxValue+Overhead {
		return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "open", info.Name, "%d bytes; the limit is %d", len(box), MaxValue+Overhead)
	}
	if len(box) == 0 || box[0] != version {
		return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "open", info.Name, "not a sealed value of version %d", version)
	}
	exchanger, err := key.ECDH()
	if err != nil {
		return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "open", info.Name, "%w", err)
	}
	priv, err := hpke.NewDHKEMPrivateKey(exchanger)
	if err != nil {
		return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "open", info.Name, "%w", err)
	}
	value, err := hpke.Open(priv, kdfFor(exchanger.Curve()), hpke.AES256GCM(), info.bytes(), box[1:])
	if err != nil {
		return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "open", info.Name, "sealed to another key, instance, generation or name").
			WithHint("the host seals to the key of the current certificate; enrol again if it was replaced")
	}
	return imprint.NewSecret(value), nil
}

func publicKey(spki []byte) (*ecdh.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, err
	}
	ec, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("a %T cannot receive sealed values", pub)
	}
	return ec.ECDH()
}

// kdfFor pairs each curve with the hash that RFC 9180 section 7.1 gives it.
func kdfFor(curve ecdh.Curve) hpke.KDF {
	if curve == ecdh.P384() {
		return hpke.HKDFSHA384()
	}
	return hpke.HKDFSHA256()
}
