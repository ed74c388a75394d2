package daemon_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"imprint"
	"imprint/internal/keybox"
	"imprint/internal/triton"
)

// machine does over a serial port's socket what imprint-agent does, step by step
// and with little patience.
type machine struct {
	*triton.Client
	key     *ecdsa.PrivateKey
	payload *imprint.Payload
	leaf    *x509.Certificate
}

// newMachine makes a machine at the other end of the socket of instance id.
func newMachine(t *testing.T, runDir string, id imprint.InstanceID) *machine {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(runDir, string(id), "serial.sock")
	open := func(ctx context.Context) (io.ReadWriteCloser, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, imprint.Errorf(imprint.Unavailable, "open", socket, "%w", err)
		}
		return conn, nil
	}
	m := &machine{key: key, Client: triton.NewClient(open, triton.ClientOptions{
		Quiet: 5 * time.Millisecond, Reply: 5 * time.Second, Pause: 20 * time.Millisecond,
	})}
	t.Cleanup(func() { m.Client.Close() })
	return m
}

// keyID returns the name of the machine's key.
func (m *machine) keyID() imprint.KeyID {
	spki, err := x509.MarshalPKIXPublicKey(&m.key.PublicKey)
	if err != nil {
		panic(err) // a P-256 key can be marshalled
	}
	return imprint.KeyIDOf(spki)
}

// csr is the machine's certificate request.
func (m *machine) csr() []byte {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, m.key)
	if err != nil {
		panic(err) // nothing in it can be wrong
	}
	return der
}

// request reads the payload and asks for a certificate.
func (m *machine) request(ctx context.Context) error {
	b, err := m.Get(ctx, "imprint:payload")
	if err != nil {
		return err
	}
	if m.payload, err = imprint.DecodePayload(b); err != nil {
		return err
	}
	return m.Put(ctx, "imprint:request", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: m.csr()}))
}

// take fetches the certificate. Kind NotFound: there is none yet.
func (m *machine) take(ctx context.Context) error {
	b, err := m.Get(ctx, "imprint:certificate")
	if err != nil {
		return err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return imprint.Errorf(imprint.Invalid, "read", "certificate", "it is not PEM")
	}
	m.leaf, err = x509.ParseCertificate(block.Bytes)
	return err
}

// confirm proves that the machine has key and certificate.
func (m *machine) confirm(ctx context.Context) error {
	digest := sha256.Sum256(imprint.ConfirmationMessage(m.payload.Instance, m.payload.Generation, m.leaf.Raw))
	signature, err := ecdsa.SignASN1(rand.Reader, m.key, digest[:])
	if err != nil {
		return err
	}
	return m.Put(ctx, "imprint:confirmation", []byte(base64.StdEncoding.EncodeToString(signature)))
}

// open fetches a parameter that is sealed to the enrolled key.
func (m *machine) open(ctx context.Context, name string) (imprint.Secret, error) {
	b, err := m.Get(ctx, "imprint:sealed/"+name)
	if err != nil {
		return imprint.Secret{}, err
	}
	box, err := base64.StdEncoding.DecodeString(string(b))
	if err != nil {
		return imprint.Secret{}, err
	}
	return keybox.Open(m.key, keybox.Info{Instance: m.payload.Instance, Generation: m.payload.Generation, Name: name}, box)
}

func (m *machine) ready(ctx context.Context) error {
	return m.Put(ctx, "imprint:ready", []byte("ready"))
}

// enrol does all of it, and starts again when the server was away.
func (m *machine) enrol(ctx context.Context) error {
	for {
		err := m.request(ctx)
		if err == nil {
			err = m.take(ctx)
		}
		if err == nil {
			err = m.confirm(ctx)
		}
		if err == nil {
			err = m.ready(ctx)
		}
		if err == nil || ctx.Err() != nil || !later(err) {
			return err
		}
	}
}

// later reports whether the same request may succeed later.
func later(err error) bool {
	const askAgain = "the control plane cannot be reached; ask again later"
	switch imprint.KindOf(err) {
	case imprint.Unavailable, imprint.NotFound:
		return true
	}
	var sentence triton.Failure
	return errors.As(err, &sentence) && string(sentence) == askAgain
}
