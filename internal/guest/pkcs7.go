package guest

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"

	"imprint"
)

// parseCertsOnly reads the certificates in a certs-only CMS message (RFC 5652
// section 5, RFC 8951 section 3.2), base64 in any wrapping. Everything in it but
// the certificates is ignored: who sent it is known from TLS.
func parseCertsOnly(b []byte) ([]*x509.Certificate, error) {
	bad := func(err error) error {
		return imprint.Errorf(imprint.Invalid, "read", "certs-only message", "%w", err)
	}
	der, err := base64.StdEncoding.DecodeString(string(bytes.Join(bytes.Fields(b), nil)))
	if err != nil {
		return nil, bad(err)
	}
	var content struct {
		Type asn1.ObjectIdentifier
		Data struct {
			Version          int
			DigestAlgorithms asn1.RawValue
			ContentInfo      asn1.RawValue
			Certificates     asn1.RawValue `asn1:"optional,tag:0"`
			CRLs             asn1.RawValue `asn1:"optional,tag:1"`
			SignerInfos      asn1.RawValue
		} `asn1:"explicit,tag:0"`
	}
	if rest, err := asn1.Unmarshal(der, &content); err != nil {
		return nil, bad(err)
	} else if len(rest) != 0 {
		return nil, imprint.Errorf(imprint.Invalid, "read", "certs-only message", "%d bytes after its end", len(rest))
	}
	if signedData := (asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}); !content.Type.Equal(signedData) {
		return nil, imprint.Errorf(imprint.Invalid, "read", "certs-only message", "content type %s", content.Type)
	}
	certs, err := x509.ParseCertificates(content.Data.Certificates.Bytes)
	if err != nil {
		return nil, bad(err)
	}
	if len(certs) == 0 || len(certs) > maxChain {
		return nil, imprint.Errorf(imprint.Invalid, "read", "certs-only message", "%d certificates; 1 to %d are expected", len(certs), maxChain)
	}
	return certs, nil
}
