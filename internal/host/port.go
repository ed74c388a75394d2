package host

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"imprint"
)

// Port says how one of an instance's channels arrives at this host, and whether
// it does.
type Port struct {
	Channel   imprint.ChannelKind
	Socket    string // "" for the channels nic and neutron
	Interface string // the channel nic's, "" while it is not there
	Adopts    string // the interface, or the pattern, that the platform makes for the channel nic; "" if this host makes a tap
	Dialled   bool   // the hypervisor listens on Socket and this host connects; else the other way round
	Connected bool   // a hypervisor is at the other end, or the interface is served
	Problem   string // why it cannot be used; "" if nothing is wrong
	// Dropped counts the packets that were dropped at Interface, by reason; see
	// [DropReasons].
	Dropped map[string]uint64
}

// Ports returns the instance's ports, in the order of their channels' names; none
// if the instance is not on this host.
func (h *Host) Ports(id imprint.InstanceID) []Port {
	u, err := h.known("find", id)
	if err != nil {
		return nil
	}
	u.mu.Lock()
	ways, n := maps.Clone(u.ways), u.nic
	u.mu.Unlock()
	var list []Port
	for _, kind := range slices.Sorted(maps.Keys(ways)) {
		if kind == imprint.LinkLocal {
			list = append(list, n.asPort(u.port(kind)))
			continue
		}
		one := Port{Channel: kind, Socket: ways[kind].dialled, Dialled: ways[kind].dialled != ""}
		if !one.Dialled && kind != imprint.Neutron {
			one.Socket = h.Socket(id, kind)
		}
		one.Connected, one.Problem = u.port(kind).state()
		list = append(list, one)
	}
	return list
}

// port is where one of the instance's channels arrives. It has one session at a
// time, and the newest connection wins: a hypervisor that was started again must
// get through while the old one hangs or is being taken down. What connects by
// mistake loses the port again when the hypervisor reconnects.
type port struct {
	mu      sync.Mutex
	end     context.CancelCauseFunc // guarded by mu; of the session that has the port
	settled chan struct{}           // guarded by mu; closed when that session is over

	connected bool   // guarded by mu; the session has begun
	problem   string // guarded by mu; why there can be none
}

var errReplaced = errors.New("a newer connection has the port")

// take ends the session that has the port, if any, waits for its end, and makes
// the caller the one that has it until leave is called.
func (p *port) take(ctx context.Context) (session context.Context, leave func()) {
	session, end := context.WithCancelCause(ctx)
	settled := make(chan struct{})
	p.mu.Lock()
	previousEnd, previous := p.end, p.settled
	p.end, p.settled = end, settled
	p.mu.Unlock()
	if previous != nil {
		previousEnd(errReplaced)
		<-previous
	}
	return session, func() { end(nil); close(settled) }
}

// connect notes that a session begins or is over.
func (p *port) connect(begins bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.connected = begins
}

// trouble notes why the port's socket cannot be used, nil if it can, and reports
// whether that is news.
func (p *port) trouble(err error) bool {
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	news := p.problem != problem
	p.problem = problem
	return news
}

func (p *port) state() (connected bool, problem string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connected, p.problem
}

// port returns the port of a channel.
func (u *unit) port(kind imprint.ChannelKind) *port {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.ports[kind]
	if p == nil {
		p = &port{}
		u.ports[kind] = p
	}
	return p
}
