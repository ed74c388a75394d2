package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"time"

	"imprint"
)

// DefaultTime is how long a lease lasts. Nobody else can get the address, so it
// is long: a guest keeps it while its host is being repaired.
const DefaultTime = 7 * 24 * time.Hour

// Limits of a [Lease].
const (
	MaxDNS  = 3
	MinTime = time.Minute
	MaxTime = 365 * 24 * time.Hour
	MinMTU  = 576 // RFC 791
)

// Lease is what the guest behind one interface is told.
type Lease struct {
	MAC      [6]byte    // of the guest; nobody else is answered
	Address  netip.Addr // of the guest
	Server   netip.Addr // of the host, on the same link: who answers, and where the metadata is
	Hostname string     // "" tells none
	DNS      []netip.Addr
	MTU      uint16        // 0 tells none
	Time     time.Duration // 0 is [DefaultTime]
}

// check fails with kind [imprint.Invalid] if l cannot be told to a guest.
func (l Lease) check() error {
	invalid := func(format string, args ...any) error {
		return imprint.Errorf(imprint.Invalid, "lease", l.Address.String(), format, args...)
	}
	four := func(a netip.Addr) bool { return a.Is4() && !a.IsUnspecified() && !a.IsMulticast() }
	switch {
	case l.MAC == [6]byte{} || l.MAC[0]&1 != 0:
		return invalid("%s is not the MAC of one interface", net.HardwareAddr(l.MAC[:]))
	case !four(l.Address) || !four(l.Server) || l.Address == l.Server:
		return invalid("guest and server (%s) need an IPv4 address each", l.Server)
	case len(l.DNS) > MaxDNS || slices.ContainsFunc(l.DNS, func(a netip.Addr) bool { return !four(a) }):
		return invalid("at most %d name servers can be told, by IPv4 address", MaxDNS)
	case l.Time < MinTime || l.Time > MaxTime:
		return invalid("%v is no time for a lease: %v to %v are", l.Time, MinTime, MaxTime)
	case l.MTU != 0 && l.MTU < MinMTU:
		return invalid("an MTU of %d is less than %d", l.MTU, MinMTU)
	case l.Hostname != "":
		return imprint.CheckDNSName("host name", l.Hostname)
	}
	return nil
}

// route returns the data of options 121 and 249: the server, on the link.
func (l Lease) route() []byte {
	b := append([]byte{32}, l.Server.AsSlice()...)
	return append(b, 0, 0, 0, 0)
}

func (l Lease) nameServers() (b []byte) {
	for _, a := range l.DNS {
		b = append(b, a.AsSlice()...)
	}
	return b
}

// seconds returns share eighths of the lease's time, as an option's data.
func (l Lease) seconds(share int64) []byte {
	return binary.BigEndian.AppendUint32(nil, uint32(int64(l.Time/time.Second)*share/8))
}
