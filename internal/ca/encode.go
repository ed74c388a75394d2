package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/asn1"
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
	usages              []asn1.ObjectIdentifier
	dnsNames            []string
	ips                 []netip.Addr
	uri                 string         // "" for none
	extension           pkix.Extension // the zero value for none
}

// sign encodes a leaf (RFC 5280 section 4.1) and signs it.
//
// It writes the bytes that crypto/x509 would write, which a test compares.
// CreateCertificate would take twice as long and then verify the signature,
// which takes longer than making it. Open has shown once that the signer's
// signatures verify.
func (a *Authority) sign(l *leaf) ([]byte, error) {
	hash, algorithm := crypto.SHA256, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2} // RFC 5758 section 3.2
	if a.issuing[0].PublicKey.(*ecdsa.PublicKey).Curve == elliptic.P384() {
		hash, algorithm = crypto.SHA384, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}
	}
	addAlgorithm := func(b *cryptobyte.Builder) {
		b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(algorithm) })
	}
	tbs := cryptobyte.NewBuilder(make([]byte, 0, 1024))
	tbs.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(tag.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddASN1Int64(2) }) // version 3
		b.AddASN1BigInt(l.serial)
		addAlgorithm(b)
		b.AddBytes(a.issuing[0].RawSubject)
		b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, l.notBefore)
			addTime(b, l.notAfter)
		})
		addCommonName(b, l.commonName)
		b.AddBytes(l.spki)
		b.AddASN1(tag.Tag(3).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) { a.addExtensions(b, l) })
		})
	})
	message, err := tbs.Bytes()
	if err != nil {
		return nil, err
	}
	h := hash.New()
	h.Write(message)
	signature, err := a.key.Sign(nil, h.Sum(nil), hash)
	if err != nil {
		return nil, err
	}
	cert := cryptobyte.NewBuilder(make([]byte, 0, len(message)+256))
	cert.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(message)
		addAlgorithm(b)
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

// addExtensions writes the extensions of section 4.2.1, and ours, in the order
// in which crypto/x509 does.
func (a *Authority) addExtensions(b *cryptobyte.Builder, l *leaf) {
	const (
		subjectKeyID   = 14
		keyUsage       = 15
		subjectAltName = 17
		constraints    = 19
		crlPoints      = 31
		authorityKeyID = 35
		extKeyUsage    = 37
	)
	add := func(id asn1.ObjectIdentifier, critical bool, value cryptobyte.BuilderContinuation) {
		b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(id)
			if critical {
				b.AddASN1Boolean(true)
			}
			b.AddASN1(tag.OCTET_STRING, value)
		})
	}
	// ce adds a standard extension whose value is a SEQUENCE.
	ce := func(id int, critical bool, value cryptobyte.BuilderContinuation) {
		add(asn1.ObjectIdentifier{2, 5, 29, id}, critical, func(b *cryptobyte.Builder) { b.AddASN1(tag.SEQUENCE, value) })
	}
	add(asn1.ObjectIdentifier{2, 5, 29, keyUsage}, true, func(b *cryptobyte.Builder) {
		if _, ok := l.publicKey.(*rsa.PublicKey); ok {
			b.AddBytes([]byte{3, 2, 5, 0xa0}) // and key encipherment: TLS 1.2 with RSA key exchange
		} else {
			b.AddBytes([]byte{3, 2, 7, 0x80}) // digital signature
		}
	})
	ce(extKeyUsage, false, func(b *cryptobyte.Builder) {
		for _, usage := range l.usages {
			b.AddASN1ObjectIdentifier(usage)
		}
	})
	ce(constraints, true, func(*cryptobyte.Builder) {}) // not a CA
	add(asn1.ObjectIdentifier{2, 5, 29, subjectKeyID}, false, func(b *cryptobyte.Builder) { b.AddASN1OctetString(l.keyID) })
	ce(authorityKeyID, false, func(b *cryptobyte.Builder) { addImplicit(b, 0, a.issuing[0].SubjectKeyId) })
	ce(subjectAltName, false, func(b *cryptobyte.Builder) {
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
	if a.material.CRL != "" {
		ce(crlPoints, false, func(b *cryptobyte.Builder) {
			const uri = 6
			b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) { // one DistributionPoint
				b.AddASN1(tag.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { // its name
					b.AddASN1(tag.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { // in full
						addImplicit(b, uri, []byte(a.material.CRL))
					})
				})
			})
		})
	}
	if l.extension.Id != nil {
		add(l.extension.Id, l.extension.Critical, func(b *cryptobyte.Builder) { b.AddBytes(l.extension.Value) })
	}
}

// addImplicit writes a primitive value under a context-specific tag.
func addImplicit(b *cryptobyte.Builder, n uint8, value []byte) {
	b.AddASN1(tag.Tag(n).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(value) })
}
