package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"imprint"
)

// sshPublicKey returns pub in authorized_keys form, without a newline.
func sshPublicKey(pub crypto.PublicKey) (string, error) {
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		return "", imprint.Errorf(imprint.Invalid, "encode", "SSH CA key", "%w", err)
	}
	return authorizedKey(key), nil
}

func authorizedKey(key ssh.PublicKey) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n")
}

// openSSH checks that signer holds the key of line.
func openSSH(line string, signer crypto.Signer) (ssh.Signer, error) {
	const what = "SSH CA key"
	pub, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, imprint.Errorf(imprint.Invalid, "open", what, "a %T; CA keys are ECDSA", signer.Public())
	}
	if have, err := sshPublicKey(pub); err != nil {
		return nil, err
	} else if have != line {
		return nil, imprint.Errorf(imprint.Conflict, "open", what, "the key does not belong to the CA")
	}
	if err := probe(signer, pub, what); err != nil {
		return nil, err
	}
	s, err := ssh.NewSignerFromSigner(deterministic{signer})
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "open", what, "%w", err)
	}
	return s, nil
}

// ParseSSHHost reads an SSH host public key that a machine sent: one line in
// authorized_keys form without options; a comment is ignored. It fails with kind
// [imprint.Invalid] if the key is of another kind than Ed25519, ECDSA on P-256 or
// P-384, and RSA of 3072 to 8192 bits.
func ParseSSHHost(line string) (ssh.PublicKey, error) {
	bad := func(format string, args ...any) (ssh.PublicKey, error) {
		return nil, imprint.Errorf(imprint.Invalid, "check", "SSH host key", format, args...).
			WithHint("send one line of an ssh_host_*_key.pub file")
	}
	if len(line) > imprint.MaxSSHKeyLen {
		return bad("%d bytes; the limit is %d", len(line), imprint.MaxSSHKeyLen)
	}
	if strings.ContainsAny(strings.TrimRight(line, "\r\n"), "\r\n") {
		return bad("more than one line")
	}
	key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return bad("%w", err)
	}
	if len(options) > 0 {
		return bad("it has options")
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384:
		return key, nil
	case ssh.KeyAlgoRSA:
		if k, ok := key.(ssh.CryptoPublicKey).CryptoPublicKey().(*rsa.PublicKey); ok {
			if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
				return bad("RSA of %d bits; %d to %d are accepted", bits, minRSABits, maxRSABits)
			}
			return key, nil
		}
	}
	return bad("type %s is not accepted", key.Type())
}

// sshCertificate certifies the host key of g for the same names and time as
// its TLS certificate (OpenSSH PROTOCOL.certkeys). It is as deterministic: the
// nonce, whose purpose is that the bytes before the key are not for the machine
// to choose, is derived from the serial, which is random and was drawn after the
// machine had sent its key.
func (a *Authority) sshCertificate(g *imprint.Grant, notBefore, notAfter time.Time) (string, error) {
	key, err := ParseSSHHost(g.SSHHost)
	if err != nil {
		return "", err
	}
	serial, _ := g.Serial.Int() // checked with the TLS certificate
	low := serial.FillBytes(make([]byte, 20))[12:]
	cert := &ssh.Certificate{
		Key:             key,
		Serial:          binary.BigEndian.Uint64(low),
		CertType:        ssh.HostCert,
		KeyId:           URI(a.material.TrustDomain, g.Tenant, g.Instance, g.Generation),
		ValidPrincipals: principals(g),
		ValidAfter:      uint64(notBefore.Unix()),
		ValidBefore:     uint64(notAfter.Unix()),
	}
	h := sha256.New()
	h.Write([]byte("imprint ssh nonce v1\n" + string(g.Serial) + "\n"))
	h.Write(key.Marshal())
	// SignCert reads its nonce from the random source and nothing else: the
	// signer is deterministic.
	if err := cert.SignCert(bytes.NewReader(h.Sum(nil)), a.ssh); err != nil {
		return "", wrap("sign", "SSH host certificate for "+string(g.Name), err)
	}
	return authorizedKey(cert), nil
}

// principals are the names under which clients look the host up.
func principals(g *imprint.Grant) []string {
	names := append([]string(nil), g.DNSNames...)
	for _, n := range names {
		if n == string(g.Name) {
			return names
		}
	}
	return append(names, string(g.Name))
}
