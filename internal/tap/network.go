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

// State is what became of an attached interface.
type State struct {
	Link *Link // nil if it is not there, or down
	Err  error // why it is not being served; nil if it is, or is waited for
}

// Network is the link-local network of one hypervisor. Its methods may be used
// concurrently.
type Network struct {
	log    *slog.Logger
	filter *filter
	ctx    context.Context // of everything that runs
	stop   context.CancelFunc
	group  sync.WaitGroup // watch, and each attachment's run

	mu       sync.Mutex
	attached map[string]*attachment // by [NIC.Name]
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
	n := &Network{log: log, filter: f, ctx: ctx, stop: stop, attached: map[string]*attachment{}}
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
// with kind [imprint.Conflict] if its name, MAC or address is another's.
func (n *Network) Attach(nic NIC, serve Serve) error {
	if err := nic.check(); err != nil {
		return err
	}
	nic.Ports = slices.Clone(nic.ports())
	a := &attachment{network: n, nic: nic, serve: serve, wake: make(chan struct{}, 1), done: make(chan struct{})}
	a.ctx, a.stop = context.WithCancel(n.ctx)
	if err := n.add(a); err != nil {
		a.stop()
		return err
	}
	l, err := a.bring(true)
	if err != nil {
		a.stop()
		n.forget(a)
		close(a.done)
		n.group.Done()
		return err
	}
	go func() {
		defer n.group.Done()
		defer close(a.done)
		a.run(l)
	}()
	return nil
}

func (n *Network) add(a *attachment) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return imprint.Errorf(imprint.Unavailable, "attach", a.nic.Name, "the network is closed")
	}
	for _, other := range n.attached {
		var what string
		switch {
		case other.nic.Name == a.nic.Name:
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
	n.attached[a.nic.Name] = a
	n.group.Add(1)
	return nil
}

func (n *Network) forget(a *attachment) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attached[a.nic.Name] == a {
		delete(n.attached, a.nic.Name)
	}
}

// Detach ends the serving of name, as it was attached, and takes everything away
// again: a tap of imprint's is deleted, an adopted interface loses its
// addresses, and then the rules and the counts go. It fails with kind
// [imprint.NotFound] if nothing of that name is attached.
func (n *Network) Detach(name string) error {
	n.mu.Lock()
	a, ok := n.attached[name]
	n.mu.Unlock()
	if !ok {
		return imprint.Errorf(imprint.NotFound, "detach", name, "it is not attached")
	}
	a.stop()
	<-a.done
	defer n.forget(a) // last, so that nobody attaches it again meanwhile
	names := []string{}
	if !a.nic.pattern() {
		names = append(names, name)
	}
	if last := a.lastName(); last != "" && last != name {
		names = append(names, last)
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, n.discard(name))
	}
	return errors.Join(errs...)
}

// Strays returns the names of interfaces that an earlier process served and
// nobody attached since. Once every instance's is attached, the rest may be
// given to [Network.Discard].
func (n *Network) Strays() ([]string, error) {
	names, err := n.filter.interfaces()
	if err != nil {
		return nil, err
	}
	attached := n.names()
	return slices.DeleteFunc(names, func(name string) bool { return slices.Contains(attached, name) }), nil
}

// Discard takes away what was given to the stray name, as [Network.Detach] does.
func (n *Network) Discard(name string) error {
	if slices.Contains(n.names(), name) {
		return imprint.Errorf(imprint.Conflict, "discard", name, "it is attached")
	}
	return n.discard(name)
}

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

// names returns the interfaces of all attachments.
func (n *Network) names() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for name, a := range n.attached {
		names = append(names, name)
		if last := a.lastName(); last != "" && last != name {
			names = append(names, last)
		}
	}
	return names
}

// State returns what became of name, as it was attached.
func (n *Network) State(name string) (State, error) {
	n.mu.Lock()
	a, ok := n.attached[name]
	n.mu.Unlock()
	if !ok {
		return State{}, imprint.Errorf(imprint.NotFound, "look at", name, "it is not attached")
	}
	return a.state(), nil
}

// Drops returns what was dropped at the interface name, which is [Link.NIC]'s
// if it was found by a pattern. It fails with kind [imprint.NotFound] if the
// interface was never there.
func (n *Network) Drops(name string) (Drops, error) { return n.filter.drops(name) }

// Leave ends the serving and leaves interfaces and rules as they are, for the
// process that comes next. Until then guests reach nothing.
func (n *Network) Leave() { n.end() }

// Close ends the serving and takes everything away: taps of imprint's are down,
// for a hypervisor may still have them open, adopted interfaces have lost their
// addresses, and only then the table of rules goes.
func (n *Network) Close() error {
	n.end()
	names, err := n.filter.interfaces()
	if err != nil {
		return err
	}
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue
		}
		if err == nil && l.Attrs().Alias == alias {
			err = netlink.LinkSetDown(l)
		}
		if err == nil {
			err = clear(l)
		}
		if err != nil { // then the rules stay: better than a guest without any
			return linkFault("close", name, err)
		}
	}
	return n.filter.close()
}

func (n *Network) end() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.stop()
	n.group.Wait()
}
