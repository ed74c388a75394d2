package est

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits bound what clients can make the endpoint do.
type Limits struct {
	Rate       float64 // requests a second from one address, on average; 0 is no limit
	Burst      int     // requests at once from one address
	TotalRate  float64 // requests a second from all addresses; 0 is no limit
	TotalBurst int
	Addresses  int // how many addresses are told apart; the least recent is forgotten

	Connections           int // open at a time; further ones wait unaccepted
	ConnectionsPerAddress int // open at a time; further ones are closed
	ConnectionsPerNetwork int // of one IPv6 /48, open at a time; further ones are closed

	HandshakeTimeout time.Duration // for the TLS handshake, and for a request's header
	ReadTimeout      time.Duration // for a whole request
	WriteTimeout     time.Duration // for deciding and replying
	IdleTimeout      time.Duration // between requests of a connection

	RefusalTime time.Duration // every refused token is answered after this time
	RetryAfter  time.Duration // what a machine that has to wait is told
}

// DefaultLimits suit a site of some thousand machines. A machine's whole
// enrolment is about ten requests over one connection.
func DefaultLimits() Limits {
	return Limits{
		Rate: 20, Burst: 200, TotalRate: 5000, TotalBurst: 10000, Addresses: 16384,
		Connections: 4096, ConnectionsPerAddress: 64, ConnectionsPerNetwork: 2048,
		HandshakeTimeout: 10 * time.Second, ReadTimeout: 20 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		RefusalTime: 100 * time.Millisecond, RetryAfter: 30 * time.Second,
	}
}

// maxHeader is how many bytes a request's header may have.
const maxHeader = 16 << 10

// peer is the unit that limits apply to: an IPv4 address or an IPv6 /64, since
// a single machine has all of the latter.
func peer(a netip.Addr) netip.Prefix {
	bits := 32
	if a = a.Unmap(); a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the zero prefix for the zero address
	return p
}

// network is what one IPv6 site has, a /48 with 65536 peers (RFC 6177), of which
// each has its own limit: together they must not have all there is. Of IPv4, where
// addresses are few, there are none.
func network(a netip.Addr) (p netip.Prefix, ok bool) {
	if a = a.Unmap(); !a.Is6() {
		return p, false
	}
	p, err := a.Prefix(48)
	return p, err == nil
}

// rates limits requests by peer and in total. Its memory is bounded: it keeps
// the peers that were seen last.
type rates struct {
	perPeer rate.Limit
	burst   int
	size    int
	total   *rate.Limiter

	mu     sync.Mutex // guards the rest
	recent *list.List // of *bucket, latest first
	byPeer map[netip.Prefix]*list.Element
}

type bucket struct {
	peer    netip.Prefix
	limiter *rate.Limiter
}

func newRates(l Limits) *rates {
	return &rates{
		perPeer: limitOf(l.Rate), burst: l.Burst, size: max(1, l.Addresses),
		total:  rate.NewLimiter(limitOf(l.TotalRate), l.TotalBurst),
		recent: list.New(), byPeer: map[netip.Prefix]*list.Element{},
	}
}

// limitOf reads a configured rate, of which 0 is no limit.
func limitOf(perSecond float64) rate.Limit {
	if perSecond == 0 {
		return rate.Inf
	}
	return rate.Limit(perSecond)
}

// take counts one request of addr and returns 0, or how long to wait before the
// next one if there were too many.
func (r *rates) take(addr netip.Addr, now time.Time) time.Duration {
	// The peer's own limit comes first, so that what it asks too much does not
	// use up what is there for all.
	if !r.limiter(peer(addr)).AllowN(now, 1) {
		return interval(r.perPeer)
	}
	if !r.total.AllowN(now, 1) {
		return interval(r.total.Limit())
	}
	return 0
}

// limiter returns p's limiter and makes p the most recent peer.
func (r *rates) limiter(p netip.Prefix) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.byPeer[p]; ok {
		r.recent.MoveToFront(e)
		return e.Value.(*bucket).limiter
	}
	if r.recent.Len() >= r.size {
		oldest := r.recent.Back()
		delete(r.byPeer, r.recent.Remove(oldest).(*bucket).peer)
	}
	b := &bucket{p, rate.NewLimiter(r.perPeer, r.burst)}
	r.byPeer[p] = r.recent.PushFront(b)
	return b.limiter
}

// interval is the time in which one request becomes possible.
func interval(l rate.Limit) time.Duration {
	return time.Duration(float64(time.Second) / float64(l))
}
