package relay

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"imprint"
	"imprint/internal/host"
	"imprint/internal/hostapi"
)

const (
	one = imprint.InstanceID("00000000-0000-4000-8000-000000000001")
	two = imprint.InstanceID("00000000-0000-4000-8000-000000000002")
)

// plane is a control plane with behaviour: it records reports as the engine does,
// knowing only the last of each instance again, and fails when told to.
type plane struct {
	mu       sync.Mutex
	lines    chan hostapi.Notice             // what the stream says; closed to break it
	refuse   error                           // what it answers to everything, if it is not nil
	verdict  func(imprint.Report) error      // of reports
	lose     func() bool                     // whether the reply to a report is lost
	last     map[imprint.InstanceID]string   // guarded by mu
	recorded map[imprint.InstanceID][]string // guarded by mu; names of reports
	values   map[string]string               // guarded by mu; private ones
	answers  chan hostapi.Answer
	from     []int64 // guarded by mu; where each stream began
}

func newPlane() *plane {
	return &plane{
		lines: make(chan hostapi.Notice), last: map[imprint.InstanceID]string{}, recorded: map[imprint.InstanceID][]string{},
		verdict: func(imprint.Report) error { return nil }, lose: func() bool { return false },
		values: map[string]string{}, answers: make(chan hostapi.Answer, 16),
	}
}

var errGone = imprint.Errorf(imprint.Unavailable, "ask", "control plane", "it is gone")

func (p *plane) state() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refuse
}

func (p *plane) set(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = err
}

func (p *plane) Watch(ctx context.Context, from hostapi.Position, each func(hostapi.Notice) error) error {
	p.mu.Lock()
	p.from = append(p.from, from.Revision)
	p.mu.Unlock()
	if err := p.state(); err != nil {
		return err
	}
	if err := each(hostapi.Notice{}); err != nil {
		return err
	}
	for {
		select {
		case n := <-p.lines:
			if n.Revision < 0 { // the stream breaks
				return errGone
			}
			if err := each(n); err != nil {
				return err
			}
		case <-ctx.Done():
			return errGone
		}
	}
}

func (p *plane) Enrol(_ context.Context, s imprint.Submission) (*imprint.Instance, error) {
	return record(s.Instance, 9), p.state()
}

func (p *plane) Report(_ context.Context, r imprint.Report) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse != nil {
		return p.refuse
	}
	if err := p.verdict(r); err != nil {
		return err
	}
	if p.last[r.Instance] != r.ID {
		p.last[r.Instance] = r.ID
		p.recorded[r.Instance] = append(p.recorded[r.Instance], r.Name)
	}
	if p.lose() {
		return errGone
	}
	return nil
}

func (p *plane) Param(_ context.Context, id imprint.InstanceID, name string) (imprint.Secret, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse != nil {
		return imprint.Secret{}, p.refuse
	}
	value, ok := p.values[string(id)+name]
	if !ok {
		return imprint.Secret{}, imprint.Errorf(imprint.NotFound, "read", name, "there is none")
	}
	return imprint.NewSecret([]byte(value)), nil
}

func (p *plane) Answer(_ context.Context, _ string, a hostapi.Answer) error {
	p.answers <- a
	return nil
}

func (p *plane) names(id imprint.InstanceID) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.recorded[id])
}

// nobody is a host role that serves no guest.
type nobody struct{}

func (nobody) Refresh()                             {}
func (nobody) Ports(imprint.InstanceID) []host.Port { return nil }

func (nobody) Pipes(imprint.InstanceID) ([]host.Pipe, error)                      { return nil, nil }
func (nobody) WritePipe(imprint.InstanceID, string, string, []byte, string) error { return nil }
func (nobody) TakePipe(imprint.InstanceID, string, string, string) error          { return nil }
func (nobody) ReadPipe(ctx context.Context, _ imprint.InstanceID, _ string) ([]byte, string, error) {
	<-ctx.Done()
	return nil, "", nil
}

func record(id imprint.InstanceID, revision int64) *imprint.Instance {
	return &imprint.Instance{
		ID: id, Revision: revision, Generation: 1, Enrolment: imprint.Enrolment{State: imprint.Confirmed},
		Spec: imprint.Spec{Name: "web-1", Tenant: "default", Host: "hv2", UserData: "user-data-canary"},
	}
}

// running is a relay whose host role reads what the stream says.
type running struct {
	*Relay
	notices chan host.Notice
	stop    func() // as a crash would: nothing is put in order first
}

func start(t testing.TB, dir string, p *plane) *running {
	t.Helper()
	r, err := Open(Config{Dir: dir, ControlPlane: p, Secrets: host.NewSecrets(), Logger: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	r.Serve(nobody{})
	ctx, cancel := context.WithCancel(context.Background())
	out := &running{Relay: r, notices: make(chan host.Notice, 64)}
	var all sync.WaitGroup
	all.Go(func() { r.Run(ctx) })
	all.Go(func() {
		for n, err := range r.Watch(ctx) {
			if err == nil {
				out.notices <- n
			}
		}
	})
	out.stop = sync.OnceFunc(func() { cancel(); all.Wait() })
	t.Cleanup(out.stop)
	return out
}

func until(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !happened(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func said(id imprint.InstanceID, name string) imprint.Report {
	return imprint.Report{Instance: id, Generation: 1, Channel: imprint.Serial2, Kind: imprint.ReportRead, Name: name, Witness: "hv2"}
}
