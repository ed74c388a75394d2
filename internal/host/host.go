package host

import (
	"context"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/tap"
	"imprint/internal/triton"
)

// Instances tells which instances this host serves.
type Instances interface {
	// Watch tells a list of what there is, then what changes, until ctx ends.
	// An error says that the news is late; it does not end the sequence.
	Watch(ctx context.Context) iter.Seq2[Notice, error]
}

// Notice is one thing that [Instances] tells; it has one of the fields.
type Notice struct {
	// Instance was created, has changed or came to this host.
	Instance *imprint.Instance
	// Relist marks an Instance as part of a list of what there is.
	Relist bool
	// Synced ends a list: an instance that it did not name is gone.
	Synced bool
	// Deleted is an instance that was deleted or left this host.
	Deleted imprint.InstanceID
	// Rewound says that revisions begin anew, as when the store was restored from a
	// backup: the next record of an instance counts, whatever its revision is. A
	// list follows.
	Rewound bool
}

// Control decides about enrolments. Both methods may be called again with the
// same content, because guests repeat what went unanswered.
type Control interface {
	// Enrol decides about a certificate request and returns the instance as it
	// is then. Kind [imprint.Pending] means that the request was accepted and
	// an operator has to approve it.
	Enrol(ctx context.Context, s imprint.Submission) (*imprint.Instance, error)
	// Report records what the guest did. It returns nil only if the record is durable.
	Report(ctx context.Context, r imprint.Report) error
}

// Params has the private parameters' values.
type Params interface {
	// Param returns the value of an instance's private parameter, which the
	// caller may overwrite; kind [imprint.NotFound] if there is none.
	Param(ctx context.Context, id imprint.InstanceID, name string) (imprint.Secret, error)
}

// Config is what a [Host] needs. Every field without a default must be set.
type Config struct {
	Name   imprint.HostName // the witness in countersigned requests
	RunDir string           // below which the sockets are
	Owner  *Owner           // who may open the sockets; nil is this process's user
	// Dial returns the socket on which the hypervisor itself listens for a channel
	// of inst, so that the host connects to it; "" if the hypervisor connects. Nil
	// is "" for all.
	Dial func(inst *imprint.Instance, kind imprint.ChannelKind) (socket string)
	// Adopt returns the interface that the platform makes for inst's channel nic, or
	// a pattern of such interfaces (see [tap.NIC]); "" if this host makes a tap. It
	// fails with kind [imprint.Invalid] if there can be none. Nil is "" for all.
	Adopt func(inst *imprint.Instance) (string, error)
	// DNS lists the name servers that guests are told over the channel nic, within
	// the limits of [dhcp.Lease]; nil tells them none.
	DNS []netip.Addr
	// Links opens the hypervisor's link-local network, when the first instance has
	// the channel nic; nil if there is none.
	Links func() (*tap.Network, error)
	// Neutron says that Neutron's metadata agents reach [Host.Proxied].
	Neutron   bool
	Instances Instances
	Control   Control
	Params    Params
	Secrets   *Secrets
	// Connected reports whether the control plane is at hand, so that what is
	// reported shows in the record soon. Nil is always.
	Connected func() bool
	// Facts returns what is common to a tenant's instances.
	Facts  func(imprint.TenantName) (dialect.Facts, error)
	Logger *slog.Logger     // nil discards
	Now    func() time.Time // nil is time.Now
	// Session tunes every session; its Logger and Now are replaced by the above.
	Session triton.Options
}

// Host serves instances. Its methods may be called from several goroutines.
type Host struct {
	c Config

	mu    sync.Mutex
	units map[imprint.InstanceID]*unit
	// dialled has whose each dialled socket is; guarded by mu.
	dialled map[string]end

	links *linkLocal
}

// New returns a Host that does nothing before [Host.Run]. It fails with kind
// [imprint.Invalid] if the run directory's name is too long for a socket.
func New(c Config) (*Host, error) {
	if err := checkRunDir(c.RunDir); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Session.Now = nil // pauses on the line are real time
	if c.Connected == nil {
		c.Connected = func() bool { return true }
	}
	if c.Dial == nil {
		c.Dial = func(*imprint.Instance, imprint.ChannelKind) string { return "" }
	}
	if c.Adopt == nil {
		c.Adopt = func(*imprint.Instance) (string, error) { return "", nil }
	}
	return &Host{c: c, units: map[imprint.InstanceID]*unit{}, dialled: map[string]end{}, links: newLinkLocal(c.Links, c.Name)}, nil
}

// watchPause is how long to wait before watching again after a sequence ended.
const watchPause = time.Second

// Run binds the sockets of instances that were here before, then follows the
// watch until ctx ends. It returns after all sessions have ended; the sockets'
// files stay, so that the next Run finds them. It fails with kind
// [imprint.Conflict] if another process serves the same run directory.
func (h *Host) Run(ctx context.Context) error {
	unlock, err := lockRunDir(h.c.RunDir, h.c.Owner)
	if err != nil {
		return err
	}
	defer unlock()
	defer h.stop()
	for id, kinds := range boundBefore(h.c.RunDir) {
		ways := map[imprint.ChannelKind]string{}
		for _, kind := range kinds {
			ways[kind] = ""
		}
		h.unit(ctx, id).open(ways)
	}
	for {
		h.follow(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchPause):
		}
	}
}

// follow acts on notices until the sequence ends.
func (h *Host) follow(ctx context.Context) {
	listed := map[imprint.InstanceID]bool{}
	for n, err := range h.c.Instances.Watch(ctx) {
		switch {
		case err != nil:
			clear(listed) // a list that was cut short starts again
			h.c.Logger.WarnContext(ctx, "news about instances are late", "error", err)
		case n.Instance != nil:
			if n.Relist {
				listed[n.Instance.ID] = true
			}
			u := h.unit(ctx, n.Instance.ID)
			u.observe(n.Instance)
			u.open(h.ways(n.Instance))
		case n.Rewound:
			clear(listed)
			for _, u := range h.all() {
				u.rewind()
			}
		case n.Deleted != "":
			h.remove(n.Deleted)
		case n.Synced:
			for _, u := range h.all() {
				if !listed[u.id] {
					h.remove(u.id)
				}
			}
			clear(listed)
			if err := h.links.settle(); err != nil {
				h.c.Logger.WarnContext(ctx, "interfaces of an earlier process are left", "error", err)
			}
		}
	}
}

// ways returns the instance's channels that this package serves, each with the
// socket to dial for it, if the hypervisor listens.
func (h *Host) ways(inst *imprint.Instance) map[imprint.ChannelKind]string {
	ways := map[imprint.ChannelKind]string{}
	for _, kind := range inst.Spec.Channels {
		switch kind {
		case imprint.Serial2, imprint.VirtioSerial:
			ways[kind] = h.c.Dial(inst, kind)
		case imprint.LinkLocal, imprint.Neutron:
			ways[kind] = ""
		}
	}
	return ways
}

// unit returns the instance's unit and makes one that lives until ctx ends if
// there is none.
func (h *Host) unit(ctx context.Context, id imprint.InstanceID) *unit {
	h.mu.Lock()
	defer h.mu.Unlock()
	u, ok := h.units[id]
	if !ok {
		u = newUnit(ctx, h, id)
		h.units[id] = u
	}
	return u
}

// known returns the instance's unit, or an error of kind [imprint.NotFound].
func (h *Host) known(op string, id imprint.InstanceID) (*unit, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if u, ok := h.units[id]; ok {
		return u, nil
	}
	return nil, imprint.Errorf(imprint.NotFound, op, string(id), "no such instance on this host")
}

func (h *Host) remove(id imprint.InstanceID) {
	h.mu.Lock()
	u, ok := h.units[id]
	delete(h.units, id)
	h.mu.Unlock()
	if ok {
		u.stop()
		u.mu.Lock()
		n := u.nic
		u.mu.Unlock()
		if n != nil {
			n.detach()
		}
		removeSockets(h.c.RunDir, id)
	}
	h.c.Secrets.Drop(id)
}

func (h *Host) stop() {
	h.mu.Lock()
	units := slices.Collect(maps.Values(h.units))
	clear(h.units)
	h.mu.Unlock()
	for _, u := range units {
		u.stop()
	}
	if err := h.links.close(); err != nil {
		h.c.Logger.Error("the link-local network was not taken away", "error", err)
	}
}

// Refresh renders every instance again, after the [dialect.Facts] of a tenant changed.
func (h *Host) Refresh() {
	for _, u := range h.all() {
		u.render()
	}
}

// all returns the units that there are now.
func (h *Host) all() []*unit {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Values(h.units))
}

// Socket returns the path of an instance's socket for a channel.
func (h *Host) Socket(id imprint.InstanceID, kind imprint.ChannelKind) string {
	return socketPath(h.c.RunDir, id, kind)
}

// Serve speaks with the guest over conn, which the caller knows to be the
// instance's channel kind: a pty, a pipe, a connection of its own. It returns
// when conn or ctx ends, or when a newer connection takes the channel over, and
// closes conn. It fails with kind [imprint.NotFound] if the instance is not here,
// and [imprint.Denied] if it does not have the channel.
func (h *Host) Serve(ctx context.Context, id imprint.InstanceID, kind imprint.ChannelKind, conn io.ReadWriteCloser) error {
	u, err := h.known("serve", id)
	if err != nil {
		conn.Close()
		return err
	}
	return u.serve(ctx, kind, conn)
}
