package est

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"

	"golang.org/x/crypto/cryptobyte"
	tag "golang.org/x/crypto/cryptobyte/asn1"

	"imprint"
)

// Limits on what a client sends.
const (
	MaxBody     = 64 << 10                 // bytes of a request's body
	maxUserLen  = 2*imprint.MaxNameLen + 1 // tenant/name
	maxTokenLen = 256                      // bytes; ours are far shorter
	// maxMediumBody is for the end of a medium: every byte of its detail may be escaped.
	maxMediumBody = 6*imprint.MaxMediumDetail + 256
)

// credentials returns the Basic user and token; ok is false if there are none
// or they cannot be ours. The token may be empty: a machine that an operator
// approves by hand has none.
func credentials(r *http.Request) (user string, token imprint.Secret, ok bool) {
	user, password, ok := r.BasicAuth()
	if !ok || user == "" || len(user) > maxUserLen || len(password) > maxTokenLen {
		return "", imprint.Secret{}, false
	}
	return user, imprint.NewSecret([]byte(password)), true
}

// readRequest returns the DER of the certificate request in c's body. Neither
// Content-Length nor Content-Transfer-Encoding is needed: some clients send
// chunks, and the latter is not an HTTP header at all (RFC 8951 section 3.1).
func readRequest(c *call) ([]byte, error) {
	if t := c.Header.Get("Content-Type"); t != "" {
		if media, _, err := mime.ParseMediaType(t); err != nil || media != "application/pkcs10" {
			return nil, &refusal{http.StatusUnsupportedMediaType, "send the request as Content-Type application/pkcs10"}
		}
	}
	body, err := readBody(c, MaxBody)
	if err != nil {
		return nil, err
	}
	der, reason := decodeRequest(body)
	if reason != "" {
		return nil, &refusal{http.StatusBadRequest, reason}
	}
	return der, nil
}

// readBody returns c's body of at most limit bytes.
func readBody(c *call, limit int64) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(c.reply, c.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &refusal{http.StatusRequestEntityTooLarge, "the body is larger than " + strconv.FormatInt(limit, 10) + " bytes"}
	case err != nil:
		return nil, &refusal{http.StatusBadRequest, "the body ended early"}
	}
	return body, nil
}

// pemType is the label of a PKCS #10 request (RFC 7468 section 7).
const pemType = "CERTIFICATE REQUEST"

// decodeRequest accepts base64 with or without line breaks (RFC 7030 section
// 4.2.1, RFC 8951 section 3.1) and, because clients send them, PEM and DER. The
// three cannot be confused: a DER SEQUENCE starts with '0', base64 of one with 'M'.
// Whether the result is a certificate request is for its reader to find out.
func decodeRequest(body []byte) (der []byte, reason string) {
	const sequence = 0x30 // ASN.1 tag
	if len(body) > 0 && body[0] == sequence {
		return body, "" // whatever its last byte looks like, it is no white space
	}
	body = bytes.TrimSpace(body)
	switch {
	case len(body) == 0:
		return nil, "the body is empty; a PKCS #10 request in base64 was expected"
	case bytes.HasPrefix(body, []byte("-----BEGIN")):
		block, rest := pem.Decode(body)
		if block == nil || block.Type != pemType && block.Type != "NEW "+pemType || len(bytes.TrimSpace(rest)) != 0 {
			return nil, "the body is not one PEM block of type " + pemType
		}
		der = block.Bytes
	default:
		// The decoder skips CR and LF; other white space is not base64.
		der = make([]byte, base64.StdEncoding.DecodedLen(len(body)))
		n, err := base64.StdEncoding.Decode(der, body)
		if err != nil {
			return nil, "the body is not base64"
		}
		der = der[:n]
	}
	if len(der) == 0 || der[0] != sequence {
		return nil, "the body is not a PKCS #10 request in base64"
	}
	return der, ""
}

// writeCertificates replies with certs, each in DER (RFC 7030 section 4.1.3).
func writeCertificates(c *call, certs ...[]byte) error {
	p7, err := certsOnly(certs)
	if err != nil {
		return imprint.Errorf(imprint.Internal, "encode", "certificates", "%w", err)
	}
	writeBase64(c, "application/pkcs7-mime; smime-type=certs-only", p7)
	return nil
}

// certsOnly returns a SignedData with certificates and nothing that is signed
// (RFC 5652 sections 3 and 5.1), in DER.
func certsOnly(certs [][]byte) ([]byte, error) {
	explicit := func(b *cryptobyte.Builder, n uint8, value cryptobyte.BuilderContinuation) {
		b.AddASN1(tag.Tag(n).ContextSpecific().Constructed(), value)
	}
	empty := func(*cryptobyte.Builder) {}
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData)
		explicit(b, 0, func(b *cryptobyte.Builder) {
			b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)         // version
				b.AddASN1(tag.SET, empty) // digest algorithms
				b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidData) })
				explicit(b, 0, func(b *cryptobyte.Builder) {
					for _, cert := range certs {
						b.AddBytes(cert)
					}
				})
				explicit(b, 1, empty)     // revocation lists
				b.AddASN1(tag.SET, empty) // signers
			})
		})
	})
	return b.Bytes()
}

var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1} // RFC 5652 section 4
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2} // RFC 5652 section 5
)

// writeBase64 replies with der as one unwrapped line: strongSwan rejects line
// breaks inside, and every client reads it without them.
func writeBase64(c *call, mediaType string, der []byte) {
	body := make([]byte, base64.StdEncoding.EncodedLen(len(der))+1)
	base64.StdEncoding.Encode(body, der)
	body[len(body)-1] = '\n'
	h := c.reply.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Content-Transfer-Encoding", "base64") // for clients from before RFC 8951
	h.Set("Content-Length", strconv.Itoa(len(body)))
	c.reply.Write(body) // an error here is the client's loss; it asks again
}
