package guest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"net"
	"strings"

	"imprint"
)

// maxSSHKey is the size limit in bytes of an SSH host public key file.
const maxSSHKey = imprint.MaxSSHKeyLen

// loadKey returns the machine's key: kind [imprint.NotFound] if there is none,
// [imprint.Invalid] if the file holds something else.
func (l Layout) loadKey() (*ecdsa.PrivateKey, error) {
	b, err := readFile(l.Key(), maxFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, imprint.Errorf(imprint.Invalid, "read", l.Key(), "no PKCS #8 private key in PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "read", l.Key(), "%w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, imprint.Errorf(imprint.Invalid, "read", l.Key(), "not a P-256 key")
	}
	return key, nil
}

// makeKey writes a fresh key and returns it only once it is safely on disk: a
// request must never be sent for a key that a crash can take away.
func (l Layout) makeKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "make", "key", "%w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "make", "key", "%w", err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := writeFile(l.Key(), data, 0o600); err != nil {
		return nil, err
	}
	return key, nil
}

// request is what the machine asks to be certified.
type request struct {
	csr     []byte // DER of a PKCS #10 request
	sshHost string // an SSH host public key in authorized_keys form, or ""
}

// newRequest asks for the names in the payload, all of them in the subject
// alternative name. With the same key and payload it always has the same bytes
// (RFC 6979), so that a repetition is recognisable as one.
func newRequest(p *imprint.Payload, key *ecdsa.PrivateKey, sshHost string) (request, error) {
	template := &x509.CertificateRequest{DNSNames: p.DNSNames}
	for _, ip := range p.IPs {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	csr, err := x509.CreateCertificateRequest(nil, template, key) // nil: deterministic
	if err != nil {
		return request{}, imprint.Errorf(imprint.Internal, "make", "certificate request", "%w", err)
	}
	return request{csr: csr, sshHost: sshHost}, nil
}

// confirmation proves that the machine holds key and has received leaf.
func confirmation(p *imprint.Payload, key *ecdsa.PrivateKey, leaf *x509.Certificate) ([]byte, error) {
	digest := sha256.Sum256(imprint.ConfirmationMessage(p.Instance, p.Generation, leaf.Raw))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "sign", "confirmation", "%w", err)
	}
	return signature, nil
}

// sshHostKey returns the first line of an SSH public key file without its
// comment, or "" if it is not an Ed25519 key.
func sshHostKey(file []byte) string {
	line, _, _ := strings.Cut(string(file), "\n")
	fields := strings.Fields(line)
	if len(fields) < 2 || fields[0] != "ssh-ed25519" {
		return ""
	}
	return fields[0] + " " + fields[1]
}
