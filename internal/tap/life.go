package tap

import (
	"context"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"imprint"
)

// retryPause is how long an interface that could not be served is left alone.
const retryPause = time.Second

// State is what became of an attached interface.
type State struct {
	Link *Link // nil if it is not there, or down
	Err  error // why it is not being served; nil if it is, or is waited for
}

// Attachment follows one guest's interface through its lives. Its methods may be
// used concurrently.
type Attachment struct {
	network *Network
	nic     NIC
	serve   Serve
	ctx     context.Context
	stop    context.CancelFunc
	wake    chan struct{} // something happened to the interface
	trouble chan error    // the last reason that nobody has taken
	done    chan struct{} // closed when run has returned

	mu      sync.Mutex
	link    *Link  // guarded by mu
	claimed string // guarded by mu; the interface that a pattern found, served or not
	last    string // guarded by mu; the name of the last link
	err     error  // guarded by mu
}

// State returns what became of the interface.
func (a *Attachment) State() State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return State{Link: a.link, Err: a.err}
}

// Trouble returns a channel on which each new reason is told why the interface is
// not served, until the attachment ends. A reason that nobody takes is replaced
// by the next.
func (a *Attachment) Trouble() <-chan error { return a.trouble }

// Done returns a channel that is closed when the attachment has ended.
func (a *Attachment) Done() <-chan struct{} { return a.done }

// Drops returns what was dropped at the interface. It fails with kind
// [imprint.NotFound] if the interface was never there.
func (a *Attachment) Drops() (Drops, error) {
	name := a.interfaceName()
	if name == "" {
		return Drops{}, imprint.Errorf(imprint.NotFound, "count what was dropped at", a.nic.Name, "no such interface was there")
	}
	return a.network.filter.drops(name)
}

// Detach ends the serving and takes everything away again: a tap of imprint's is
// deleted, an adopted interface loses its addresses, and then the rules and the
// counts go. It may be called once more if it fails.
func (a *Attachment) Detach() error {
	a.stop()
	<-a.done
	if err := a.discard(); err != nil {
		return err
	}
	a.network.forget(a) // last, so that nobody attaches it again meanwhile
	return nil
}

func (a *Attachment) discard() error {
	a.network.turn.Lock()
	defer a.network.turn.Unlock()
	if name := a.interfaceName(); name != "" {
		return a.network.discard(name)
	}
	return nil
}

// interfaceName returns the name of the interface, or "" if a pattern found none so far.
func (a *Attachment) interfaceName() string {
	if !a.nic.pattern() {
		return a.nic.Name
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

// has reports whether the interface name is a's, now or when it returns.
func (a *Attachment) has(name string) bool { return a.interfaceName() == name }

// watchBuffer is how many bytes of news the kernel keeps for a watcher that is
// behind, as far as net.core.rmem_max lets it.
const watchBuffer = 1 << 20

// watch wakes the attachments whose interface changes, until the network ends.
func (n *Network) watch() error {
	updates, end, err := n.subscribe()
	if err != nil {
		return err
	}
	n.group.Go(func() {
		for {
			for u := range updates {
				n.wake(u.Link)
			}
			end()
			// The subscription ended: with the network, or because more happened
			// than its buffer holds. What was missed is found by looking everywhere.
			for {
				if n.ctx.Err() != nil {
					return
				}
				if updates, end, err = n.subscribe(); err == nil {
					break
				}
				n.log.Error("interfaces cannot be watched", "err", err)
				pause(n.ctx, retryPause)
			}
			n.wake(nil)
		}
	})
	return nil
}

// subscribe returns the news of all interfaces, closed when there are no more,
// and what has to be called then.
func (n *Network) subscribe() (<-chan netlink.LinkUpdate, context.CancelFunc, error) {
	ctx, end := context.WithCancel(n.ctx)
	updates := make(chan netlink.LinkUpdate)
	o := netlink.LinkSubscribeOptions{ReceiveBufferSize: watchBuffer}
	if err := netlink.LinkSubscribeWithOptions(updates, ctx.Done(), o); err != nil {
		end()
		return nil, nil, linkFault("watch", "interfaces", err)
	}
	return updates, end, nil
}

// wake wakes the attachments that l concerns; nil is all.
func (n *Network) wake(l netlink.Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for a := range n.attached {
		if l == nil || a.concerns(l) {
			a.poke()
		}
	}
}

// concerns reports whether news of l may be about a's interface: the one that it
// has, or the one that takes its place.
func (a *Attachment) concerns(l netlink.Link) bool {
	attrs := l.Attrs()
	if now := a.State().Link; now != nil && now.Index == attrs.Index {
		return true
	}
	if a.nic.pattern() {
		_, is := a.nic.guestAt(l)
		return is
	}
	return a.nic.Name == attrs.Name
}

func (a *Attachment) note(l *Link, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.link, a.err = l, err
	if l != nil {
		a.last = l.NIC.Name
	}
}

// run serves life after life, beginning with what the first attempt gave, until
// the attachment ends.
func (a *Attachment) run(l *Link, err error) {
	log := a.network.log.With("interface", a.nic.Name)
	logged := ""
	for a.ctx.Err() == nil {
		switch {
		case err != nil:
			if err.Error() != logged { // not once a second
				log.Error("interface is not served", "err", err)
				a.tell(err)
				logged = err.Error()
			}
			pause(a.ctx, retryPause)
			l, err = a.bring(false)
		case l == nil:
			a.rest()
			l, err = a.bring(false)
		default:
			log.Info("interface is up", "name", l.NIC.Name, "index", l.Index)
			logged = ""
			if err = a.live(l); err == nil && a.ctx.Err() == nil {
				log.Info("interface is gone", "name", l.NIC.Name, "index", l.Index)
				l, err = a.bring(false) // it may be back already
			}
		}
	}
}

// live serves l until the interface is gone or the attachment ends. An error is
// serve's, which came back before.
func (a *Attachment) live(l *Link) error {
	life, end := context.WithCancel(a.ctx)
	defer end()
	ended := make(chan error, 1)
	go func() { ended <- a.serve(life, l) }()
	for {
		select {
		case err := <-ended:
			if err == nil && a.ctx.Err() == nil && a.holds(l) {
				err = imprint.Errorf(imprint.Internal, "serve", l.NIC.Name, "it ended by itself")
			}
			if a.ctx.Err() != nil || !a.holds(l) {
				return nil
			}
			a.note(nil, err)
			return err
		case <-a.wake:
			if !a.holds(l) {
				end()
				<-ended
				return nil
			}
		case <-a.ctx.Done():
			<-ended
			return nil
		}
	}
}

// holds reports whether l is the interface that it was, leads to one guest, and
// neither it nor its MAC is another's as well.
func (a *Attachment) holds(l *Link) bool {
	now, at, err := find(a.nic)
	if err != nil {
		return imprint.KindOf(err) != imprint.Conflict // or else it is not known
	}
	if now == nil || now.Attrs().Index != l.Index || at.Name != l.NIC.Name || at.MAC != l.NIC.MAC || !isUp(now) {
		return false
	}
	return !a.network.another(a, func(other *Attachment) bool { return other.claim() == at.Name || other.nic.MAC == at.MAC })
}

// rest waits until something happens to the interface.
func (a *Attachment) rest() {
	select {
	case <-a.wake:
	case <-a.ctx.Done():
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// bring gets the interface ready and returns it; nil if it is not there, or is
// down. Only the first time, and when it had to be made again, is a tap of
// imprint's set up: who set it down later wanted it down.
func (a *Attachment) bring(first bool) (l *Link, err error) {
	a.network.turn.Lock()
	defer a.network.turn.Unlock()
	defer func() { a.note(l, err) }()
	nic := a.nic
	raise := first
	if !nic.Adopt {
		created, err := makeTap(nic.Name, nic.Owner)
		if err != nil {
			return nil, err
		}
		raise = raise || created
	}
	found, nic, err := find(nic)
	if err != nil || found == nil {
		a.setClaim("")
		return nil, err
	}
	if !isUp(found) && (nic.Adopt || !raise) {
		a.setClaim("")
		return nil, nil
	}
	stale, err := a.network.enter(a, nic)
	if err != nil {
		return nil, err
	}
	for _, name := range stale {
		if err := a.network.filter.remove(name); err != nil {
			return nil, err
		}
	}
	if err := a.network.filter.apply(nic); err != nil { // before there is anything to reach
		return nil, err
	}
	left, err := setSysctls(nic.Name)
	if err != nil {
		return nil, err
	}
	if left {
		a.network.warn.Do(func() {
			a.network.log.Warn("interfaces keep their sysctls, which are read-only here; the rules hold without them", "interface", nic.Name)
		})
	}
	ipv6, err := configure(found, nic)
	if err != nil {
		return nil, err
	}
	return &Link{NIC: nic, Index: found.Attrs().Index, IPv6: ipv6}, nil
}
