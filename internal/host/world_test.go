package host_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"iter"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/host"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a control plane in memory: it decides like internal/enrol, as far as
// a guest can see, and tells its hosts what changed.
type world struct {
	ca  *x509.Certificate
	key *ecdsa.PrivateKey

	mu        sync.Mutex
	revision  int64
	instances map[imprint.InstanceID]*imprint.Instance
	params    map[string]string // instance id + "/" + name
	reports   []imprint.Report
	witnesses []imprint.HostName
	down      error           // what every call fails with
	pace      <-chan struct{} // if not nil, each report waits for two of its elements, to begin and to end

	lag     time.Duration // how late the watcher hears of a change
	notices []host.Notice // waiting for the watcher
	wake    chan struct{} // closed and replaced when notices arrive
	idle    chan struct{} // closed and replaced when all were acted on
}

func newWorld(t testing.TB) *world {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &world{
		ca: ca, key: key, instances: map[imprint.InstanceID]*imprint.Instance{}, params: map[string]string{},
		wake: make(chan struct{}), idle: make(chan struct{}),
	}
}

func (w *world) caPEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.ca.Raw}))
}

func (w *world) facts(imprint.TenantName) (dialect.Facts, error) {
	return dialect.Facts{CA: w.caPEM(), Chain: w.caPEM(), CheckIn: []string{"https://checkin.example:8443"}}, nil
}

// reserve makes an instance with both channels and one parameter of each visibility.
func (w *world) reserve(name imprint.InstanceName) imprint.InstanceID {
	inst := &imprint.Instance{
		ID: imprint.NewInstanceID(), Generation: 1,
		Spec: imprint.Spec{
			Name: name, Tenant: imprint.DefaultTenant, Host: "hv1.example",
			DNSNames: []string{string(name) + ".example.org"},
			Channels: []imprint.ChannelKind{imprint.VirtioSerial, imprint.Serial2},
			Metadata: map[string]string{"role": "web"},
			SSHKeys:  []string{"ssh-ed25519 AAAA operator"},
			Params: []imprint.Param{
				{Name: "motd", Visibility: imprint.Public, Value: "hello"},
				{Name: "token", Visibility: imprint.Private},
				{Name: "disk-key", Visibility: imprint.SecretOnly},
			},
		},
		Enrolment: imprint.Enrolment{State: imprint.Reserved},
	}
	w.mu.Lock()
	w.params[string(inst.ID)+"/token"] = "private of " + string(name)
	w.mu.Unlock()
	w.set(inst)
	return inst.ID
}

// set stores inst as the next revision and tells the watcher.
func (w *world) set(inst *imprint.Instance) *imprint.Instance {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.setLocked(inst)
}

func (w *world) setLocked(inst *imprint.Instance) *imprint.Instance {
	w.revision++
	inst.Revision = w.revision
	w.instances[inst.ID] = inst
	w.tell(host.Notice{Instance: inst})
	return inst
}

// change stores a changed copy of an instance.
func (w *world) change(id imprint.InstanceID, f func(*imprint.Instance)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := *w.instances[id]
	f(&c)
	w.setLocked(&c)
}

func (w *world) delete(id imprint.InstanceID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.instances, id)
	w.tell(host.Notice{Deleted: id})
}

func (w *world) get(id imprint.InstanceID) *imprint.Instance {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.instances[id]
}

func (w *world) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = err
}

func (w *world) paceReports(pace <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pace = pace
}

// reported returns the kinds and names of the reports so far.
func (w *world) reported() (list []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.reports {
		list = append(list, strings.TrimSpace(string(r.Kind)+" "+r.Name))
	}
	return list
}

// wait waits until this was reported, for long enough.
func (w *world) wait(t testing.TB, report string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !slices.Contains(w.reported(), report); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q was not reported; there are %q", report, w.reported())
		}
	}
}

func (w *world) tell(n host.Notice) {
	w.notices = append(w.notices, n)
	close(w.wake)
	w.wake = make(chan struct{})
}

// settle waits until the watcher has acted on every notice.
func (w *world) settle(t testing.TB) {
	t.Helper()
	for {
		w.mu.Lock()
		pending, idle := len(w.notices), w.idle
		w.mu.Unlock()
		if pending == 0 {
			return
		}
		select {
		case <-idle:
		case <-time.After(10 * time.Second):
			t.Fatal("the host did not act on a notice")
		}
	}
}

// Watch implements [host.Instances].
func (w *world) Watch(ctx context.Context) iter.Seq2[host.Notice, error] {
	return func(yield func(host.Notice, error) bool) {
		w.mu.Lock()
		list := make([]host.Notice, 0, len(w.instances)+1)
		for _, inst := range w.instances {
			list = append(list, host.Notice{Instance: inst, Relist: true})
		}
		w.notices = append(append(list, host.Notice{Synced: true}), w.notices...)
		w.mu.Unlock()
		for {
			w.mu.Lock()
			if len(w.notices) == 0 {
				wake := w.wake
				w.mu.Unlock()
				select {
				case <-wake:
					continue
				case <-ctx.Done():
					return
				}
			}
			n, lag := w.notices[0], w.lag
			w.mu.Unlock()
			time.Sleep(lag)
			if !yield(n, nil) {
				return
			}
			w.mu.Lock()
			w.notices = w.notices[1:]
			close(w.idle)
			w.idle = make(chan struct{})
			w.mu.Unlock()
		}
	}
}

// Param implements [host.Params].
func (w *world) Param(_ context.Context, id imprint.InstanceID, name string) (imprint.Secret, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v, ok := w.params[string(id)+"/"+name]; ok {
		return imprint.NewSecret([]byte(v)), nil
	}
	return imprint.Secret{}, imprint.Errorf(imprint.NotFound, "read", name, "no value")
}

// Enrol implements [host.Control].
func (w *world) Enrol(_ context.Context, s imprint.Submission) (*imprint.Instance, error) {
	csr, err := x509.ParseCertificateRequest(s.CSR)
	if err != nil || csr.CheckSignature() != nil {
		return nil, imprint.Errorf(imprint.Invalid, "enrol", string(s.Instance), "the request's signature is wrong")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down != nil {
		return nil, w.down
	}
	w.witnesses = append(w.witnesses, s.Witness)
	inst := *w.instances[s.Instance]
	key := imprint.KeyIDOf(csr.RawSubjectPublicKeyInfo)
	if c := inst.Enrolment.Claim; c != nil && c.Key != key {
		inst.Enrolment.State, inst.Enrolment.Reason = imprint.InDispute, "a second key"
		return w.setLocked(&inst), imprint.Errorf(imprint.Contested, "claim", inst.Ref(), "another key claimed it first")
	}
	if inst.Enrolment.Certificate != nil {
		return &inst, nil
	}
	claim := &imprint.Claim{Key: key, PublicKey: csr.RawSubjectPublicKeyInfo, SSHHost: s.SSHHost, NeedsApproval: inst.Spec.Policy.Approval}
	if c := inst.Enrolment.Claim; c != nil {
		claim.ApprovedBy = c.ApprovedBy
	}
	inst.Enrolment.Claim, inst.Enrolment.State = claim, imprint.Claimed
	if claim.NeedsApproval && claim.ApprovedBy == "" {
		return w.setLocked(&inst), imprint.Errorf(imprint.Pending, "enrol", inst.Ref(), "an operator has to approve")
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(w.revision + 100), DNSNames: inst.Spec.DNSNames,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, w.ca, csr.PublicKey, w.key)
	if err != nil {
		return nil, err
	}
	inst.Enrolment.Certificate = &imprint.Certificate{DER: der, SSH: claim.SSHHost}
	inst.Enrolment.State = imprint.Issued
	return w.setLocked(&inst), nil
}

// Report implements [host.Control].
func (w *world) Report(ctx context.Context, r imprint.Report) error {
	w.mu.Lock()
	pace := w.pace
	w.mu.Unlock()
	for range 2 {
		if pace == nil {
			break
		}
		select {
		case <-pace:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down != nil {
		return w.down
	}
	w.reports = append(w.reports, r)
	inst := *w.instances[r.Instance]
	e := &inst.Enrolment
	switch r.Kind {
	case imprint.ReportDelivered:
		e.State, e.Delivery = imprint.Delivered, &imprint.Delivery{Channel: r.Channel, Payload: imprint.DigestOf(r.Data)}
	case imprint.ReportConfirmed:
		leaf, err := x509.ParseCertificate(e.Certificate.DER)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(imprint.ConfirmationMessage(r.Instance, r.Generation, leaf.Raw))
		if !ecdsa.VerifyASN1(leaf.PublicKey.(*ecdsa.PublicKey), sum[:], r.Data) {
			return imprint.Errorf(imprint.Denied, "confirm", inst.Ref(), "the signature is not by the certificate's key")
		}
		e.State = imprint.Confirmed
	case imprint.ReportReady:
		e.State = imprint.Closed
	case imprint.ReportPassword:
		e.Password = r.Data
	default:
		return nil
	}
	w.setLocked(&inst)
	return nil
}

// slowNews is a world whose watch says nothing until open is closed.
type slowNews struct {
	*world
	asked, open chan struct{}
}

func (s *slowNews) Watch(ctx context.Context) iter.Seq2[host.Notice, error] {
	return func(yield func(host.Notice, error) bool) {
		close(s.asked)
		select {
		case <-s.open:
			s.world.Watch(ctx)(yield)
		case <-ctx.Done():
		}
	}
}

// hostOver returns a host that has not been started.
func hostOver(t testing.TB, n host.Instances, dir string) *host.Host {
	t.Helper()
	w := n.(*slowNews).world
	h, err := host.New(host.Config{Name: "hv1.example", RunDir: dir, Instances: n, Control: w, Params: w, Secrets: host.NewSecrets(), Facts: w.facts})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// runDir returns a directory whose name leaves room for a socket's.
func runDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "imprint")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// start runs a host over w below dir. stop ends it, as does the test's end.
func start(t testing.TB, w *world, dir string, adjust ...func(*host.Config)) (h *host.Host, stop func()) {
	t.Helper()
	c := host.Config{Name: "hv1.example", RunDir: dir, Instances: w, Control: w, Params: w, Secrets: host.NewSecrets(), Facts: w.facts}
	for _, f := range adjust {
		f(&c)
	}
	h, err := host.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	w.mu.Lock()
	w.tell(host.Notice{}) // settle then waits for the list, too
	w.mu.Unlock()
	go func() { done <- h.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	w.settle(t)
	return h, stop
}
