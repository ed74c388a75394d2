package enrol_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"imprint"
	"imprint/internal/enrol"
)

// world is a control plane in memory: a store, a signer, a clock that is set by
// hand, and engines over them.
type world struct {
	store  *ledger
	signer *signer
	now    time.Time
	log    bytes.Buffer
	engine *enrol.Engine
}

func newWorld() *world {
	w := &world{now: time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)}
	w.store = &ledger{
		clock: func() time.Time { return w.now }, records: map[imprint.InstanceID]*entry{},
		keys: map[imprint.KeyID]binding{}, revoked: map[imprint.Serial]imprint.Revocation{},
	}
	w.signer = &signer{}
	w.engine = w.newEngine()
	return w
}

// newEngine returns another server over the same store and signer.
func (w *world) newEngine() *enrol.Engine {
	return enrol.New(enrol.Config{
		Store: w.store, Issuer: w.signer, Now: func() time.Time { return w.now },
		Logger: slog.New(slog.NewTextHandler(&w.log, nil)),
	})
}

var site = imprint.Tenant{
	Name: imprint.DefaultTenant, Domains: []string{"example.net"},
	Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, CheckIn: "imprint.example.net",
}

const (
	placed = imprint.HostName("hv1.example.net") // where instances are
	other  = imprint.HostName("hv2.example.net")
)

func spec(name string) imprint.Spec {
	return imprint.Spec{
		Channels: []imprint.ChannelKind{imprint.VirtioSerial, imprint.Serial2, imprint.NetworkEST},
		Name:     imprint.InstanceName(name), Tenant: imprint.DefaultTenant, Host: placed,
		DNSNames: []string{name + ".example.net"}, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.7")},
		Params: []imprint.Param{{Name: "db", Visibility: imprint.Private}},
	}
}

// reserve adds an instance.
func (w *world) reserve(t testing.TB, change ...func(*imprint.Spec)) imprint.InstanceID {
	t.Helper()
	s := spec("web-1")
	for _, f := range change {
		f(&s)
	}
	i, c, err := enrol.Reserve(s, site, w.now)
	if err != nil {
		t.Fatal(err)
	}
	w.store.create(&i, c)
	return i.ID
}

func (w *world) get(id imprint.InstanceID) *imprint.Instance { return w.store.records[id].instance() }

// events are the kinds of id's timeline from the n-th on.
func (w *world) events(id imprint.InstanceID, n int) []imprint.EventKind {
	var kinds []imprint.EventKind
	for _, e := range w.store.records[id].events[n:] {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

// last is the latest event of id.
func (w *world) last(id imprint.InstanceID) imprint.Event {
	events := w.store.records[id].events
	return events[len(events)-1]
}

// machine is a guest, or somebody who pretends to be one.
type machine struct {
	key crypto.Signer
	id  imprint.KeyID
	csr []byte
}

// newMachine has a fresh P-256 key and asks for no names.
func newMachine(t testing.TB) *machine {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return withKey(t, key, &x509.CertificateRequest{})
}

func withKey(t testing.TB, key crypto.Signer, names *x509.CertificateRequest) *machine {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, names, key)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &machine{key: key, id: imprint.KeyIDOf(spki), csr: csr}
}

// asking is the same machine with a request for names.
func (m *machine) asking(t testing.TB, names *x509.CertificateRequest) *machine {
	return withKey(t, m.key, names)
}

// up is m's request as it comes up the serial port.
func (m *machine) up(id imprint.InstanceID) imprint.Submission {
	return imprint.Submission{Instance: id, Channel: imprint.Serial2, CSR: m.csr, Witness: placed}
}

// est is m's request as it comes to the check-in endpoint.
func (m *machine) est(id imprint.InstanceID, token imprint.Secret) imprint.Submission {
	return imprint.Submission{Instance: id, Channel: imprint.NetworkEST, CSR: m.csr, Token: token}
}

// confirmation is m's proof that it has leaf.
func (m *machine) confirmation(t testing.TB, id imprint.InstanceID, gen imprint.Generation, leaf []byte) imprint.Report {
	t.Helper()
	message := imprint.ConfirmationMessage(id, gen, leaf)
	var opts crypto.SignerOpts = crypto.Hash(0)
	if _, whole := m.key.(ed25519.PrivateKey); !whole {
		sum := sha256.Sum256(message)
		message, opts = sum[:], crypto.SHA256
	}
	signature, err := m.key.Sign(rand.Reader, message, opts)
	if err != nil {
		t.Fatal(err)
	}
	return imprint.Report{
		Instance: id, Generation: gen, Channel: imprint.Serial2, Kind: imprint.ReportConfirmed, Data: signature, Witness: placed,
	}
}

// said is a report up the serial port.
func said(id imprint.InstanceID, kind imprint.ReportKind, name, data string) imprint.Report {
	return imprint.Report{
		Instance: id, Channel: imprint.Serial2, Kind: kind, Name: name, Data: []byte(data), Witness: placed,
	}
}

// enrol takes m to confirmed, or further with a report of ready.
func (w *world) enrol(t testing.TB, id imprint.InstanceID, m *machine) *imprint.Instance {
	t.Helper()
	i, err := w.engine.Enrol(t.Context(), m.up(id))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.engine.Report(t.Context(), m.confirmation(t, id, i.Generation, i.Enrolment.Certificate.DER)); err != nil {
		t.Fatal(err)
	}
	return w.get(id)
}

// wantKind fails the test unless err is of kind.
func wantKind(t testing.TB, err error, kind imprint.Kind) {
	t.Helper()
	if err == nil || imprint.KindOf(err) != kind {
		t.Fatalf("error %v (%v), want kind %v", err, imprint.KindOf(err), kind)
	}
}

func wantState(t testing.TB, i *imprint.Instance, s imprint.State) {
	t.Helper()
	if i.Enrolment.State != s {
		t.Fatalf("state %s (%s), want %s", i.Enrolment.State, i.Enrolment.Reason, s)
	}
}

func wantEvents(t testing.TB, got []imprint.EventKind, want ...imprint.EventKind) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("events %v, want %v", got, want)
	}
}

// pauseKey is where a context has the function that a store or signer calls
// where another server may get its turn, or this one may die.
type pauseKey struct{}

func pause(ctx context.Context, at string) {
	if f, ok := ctx.Value(pauseKey{}).(func(string)); ok {
		f(at)
	}
}

// ledger is a store in memory that does what an engine relies on. Records are
// kept encoded, so that nobody shares memory with it.
type ledger struct {
	clock   func() time.Time
	mu      sync.Mutex
	records map[imprint.InstanceID]*entry
	keys    map[imprint.KeyID]binding
	revoked map[imprint.Serial]imprint.Revocation
	updates int
	// committed is told about every write.
	committed func(before, after *imprint.Instance, c *imprint.Change)
}

type entry struct {
	record   []byte
	revision int64
	events   []imprint.Event
	wake     time.Time
}

type binding struct {
	id  imprint.InstanceID
	gen imprint.Generation
}

func (e *entry) instance() *imprint.Instance {
	var i imprint.Instance
	if err := json.Unmarshal(e.record, &i); err != nil {
		panic(err)
	}
	i.Revision = e.revision
	return &i
}

func encode(i *imprint.Instance) []byte {
	b, err := json.Marshal(i)
	if err != nil {
		panic(err)
	}
	return b
}

func (l *ledger) create(i *imprint.Instance, c imprint.Change) {
	e := &entry{record: encode(i), revision: 1, wake: c.WakeAt}
	l.records[i.ID] = e
	l.append(e, i, c.Events)
}

// edit changes a record behind everybody's back.
func (l *ledger) edit(id imprint.InstanceID, change func(*imprint.Instance)) {
	e := l.records[id]
	i := e.instance()
	change(i)
	e.record = encode(i)
	e.revision++
}

func (l *ledger) append(e *entry, i *imprint.Instance, events []imprint.Event) {
	for _, ev := range events {
		ev.Instance, ev.Seq, ev.Generation, ev.At = i.ID, uint64(len(e.events)+1), i.Generation, l.clock()
		e.events = append(e.events, ev)
	}
}

func (l *ledger) Instance(ctx context.Context, id imprint.InstanceID) (*imprint.Instance, error) {
	pause(ctx, "read")
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.records[id]; e != nil {
		return e.instance(), nil
	}
	return nil, imprint.Errorf(imprint.NotFound, "read", string(id), "no such instance")
}

func (l *ledger) Update(ctx context.Context, id imprint.InstanceID, decide func(*imprint.Instance) (imprint.Change, error)) (*imprint.Instance, error) {
	l.mu.Lock()
	l.updates++
	l.mu.Unlock()
	for {
		before, err := l.Instance(ctx, id)
		if err != nil {
			return nil, err
		}
		after := new(imprint.Instance)
		*after = *before
		c, err := decide(after)
		if err != nil {
			return nil, err
		}
		if c.Keep {
			after = before
		}
		pause(ctx, "write")
		stored, err := l.commit(before, after, &c)
		if stored || err != nil {
			if err != nil {
				return nil, err
			}
			pause(ctx, "written")
			return after, nil
		}
	}
}

// commit writes if nobody else did since before was read.
func (l *ledger) commit(before, after *imprint.Instance, c *imprint.Change) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.records[before.ID]
	if e == nil || e.revision != before.Revision {
		return false, nil
	}
	if c.Keep && len(c.Events) == 0 {
		return true, nil
	}
	mine := binding{after.ID, after.Generation}
	if owner, bound := l.keys[c.BindKey]; c.BindKey != "" && bound && owner != mine {
		return false, imprint.Errorf(imprint.Exists, "update", before.Ref(), "the key is bound")
	} else if c.BindKey != "" {
		l.keys[c.BindKey] = mine
	}
	for _, r := range c.Revoke {
		l.revoked[r.Serial] = r
	}
	e.record = encode(after)
	e.revision++
	after.Revision = e.revision
	if !c.Keep {
		e.wake = c.WakeAt
	}
	l.append(e, after, c.Events)
	if l.committed != nil {
		l.committed(before, e.instance(), c)
	}
	return true, nil
}

// signer makes certificates that are different each time, so that a test sees
// which one somebody got.
type signer struct {
	mu     sync.Mutex
	grants []imprint.Grant
	fail   error         // the next time
	cut    time.Duration // what the issuing CA has left to live; 0 is for ever
}

func (s *signer) Issue(ctx context.Context, g imprint.Grant) (*imprint.Certificate, *imprint.LogEntry, error) {
	pause(ctx, "sign")
	s.mu.Lock()
	s.grants = append(s.grants, g)
	n := len(s.grants)
	err := s.fail
	s.fail = nil
	s.mu.Unlock()
	pause(ctx, "signed")
	if err != nil {
		return nil, nil, err
	}
	c := &imprint.Certificate{
		Serial: g.Serial, DER: fmt.Appendf(nil, "certificate %d of %s for %s", n, g.Serial, imprint.KeyIDOf(g.PublicKey)),
		NotBefore: g.NotBefore, NotAfter: g.NotAfter, Log: "test",
	}
	if s.cut != 0 {
		c.NotAfter = c.NotBefore.Add(s.cut)
	}
	if g.SSHHost != "" {
		c.SSH = "certificate for " + g.SSHHost
	}
	return c, &imprint.LogEntry{Log: c.Log, Serial: c.Serial, Data: c.DER}, nil
}
