package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/guest"
	"imprint/internal/host"
	"imprint/internal/hostapi"
	"imprint/internal/relay"
)

// dialTime is how long a connection to the check-in endpoint may take to come about.
const dialTime = 10 * time.Second

// hypervisor is a host role of its own, whose control plane is elsewhere.
type hypervisor struct {
	Options
	settings *HostSettings
	agent    *guest.Agent
}

// RunHost serves the guests of this hypervisor until ctx ends or a part fails. The
// first time it joins with the file that "imprint host add" wrote; after that
// join may be "", or the name of a file that is gone.
func RunHost(ctx context.Context, s *HostSettings, join string, o Options) error {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := checkClock(o.now()()); err != nil {
		return err
	}
	if err := keepOutOfCoreFiles(); err != nil {
		return err
	}
	if _, err := s.Neutron.open(nil, o.Logger); err != nil { // said before it joins
		return err
	}
	if err := makeDirs(&Settings{Config: Config{Data: s.Data, Run: s.Run}}); err != nil {
		return err
	}
	unlock, err := lockData(s.Data)
	if err != nil {
		return err
	}
	defer unlock()
	root := filepath.Join(s.Data, "identity")
	_, joinedBefore := os.Stat(guest.Layout{Root: root}.Record())
	if join == "" {
		join = guest.Layout{Root: root}.Payload() // usually not there
	} else if err := checkJoin(join); err != nil && (imprint.KindOf(err) != imprint.NotFound || joinedBefore != nil) {
		return err // a file that was used may be gone
	}
	enrolled := make(chan struct{}, 1)
	h := &hypervisor{Options: o, settings: s}
	h.agent = guest.New(guest.Options{
		Root: root, PayloadFile: join, IdentityOnly: true, Dial: s.dialer(),
		Enrolled: func() {
			select {
			case enrolled <- struct{}{}:
			default:
			}
		},
	}, guest.NewConsole(consoleLog{o.Logger}))

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return h.stayEnrolled(ctx) })
	group.Go(func() error {
		id, err := h.agent.Identity()
		if err != nil { // it joins now
			select {
			case <-enrolled:
				id, err = h.agent.Identity()
			case <-ctx.Done():
				return nil
			}
		}
		if err != nil {
			return err
		}
		return h.serve(ctx, id, enrolled)
	})
	return group.Wait()
}

// lockData keeps other processes from using a host's data directory.
func lockData(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "lock", dir, "%w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, imprint.Errorf(imprint.Conflict, "use", dir, "another process uses it: %w", err).
			WithHint("stop the other imprint host, or choose another directory with --data")
	}
	return func() { f.Close() }, nil
}

// stayEnrolled joins and renews. Once there is an identity, a refusal ends the
// renewals and not the guests' service.
func (h *hypervisor) stayEnrolled(ctx context.Context) error {
	err := h.agent.Run(ctx)
	if err == nil {
		return nil
	}
	if _, none := h.agent.Identity(); none == nil {
		h.Logger.ErrorContext(ctx, "this host's certificate is not renewed any more", "error", err,
			"hint", "see what the server says: imprint get --tenant hosts; let it join again with a fresh file: imprint host token NAME")
		return nil
	}
	if imprint.KindOf(err) == imprint.NotFound {
		return imprint.Errorf(imprint.NotFound, "run", "imprint host", "this hypervisor has not joined yet").
			WithHint("run imprint host add NAME on the server, carry the file here, and start with: imprint host --join FILE")
	}
	return err
}

// serve runs the host role as id.
func (h *hypervisor) serve(ctx context.Context, id *guest.Identity, renewed <-chan struct{}) error {
	name, err := joined(&id.Payload)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(id.Payload.CA)) {
		return imprint.Errorf(imprint.Invalid, "read", "the CA in this host's identity", "it is no certificate in PEM")
	}
	client := hostapi.NewClient(hostapi.ClientConfig{
		URLs: id.Payload.CheckIn, Roots: roots, Dial: h.settings.dialer(),
		Certificate: func() (*tls.Certificate, error) {
			now, err := h.agent.Identity()
			if err != nil {
				return nil, err
			}
			return &now.Certificate, nil
		},
	})
	secrets := host.NewSecrets()
	between, err := relay.Open(relay.Config{
		Dir: h.settings.Data, ControlPlane: client, Secrets: secrets, Logger: h.Logger, Now: h.now(),
	})
	if err != nil {
		return err
	}
	owner, err := ownerOf(h.settings.GuestOwner)
	if err != nil {
		return err
	}
	role, err := host.New(host.Config{
		Name: name, RunDir: h.settings.Run, Owner: owner, Dial: h.settings.dial.dialled, Links: links(h.Logger), Neutron: h.settings.Neutron.Listen != "",
		Adopt:     func(inst *imprint.Instance) (string, error) { return adopted(h.settings.Adopt, inst) },
		DNS:       h.settings.nameServers,
		Instances: between, Control: between, Params: between, Secrets: secrets, Connected: between.Connected, Facts: between.Facts,
		Logger: h.Logger, Now: h.now(),
	})
	if err != nil {
		return err
	}
	between.Serve(role)
	agents, err := h.settings.Neutron.open(role, h.Logger)
	if err != nil {
		return err
	}
	listener, err := agents.listen()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return agents.serveGuests(ctx, role, listener) })
	group.Go(func() error { between.Run(ctx); return nil })
	group.Go(func() error {
		for {
			select {
			case <-renewed:
				client.Renewed()
			case <-ctx.Done():
				return nil
			}
		}
	})
	h.Logger.InfoContext(ctx, "serving", "host", name, "run", h.settings.Run, "neutron", h.settings.Neutron.Listen, "data", h.settings.Data, "reports", between.Queued())
	daemon.SdNotify(false, daemon.SdNotifyReady)
	if h.Serving != nil {
		h.Serving()
	}
	err = group.Wait()
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	return err
}

// joined returns the host that a payload is for.
func joined(p *imprint.Payload) (imprint.HostName, error) {
	name, err := hostapi.HostOf(&imprint.Spec{Name: p.Name, Tenant: p.Tenant, DNSNames: p.DNSNames, IPs: p.IPs})
	if err != nil {
		return "", imprint.Errorf(imprint.Invalid, "join as", string(p.Tenant)+"/"+string(p.Name), "it is the payload of a machine, not of a hypervisor").
			WithHint("use the file that imprint host add NAME wrote")
	}
	return name, nil
}

// checkJoin says what is wrong with a join file before anything is done with it.
func checkJoin(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return imprint.Errorf(imprint.NotFound, "read", path, "there is no such file").
			WithHint("write it on the server with: imprint host add NAME --out FILE")
	}
	if err != nil {
		return imprint.Errorf(imprint.Denied, "read", path, "%w", err)
	}
	p, err := imprint.DecodePayload(b)
	if err != nil {
		return imprint.Errorf(imprint.Invalid, "read", path, "%w", err).WithHint("use the file that imprint host add NAME wrote")
	}
	_, err = joined(p)
	return err
}

// dialer connects to the check-in endpoint.
func (s *HostSettings) dialer() func(ctx context.Context, network, address string) (net.Conn, error) {
	d := &net.Dialer{Timeout: dialTime}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if s.Connect != "" {
			address = s.Connect
		}
		return d.DialContext(ctx, network, address)
	}
}

// consoleLog puts the agent's lines into a log.
type consoleLog struct{ logger *slog.Logger }

func (c consoleLog) Write(line []byte) (int, error) {
	c.logger.Info("identity", "said", string(bytes.TrimSpace(bytes.TrimPrefix(line, []byte("imprint-agent: ")))))
	return len(line), nil
}
