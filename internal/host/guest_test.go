package host_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"maps"
	"net"
	"testing"
	"time"

	"imprint"
	"imprint/internal/host"
	"imprint/internal/keybox"
	"imprint/internal/triton"
)

// connect returns a guest's client of the instance's socket.
func connect(t testing.TB, h *host.Host, id imprint.InstanceID, kind imprint.ChannelKind) *triton.Client {
	t.Helper()
	c := triton.NewClient(func(ctx context.Context) (io.ReadWriteCloser, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", h.Socket(id, kind))
		if err != nil {
			return nil, imprint.Errorf(imprint.Unavailable, "dial", "port", "%w", err)
		}
		return conn, nil
	}, triton.ClientOptions{Quiet: time.Millisecond, Hello: 200 * time.Millisecond, Reply: 5 * time.Second})
	t.Cleanup(func() { c.Close() })
	return c
}

// machine is a guest with a key.
type machine struct {
	*triton.Client
	key     *ecdsa.PrivateKey
	payload *imprint.Payload
	leaf    *x509.Certificate
}

func newMachine(t testing.TB, c *triton.Client) *machine {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &machine{Client: c, key: key}
}

func (m *machine) request() ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: m.payload.DNSNames}, m.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// claim reads the payload, sends the request and takes the certificate.
func (m *machine) claim(ctx context.Context) error {
	b, err := m.Get(ctx, "imprint:payload")
	if err != nil {
		return err
	}
	if m.payload, err = imprint.DecodePayload(b); err != nil {
		return err
	}
	request, err := m.request()
	if err != nil {
		return err
	}
	if err := m.Put(ctx, "imprint:request", request); err != nil {
		return err
	}
	chain, err := m.Get(ctx, "imprint:certificate")
	if err != nil {
		return err
	}
	block, rest := pem.Decode(chain)
	if block == nil || len(rest) == 0 {
		return errors.New("no leaf and issuer in the reply")
	}
	m.leaf, err = x509.ParseCertificate(block.Bytes)
	return err
}

func (m *machine) confirm(ctx context.Context) error {
	sum := sha256.Sum256(imprint.ConfirmationMessage(m.payload.Instance, m.payload.Generation, m.leaf.Raw))
	signature, err := m.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return err
	}
	return m.Put(ctx, "imprint:confirmation", []byte(base64.StdEncoding.EncodeToString(signature)))
}

// sealed reads a parameter that is sealed to the machine's key.
func (m *machine) sealed(ctx context.Context, name string) (string, error) {
	b, err := m.Get(ctx, "imprint:sealed/"+name)
	if err != nil {
		return "", err
	}
	box, err := base64.StdEncoding.DecodeString(string(b))
	if err != nil {
		return "", err
	}
	value, err := keybox.Open(m.key, keybox.Info{Instance: m.payload.Instance, Generation: m.payload.Generation, Name: name}, box)
	return string(value.Reveal()), err
}

// enrol is the whole exchange, up to all parameters being there.
func (m *machine) enrol(ctx context.Context) (map[string]string, error) {
	if err := m.claim(ctx); err != nil {
		return nil, err
	}
	if err := m.confirm(ctx); err != nil {
		return nil, err
	}
	b, err := m.Get(ctx, "imprint:params")
	if err != nil {
		return nil, err
	}
	var list []struct {
		Name       string
		Visibility imprint.Visibility
		Available  bool
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	values := map[string]string{}
	for _, p := range list {
		if p.Visibility == imprint.Public {
			b, err = m.Get(ctx, "imprint:param/"+p.Name)
			values[p.Name] = string(b)
		} else {
			values[p.Name], err = m.sealed(ctx, p.Name)
		}
		if err != nil {
			return nil, err
		}
	}
	return values, m.Put(ctx, "imprint:ready", []byte("ready"))
}

// want fails the test unless got has exactly these entries.
func want[M ~map[string]string](t testing.TB, got, want M) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
