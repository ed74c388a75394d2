package metadata_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/metadata"
)

// The source ports that tests send from.
const (
	processPort = "169.254.1.2:40000"
	rootPort    = "169.254.1.2:900"
)

// world is one guest with everything behind it, in memory.
type world struct {
	t       testing.TB
	server  *metadata.Server
	options metadata.Options
	config  metadata.Config
	now     time.Time

	snapshot atomic.Pointer[metadata.Snapshot]

	mu       sync.Mutex // guards the rest
	inst     *imprint.Instance
	accesses []metadata.Access
	form     url.Values
	put      map[string]string
	down     map[string][][]byte // messages to the guest, by pipe
	up       map[string][]string
	arrived  chan struct{} // closed when a message comes down
	taken    map[string]int
	lastID   string
}

func instance() *imprint.Instance {
	return &imprint.Instance{
		ID: "6b1c2f0e-4a57-4d6e-9d0a-0f2f6f3b8a11", Generation: 3, Revision: 42,
		Spec: imprint.Spec{
			Name: "web-1", Tenant: imprint.DefaultTenant, Host: "hv1.example",
			DNSNames: []string{"web-1.example.org"},
			SSHKeys:  []string{"ssh-rsa AAAA one", "ssh-ed25519 BBBB two"},
			UserData: "#cloud-config\npackages: [nginx]\n",
			Metadata: map[string]string{"role": "web"},
			Params: []imprint.Param{
				{Name: "token", Visibility: imprint.Private}, {Name: "disk-key", Visibility: imprint.SecretOnly},
				{Name: "motd", Visibility: imprint.Public, Value: "hello"},
			},
			Network: &imprint.Network{Ethernets: map[string]imprint.Ethernet{"eth0": {
				MAC: "52:54:00:12:34:56", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24")},
			}}},
		},
		Enrolment: imprint.Enrolment{State: imprint.Reserved},
	}
}

// newWorld serves inst; change may alter the configuration before.
func newWorld(t testing.TB, inst *imprint.Instance, change func(*metadata.Config)) *world {
	t.Helper()
	w := &world{
		t: t, inst: inst, now: time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC),
		put: map[string]string{}, down: map[string][][]byte{"default": nil, "console": nil}, up: map[string][]string{}, arrived: make(chan struct{}), taken: map[string]int{},
	}
	w.config = metadata.Config{
		Guest: w, Reporter: w, Inbox: w, Native: w, Pipes: w, SourcePorts: true,
		Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return w.now },
	}
	if change != nil {
		change(&w.config)
	}
	var err error
	if w.server, err = metadata.New(w.config); err != nil {
		t.Fatal(err)
	}
	w.render()
	return w
}

// render takes the instance and the options as they are now.
func (w *world) render() {
	facts := dialect.Facts{Packages: map[string][]byte{"debian": []byte("archive")}}
	w.snapshot.Store(metadata.NewSnapshot(w.inst, w.options,
		dialect.OpenStack(w.inst, facts, nil), dialect.EC2(w.inst, facts), dialect.NoCloud(w.inst), dialect.Ganeti(w.inst, facts)))
}

func (w *world) Snapshot() *metadata.Snapshot { return w.snapshot.Load() }

func (w *world) Report(_ context.Context, a metadata.Access) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.accesses = append(w.accesses, a)
}

func (w *world) PostPassword(_ context.Context, _ metadata.Origin, text []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.inst.Enrolment.Password != nil {
		return imprint.Errorf(imprint.Conflict, "keep", "password", "this generation has one")
	}
	after := *w.inst
	after.Enrolment.Password = bytes.Clone(text)
	w.inst = &after
	w.render()
	return nil
}

func (w *world) PhoneHome(_ context.Context, _ metadata.Origin, form url.Values) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.form = form
	return nil
}

func (w *world) Get(_ context.Context, from metadata.Origin, key string) ([]byte, error) {
	if name, ok := strings.CutPrefix(key, dialect.KeyParam); ok {
		i := slices.IndexFunc(w.inst.Spec.Params, func(p imprint.Param) bool { return p.Name == name })
		switch {
		case i < 0:
		case !imprint.MayTravel(w.inst.Spec.Params[i].Visibility, from.Readers):
			return nil, imprint.Errorf(imprint.Denied, "read", name, "not for its readers\x1b[2J%s", strings.Repeat("x", 500))
		default:
			return []byte("value of " + name), nil
		}
		return nil, imprint.Errorf(imprint.NotFound, "get", key, "no such key")
	}
	switch key {
	case dialect.KeyPayload:
		return []byte(`{"imprint":1}`), nil
	case dialect.KeyCertificate:
		return nil, imprint.Errorf(imprint.NotFound, "get", key, "no such key")
	case dialect.KeyState:
		return nil, imprint.Errorf(imprint.Unavailable, "get", key, "canary")
	case dialect.KeyTime:
		return nil, imprint.Errorf(imprint.Internal, "get", key, "canary")
	}
	return []byte("value of " + key), nil
}

func (w *world) Put(_ context.Context, _ metadata.Origin, key string, value []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if string(value) == "bad" {
		return imprint.Errorf(imprint.Invalid, "read", "request", "it does not start with\na PEM certificate request")
	}
	w.put[key] = string(value)
	return nil
}

func (w *world) Delete(_ context.Context, _ metadata.Origin, key string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.put[key] = "deleted"
	return nil
}

func (w *world) Next(ctx context.Context, name string) ([]byte, string, error) {
	for {
		w.mu.Lock()
		queue, ok := w.down[name]
		arrived := w.arrived
		receipt := fmt.Sprint(name, w.taken[name])
		w.mu.Unlock()
		switch {
		case !ok:
			return nil, "", imprint.Errorf(imprint.NotFound, "read", "pipe", "no pipe %s", name)
		case len(queue) > 0:
			return queue[0], receipt, nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return nil, "", nil
		}
	}
}

func (w *world) Take(_ context.Context, name, receipt string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if q := w.down[name]; len(q) > 0 && receipt == fmt.Sprint(name, w.taken[name]) {
		w.down[name] = q[1:]
		w.taken[name]++
	}
	return nil
}

func (w *world) Write(_ context.Context, name, id string, message []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case id != "" && id == w.lastID:
		return nil
	case len(w.up[name]) >= 2:
		return imprint.Errorf(imprint.Exhausted, "send", "message", "2 messages wait to be read")
	}
	w.up[name], w.lastID = append(w.up[name], string(message)), id
	return nil
}

func (w *world) send(pipe, message string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down[pipe] = append(w.down[pipe], []byte(message))
	close(w.arrived)
	w.arrived = make(chan struct{})
}

// request builds a request from a guest as net/http would have read it.
func request(from, method, path, body string, header ...string) *http.Request {
	r := httptest.NewRequest(method, "/", strings.NewReader(body))
	if body == "" {
		r.Body, r.ContentLength = http.NoBody, 0
	}
	r.URL.Path, r.URL.RawQuery, _ = strings.Cut(path, "?")
	r.Host, r.RemoteAddr = "169.254.169.254", from
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
			continue
		}
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

// do sends a request and returns the status and the body.
func (w *world) do(from, method, path, body string, header ...string) (int, string) {
	reply := w.reply(request(from, method, path, body, header...))
	return reply.Code, reply.Body.String()
}

func (w *world) reply(r *http.Request) *httptest.ResponseRecorder {
	reply := httptest.NewRecorder()
	w.server.ServeHTTP(reply, r)
	return reply
}

// get is a GET from any process.
func (w *world) get(path string) (int, string) { return w.do(processPort, "GET", path, "") }

// refusals returns why requests were refused since the last call.
func (w *world) refusals() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var reasons []string
	for _, a := range w.accesses {
		if a.Refused != "" {
			reasons = append(reasons, a.Refused)
		}
	}
	w.accesses = nil
	return reasons
}
