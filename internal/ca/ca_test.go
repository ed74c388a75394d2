package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"imprint"
)

// clock is when the tests happen.
var clock = time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)

func testProfile() Profile {
	return Profile{
		Tenant: imprint.Tenant{
			Name:     "acme",
			Domains:  []string{"acme.example"},
			Networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/32")},
			CheckIn:  "checkin.acme.example",
		},
		TrustDomain: "imprint.example",
		Endpoints:   []string{"imprint.infra.example", "192.0.2.7"},
		CRL:         "http://imprint.infra.example/crl/acme",
	}
}

// memoryLog is an Appender that keeps entries in memory.
type memoryLog struct {
	mu      sync.Mutex
	entries []Entry
}

func (m *memoryLog) Name() string    { return "memory" }
func (m *memoryLog) Writable() error { return nil }

func (m *memoryLog) Entry(e Entry) (*imprint.LogEntry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = append(m.entries, e)
	data, err := e.Encode()
	return &imprint.LogEntry{Log: m.Name(), Serial: e.Serial, Data: data}, err
}

func (m *memoryLog) Append(_ context.Context, e Entry) error {
	_, err := m.Entry(e)
	return err
}

type discard struct{}

func (discard) Name() string                           { return "discard" }
func (discard) Writable() error                        { return nil }
func (discard) Entry(Entry) (*imprint.LogEntry, error) { return &imprint.LogEntry{}, nil }
func (discard) Append(context.Context, Entry) error    { return nil }

// issue is a.Issue without the entry for the log.
func issue(a *Authority, g imprint.Grant) (imprint.Certificate, error) {
	cert, entry, err := a.Issue(g)
	if err != nil {
		return imprint.Certificate{}, err
	}
	if entry == nil {
		return *cert, errors.New("no entry for the log")
	}
	return *cert, nil
}

// testCA is an authority with the keys that made it.
type testCA struct {
	*Authority
	material Material
	root     crypto.Signer
	keys     Keys
	log      *memoryLog
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	secret, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newTestCA(t testing.TB, p Profile) *testCA {
	t.Helper()
	c := &testCA{root: newKey(t), keys: Keys{Issuing: newKey(t), SSH: newKey(t)}, log: &memoryLog{}}
	var err error
	c.material, err = Create(p, CreateKeys{Root: c.root, Issuing: c.keys.Issuing.Public(), SSH: c.keys.SSH.Public()}, clock)
	if err != nil {
		t.Fatal(err)
	}
	if c.Authority, err = Open(c.material, c.keys, c.log); err != nil {
		t.Fatal(err)
	}
	return c
}

// spki returns the public key of a new P-256 key pair.
func spki(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return marshalSPKI(t, key.Public())
}

func marshalSPKI(t testing.TB, pub crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func testGrant(t testing.TB) imprint.Grant {
	t.Helper()
	return imprint.Grant{
		Tenant:     "acme",
		Instance:   "6f1c2a44-3b0e-4c0f-9d5e-8a1b2c3d4e5f",
		Name:       "web-1",
		Generation: 3,
		Tier:       imprint.TierHost,
		Channel:    imprint.VirtioSerial,
		DNSNames:   []string{"web-1.acme.example", "www.acme.example"},
		IPs:        []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00:1::3")},
		PublicKey:  spki(t),
		SSHHost:    testSSHHost,
		Serial:     imprint.NewSerial(),
		NotBefore:  clock.Add(-time.Hour),
		NotAfter:   clock.Add(7 * 24 * time.Hour),
	}
}

const testSSHHost = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILjTEXSAp0dmCn0IX3qWvXN9vtVTcfGqeCFTDFzTS5k+ root@web-1"

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
