package est

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/netip"

	"imprint"
)

// marshalAttributes returns the DER of a CsrAttrs (RFC 7030 section 4.5.2, RFC
// 9908 section 3): make a P-256 key, sign with ECDSA and SHA-256 and, if any
// are given, ask for exactly these names.
func marshalAttributes(dnsNames []string, ips []netip.Addr) ([]byte, error) {
	attrs := []any{
		attribute{oidECPublicKey, []any{oidP256}},
		oidECDSAWithSHA256,
	}
	if len(dnsNames)+len(ips) > 0 {
		san, err := marshalNames(dnsNames, ips)
		if err != nil {
			return nil, imprint.Errorf(imprint.Internal, "encode", "subject alternative name", "%w", err)
		}
		// RFC 9908 section 3.2: one extension request with one list of extensions.
		extensions := []pkix.Extension{{Id: oidSubjectAltName, Value: san}}
		attrs = append(attrs, attribute{oidExtensionRequest, []any{extensions}})
	}
	der, err := asn1.Marshal(attrs)
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "encode", "CSR attributes", "%w", err)
	}
	return der, nil
}

// attribute is an Attribute of RFC 2986 section 4.1.
type attribute struct {
	Type   asn1.ObjectIdentifier
	Values []any `asn1:"set"`
}

var (
	oidECPublicKey      = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}      // RFC 5480
	oidP256             = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}   // RFC 5480
	oidECDSAWithSHA256  = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}   // RFC 5758
	oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14} // RFC 2985
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}                // RFC 5280
)

// marshalNames returns the DER of GeneralNames (RFC 5280 section 4.2.1.6).
func marshalNames(dnsNames []string, ips []netip.Addr) ([]byte, error) {
	const dNSName, iPAddress = 2, 7 // context tags of GeneralName
	var names []asn1.RawValue
	for _, name := range dnsNames {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: dNSName, Bytes: []byte(name)})
	}
	for _, ip := range ips {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: iPAddress, Bytes: ip.Unmap().AsSlice()})
	}
	return asn1.Marshal(names)
}
