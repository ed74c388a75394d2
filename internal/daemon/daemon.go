// Package daemon runs imprint's roles: it opens the store, the keys, the
// authorities, the decisions and the listeners, joins them, and takes them down
// again in order. The packages that it joins do not know each other.
package daemon

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"imprint"
	"imprint/internal/ca"
	"imprint/internal/enrol"
	"imprint/internal/est"
	"imprint/internal/host"
	"imprint/internal/hostapi"
	"imprint/internal/manifest"
	"imprint/internal/osdef"
	"imprint/internal/seal"
	"imprint/internal/server"
	"imprint/internal/signer"
	"imprint/internal/store"
	"imprint/internal/tap"
)

// revocationSweep is how often revocations of ended certificates are forgotten.
const revocationSweep = 6 * time.Hour

// Options are what a server needs besides its settings.
type Options struct {
	Version string           // shown to clients
	Logger  *slog.Logger     // nil discards
	Now     func() time.Time // nil is time.Now; deadlines on the wire are real time always
	// RootKeys are exported root keys in PEM, for tenants whose names changed
	// while their root key is offline; they are used once and not kept.
	RootKeys map[imprint.TenantName]imprint.Secret
	// Serving is called once when all listeners are open; nil is nothing.
	Serving func()
}

// now is Now or what stands for it.
func (o *Options) now() func() time.Time {
	if o.Now == nil {
		return time.Now
	}
	return o.Now
}

// Daemon is a server with all its roles.
type Daemon struct {
	Options
	settings    *Settings
	metrics     *metrics
	keys        *seal.File
	store       *store.Store
	log         *ca.Log
	records     *records
	logKey      string // verifies log
	signer      *signer.Client
	authorities *authorities
	engine      *enrol.Engine
	values      *values
	host        *host.Host
	hosts       *hosts
	checkIn     *est.Server // nil if switched off
	neutron     *neutron    // nil if switched off
	server      *server.Server
	heapFloor   []byte // is only kept
}

// Open opens everything that a server needs, without listening anywhere.
// Whoever gets a Daemon calls Run or Close.
func Open(ctx context.Context, s *Settings, o Options) (_ *Daemon, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Now = o.now()
	addProcessor()
	d := &Daemon{Options: o, settings: s, metrics: newMetrics(), heapFloor: raiseHeapFloor()}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if err := checkClock(o.Now()); err != nil {
		return nil, err
	}
	if err := keepOutOfCoreFiles(); err != nil {
		return nil, err
	}
	if err := makeDirs(s); err != nil {
		return nil, err
	}
	if d.store, err = openStore(ctx, s, o.Logger); err != nil {
		return nil, err
	}
	if d.keys, err = openKeys(ctx, d.store, s.KeyFile); err != nil {
		return nil, err
	}
	if err := d.openLog(ctx); err != nil {
		return nil, err
	}
	d.records = newRecords(d.store, d.log, d.Logger)
	if err := d.openAuthorities(ctx); err != nil {
		return nil, err
	}
	d.engine = enrol.New(enrol.Config{
		Store: d.records, Issuer: measuredIssuer{d.authorities, d.metrics}, Now: o.Now, Logger: o.Logger,
	})
	d.values = &values{store: d.store, keys: d.keys, secrets: host.NewSecrets()}
	if err := d.openHost(); err != nil {
		return nil, err
	}
	d.openHosts()
	if d.neutron, err = s.Neutron.open(d.host, o.Logger); err != nil {
		return nil, err
	}
	if err := d.openCheckIn(ctx); err != nil {
		return nil, err
	}
	return d, d.openServer()
}

func openStore(ctx context.Context, s *Settings, logger *slog.Logger) (*store.Store, error) {
	logger = Chatter(logger)
	c := s.Store
	if len(c.Endpoints) == 0 {
		return store.OpenEmbedded(ctx, store.Embedded{Dir: filepath.Join(s.Data, "etcd"), Logger: logger})
	}
	opened, err := store.OpenCluster(ctx, store.Cluster{Endpoints: c.Endpoints, CA: c.CA, Cert: c.Cert, Key: c.Key, Logger: logger})
	var e *imprint.Error
	if errors.As(err, &e) && e.Kind == imprint.Unavailable && (imprint.HintOf(err) == "" || errors.Is(err, context.DeadlineExceeded)) {
		return nil, e.WithHint("see whether etcd runs there and answers: etcdctl --endpoints %s endpoint health", strings.Join(c.Endpoints, ","))
	}
	return opened, err
}

// openLog opens this server's issuance log; its key is sealed in the store.
func (d *Daemon) openLog(ctx context.Context) error {
	key, verifier, err := logKey(ctx, d.store, d.keys, imprint.HostName(d.settings.Name))
	if err != nil {
		return err
	}
	d.logKey = verifier
	if err := checkLogName(d.logDir(), d.settings.Name); err != nil {
		return err
	}
	d.log, err = ca.OpenLog(ctx, ca.LogConfig{Dir: d.logDir(), Key: key, Queue: d.store, Now: d.Now, Logger: d.Logger})
	return err
}

func (d *Daemon) logDir() string { return filepath.Join(d.settings.Data, "log") }

func (d *Daemon) openAuthorities(ctx context.Context) error {
	d.authorities = &authorities{docs: d.store, revoked: d.store, keys: d.keys, roots: d.RootKeys, log: d.log, logger: d.Logger, now: d.Now}
	d.authorities.custody = sealedCustody{d.keys}
	if d.settings.Signer != "" {
		d.signer = signer.NewClient(d.settings.Signer)
		d.authorities.custody = &signerCustody{client: d.signer, docs: d.store, tenants: d.settings.Tenants}
	}
	return d.authorities.open(ctx, d.settings.profiles())
}

func (d *Daemon) openHost() error {
	owner, err := ownerOf(d.settings.GuestOwner)
	if err != nil {
		return err
	}
	name := imprint.HostName(d.settings.Name)
	d.host, err = host.New(host.Config{
		Name: name, RunDir: d.settings.Run, Owner: owner, Dial: d.settings.dialled,
		Instances: placements{d.records, name},
		Control:   d.measuredEngine(), Params: d.values, Secrets: d.values.secrets,
		Adopt: func(inst *imprint.Instance) (string, error) { return adopted(d.settings.Adopt, inst) },
		DNS:   d.settings.nameServers,
		Links: links(d.Logger), Neutron: d.settings.Neutron.Listen != "",
		Facts: d.facts().of, Logger: d.Logger, Now: d.Now,
	})
	return err
}

// links opens this machine's link-local network for a host role.
func links(logger *slog.Logger) func() (*tap.Network, error) {
	return func() (*tap.Network, error) { return tap.Open(tap.Options{Logger: logger}) }
}

func (d *Daemon) facts() *facts { return &facts{d.authorities, d.settings} }

// openCheckIn prepares the check-in endpoint, if there is to be one.
func (d *Daemon) openCheckIn(ctx context.Context) error {
	if d.settings.CheckIn.Listen == "" {
		return nil
	}
	tenants, err := d.endpoints(ctx)
	if err != nil {
		return err
	}
	limits := est.DefaultLimits()
	if r := d.settings.CheckIn.PerAddress; r > 0 {
		limits.Rate, limits.Burst = r, max(int(r), 1)
	}
	if r := d.settings.CheckIn.Total; r > 0 {
		limits.TotalRate, limits.TotalBurst = r, max(int(r), 1)
	}
	config := est.Config{
		Engine: d.measuredEngine(), Instances: d.store, Authority: d.authorities, Values: d.values,
		Tenants: tenants, Logger: d.Logger, Limits: limits, Now: d.Now, Observe: d.metrics.checkIn,
		HostsPrefix: hostapi.Prefix, HostsTenant: hostapi.Tenant,
	}
	if d.hosts.api != nil {
		config.Hosts = d.hosts.api
	}
	d.checkIn, err = est.New(config)
	return err
}

// endpoints makes fresh certificates with which the check-in endpoint serves each tenant.
func (d *Daemon) endpoints(ctx context.Context) ([]est.Tenant, error) {
	var list []est.Tenant
	for _, t := range d.settings.Tenants {
		cert, err := d.authorities.endpoint(ctx, t.Name)
		if err != nil {
			return nil, err
		}
		a, err := d.authorities.tenant(t.Name)
		if err != nil {
			return nil, err
		}
		names := []string{t.CheckIn}
		if t.Name == imprint.DefaultTenant {
			names = append(names, "localhost")
		}
		list = append(list, est.Tenant{Name: t.Name, Names: names, Certificate: cert, Trust: a.Issuers()})
	}
	return list, nil
}

func (d *Daemon) openServer() error {
	s := d.settings
	d.metrics.observe(d)
	registry := &registry{settings: s, store: d.store, engine: d.engine, values: d.values, logger: d.Logger, now: d.Now}
	var err error
	d.server, err = server.New(server.Config{
		Instances:     instances{d.store},
		Registry:      registry,
		Decisions:     d.engine,
		Installations: d.engine,
		Credentials:   &credentials{engine: d.engine, store: d.store, facts: d.facts(), now: d.Now},
		Params:        &params{values: d.values, hosts: d.hosts, store: d.store},
		Pipes:         d.hosts,
		Hosts:         d.hosts,
		Watcher:       watcher{d.store},
		Authorities:   trust{d.authorities},
		RootKeys:      trust{d.authorities},
		Sealing:       &sealing{keys: d.keys, store: d.store, values: d.values, authorities: d.authorities, logger: d.Logger},
		Log:           issuanceLog{d.log, d.logDir(), d.logKey},
		Check: func(ctx context.Context, spec *imprint.Spec) error {
			if err := manifest.Check(spec); err != nil {
				return err
			}
			return d.hosts.checkSpec(ctx, spec)
		},
		CheckParams: d.checkParams,
		Tenant:      s.Tenant,
		Ready:       d.ready,
		Host:        imprint.HostName(s.Name),
		Run:         s.Run,
		Version:     d.Version,
		Group:       s.Group,
		Operators:   s.API.Allow,
		Metrics:     d.metrics.registry,
		Logger:      d.Logger,
	})
	return err
}

// checkParams judges parameters by the OS definition that spec names. The machine that
// installs has the definition; this server has it if the two are one, and may have it
// otherwise.
func (d *Daemon) checkParams(_ context.Context, spec *imprint.Spec, values map[string]imprint.Secret, name string) error {
	if spec.OS == nil {
		return nil
	}
	def, err := osdef.Find(d.settings.OSPath, spec.OS.Name)
	switch {
	case imprint.KindOf(err) == imprint.NotFound && spec.Host != imprint.HostName(d.settings.Name):
		return nil
	case err != nil:
		return err
	}
	if name == "" {
		if err := def.Usable(spec.OS.Variant); err != nil {
			return err
		}
	}
	return def.Schema.Check(spec.Params, values, name)
}

// ready tells why the server cannot do its work: the store answers, or not.
func (d *Daemon) ready(ctx context.Context) error {
	_, _, err := d.store.List(ctx, store.Query{Limit: 1})
	return err
}

// Run serves until ctx ends or a part fails, and closes the daemon.
func (d *Daemon) Run(ctx context.Context) error {
	defer d.Close()
	listeners, err := d.listen()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.neutron.serveGuests(ctx, d.host, listeners.neutron) })
	group.Go(func() error { return d.server.Serve(ctx, listeners.control) })
	if listeners.checkIn != nil {
		group.Go(func() error { return d.checkIn.Serve(ctx, listeners.checkIn) })
		group.Go(func() error { return d.renewEndpoints(ctx) })
	}
	if d.hosts.api != nil {
		defer context.AfterFunc(ctx, d.hosts.api.Close)()
	}
	group.Go(func() error { return d.expire(ctx) })
	group.Go(func() error { return d.records.release(ctx) })
	group.Go(func() error { return d.sweepRevocations(ctx) })
	group.Go(func() error { return d.watchdog(ctx) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-d.store.Failed():
			return imprint.Errorf(imprint.Exhausted, "serve", d.settings.Data, "the store cannot go on: %w", d.ready(ctx)).
				WithHint("see to its disk and start the server again; nothing that was acknowledged is lost")
		}
	})
	d.Logger.InfoContext(ctx, "serving", "socket", d.settings.Socket, "checkIn", d.settings.CheckIn.Listen, "neutron", d.settings.Neutron.Listen, "data", d.settings.Data)
	daemon.SdNotify(false, daemon.SdNotifyReady)
	if d.Serving != nil {
		d.Serving()
	}
	err = group.Wait()
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	return err
}

// renewEndpoints gives the check-in endpoint new certificates at two thirds of their life.
func (d *Daemon) renewEndpoints(ctx context.Context) error {
	return every(ctx, endpointLifetime*2/3, func() {
		tenants, err := d.endpoints(ctx)
		if err == nil {
			err = d.checkIn.SetTenants(tenants)
		}
		if err != nil {
			d.Logger.ErrorContext(ctx, "endpoint certificates were not renewed", "error", err)
		}
	})
}

// expire decides about reservations whose window passed.
func (d *Daemon) expire(ctx context.Context) error {
	for id, err := range d.store.Due(ctx) {
		if err == nil {
			_, err = d.engine.Expire(ctx, id)
		}
		if err != nil && ctx.Err() == nil {
			d.Logger.WarnContext(ctx, "a due reservation was not looked at", "instance", id, "error", err)
		}
	}
	return nil
}

func (d *Daemon) sweepRevocations(ctx context.Context) error {
	return every(ctx, revocationSweep, func() {
		for _, t := range d.settings.Tenants {
			if _, err := d.store.DropRevocations(ctx, t.Name, d.Now().Add(-2*crlLifetime)); err != nil {
				d.Logger.WarnContext(ctx, "ended revocations were not dropped", "tenant", t.Name, "error", err)
			}
		}
	})
}

// watchdog tells systemd that the server is alive, for as long as its store answers.
func (d *Daemon) watchdog(ctx context.Context) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return nil
	}
	return every(ctx, interval/3, func() {
		if d.ready(ctx) == nil {
			daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
	})
}

// every calls f at each interval until ctx ends.
func every(ctx context.Context, interval time.Duration, f func()) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			f()
		}
	}
}

// Close gives back what Open opened. It may be called more than once.
func (d *Daemon) Close() error {
	var errs []error
	if d.signer != nil {
		errs = append(errs, d.signer.Close())
		d.signer = nil
	}
	if d.log != nil {
		errs = append(errs, d.log.Close())
		d.log = nil
	}
	if d.store != nil {
		errs = append(errs, d.store.Close())
		d.store = nil
	}
	return errors.Join(errs...)
}
