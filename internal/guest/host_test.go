//go:build linux

package guest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imprint"
	"imprint/internal/keybox"
	"imprint/internal/triton"
)

const (
	testID     imprint.InstanceID = "6f1d0c1e-7d0c-4f5e-9c39-5b1f4c1b7e11"
	otherID    imprint.InstanceID = "6f1d0c1e-7d0c-4f5e-9c39-5b1f4c1b7e12"
	testTenant imprint.TenantName = "default"
)

// epoch is when every test begins.
var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// testCA is a tenant's root and issuing CA.
type testCA struct {
	root, issuing       *x509.Certificate
	rootKey, issuingKey *ecdsa.PrivateKey
}

func newTestCA(t testing.TB) *testCA {
	t.Helper()
	return newTestCAAt(t, epoch)
}

func newTestCAAt(t testing.TB, now time.Time) *testCA {
	t.Helper()
	ca := &testCA{rootKey: newTestKey(t), issuingKey: newTestKey(t)}
	template := func(cn string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(int64(len(cn))), Subject: pkix.Name{CommonName: cn},
			NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(10, 0, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
	}
	root := template("test root")
	ca.root = ca.sign(t, root, root, &ca.rootKey.PublicKey, ca.rootKey)
	ca.issuing = ca.sign(t, template("test issuing"), ca.root, &ca.issuingKey.PublicKey, ca.rootKey)
	return ca
}

func newTestKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (ca *testCA) sign(t testing.TB, template, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (ca *testCA) rootPEM() string { return string(encodeChain([]*x509.Certificate{ca.root})) }

// fakeHost behaves as a host and its control plane do: it binds the first key,
// gives the same certificate to the same request, judges confirmations, and
// serves parameters afterwards.
type fakeHost struct {
	t  testing.TB
	ca *testCA

	mu       sync.Mutex
	now      time.Time // of the host's own clock
	payload  imprint.Payload
	state    imprint.State
	reason   string
	approval bool          // an operator has to approve, and has not
	away     bool          // its control plane cannot be reached
	lifetime time.Duration // of certificates
	params   map[string]fakeParam
	userData string
	spki     []byte
	ssh      string
	leaf     *x509.Certificate
	issued   int
	confirms int
	ready    int
	requests [][]byte
	media    []imprint.MediumEnd // what became of them
	// tamper changes the leaf's template before it is signed.
	tamper func(*x509.Certificate)
}

type fakeParam struct {
	visibility imprint.Visibility
	value      string
}

func newFakeHost(t testing.TB) *fakeHost { return newFakeHostAt(t, epoch) }

func newFakeHostAt(t testing.TB, now time.Time) *fakeHost {
	ca := newTestCAAt(t, now)
	return &fakeHost{
		t: t, ca: ca, now: now, state: imprint.Reserved, lifetime: 7 * 24 * time.Hour,
		payload: imprint.Payload{
			Version: imprint.PayloadVersion, Time: now, Instance: testID, Generation: 1,
			Tenant: testTenant, Name: "web-1", DNSNames: []string{"web-1.example.org"}, CA: ca.rootPEM(),
		},
		params: map[string]fakeParam{
			"color":  {imprint.Public, "green"},
			"db-url": {imprint.Private, "postgres://private-canary"},
			"db-key": {imprint.SecretOnly, "secret-canary"},
		},
	}
}

func (h *fakeHost) do(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// rebirth starts the next generation.
func (h *fakeHost) rebirth() {
	h.do(func() {
		h.payload.Generation++
		h.state, h.spki, h.leaf, h.ssh = imprint.Reserved, nil, nil, ""
	})
}

func (h *fakeHost) Get(_ context.Context, key string) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch name, _ := strings.CutPrefix(key, keyParam); {
	case key == keyPayload:
		return h.payload.Encode()
	case key == keyTime:
		return []byte(h.now.Format(time.RFC3339)), nil
	case key == keyState:
		return json.Marshal(hostState{h.state, h.reason, h.approval && h.spki != nil, h.payload.Generation})
	case key == keyCertificate && h.leaf != nil:
		return encodeChain([]*x509.Certificate{h.leaf, h.ca.issuing}), nil
	case key == keySSHCertificate && h.ssh != "" && h.leaf != nil:
		return []byte("ssh-ed25519-cert-v01@openssh.com AAAAcert-for-" + h.ssh), nil
	case key == keyParams && h.state.Enrolled():
		return h.paramList()
	case name != key && h.params[name].visibility == imprint.Public:
		return []byte(h.params[name].value), nil
	case key == keyUserData && h.userData != "" && h.state.Enrolled():
		info := keybox.Info{Instance: h.payload.Instance, Generation: h.payload.Generation, Name: key}
		box, err := keybox.Seal(h.spki, info, imprint.NewSecret([]byte(h.userData)))
		return []byte(base64.StdEncoding.EncodeToString(box)), err
	case strings.HasPrefix(key, keySealed) && h.state.Enrolled():
		name := strings.TrimPrefix(key, keySealed)
		p, ok := h.params[name]
		if !ok || p.value == "" {
			break
		}
		info := keybox.Info{Instance: h.payload.Instance, Generation: h.payload.Generation, Name: name}
		box, err := keybox.Seal(h.spki, info, imprint.NewSecret([]byte(p.value)))
		return []byte(base64.StdEncoding.EncodeToString(box)), err
	}
	return nil, imprint.Errorf(imprint.NotFound, "get", key, "none")
}

func (h *fakeHost) paramList() ([]byte, error) {
	list := []Param{}
	for name, p := range h.params {
		list = append(list, Param{name, p.visibility, p.value != ""})
	}
	slices.SortFunc(list, func(a, b Param) int { return strings.Compare(a.Name, b.Name) })
	return json.Marshal(list)
}

func (h *fakeHost) Put(_ context.Context, key string, value []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.away {
		return triton.Failure("the control plane cannot be reached; ask again later") // internal/host says it so
	}
	switch key {
	case keyRequest:
		block, rest := pem.Decode(value)
		if block == nil {
			return triton.Failure("the request is not PEM")
		}
		return h.submit(block.Bytes, strings.TrimSpace(string(rest)))
	case keyConfirmation:
		signature, err := base64.StdEncoding.DecodeString(string(value))
		if err != nil {
			return triton.Failure("the confirmation is not base64")
		}
		return h.confirm(signature)
	case keyReady:
		return h.close()
	}
	return triton.Failure("the key cannot be set")
}

func (h *fakeHost) Delete(context.Context, string) error { return triton.Failure("no") }

func (h *fakeHost) Keys(context.Context) ([]string, error) { return nil, nil }

// submit is the engine's Enrol.
func (h *fakeHost) submit(der []byte, ssh string) error {
	h.requests = append(h.requests, bytes.Clone(der))
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || csr.CheckSignature() != nil {
		return triton.Failure("the request's signature is wrong")
	}
	if !slices.Equal(csr.DNSNames, h.payload.DNSNames) {
		return triton.Failure("the request names what was not reserved")
	}
	switch {
	case !h.state.Open():
		return triton.Failure("the enrolment is " + string(h.state))
	case h.spki != nil && !bytes.Equal(h.spki, csr.RawSubjectPublicKeyInfo):
		h.state, h.reason, h.leaf = imprint.InDispute, "a second key asked", nil
		return triton.Failure("another key claimed this machine first")
	case h.spki == nil:
		h.spki, h.ssh, h.state = csr.RawSubjectPublicKeyInfo, ssh, imprint.Claimed
	}
	due := h.leaf != nil && h.now.After(h.leaf.NotBefore.Add(h.lifetime/2))
	if h.approval || h.leaf != nil && !due {
		return nil
	}
	h.issued++
	spiffe := &url.URL{Scheme: "spiffe", Host: "imprint", Path: "/tenant/default/instance/" +
		string(h.payload.Instance) + "/" + generationPath(h.payload.Generation)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(0x1000 + h.issued)), NotBefore: h.now.Add(-time.Minute), NotAfter: h.now.Add(h.lifetime),
		DNSNames: h.payload.DNSNames, URIs: []*url.URL{spiffe},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if h.tamper != nil {
		h.tamper(template)
	}
	h.leaf = h.ca.sign(h.t, template, h.ca.issuing, csr.PublicKey, h.ca.issuingKey)
	if !h.state.Enrolled() {
		h.state = imprint.Issued
	}
	return nil
}

func generationPath(gen imprint.Generation) string {
	return strings.Replace(generationName(gen), "-", "/", 1)
}

func (h *fakeHost) confirm(signature []byte) error {
	if h.leaf == nil {
		return triton.Failure("there is no certificate yet")
	}
	digest := sha256.Sum256(imprint.ConfirmationMessage(h.payload.Instance, h.payload.Generation, h.leaf.Raw))
	if !ecdsa.VerifyASN1(h.leaf.PublicKey.(*ecdsa.PublicKey), digest[:], signature) {
		return triton.Failure("the confirmation is not signed by the enrolled key")
	}
	h.confirms++
	if h.state == imprint.Issued {
		h.state = imprint.Confirmed
	}
	return nil
}

func (h *fakeHost) close() error {
	if !h.state.Enrolled() {
		return triton.Failure("the enrolment is not confirmed")
	}
	h.ready++
	h.state = imprint.Closed
	return nil
}

// hostSource is a live channel to a fakeHost: an in-memory stream that a real
// protocol server answers.
type hostSource struct {
	host *fakeHost
	name string
	// cut is after how many bytes of the host's the next channel ends, as when
	// the host is restarted; nil or 0 is never.
	cut *int
}

func (s hostSource) String() string { return s.name }

func (s hostSource) Try(ctx context.Context) (*finding, error) {
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		triton.Serve(context.Background(), there, s.host, triton.Options{Requests: 1e6, Bytes: 1e9})
	}()
	conn := &servedConn{Conn: here, there: there, done: done}
	if s.cut != nil {
		conn.left, *s.cut = *s.cut, 0
	}
	return greet(ctx, s.name, conn)
}

// servedConn waits for its server when it is closed.
type servedConn struct {
	net.Conn
	there net.Conn
	done  chan struct{}
	left  int // bytes until the channel ends, if that was not 0 at first
}

func (c *servedConn) Read(b []byte) (int, error) {
	if c.left == 0 {
		return c.Conn.Read(b)
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	if c.left -= n; c.left == 0 {
		c.there.Close()
	}
	return n, err
}

func (c *servedConn) Close() error {
	err := c.Conn.Close()
	c.there.Close()
	<-c.done
	return err
}
