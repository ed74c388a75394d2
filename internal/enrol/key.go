package enrol

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"math/big"
	"strings"

	"imprint"
)

// Bounds on RSA keys: as strong as the rest of the chain (NIST SP 800-57 part 1),
// and a bound on the time of a verification.
const (
	minRSABits     = 3072
	maxRSABits     = 8192
	minRSAExponent = 65537
)

// The checks in this file are at least as strict as the signer's. A claim binds a
// generation to a key for good, so a key that the signer would turn down must
// not get that far.

// checkKey accepts P-256, P-384, Ed25519, and RSA of 3072 to 8192 bits, in the
// one encoding that the certificate repeats. It fails with kind [imprint.Invalid].
func checkKey(pub crypto.PublicKey, spki []byte) error {
	switch k := pub.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return weak("curve %s is not accepted", k.Params().Name)
		}
	case *rsa.PublicKey:
		if err := checkRSA(k.N.BitLen(), k.E); err != nil {
			return err
		}
	default:
		return weak("a key of this type is not accepted")
	}
	if again, err := x509.MarshalPKIXPublicKey(pub); err != nil || !bytes.Equal(again, spki) {
		return weak("it is not in DER")
	}
	return nil
}

func checkRSA(bits, exponent int) error {
	switch {
	case bits < minRSABits:
		return weak("RSA of %d bits is too weak", bits)
	case bits > maxRSABits:
		return weak("RSA of %d bits is too long; at most %d are accepted", bits, maxRSABits)
	case exponent < minRSAExponent:
		return weak("the RSA exponent %d is too small", exponent)
	}
	return nil
}

func weak(format string, args ...any) error {
	return imprint.Errorf(imprint.Invalid, "check", "public key", format, args...).
		WithHint("make a P-256, P-384 or Ed25519 key, or RSA of %d bits or more", minRSABits)
}

// verify reports whether signature is one over message by the key in spki:
// ECDSA in ASN.1 and RSA PKCS #1 v1.5, both with SHA-256, or Ed25519.
func verify(spki, message, signature []byte) bool {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return false
	}
	digest := sha256.Sum256(message)
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, digest[:], signature)
	case ed25519.PublicKey:
		return ed25519.Verify(k, message, signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, digest[:], signature) == nil
	}
	return false
}

// parseSSHHost reads an SSH host public key: one line in authorized_keys form
// without options. It returns the line without its comment, and fails with kind
// [imprint.Invalid] unless the key is Ed25519 (RFC 8709), ECDSA on P-256 or P-384
// (RFC 5656 section 3.1), or RSA (RFC 4253 section 6.6) within the bounds above.
func parseSSHHost(line string) (string, error) {
	if len(line) > imprint.MaxSSHKeyLen {
		return "", badSSHKey("%d bytes; the limit is %d", len(line), imprint.MaxSSHKeyLen)
	}
	if strings.ContainsAny(strings.TrimRight(line, "\r\n"), "\r\n") {
		return "", badSSHKey("more than one line")
	}
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return "", badSSHKey("no type and key")
	}
	kind := fields[0]
	blob, err := base64.StdEncoding.Strict().DecodeString(fields[1])
	if err != nil {
		return "", badSSHKey("the key is not base64")
	}
	parts, ok := sshStrings(blob)
	if !ok || len(parts) == 0 || string(parts[0]) != kind {
		return "", badSSHKey("it is not of the type that it says")
	}
	if !sshKeyIsGood(kind, parts[1:]) {
		return "", badSSHKey("type %s is not accepted in this form", clip(kind))
	}
	return kind + " " + fields[1], nil
}

func sshKeyIsGood(kind string, parts [][]byte) bool {
	switch {
	case kind == "ssh-ed25519" && len(parts) == 1:
		return len(parts[0]) == ed25519.PublicKeySize
	case kind == "ecdsa-sha2-nistp256" && len(parts) == 2 && string(parts[0]) == "nistp256":
		return onCurve(elliptic.P256(), parts[1])
	case kind == "ecdsa-sha2-nistp384" && len(parts) == 2 && string(parts[0]) == "nistp384":
		return onCurve(elliptic.P384(), parts[1])
	case kind == "ssh-rsa" && len(parts) == 2:
		e, n := sshNumber(parts[0]), sshNumber(parts[1])
		return e != nil && n != nil && e.Bit(0) == 1 && e.BitLen() <= 24 && checkRSA(n.BitLen(), int(e.Int64())) == nil
	}
	return false
}

func onCurve(c elliptic.Curve, point []byte) bool {
	_, err := ecdsa.ParseUncompressedPublicKey(c, point)
	return err == nil
}

// sshStrings splits b into its strings (RFC 4251 section 5).
func sshStrings(b []byte) (parts [][]byte, ok bool) {
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, false
		}
		n := binary.BigEndian.Uint32(b)
		if b = b[4:]; uint64(n) > uint64(len(b)) {
			return nil, false
		}
		parts, b = append(parts, b[:n]), b[n:]
	}
	return parts, true
}

// sshNumber reads a positive mpint in its shortest form (RFC 4251 section 5), or
// returns nil.
func sshNumber(b []byte) *big.Int {
	if len(b) == 0 || b[0]&0x80 != 0 || b[0] == 0 && (len(b) == 1 || b[1]&0x80 == 0) {
		return nil
	}
	return new(big.Int).SetBytes(b)
}

func badSSHKey(format string, args ...any) error {
	return imprint.Errorf(imprint.Invalid, "check", "SSH host key", format, args...).
		WithHint("send one line of an ssh_host_*_key.pub file")
}
