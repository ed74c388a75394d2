package host

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"imprint"
	"imprint/internal/dhcp"
	"imprint/internal/metadata"
	"imprint/internal/tap"
)

// linkLocal is this host's link-local network. It is opened when the first
// instance needs it, so that a host without any touches no interface and no
// packet filter.
type linkLocal struct {
	open func() (*tap.Network, error)
	name imprint.HostName

	mu      sync.Mutex
	network *tap.Network  // guarded by mu; nil until somebody needs it
	taken   tap.Taken     // guarded by mu
	listed  chan struct{} // closed when all leases on record are in taken
	dropped dropped       // at all interfaces
}

func newLinkLocal(open func() (*tap.Network, error), name imprint.HostName) *linkLocal {
	return &linkLocal{open: open, name: name, listed: make(chan struct{})}
}

// get returns the network. It fails with the kind of [tap.Open].
func (l *linkLocal) get() (*tap.Network, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.network != nil {
		return l.network, nil
	}
	if l.open == nil {
		return nil, imprint.Errorf(imprint.Unavailable, "open", "link-local network", "this host has none")
	}
	var err error
	l.network, err = l.open()
	return l.network, err
}

// lease returns what belongs to inst on this host, and whether that was chosen
// just now and has to be recorded. It fails with kind [imprint.Unavailable] until
// it is known what belongs to whom, and with kind [imprint.Conflict] if the
// record's is another instance's.
func (l *linkLocal) lease(inst *imprint.Instance) (lease tap.Lease, chosen bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := inst.NIC; n != nil && n.Host == l.name {
		mac, err := tap.ParseMAC(n.MAC)
		if err != nil {
			return lease, false, err
		}
		lease = tap.Lease{Holder: string(inst.ID), MAC: mac, IPv4: n.IPv4}
		return lease, false, l.taken.Take(lease)
	}
	select {
	case <-l.listed:
	default:
		return lease, false, imprint.Errorf(imprint.Unavailable, "choose address of", inst.Ref(), "it is not known yet which are taken")
	}
	if lease, err = l.taken.Choose(string(inst.ID)); err == nil {
		err = l.taken.Take(lease)
	}
	return lease, true, err
}

func (l *linkLocal) giveBack(lease tap.Lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken.GiveBack(lease)
}

// exchange gives back old and takes now, of the same holder, or fails as
// [tap.Taken.Take] does and changes nothing.
func (l *linkLocal) exchange(old, now tap.Lease) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.taken.Take(now); err != nil {
		return err
	}
	l.taken.GiveBack(old)
	return l.taken.Take(now) // what both have was given back
}

// settle is called when every instance was listed: what an earlier process
// served and nobody has any more goes.
func (l *linkLocal) settle() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.listed:
	default:
		close(l.listed)
	}
	if l.network == nil {
		return nil
	}
	strays, err := l.network.Strays()
	for _, name := range strays {
		if err == nil {
			err = l.network.Discard(name)
		}
	}
	return err
}

// close is called when nobody attaches an interface any more.
func (l *linkLocal) close() error {
	l.mu.Lock()
	network := l.network
	l.network = nil
	l.mu.Unlock()
	if network == nil {
		return nil
	}
	return network.Close() // serve, which may want the lock, ends first
}

// nic is an instance's interface on the link-local network.
type nic struct {
	*metadataGuest

	mu         sync.Mutex
	lease      tap.Lease         // guarded by mu; zero until there is one
	adopts     string            // guarded by mu; the interface or pattern, "" for a tap of this host's
	attachment *tap.Attachment   // guarded by mu; nil until it is attached
	drops      map[string]uint64 // guarded by mu; the counters as they were read last
	dropsRead  time.Time         // guarded by mu; when that was
	untold     map[string]uint64 // guarded by mu; forged packets that are not on the timeline
	dropNotes  complaints        // on the timeline, about packets
	// dropReports has what goes on the timeline next.
	dropReports chan string

	complaints complaints // on the timeline, about the interface
}

// newNIC returns an interface that is not there yet.
func newNIC(u *unit) (*nic, error) {
	n := &nic{untold: map[string]uint64{}, dropReports: make(chan string, 1)}
	var err error
	n.metadataGuest, err = newMetadataGuest(u, imprint.LinkLocal, func(g *metadataGuest, c *metadata.Config) { c.Pipes = guestPipes{g} })
	return n, err
}

// link starts serving the instance's interface.
func (u *unit) link() *way {
	p := u.port(imprint.LinkLocal)
	n, err := newNIC(u)
	if err != nil { // a fault of this program
		p.trouble(err)
		return &way{stop: func() {}}
	}
	ctx, cancel := context.WithCancel(u.ctx)
	var done sync.WaitGroup
	// The first attempt is made here, so that the interface exists when this returns.
	err = n.attach(ctx)
	u.runs.Go(func() { n.report(ctx) })
	u.runs.Go(func() { n.reportDrops(ctx) })
	u.runs.Go(func() { n.watchDrops(ctx) })
	done.Go(func() { n.keep(ctx, p, err) })
	u.runs.Go(done.Wait)
	u.setNIC(n)
	return &way{stop: func() {
		cancel()
		done.Wait()
		u.setNIC(nil)
		n.detach()
	}}
}

// keep attaches the interface if the first attempt failed with err, and from then
// on tells why it is not served.
func (n *nic) keep(ctx context.Context, p *port, err error) {
	listed := n.unit.host.links.listed
	for err != nil {
		if p.trouble(err) {
			n.unit.log.ErrorContext(ctx, "the guest's interface does not work", "error", err, "hint", imprint.HintOf(err))
			n.complain(ctx, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(bindPause):
		case <-listed:
			listed = nil // it is news once
		}
		err = n.attach(ctx)
	}
	p.trouble(nil)
	n.mu.Lock()
	a := n.attachment
	n.mu.Unlock()
	for {
		select {
		case err := <-a.Trouble():
			n.complain(ctx, err)
		case <-a.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// complain puts on the timeline why the interface is not served, if that is for
// the operator to mend: it is another's, or can be no guest's.
func (n *nic) complain(ctx context.Context, err error) {
	if kind := imprint.KindOf(err); kind != imprint.Conflict && kind != imprint.Invalid || !n.complaints.admit(n.unit.host.c.Now()) {
		return
	}
	snap, _ := n.unit.current()
	if err := n.unit.host.c.Control.Report(ctx, imprint.Report{
		Instance: n.unit.id, Generation: snap.inst.Generation, Channel: imprint.LinkLocal, Kind: imprint.ReportRefused,
		Name: err.Error(), From: "the host", Witness: n.unit.host.c.Name,
	}); err != nil && ctx.Err() == nil {
		n.unit.log.WarnContext(ctx, "not on the timeline", "error", err)
	}
}

// attach makes the interface and has it served.
func (n *nic) attach(ctx context.Context) error {
	u := n.unit
	snap, _ := u.current()
	adopts, err := u.host.c.Adopt(snap.inst)
	if err != nil {
		return err
	}
	network, err := u.host.links.get()
	if err != nil {
		return err
	}
	lease, chosen, err := u.host.links.lease(snap.inst)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.lease = lease // until the interface is the instance's no more, also if nothing works
	n.mu.Unlock()
	// The record is made while the interface is; nobody is served before it is durable.
	recorded := make(chan struct{})
	var fault error
	go func() {
		defer close(recorded)
		if chosen {
			fault = n.record(ctx, lease)
		}
	}()
	want := tap.NIC{Name: tap.NameOf(string(u.id)), MAC: lease.MAC, IPv4: lease.IPv4}
	if adopts != "" {
		want.Name, want.Adopt = adopts, true
		want.Labels = append([]string{string(u.id), snap.inst.Ref()}, snap.inst.Spec.DNSNames...)
	}
	if o := u.host.c.Owner; o != nil {
		want.Owner = &tap.Owner{UID: o.UID}
	}
	attachment, err := network.Attach(want, func(ctx context.Context, link *tap.Link) error {
		<-recorded
		if fault != nil {
			<-ctx.Done() // which is at once
			return nil
		}
		return n.serve(ctx, link)
	})
	<-recorded
	if err != nil {
		return err
	}
	if fault != nil {
		return errors.Join(fault, attachment.Detach())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attachment, n.adopts = attachment, adopts
	return nil
}

// record puts on record what belongs to the instance on this host.
func (n *nic) record(ctx context.Context, lease tap.Lease) error {
	snap, _ := n.unit.current()
	name := n.unit.host.c.Name
	return n.unit.host.c.Control.Report(ctx, imprint.Report{
		Instance: n.unit.id, Generation: snap.inst.Generation, Channel: imprint.LinkLocal, Kind: imprint.ReportNIC, Witness: name,
		NIC: &imprint.NIC{Host: name, MAC: lease.MAC.String(), IPv4: lease.IPv4},
	})
}

// leaseAt returns what belongs to the guest at link: what was given to it, unless
// the interface was asked for with another MAC, which is then put on record.
func (n *nic) leaseAt(ctx context.Context, link *tap.Link) (tap.Lease, error) {
	n.mu.Lock()
	lease := n.lease
	n.mu.Unlock()
	if lease.MAC == link.NIC.MAC {
		return lease, nil
	}
	select { // or else it might be one that belongs to an instance that is not known yet
	case <-n.unit.host.links.listed:
	case <-ctx.Done():
		return lease, ctx.Err()
	}
	now := lease
	now.MAC = link.NIC.MAC
	if err := n.unit.host.links.exchange(lease, now); err != nil {
		return lease, err
	}
	if err := n.record(ctx, now); err != nil {
		return lease, errors.Join(err, n.unit.host.links.exchange(now, lease)) // it is tried again
	}
	n.mu.Lock()
	n.lease = now
	n.mu.Unlock()
	return now, nil
}

// detach takes the interface away.
func (n *nic) detach() {
	n.mu.Lock()
	attachment := n.attachment
	n.attachment = nil
	n.mu.Unlock()
	if attachment != nil {
		if err := attachment.Detach(); err != nil { // serve, which may want the lock, ends first
			n.unit.log.Error("the guest's interface was not taken away", "error", err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.unit.host.links.giveBack(n.lease)
}

// asPort describes the interface, whose port is p.
func (n *nic) asPort(p *port) Port {
	one := Port{Channel: imprint.LinkLocal}
	one.Connected, one.Problem = p.state()
	if n == nil {
		return one
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attachment == nil {
		return one
	}
	state := n.attachment.State()
	one.Dropped = n.countDrops()
	one.Interface, one.Adopts = tap.NameOf(string(n.unit.id)), n.adopts
	if n.adopts != "" {
		one.Interface = ""
		if state.Link != nil {
			one.Interface = state.Link.NIC.Name
		}
	}
	if state.Err != nil {
		one.Problem = state.Err.Error()
	}
	return one
}

// serve answers the guest during one life of its interface.
func (n *nic) serve(ctx context.Context, link *tap.Link) error {
	snap, _ := n.unit.current()
	lease, err := n.leaseAt(ctx, link)
	if err != nil {
		return err
	}
	responder, err := dhcp.New(dhcp.Lease{
		MAC: lease.MAC, Address: lease.IPv4, Server: tap.MetadataIPv4, Hostname: string(snap.inst.Spec.Name), DNS: n.unit.host.c.DNS,
	}, dhcp.Options{Logger: n.unit.log})
	if err != nil {
		return err
	}
	p := n.unit.port(imprint.LinkLocal)
	defer p.connect(false)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { n.Snapshot(); return nil }) // ready when the first request comes
	conn, err := link.ListenDHCP(ctx)
	if err != nil {
		return err
	}
	group.Go(func() error { return responder.Serve(ctx, conn) })
	for _, network := range link.Networks() { // IPv4 first: IPv6 may take a moment
		group.Go(func() error {
			ln, err := link.Listen(ctx, network, tap.MetadataPort)
			if err != nil {
				return err
			}
			if conn, ok := ln.(syscall.Conn); ok {
				err = tap.SetHopLimit(conn, metadata.HopLimit)
			}
			if err != nil {
				ln.Close()
				return err
			}
			p.connect(true) // the kernel accepts from here on
			return n.server.Serve(ctx, ln)
		})
	}
	return group.Wait()
}
