package imprint

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
)

// Limits on names. A name is a DNS label (RFC 1123 section 2.1), so that it can
// be a host name, a file name and a path segment without quoting.
const (
	MaxNameLen    = 63
	MaxDNSNameLen = 253
)

// DefaultTenant always exists, so that whoever runs one lab never meets the word.
const DefaultTenant TenantName = "default"

type (
	// TenantName names the owner of instances; a DNS label.
	TenantName string
	// InstanceName is an instance's name, unique within its tenant; a DNS label.
	InstanceName string
	// InstanceID identifies an instance for ever: a UUID in its canonical
	// lower-case form, of version 4 if imprint drew it. No ID is given twice.
	InstanceID string
	// HostName names a machine that runs a host role; a DNS name.
	HostName string
	// Generation counts an instance's lives, from 1.
	Generation uint32
	// Serial is a certificate's serial number as lower-case hexadecimal
	// without leading zeros; 1 to 40 digits (RFC 5280 section 4.1.2.2).
	Serial string
	// KeyID is the SHA-256 of a public key's SubjectPublicKeyInfo, in
	// lower-case hexadecimal.
	KeyID string
	// Digest is a SHA-256 in lower-case hexadecimal.
	Digest string
)

// NewInstanceID returns a fresh random identifier.
func NewInstanceID() InstanceID {
	var b [16]byte
	rand.Read(b[:]) // never fails since Go 1.24
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return InstanceID(fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
}

// NewSerial returns a random positive serial number of 127 bits.
func NewSerial() Serial {
	var b [16]byte
	rand.Read(b[:])
	b[0] = b[0]&0x7f | 0x40 // positive in DER and always 16 bytes long
	return Serial(hex.EncodeToString(b[:]))
}

// SerialOf returns n in its printed form.
func SerialOf(n *big.Int) Serial { return Serial(fmt.Sprintf("%x", n)) }

// Int returns the serial as a number; ok is false if s is not a serial.
func (s Serial) Int() (n *big.Int, ok bool) {
	if s == "" || len(s) > 40 || strings.ToLower(string(s)) != string(s) {
		return nil, false
	}
	n, ok = new(big.Int).SetString(string(s), 16)
	return n, ok && n.Sign() > 0
}

// KeyIDOf returns the identifier of the public key in spki, a DER
// SubjectPublicKeyInfo.
func KeyIDOf(spki []byte) KeyID { return KeyID(DigestOf(spki)) }

// ValidDigest reports whether s can be a [Digest].
func ValidDigest(s Digest) bool {
	b, err := hex.DecodeString(string(s))
	return err == nil && len(b) == sha256.Size && hex.EncodeToString(b) == string(s)
}

// DigestOf returns the SHA-256 of b.
func DigestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest(hex.EncodeToString(sum[:]))
}

// ValidID reports whether s has the form of an [InstanceID].
func ValidID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if !isLowerHex(c) {
				return false
			}
		}
	}
	return true
}

// CheckID returns an error of kind [Invalid] unless s can be the [InstanceID] of
// a machine that somebody else named: a UUID of any version in the form of RFC
// 9562 section 4, lower-case, and neither the nil nor the max UUID, which
// software takes for "none" and "any". what names the field in the error.
func CheckID(what, s string) error {
	lower := strings.ToLower(s)
	switch {
	case !ValidID(lower):
		return Errorf(Invalid, "check", what, "%.64q is not a UUID", s).
			WithHint("write it like 7c9e6679-7425-40de-944b-e07fc1f90ae7")
	case lower != s:
		return Errorf(Invalid, "check", what, "%q has capital letters", s).WithHint("write it as %s", lower)
	case strings.Trim(s, "0-") == "", strings.Trim(s, "f-") == "":
		return Errorf(Invalid, "check", what, "%q is no machine's UUID", s).
			WithHint("give the machine's own, or leave it out, and imprint draws one")
	}
	return nil
}

// CheckLabel returns an error of kind [Invalid] unless s is a DNS label of
// lower-case letters, digits and inner hyphens. what names the field in the error.
func CheckLabel(what, s string) error {
	if reason := labelFault(s); reason != "" {
		return Errorf(Invalid, "check", what, "%q %s", s, reason).
			WithHint("use 1 to 63 lower-case letters, digits and hyphens, starting and ending with a letter or digit")
	}
	return nil
}

// CheckDNSName returns an error of kind [Invalid] unless s is a lower-case DNS
// name of labels as in [CheckLabel]; wildcards are refused.
func CheckDNSName(what, s string) error {
	if s == "" || len(s) > MaxDNSNameLen {
		return Errorf(Invalid, "check", what, "%q has %d characters; a DNS name has 1 to %d", s, len(s), MaxDNSNameLen)
	}
	for label := range strings.SplitSeq(s, ".") {
		if reason := labelFault(label); reason != "" {
			return Errorf(Invalid, "check", what, "%q: label %q %s", s, label, reason).
				WithHint("use lower-case labels of letters, digits and hyphens, separated by dots")
		}
	}
	return nil
}

func labelFault(s string) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > MaxNameLen:
		return fmt.Sprintf("has %d characters; %d are allowed", len(s), MaxNameLen)
	case s[0] == '-' || s[len(s)-1] == '-':
		return "starts or ends with a hyphen"
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return fmt.Sprintf("contains %q", c)
		}
	}
	return ""
}

func isLowerHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' }
