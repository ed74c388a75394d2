package dhcp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"imprint"
)

// How many packets are looked at: a client that boots sends a handful.
const (
	packetsPerSecond = 10
	packetsAtOnce    = 30
)

// EventKind is what a guest did with its lease.
type EventKind string

// The kinds of [Event].
const (
	Offered      EventKind = "offered"      // it looks for servers
	Acknowledged EventKind = "acknowledged" // it has the address, for the first time or still
	Refused      EventKind = "refused"      // it wanted another address
	Informed     EventKind = "informed"     // it has the address already and wanted the rest
	Declined     EventKind = "declined"     // it says that somebody else uses the address
	Released     EventKind = "released"     // it does not need the address any more
)

// Event is what a guest did, and with which address.
type Event struct {
	Kind    EventKind
	Address netip.Addr
}

// Stats counts since the responder was made.
type Stats struct {
	Events  map[EventKind]uint64
	Ignored map[Reason]uint64
}

// Options of a [Responder].
type Options struct {
	Logger *slog.Logger // nil discards
	// Observe is told of every event, in order, by the goroutine that serves; nil is told nothing.
	Observe func(Event)
}

// Responder answers the guest behind one interface. Its methods may be used
// concurrently.
type Responder struct {
	log     *slog.Logger
	observe func(Event)
	limit   *rate.Limiter
	now     func() time.Time // time.Now outside tests

	mu    sync.Mutex
	lease Lease
	stats Stats
}

// New returns a responder that hands out l. It fails with kind
// [imprint.Invalid] if l cannot be told to a guest.
func New(l Lease, o Options) (*Responder, error) {
	r := &Responder{
		log: o.Logger, observe: o.Observe, limit: rate.NewLimiter(packetsPerSecond, packetsAtOnce), now: time.Now,
		stats: Stats{Events: map[EventKind]uint64{}, Ignored: map[Reason]uint64{}},
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.observe == nil {
		r.observe = func(Event) {}
	}
	return r, r.SetLease(l)
}

// SetLease puts l in the place of the lease there was. A guest learns of it when
// it renews. It fails as [New] does, and then changes nothing.
func (r *Responder) SetLease(l Lease) error {
	if l.Time == 0 {
		l.Time = DefaultTime
	}
	if err := l.check(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lease = l
	return nil
}

// Stats returns what was counted.
func (r *Responder) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Stats{Events: map[EventKind]uint64{}, Ignored: map[Reason]uint64{}}
	for k, n := range r.stats.Events {
		s.Events[k] = n
	}
	for k, n := range r.stats.Ignored {
		s.Ignored[k] = n
	}
	return s
}

// Serve answers what arrives on conn until ctx ends, and closes conn. conn has
// to be bound to the guest's interface and to port 67. It fails with kind
// [imprint.Unavailable] if conn cannot be read any more.
func (r *Responder) Serve(ctx context.Context, conn net.PacketConn) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer conn.Close()
	defer stop()
	buffer := make([]byte, maxPacket+1)
	for {
		n, _, err := conn.ReadFrom(buffer)
		if err != nil {
			if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
				return nil
			}
			return imprint.Errorf(imprint.Unavailable, "read", "DHCP requests", "%w", err)
		}
		reply, to := r.handle(buffer[:n])
		if reply == nil {
			continue
		}
		// The client's port and not the sender's: a guest cannot have answers sent anywhere else.
		_, err = conn.WriteTo(reply, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, clientPort)))
		if err != nil && ctx.Err() == nil {
			r.log.Warn("DHCP answer was not sent", "to", to, "err", err) // the client asks again
		}
	}
}

// handle returns the answer to one packet, or nil, and counts.
func (r *Responder) handle(packet []byte) (reply []byte, to netip.Addr) {
	r.mu.Lock()
	l := r.lease
	r.mu.Unlock()
	var (
		event  Event
		reason = Rate
	)
	if r.limit.AllowN(r.now(), 1) {
		var req request
		if req, reason = parse(packet, l.MAC); reason == "" {
			event, reply, to, reason = l.answer(req)
		}
	}
	r.mu.Lock()
	if reason != "" {
		r.stats.Ignored[reason]++
	} else {
		r.stats.Events[event.Kind]++
	}
	r.mu.Unlock()
	if reason == "" {
		r.observe(event)
	}
	return reply, to
}
