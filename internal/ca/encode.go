package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/netip"
	"time"

	"golang.org/x/crypto/cryptobyte"
	tag "golang.org/x/crypto/cryptobyte/asn1"
)

// leaf is a certificate to be signed. What all leaves of an authority share
// comes from the authority.
type leaf struct {
	serial              *big.Int
	commonName          string // a DNS name or label
	notBefore, notAfter time.Time
	publicKey           crypto.PublicKey
	spki, keyID         []byte // of publicKey
	serverOnly          bool   // and nobody's client
	dnsNames            []string
	ips                 []netip.Addr
	uri                 string         // "" for none
	extension           pkix.Extension // the zero value for none
}

// constants are what the leaves of an authority have in common, encoded once.
type constants struct {
	hash      crypto.Hash
	algorithm []byte // of the signature
	issuer    []byte

	// Extensions: key usage, purposes and basic constraints; the authority's key
	// identifier; where the CRL is, or nothing.
	usages                    map[usage][]byte
	authorityKeyID, crlPoints []byte
}

// usage is what the usages of a leaf depend on.
type usage struct{ rsa, serverOnly bool }

// newConstants encodes them for leaves that issuer signs, whose CRL is at the
// given URL or nowhere ("").
func newConstants(issuer *x509.Certificate, crl string) (constants, error) {
	c := constants{hash: crypto.SHA256, issuer: issuer.RawSubject, usages: make(map[usage][]byte)}
	algorithm := asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2} // RFC 5758 section 3.2
	if issuer.PublicKey.(*ecdsa.PublicKey).Curve == elliptic.P384() {
		c.hash, algorithm = crypto.SHA384, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}
	}
	var errs []error
	encoded := func(write cryptobyte.BuilderContinuation) []byte {
		b := new(cryptobyte.Builder)
		write(b)
		out, err := b.Bytes()
		errs = append(errs, err)
		return out
	}
	c.algorithm = encoded(func(b *cryptobyte.Builder) {
		b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(algorithm) })
	})
	for _, u := range []usage{{}, {rsa: true}, {serverOnly: true}, {rsa: true, serverOnly: true}} {
		c.usages[u] = encoded(func(b *cryptobyte.Builder) { addUsage(b, u) })
	}
	c.authorityKeyID = encoded(func(b *cryptobyte.Builder) {
		addStandard(b, extAuthorityKeyID, false, func(b *cryptobyte.Builder) { addImplicit(b, 0, issuer.SubjectKeyId) })
	})
	if crl != "" {
		c.crlPoints = encoded(func(b *cryptobyte.Builder) { addCRL(b, crl) })
	}
	return c, errors.Join(errs...)
}

// sign encodes a leaf (RFC 5280 section 4.1) and signs it.
//
// It writes the bytes that crypto/x509 would write, which a test compares.
// CreateCertificate would take twice as long and then verify the signature,
// which takes longer than making it. Open has shown once that the signer's
// signatures verify.
func (a *Authority) sign(l *leaf) ([]byte, error) {
	c := &a.constants
	tbs := cryptobyte.NewBuilder(make([]byte, 0, 1024))
	tbs.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(tag.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddASN1Int64(2) }) // version 3
		b.AddASN1BigInt(l.serial)
		b.AddBytes(c.algorithm)
		b.AddBytes(c.issuer)
		b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, l.notBefore)
			addTime(b, l.notAfter)
		})
		addCommonName(b, l.commonName)
		b.AddBytes(l.spki)
		b.AddASN1(tag.Tag(3).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) { c.addExtensions(b, l) })
		})
	})
	message, err := tbs.Bytes()
	if err != nil {
		return nil, err
	}
	h := c.hash.New()
	h.Write(message)
	signature, err := a.key.Sign(nil, h.Sum(nil), c.hash)
	if err != nil {
		return nil, err
	}
	cert := cryptobyte.NewBuilder(make([]byte, 0, len(message)+256))
	cert.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(message)
		b.AddBytes(c.algorithm)
		b.AddASN1BitString(signature)
	})
	return cert.Bytes()
}

// addTime writes t as section 4.1.2.5 wants it: in two forms, by the year.
func addTime(b *cryptobyte.Builder, t time.Time) {
	if t.Year() < 2050 {
		b.AddASN1UTCTime(t)
	} else {
		b.AddASN1GeneralizedTime(t)
	}
}

func addCommonName(b *cryptobyte.Builder, name string) {
	b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(tag.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{2, 5, 4, 3})
				b.AddASN1(tag.PrintableString, func(b *cryptobyte.Builder) { b.AddBytes([]byte(name)) })
			})
		})
	})
}

// Purposes of a key (section 4.2.1.12).
func oidServerAuth() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1} }
func oidClientAuth() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2} }

// Numbers of the standard extensions below id-ce (section 4.2.1).
const (
	extSubjectKeyID   = 14
	extKeyUsage       = 15
	extNames          = 17
	extConstraints    = 19
	extCRL            = 31
	extAuthorityKeyID = 35
	extPurposes       = 37
)

// addExtensions writes the extensions of section 4.2.1, and ours, in the order
// in which crypto/x509 does.
func (c *constants) addExtensions(b *cryptobyte.Builder, l *leaf) {
	_, rsa := l.publicKey.(*rsa.PublicKey)
	b.AddBytes(c.usages[usage{rsa, l.serverOnly}])
	addExtension(b, asn1.ObjectIdentifier{2, 5, 29, extSubjectKeyID}, false, func(b *cryptobyte.Builder) { b.AddASN1OctetString(l.keyID) })
	b.AddBytes(c.authorityKeyID)
	addStandard(b, extNames, false, func(b *cryptobyte.Builder) {
		const dNSName, uri, iPAddress = 2, 6, 7
		for _, name := range l.dnsNames {
			addImplicit(b, dNSName, []byte(name))
		}
		for _, ip := range l.ips {
			addImplicit(b, iPAddress, ip.AsSlice())
		}
		if l.uri != "" {
			addImplicit(b, uri, []byte(l.uri))
		}
	})
	b.AddBytes(c.crlPoints)
	if l.extension.Id != nil {
		addExtension(b, l.extension.Id, l.extension.Critical, func(b *cryptobyte.Builder) { b.AddBytes(l.extension.Value) })
	}
}

// addUsage writes what a key may be used for, and that it is not a CA's.
func addUsage(b *cryptobyte.Builder, u usage) {
	addExtension(b, asn1.ObjectIdentifier{2, 5, 29, extKeyUsage}, true, func(b *cryptobyte.Builder) {
		if u.rsa {
			b.AddBytes([]byte{3, 2, 5, 0xa0}) // and key encipherment: TLS 1.2 with RSA key exchange
		} else {
			b.AddBytes([]byte{3, 2, 7, 0x80}) // digital signature
		}
	})
	addStandard(b, extPurposes, false, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidServerAuth())
		if !u.serverOnly {
			b.AddASN1ObjectIdentifier(oidClientAuth())
		}
	})
	addStandard(b, extConstraints, true, func(*cryptobyte.Builder) {})
}

func addCRL(b *cryptobyte.Builder, url string) {
	const uri = 6
	addStandard(b, extCRL, false, func(b *cryptobyte.Builder) {
		b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) { // one DistributionPoint
			b.AddASN1(tag.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { // its name
				b.AddASN1(tag.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { // in full
					addImplicit(b, uri, []byte(url))
				})
			})
		})
	})
}

func addExtension(b *cryptobyte.Builder, id asn1.ObjectIdentifier, critical bool, value cryptobyte.BuilderContinuation) {
	b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(id)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(tag.OCTET_STRING, value)
	})
}

// addStandard writes a standard extension whose value is a SEQUENCE.
func addStandard(b *cryptobyte.Builder, id int, critical bool, value cryptobyte.BuilderContinuation) {
	addExtension(b, asn1.ObjectIdentifier{2, 5, 29, id}, critical, func(b *cryptobyte.Builder) { b.AddASN1(tag.SEQUENCE, value) })
}

// addImplicit writes a primitive value under a context-specific tag.
func addImplicit(b *cryptobyte.Builder, n uint8, value []byte) {
	b.AddASN1(tag.Tag(n).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(value) })
}
