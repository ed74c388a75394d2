package guest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"os"
	"path/filepath"

	"imprint"
)

// apply puts the CA and the SSH host certificate where the platform's own
// programs look for them. It may be repeated.
func (a *Agent) apply(ctx context.Context, l link, rec *record, cred *credential) error {
	if err := writeIfChanged(a.layout.CA(), []byte(rec.Payload.CA)); err != nil {
		return err
	}
	if a.o.TrustCA {
		if err := a.trustCA(ctx, &rec.Payload); err != nil {
			return err
		}
	}
	key := a.sshHostKey()
	if key == "" {
		return nil
	}
	cert, err := l.SSHCertificate(ctx, cred, key)
	switch imprint.KindOf(err) {
	case imprint.NotFound:
		return nil
	case imprint.Conflict, imprint.Denied: // no reason to go without the rest
		a.console.About("ssh", "the SSH host key was not certified: %v", err)
		return nil
	}
	if err != nil {
		return err
	}
	return a.installSSH(ctx, append(bytes.TrimSpace(cert), '\n'))
}

// sshHostKey returns the SSH host key to certify, or "".
func (a *Agent) sshHostKey() string {
	if !a.o.SSH {
		return ""
	}
	b, err := readFile(a.layout.sshHostKey(), maxSSHKey)
	if err != nil {
		return ""
	}
	return sshHostKey(b)
}

// writeIfChanged writes a file that anybody may read, unless it is there
// already: programs that watch it are not woken for nothing.
func writeIfChanged(path string, data []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return imprint.Errorf(imprint.Internal, "create", filepath.Dir(path), "%w", err)
	}
	return writeFile(path, data, 0o644)
}

// keyID is the name under which imprint's timeline shows the key.
func keyID(key *ecdsa.PrivateKey) imprint.KeyID {
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil { // only for unknown curves, which loadKey and makeKey exclude
		return ""
	}
	return imprint.KeyIDOf(spki)
}
