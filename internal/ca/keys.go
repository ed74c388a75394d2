package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"io"

	"golang.org/x/crypto/cryptobyte"
	tag "golang.org/x/crypto/cryptobyte/asn1"

	"imprint"
)

// Bounds on the RSA keys that machines may bring. 2048 bits give 112 bits of
// security, which NIST SP 800-57 part 1 accepts only until 2030, while the other
// keys here give 128 and more; 8192 bits bound the time of a verification.
const (
	minRSABits     = 3072
	maxRSABits     = 8192
	minRSAExponent = 65537
)

// GenerateKey returns a new CA key: P-256, as PKCS #8.
func GenerateKey() (imprint.Secret, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return imprint.Secret{}, imprint.Errorf(imprint.Internal, "generate", "CA key", "%w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return imprint.Secret{}, imprint.Errorf(imprint.Internal, "generate", "CA key", "%w", err)
	}
	return imprint.NewSecret(der), nil
}

// ParseKey reads a CA key in PKCS #8. It fails with kind [imprint.Invalid]
// unless it is an ECDSA key on P-256 or P-384.
func ParseKey(key imprint.Secret) (crypto.Signer, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(key.Reveal())
	if err != nil {
		// The parser's error is left out: it could quote the key.
		return nil, imprint.Errorf(imprint.Invalid, "parse", "CA key", "not a PKCS #8 private key")
	}
	ec, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, imprint.Errorf(imprint.Invalid, "parse", "CA key", "a %T; CA keys are ECDSA", parsed)
	}
	if err := checkCAKey(ec.Public()); err != nil {
		return nil, err
	}
	return ec, nil
}

func checkCAKey(pub crypto.PublicKey) error {
	ec, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return imprint.Errorf(imprint.Invalid, "check", "CA key", "a %T; CA keys are ECDSA", pub)
	}
	if ec.Curve != elliptic.P256() && ec.Curve != elliptic.P384() {
		return imprint.Errorf(imprint.Invalid, "check", "CA key", "curve %s; CA keys are on P-256 or P-384", ec.Params().Name)
	}
	return nil
}

// ParsePublicKey reads the public key that a machine brings, a DER
// SubjectPublicKeyInfo. It fails with kind [imprint.Invalid] if the key is of
// another kind than P-256, P-384, Ed25519 and RSA of 3072 to 8192 bits, or not
// in the one encoding that the certificate will repeat.
func ParsePublicKey(spki []byte) (crypto.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "check", "public key", "%w", err)
	}
	switch k := pub.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, weakKey("curve %s", k.Params().Name)
		}
	case *rsa.PublicKey:
		switch bits := k.N.BitLen(); {
		case bits < minRSABits:
			return nil, weakKey("weak key: RSA of %d bits; at least %d are needed for 128-bit security", bits, minRSABits)
		case bits > maxRSABits:
			return nil, weakKey("RSA of %d bits; at most %d are accepted", bits, maxRSABits)
		case k.E < minRSAExponent:
			return nil, weakKey("weak key: RSA exponent %d; at least %d is needed", k.E, minRSAExponent)
		}
	default:
		return nil, weakKey("a %T", pub)
	}
	if len(spki) == lenP256 && bytes.HasPrefix(spki, startOfP256()) {
		return pub, nil // there is no other way to write it
	}
	again, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "check", "public key", "%w", err)
	}
	if !bytes.Equal(again, spki) {
		return nil, imprint.Errorf(imprint.Invalid, "check", "public key", "not in DER")
	}
	return pub, nil
}

// startOfP256 is the SubjectPublicKeyInfo of every P-256 key up to its point (RFC
// 5480 section 2), which makes it lenP256 bytes long.
func startOfP256() []byte {
	return []byte("\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00\x04")
}

const lenP256 = 91

func weakKey(format string, args ...any) error {
	return imprint.Errorf(imprint.Invalid, "check", "public key", format, args...).
		WithHint("make a P-256, P-384 or Ed25519 key, or RSA of 3072 bits or more")
}

// keyIdentifier is the subject key identifier of spki: the leftmost 160 bits of
// the SHA-256 of its bit string (RFC 7093 section 2 method 1), as crypto/x509
// computes it for CAs.
func keyIdentifier(spki []byte) ([]byte, error) {
	var info, key cryptobyte.String
	var unused uint8 // bits at the end
	s := cryptobyte.String(spki)
	if !s.ReadASN1(&info, tag.SEQUENCE) || !info.SkipASN1(tag.SEQUENCE) || !info.ReadASN1(&key, tag.BIT_STRING) || !key.ReadUint8(&unused) {
		return nil, imprint.Errorf(imprint.Invalid, "check", "public key", "not a SubjectPublicKeyInfo")
	}
	sum := sha256.Sum256(key)
	return sum[:20], nil
}

// deterministic makes an ECDSA signer sign as RFC 6979 says, whatever random
// source its caller brings: crypto/ecdsa does so when it is given none, and so
// does the signer process.
type deterministic struct{ crypto.Signer }

func (d deterministic) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return d.Signer.Sign(nil, digest, opts)
}

// probe proves that signer holds the private key of pub and that it is
// deterministic.
func probe(signer crypto.Signer, pub *ecdsa.PublicKey, what string) error {
	if !pub.Equal(signer.Public()) {
		return imprint.Errorf(imprint.Conflict, "open", what, "the key does not belong to the certificate")
	}
	digest := sha256.Sum256([]byte("imprint signer probe v1"))
	first, err := signer.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return wrap("open", what, err)
	}
	second, err := signer.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return wrap("open", what, err)
	}
	if !ecdsa.VerifyASN1(pub, digest[:], first) {
		return imprint.Errorf(imprint.Conflict, "open", what, "the signer's signature does not verify")
	}
	if !bytes.Equal(first, second) {
		return imprint.Errorf(imprint.Invalid, "open", what, "the signer is not deterministic").
			WithHint("use a signer that follows RFC 6979, so that a repeated request gets the same certificate")
	}
	return nil
}

// wrap keeps the kind and the hint of an error that a signer or log returned.
func wrap(op, operand string, err error) error {
	return imprint.Errorf(imprint.KindOf(err), op, operand, "%w", err)
}
