package est

import (
	"net"
	"net/netip"
	"time"
)

// Route is a pattern of the access table with who may use it.
type Route struct {
	Pattern          string
	NeedsCertificate bool
}

// Routes lists the access table.
func Routes() (list []Route) {
	for _, rt := range routes() {
		for _, p := range rt.patterns {
			list = append(list, Route{p, rt.access == certificate})
		}
	}
	return list
}

// AnswerTo returns the status for err.
func AnswerTo(err error) int { return answerTo(err).status }

// What is tested by itself.
var (
	DecodeRequest     = decodeRequest
	MarshalAttributes = marshalAttributes
	Credentials       = credentials
	CertsOnly         = certsOnly
)

// NewBoundedListener bounds the connections that ln accepts.
func NewBoundedListener(ln net.Listener, l Limits) net.Listener { return newBoundedListener(ln, l) }

// Rates is the limiter of requests.
type Rates = rates

// NewRates makes one.
func NewRates(l Limits) *Rates { return newRates(l) }

// Take counts a request.
func (r *Rates) Take(addr netip.Addr, now time.Time) time.Duration { return r.take(addr, now) }

// Known returns how many peers are remembered.
func (r *Rates) Known() int { return len(r.byPeer) }
