package tap

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"imprint"
)

// Options of a [Network].
type Options struct {
	Logger *slog.Logger // nil discards
}

// Serve serves one life of an interface and returns when ctx ends, at the
// latest. If it returns before, it is called again after a pause.
type Serve func(ctx context.Context, l *Link) error

// Network is the link-local network of one hypervisor. Its methods may be used
// concurrently.
type Network struct {
	log    *slog.Logger
	filter *filter
	ctx    context.Context // of everything that runs
	stop   context.CancelFunc
	group  sync.WaitGroup // watch, and each Attachment's run
	warn   sync.Once      // of read-only sysctls

	// turn is held while an interface becomes a guest's, and while one is taken
	// away: the rules that go are called as those of the interface that comes in
	// its place. It is taken before mu.
	turn sync.Mutex

	mu       sync.Mutex
	attached map[*Attachment]bool
	closed   bool
}

// Open finds or makes the packet filter and begins to watch interfaces. What an
// earlier process left in force stays in force: see [Network.Strays].
//
// It fails with kind [imprint.Denied] without CAP_NET_ADMIN, and with kind
// [imprint.Unavailable] if the kernel cannot filter.
func Open(o Options) (*Network, error) {
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f, err := openFilter()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	n := &Network{log: log, filter: f, ctx: ctx, stop: stop, attached: map[*Attachment]bool{}}
	if err := n.watch(); err != nil {
		stop()
		return nil, err
	}
	return n, nil
}

// Attach begins to serve nic. A tap of imprint's is made, or found as an earlier
// process left it, and is ready when Attach returns; an interface to adopt is
// served from when it is there.
//
// It fails with kind [imprint.Invalid] if nic can be no guest's interface, and
// with kind [imprint.Conflict] if its name, MAC or address is another's. What it
// made until then is a stray: see [Network.Strays].
//
// Two guests may be attached to one interface that somebody else makes. Neither
// is served then, because whose it is cannot be told.
func (n *Network) Attach(nic NIC, serve Serve) (*Attachment, error) {
	if err := nic.check(); err != nil {
		return nil, err
	}
	nic.Ports, nic.Labels = slices.Clone(nic.ports()), slices.Clone(nic.Labels)
	a := &Attachment{network: n, nic: nic, serve: serve, wake: make(chan struct{}, 1), trouble: make(chan error, 1), done: make(chan struct{})}
	a.ctx, a.stop = context.WithCancel(n.ctx)
	if err := n.add(a); err != nil {
		a.stop()
		return nil, err
	}
	l, err := a.bring(true)
	if err != nil && !n.contested(a) { // else it waits until the other gives up
		a.stop()
		n.forget(a)
		n.group.Done()
		return nil, err
	}
	go func() {
		defer n.group.Done()
		defer close(a.done)
		a.run(l, err)
	}()
	return a, nil
}

func (n *Network) add(a *Attachment) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return imprint.Errorf(imprint.Unavailable, "attach", a.nic.Name, "the network is closed")
	}
	for other := range n.attached {
		var what string
		switch {
		case other.nic.Name == a.nic.Name && !a.nic.pattern() && !(other.nic.Adopt && a.nic.Adopt):
			return imprint.Errorf(imprint.Conflict, "attach", a.nic.Name, "it is attached already")
		case other.nic.MAC == a.nic.MAC:
			what = a.nic.MAC.String()
		case other.nic.IPv4 == a.nic.IPv4:
			what = a.nic.IPv4.String()
		default:
			continue
		}
		return imprint.Errorf(imprint.Conflict, "attach", a.nic.Name, "%s belongs to the guest at %s", what, other.nic.Name).
			WithHint("give each guest a MAC and an address of its own")
	}
	n.attached[a] = true
	n.group.Add(1)
	return nil
}

func (n *Network) forget(a *Attachment) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, a)
	for other := range n.attached {
		if name := a.claim(); name != "" && other.claim() == name {
			other.poke()
		}
	}
}

// holder returns who, other than a, has the interface name; nil is nobody.
func (n *Network) holder(name string, a *Attachment) *Attachment {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other := range n.attached {
		if other != a && other.has(name) {
			return other
		}
	}
	return nil
}

// Strays returns the names of interfaces that an earlier process served and
// nobody attached since. Once every instance's is attached, the rest may be
// given to [Network.Discard].
func (n *Network) Strays() ([]string, error) {
	names, err := n.filter.interfaces()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(names, func(name string) bool { return n.holder(name, nil) != nil }), nil
}

// Discard takes away what was given to the stray name, as [Attachment.Detach] does.
func (n *Network) Discard(name string) error {
	n.turn.Lock()
	defer n.turn.Unlock()
	if n.holder(name, nil) != nil {
		return imprint.Errorf(imprint.Conflict, "discard", name, "it is attached")
	}
	return n.discard(name)
}

// discard is called with turn held.
func (n *Network) discard(name string) error {
	l, err := netlink.LinkByName(name)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
	case err != nil:
		return linkFault("look for", name, err)
	case l.Attrs().Alias == alias:
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			return linkFault("delete", name, err)
		}
	default:
		if err := clear(l); err != nil {
			return err
		}
	}
	return n.filter.remove(name)
}

// Leave ends the serving and leaves interfaces and rules as they are, for the
// process that comes next. Until then guests reach nothing.
func (n *Network) Leave() { n.end() }

// Close ends the serving and takes everything away: taps of imprint's are down,
// for a hypervisor may still have them open, adopted interfaces have lost their
// addresses, and only then the rules of each go.
func (n *Network) Close() error {
	n.end()
	names, err := n.filter.interfaces()
	if err != nil {
		return err
	}
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if err == nil && l.Attrs().Alias == alias {
			err = netlink.LinkSetDown(l)
		}
		if err == nil {
			err = clear(l)
		}
		if err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) { // then the rules stay: better than a guest without any
			return linkFault("close", name, err)
		}
		if err := n.filter.remove(name); err != nil {
			return err
		}
	}
	return nil
}

func (n *Network) end() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.stop()
	n.group.Wait()
}
