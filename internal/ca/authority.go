package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"time"

	"golang.org/x/crypto/ssh"

	"imprint"
)

// defaultProfile is the only certificate profile so far.
const defaultProfile = "machine"

// Appender is what an authority needs of an issuance log; [*Log] is one.
type Appender interface {
	// Name names the log in certificate records.
	Name() string
	// Writable returns nil, or why nothing should be issued at present. Kinds:
	// [imprint.Exhausted] when the disk is full, [imprint.Unavailable] otherwise.
	Writable() error
	// Entry returns e in the form in which it is queued for the log.
	Entry(e Entry) (*imprint.LogEntry, error)
	// Append queues e. If it returns an error, e may or may not have been queued.
	// Kinds: those of Writable.
	Append(ctx context.Context, e Entry) error
}

// Keys are the signers an [Authority] runs on, in this process or another.
type Keys struct {
	Issuing crypto.Signer
	SSH     crypto.Signer
}

// Authority signs for one tenant. It is safe for concurrent use.
type Authority struct {
	material  Material
	root      *x509.Certificate
	issuing   []*x509.Certificate // the one that signs first
	issuers   *x509.CertPool      // the same
	key       deterministic       // of issuing[0]
	constants constants
	ssh       ssh.Signer
	log       Appender
}

// Open checks that material is whole and that keys belong to it, and returns
// the authority, which appends to log whatever it issues. The root key is not
// needed. It fails with kind
// [imprint.Invalid] or [imprint.Conflict] if the material is inconsistent or a
// key is not its own, and with the signer's error if one does not sign.
func Open(m Material, keys Keys, log Appender) (*Authority, error) {
	if err := m.Profile.check(); err != nil {
		return nil, err
	}
	bad := func(format string, args ...any) (*Authority, error) {
		return nil, imprint.Errorf(imprint.Invalid, "open", "CA of tenant "+string(m.Tenant.Name), format, args...)
	}
	root, err := x509.ParseCertificate(m.Root)
	if err != nil {
		return bad("root certificate: %w", err)
	}
	if err := root.CheckSignatureFrom(root); err != nil {
		return bad("root certificate: %w", err)
	}
	if len(m.Issuing) == 0 || len(m.Issuing) > maxIssuing {
		return bad("%d issuing CAs; there must be 1 to %d", len(m.Issuing), maxIssuing)
	}
	if log == nil {
		return bad("there is no issuance log")
	}
	a := &Authority{material: m, root: root, issuers: x509.NewCertPool(), key: deterministic{keys.Issuing}, log: log}
	for _, der := range m.Issuing {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return bad("issuing certificate: %w", err)
		}
		if err := cert.CheckSignatureFrom(root); err != nil {
			return bad("issuing certificate: %w", err)
		}
		if !cert.IsCA || !cert.MaxPathLenZero || len(cert.PermittedDNSDomains) == 0 {
			return bad("issuing certificate: without path length 0 and name constraints")
		}
		a.issuing = append(a.issuing, cert)
		a.issuers.AddCert(cert)
	}
	if err := m.matches(a.issuing[0]); err != nil {
		return nil, err
	}
	pub, ok := a.issuing[0].PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return bad("issuing certificate: key is a %T", a.issuing[0].PublicKey)
	}
	if a.constants, err = newConstants(a.issuing[0], m.CRL); err != nil {
		return bad("issuing certificate: %w", err)
	}
	if err := probe(keys.Issuing, pub, "issuing key of tenant "+string(m.Tenant.Name)); err != nil {
		return nil, err
	}
	if a.ssh, err = openSSH(m.SSH, keys.SSH); err != nil {
		return nil, err
	}
	return a, nil
}

// Issue signs what g says and returns it with its entry for the log: whoever
// records the certificate queues the entry in the same transaction, and nothing
// may leave before. The same grant gives the same certificate. A certificate
// never outlives the issuing CA: its end is brought forward, and its start put
// off, to the CA's.
//
// It fails with kind [imprint.Invalid] if a key, name or number in g cannot be
// certified, [imprint.Denied] if a name is outside what the tenant may certify,
// [imprint.Conflict] if g lies wholly outside the CA's life, and with the kind
// of the signer or log that failed.
func (a *Authority) Issue(g imprint.Grant) (*imprint.Certificate, *imprint.LogEntry, error) {
	operand := "certificate for " + string(g.Name)
	leaf, err := a.machineLeaf(&g)
	if err != nil {
		return nil, nil, err
	}
	if err := a.log.Writable(); err != nil {
		return nil, nil, wrap("log", operand, err)
	}
	der, err := a.sign(leaf)
	if err != nil {
		return nil, nil, wrap("sign", operand, err)
	}
	out := &imprint.Certificate{
		Serial: g.Serial, DER: der, NotBefore: leaf.notBefore, NotAfter: leaf.notAfter, Log: a.log.Name(),
	}
	if g.SSHHost != "" {
		if out.SSH, err = a.sshCertificate(&g, leaf.notBefore, leaf.notAfter); err != nil {
			return nil, nil, err
		}
	}
	entry, err := a.log.Entry(machineEntry(&g, out))
	if err != nil {
		return nil, nil, wrap("log", operand, err)
	}
	return out, entry, nil
}

// Root returns the root CA in DER: the one certificate that machines trust.
func (a *Authority) Root() []byte { return a.material.Root }

// Issuing returns the issuing CA that signs, in DER; servers and machines send
// it after their leaf.
func (a *Authority) Issuing() []byte { return a.material.Issuing[0] }

// Bundle returns the root and all accepted issuing CAs in DER, root first.
func (a *Authority) Bundle() [][]byte {
	return append([][]byte{a.material.Root}, a.material.Issuing...)
}

// Issuers returns the pool against which a TLS server checks the certificates
// of this tenant's machines.
func (a *Authority) Issuers() *x509.CertPool { return a.issuers.Clone() }

// SSHKey returns the public key that signs SSH host certificates, in
// authorized_keys form; "@cert-authority *" before it makes a known_hosts line.
func (a *Authority) SSHKey() string { return a.material.SSH }

// Expires returns when the issuing CA ends. Certificates that are issued less
// than their lifetime before it are cut short.
func (a *Authority) Expires() time.Time { return a.issuing[0].NotAfter }
