package server

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"imprint"
	"imprint/api"
)

// world is a small imprint in memory: it behaves like the real dependencies as
// far as the API can tell.
type world struct {
	mu        sync.Mutex
	instances map[imprint.InstanceID]*imprint.Instance
	events    map[imprint.InstanceID][]imprint.Event
	private   map[string]string // "id/name"
	secret    map[string]string
	pipes     map[imprint.InstanceID][][]byte
	rootKeys  map[imprint.TenantName]string
	history   []Notice // every change, for watches
	compacted int64    // history before this revision is gone
	changed   chan struct{}
	fail      error // what reading the store fails with
}

func newWorld() *world {
	return &world{
		instances: map[imprint.InstanceID]*imprint.Instance{}, events: map[imprint.InstanceID][]imprint.Event{},
		private: map[string]string{}, secret: map[string]string{}, pipes: map[imprint.InstanceID][][]byte{},
		rootKeys: map[imprint.TenantName]string{"default": "-----BEGIN PRIVATE KEY-----\n"},
		changed:  make(chan struct{}),
	}
}

// note records a change: the instance and an event under one revision. Under mu.
func (w *world) note(i *imprint.Instance, kind imprint.EventKind, by string) {
	i.Events++
	i.Revision++
	e := imprint.Event{Instance: i.ID, Seq: i.Events, Generation: i.Generation, Kind: kind, Detail: map[string]string{"by": by}}
	w.events[i.ID] = append(w.events[i.ID], e)
	rev := w.revision() + 1
	c := *i
	w.history = append(w.history, Notice{Revision: rev, Instance: &c}, Notice{Revision: rev, Event: &e})
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *world) revision() int64 {
	if len(w.history) == 0 {
		return 1
	}
	return w.history[len(w.history)-1].Revision
}

func (w *world) Instance(_ context.Context, id imprint.InstanceID) (*imprint.Instance, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return nil, w.fail
	}
	i, ok := w.instances[id]
	if !ok {
		return nil, imprint.Errorf(imprint.NotFound, "find", string(id), "there is no such instance").WithHint("list them with: imprint get")
	}
	c := *i
	return &c, nil
}

func (w *world) Lookup(_ context.Context, tenant imprint.TenantName, name imprint.InstanceName) (imprint.InstanceID, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, i := range w.instances {
		if i.Spec.Tenant == tenant && i.Spec.Name == name {
			return id, nil
		}
	}
	return "", imprint.Errorf(imprint.NotFound, "find", string(name), "tenant %s has no instance of that name", tenant).WithHint("list the names with: imprint get")
}

func (w *world) List(_ context.Context, q api.Query) ([]*imprint.Instance, string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*imprint.Instance
	for _, i := range w.instances {
		if (q.Tenant == "" || i.Spec.Tenant == q.Tenant) && (q.Host == "" || i.Spec.Host == q.Host) && i.Ref() > q.After {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b *imprint.Instance) int { return strings.Compare(a.Ref(), b.Ref()) })
	if len(all) > q.Limit {
		return all[:q.Limit], all[q.Limit-1].Ref(), nil
	}
	return all, "", nil
}

func (w *world) Events(_ context.Context, id imprint.InstanceID, after uint64) ([]imprint.Event, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.events[id]), func(e imprint.Event) bool { return e.Seq <= after }), nil
}

func (w *world) Create(ctx context.Context, id imprint.InstanceID, spec imprint.Spec, private map[string]imprint.Secret, by string) (*imprint.Instance, error) {
	i := &imprint.Instance{ID: cmp.Or(id, imprint.NewInstanceID()), Spec: spec, Generation: 1,
		Enrolment: imprint.Enrolment{State: imprint.Reserved, TokenHash: imprint.DigestOf([]byte("token"))}}
	if err := w.CheckID(ctx, i); err != nil {
		return nil, err
	}
	if _, err := w.Lookup(ctx, spec.Tenant, spec.Name); err == nil {
		return nil, imprint.Errorf(imprint.Exists, "create", string(spec.Name), "tenant %s has an instance of that name", spec.Tenant)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.instances[i.ID] = i
	for name, v := range private {
		w.private[string(i.ID)+"/"+name] = string(v.Reveal())
	}
	w.note(i, imprint.EventReserved, by)
	c := *i
	return &c, nil
}

func (w *world) CheckID(_ context.Context, i *imprint.Instance) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.instances[i.ID] != nil {
		return imprint.Errorf(imprint.Exists, "create", i.Ref(), "the id %s was given before", i.ID).WithHint("leave the id out")
	}
	return nil
}

func (w *world) Delete(ctx context.Context, id imprint.InstanceID, _ string) error {
	if _, err := w.Instance(ctx, id); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.instances, id)
	w.history = append(w.history, Notice{Revision: w.revision() + 1, Deleted: id})
	close(w.changed)
	w.changed = make(chan struct{})
	return nil
}

func (w *world) move(ctx context.Context, id imprint.InstanceID, kind imprint.EventKind, by string, f func(*imprint.Instance) error) (*imprint.Instance, error) {
	if _, err := w.Instance(ctx, id); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.instances[id]
	if err := f(i); err != nil {
		return nil, err
	}
	w.note(i, kind, by)
	c := *i
	return &c, nil
}

func (w *world) Approve(ctx context.Context, id imprint.InstanceID, by string) (*imprint.Instance, error) {
	return w.move(ctx, id, imprint.EventApproved, by, func(i *imprint.Instance) error {
		if i.Enrolment.Claim == nil {
			return imprint.Errorf(imprint.Conflict, "approve", i.Ref(), "nothing waits for approval in state %s", i.Enrolment.State)
		}
		return nil
	})
}

func (w *world) Revoke(ctx context.Context, id imprint.InstanceID, reason, by string) (*imprint.Instance, error) {
	return w.move(ctx, id, imprint.EventRevoked, by, func(i *imprint.Instance) error {
		i.Enrolment.State, i.Enrolment.Reason = imprint.Revoked, reason
		return nil
	})
}

func (w *world) Rebirth(ctx context.Context, id imprint.InstanceID, by string) (*imprint.Instance, error) {
	return w.move(ctx, id, imprint.EventReborn, by, func(i *imprint.Instance) error {
		i.Generation++
		i.Enrolment = imprint.Enrolment{State: imprint.Reserved}
		return nil
	})
}

func (w *world) Token(_ context.Context, _ imprint.InstanceID, ttl time.Duration) (imprint.Secret, error) {
	return imprint.NewSecret(fmt.Appendf(nil, "token for %s", ttl)), nil
}

func (w *world) Medium(_ context.Context, id imprint.InstanceID, what api.MediumRequest, _ string) (*api.Medium, error) {
	return &api.Medium{
		Number: 7, CheckIn: []string{"https://a:1", "https://b:2"},
		Label: what.Dialect + " on " + what.Carrier, Time: time.Unix(1e9, 0).UTC(), Token: what.TTL > 0, Omitted: []string{"db-password", "user data"},
		Files: map[string]imprint.Secret{"a/b.json": imprint.NewSecret([]byte(id)), "empty": {}},
	}, nil
}

func (w *world) SettleMedium(ctx context.Context, id imprint.InstanceID, number uint32, state imprint.MediumState, detail, by string) error {
	_, err := w.move(ctx, id, imprint.EventTaken, by, func(i *imprint.Instance) error {
		i.Media = []imprint.Medium{{Number: number, State: state, Detail: detail, By: by}}
		return nil
	})
	return err
}

func (w *world) ReportInstallation(ctx context.Context, id imprint.InstanceID, r imprint.Installation) (*imprint.Instance, error) {
	return w.move(ctx, id, imprint.EventInstall, r.By, func(i *imprint.Instance) error {
		if r.Generation != i.Generation {
			return imprint.Errorf(imprint.Conflict, "install", i.Ref(), "generation %d began", i.Generation)
		}
		i.Installation = &r
		return nil
	})
}

func (w *world) Setup(ctx context.Context, id imprint.InstanceID, setup *imprint.InstallSetup, by string) (*imprint.Instance, error) {
	return w.move(ctx, id, imprint.EventSetup, by, func(i *imprint.Instance) error {
		if setup != nil {
			if err := setup.Check(); err != nil {
				return err
			}
		}
		i.InstallSetup = setup
		return nil
	})
}

func (w *world) Payload(_ context.Context, id imprint.InstanceID, _ time.Duration) (imprint.Secret, error) {
	return imprint.NewSecret([]byte(`{"imprint":1,"instance":"` + string(id) + `"}`)), nil
}

func (w *world) PutPublic(ctx context.Context, id imprint.InstanceID, name, value, by string) error {
	_, err := w.move(ctx, id, imprint.EventChanged, by, func(i *imprint.Instance) error {
		i.Spec.Params = slices.Clone(i.Spec.Params)
		for at := range i.Spec.Params {
			if i.Spec.Params[at].Name == name {
				i.Spec.Params[at].Value = value
			}
		}
		return nil
	})
	return err
}

func (w *world) PutPrivate(_ context.Context, id imprint.InstanceID, name string, value imprint.Secret, _ string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.private[string(id)+"/"+name] = string(value.Reveal())
	return nil
}

func (w *world) PutSecret(_ context.Context, i *imprint.Instance, name string, value imprint.Secret) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i.Spec.Host != "hv-1" {
		return imprint.Errorf(imprint.Unavailable, "reach", string(i.Spec.Host), "it is not connected")
	}
	w.secret[string(i.ID)+"/"+name] = string(value.Reveal())
	return nil
}

func (w *world) Declare(ctx context.Context, id imprint.InstanceID, p imprint.Param, value imprint.Secret, by string) error {
	i, err := w.move(ctx, id, imprint.EventChanged, by, func(i *imprint.Instance) error {
		i.Spec.Params = slices.DeleteFunc(slices.Clone(i.Spec.Params), func(q imprint.Param) bool { return q.Name == p.Name })
		if p.Visibility == imprint.Public {
			p.Value = string(value.Reveal())
		}
		i.Spec.Params = append(i.Spec.Params, p)
		return nil
	})
	switch {
	case err != nil || p.Visibility == imprint.Public:
		return err
	case p.Visibility == imprint.Private:
		return w.PutPrivate(ctx, id, p.Name, value, by)
	}
	return w.PutSecret(ctx, i, p.Name, value)
}

func (w *world) Remove(ctx context.Context, id imprint.InstanceID, name, by string) error {
	_, err := w.move(ctx, id, imprint.EventChanged, by, func(i *imprint.Instance) error {
		i.Spec.Params = slices.DeleteFunc(slices.Clone(i.Spec.Params), func(q imprint.Param) bool { return q.Name == name })
		return nil
	})
	return err
}

func (w *world) Values(_ context.Context, i *imprint.Instance, _ string) (map[string]imprint.Secret, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	values := map[string]imprint.Secret{}
	for _, p := range i.Spec.Params {
		for _, kept := range []map[string]string{w.private, w.secret} {
			if v, ok := kept[string(i.ID)+"/"+p.Name]; ok && p.Visibility != imprint.Public {
				values[p.Name] = imprint.NewSecret([]byte(v))
			}
		}
	}
	return values, nil
}

func (w *world) Host(_ context.Context, name imprint.HostName) api.HostState {
	if name == "away.example.net" {
		return api.HostState{Name: name, State: api.HostAway}
	}
	return api.HostState{Name: name, State: api.HostHere}
}

func (w *world) Ports(context.Context, *imprint.Instance) []api.Port {
	return []api.Port{{Channel: imprint.Serial2, Socket: "/run/qemu/web-1.sock", Dialled: true, Problem: "nobody listens there yet"}}
}

func (w *world) Missing(_ context.Context, i *imprint.Instance) (names []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range i.Spec.Params {
		if _, held := w.secret[string(i.ID)+"/"+p.Name]; p.Visibility == imprint.SecretOnly && !held {
			names = append(names, p.Name)
		}
	}
	return names
}

// WritePipe echoes: what the operator writes comes back as if from the guest. The
// receipt of a message is what it says.
func (w *world) WritePipe(_ context.Context, id imprint.InstanceID, pipe, _ string, message []byte, _ string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if pipe != imprint.DefaultPipe {
		return imprint.Errorf(imprint.NotFound, "use", "pipe "+pipe, "no such pipe")
	}
	if len(w.pipes[id]) == 2 {
		return imprint.Errorf(imprint.Exhausted, "send", "message", "the pipe is full").WithHint("wait until the guest has read")
	}
	w.pipes[id] = append(w.pipes[id], message)
	return nil
}

func (w *world) ReadPipe(_ context.Context, id imprint.InstanceID, _ string, _ time.Duration) ([]byte, string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if q := w.pipes[id]; len(q) > 0 {
		return q[0], string(imprint.DigestOf(q[0])), nil
	}
	return nil, "", nil
}

func (w *world) TakePipe(_ context.Context, id imprint.InstanceID, _, receipt, _ string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if q := w.pipes[id]; len(q) > 0 && string(imprint.DigestOf(q[0])) == receipt {
		w.pipes[id] = q[1:]
	}
	return nil
}

func (w *world) ListPipes(_ context.Context, id imprint.InstanceID) ([]api.Pipe, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return []api.Pipe{{Name: imprint.DefaultPipe, FromMachine: api.Waiting{Messages: len(w.pipes[id])}}}, nil
}

func (w *world) Watch(ctx context.Context, scope Scope, from int64) iter.Seq2[Notice, error] {
	return func(yield func(Notice, error) bool) {
		w.mu.Lock()
		if from == 0 || from < w.compacted {
			rev := w.revision()
			var all []Notice
			for _, i := range w.instances {
				c := *i
				all = append(all, Notice{Revision: rev, Relist: true, Instance: &c})
			}
			from = rev + 1
			w.mu.Unlock()
			for _, n := range all {
				if !yield(n, nil) {
					return
				}
			}
			w.mu.Lock()
		}
		at := 0
		for {
			fresh, changed, fail := w.history[at:], w.changed, w.fail
			at = len(w.history)
			w.mu.Unlock()
			if fail != nil {
				yield(Notice{}, fail)
				return
			}
			for _, n := range fresh {
				if n.Revision >= from && !yield(n, nil) {
					return
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			w.mu.Lock()
		}
	}
}

func (w *world) Authority(_ context.Context, tenant imprint.TenantName) (*api.Authority, error) {
	if tenant != imprint.DefaultTenant {
		return nil, imprint.Errorf(imprint.NotFound, "find", "tenant "+string(tenant), "there is no such tenant")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, here := w.rootKeys[tenant]
	return &api.Authority{Tenant: tenant, Domains: []string{"internal"}, RootKeyHere: here}, nil
}

func (w *world) Bundle(context.Context, imprint.TenantName) ([]byte, error) {
	return []byte("-----BEGIN CERTIFICATE-----\n"), nil
}

func (w *world) CRL(context.Context, imprint.TenantName) ([]byte, error) {
	return []byte{0x30, 0x00}, nil
}

func (w *world) Rotate(context.Context, string) (string, int, error) { return "k2", 1, nil }

func (w *world) Export(_ context.Context, tenant imprint.TenantName, _ string) (imprint.Secret, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key, ok := w.rootKeys[tenant]
	if !ok {
		return imprint.Secret{}, imprint.Errorf(imprint.NotFound, "export", "root key of "+string(tenant), "it was taken out")
	}
	return imprint.NewSecret([]byte(key)), nil
}

func (w *world) Drop(_ context.Context, tenant imprint.TenantName, _ string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.rootKeys, tenant)
	return nil
}

func (w *world) Reissue(ctx context.Context, tenant imprint.TenantName, key imprint.Secret, _ string) (*api.Authority, error) {
	a, err := w.Authority(ctx, tenant)
	if err == nil && !a.RootKeyHere && key.IsZero() {
		return nil, imprint.Errorf(imprint.Conflict, "reissue", "CA of "+string(tenant), "the root key is not on the server").WithHint("give it with --root-key")
	}
	return a, err
}

func (w *world) WriteTar(_ context.Context, out io.Writer) error {
	if _, err := io.WriteString(out, "checkpoint"); err != nil {
		return err
	}
	return w.fail
}

// logs collects what a server logs.
type logs struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func config(w *world, log io.Writer) Config {
	tenants := map[imprint.TenantName]imprint.Tenant{
		"default": {Name: "default", Domains: []string{"internal"}, Networks: prefixes("10.0.0.0/8")},
		"acme":    {Name: "acme", Domains: []string{"acme.example"}},
	}
	return Config{
		Instances: w, Registry: w, Decisions: w, Installations: w, Credentials: w, Params: w, Pipes: w, Hosts: w, Watcher: w, Authorities: w, RootKeys: w, Sealing: w, Log: w,
		Check: func(_ context.Context, s *imprint.Spec) error { return checkSpec(s) },
		// An OS definition that has the parameter "size", a number, which it requires.
		CheckParams: func(_ context.Context, s *imprint.Spec, values map[string]imprint.Secret, name string) error {
			if s.OS == nil || name != "" && name != "size" {
				return nil
			}
			for _, p := range s.Params {
				if v := cmp.Or(p.Value, string(values[p.Name].Reveal())); p.Name == "size" && strings.Trim(v, "0123456789") == "" {
					return nil
				}
			}
			return imprint.Errorf(imprint.Invalid, "check", "parameters", "parameter size is required, and a number")
		},
		Tenant: func(name imprint.TenantName) (imprint.Tenant, error) {
			t, ok := tenants[name]
			if !ok {
				return t, imprint.Errorf(imprint.NotFound, "find", "tenant "+string(name), "there is no such tenant").WithHint("the tenants are acme and default")
			}
			return t, nil
		},
		Ready: func(context.Context) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.fail
		},
		Host: "hv-1", Version: "v0.0.0-test", Metrics: prometheus.NewRegistry(),
		Logger: slog.New(slog.NewJSONHandler(log, nil)),
	}
}

// running is a server on a unix socket in a test.
type running struct {
	*world
	server *Server
	client *api.Client
	socket string
	log    *logs
}

func start(t *testing.T, change ...func(*Config)) *running {
	t.Helper()
	r := &running{world: newWorld(), log: &logs{}, socket: filepath.Join(t.TempDir(), "imprint.sock")}
	c := config(r.world, r.log)
	for _, f := range change {
		f(&c)
	}
	var err error
	if r.server, err = New(c); err != nil {
		t.Fatal(err)
	}
	l, err := r.server.ListenUnix(r.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(serve(t, r.server, Listeners{Unix: l}))
	r.client = api.NewUnix(r.socket)
	t.Cleanup(r.client.Close)
	return r
}

// serve runs s until the function that it returns is called.
func serve(t testing.TB, s *Server, l Listeners) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

func loopback(t *testing.T) net.Listener {
	t.Helper()
	l, err := ListenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}
