package dhcp

import (
	"bytes"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Limits of a request.
const (
	maxPacket   = 1500 // bytes: an Ethernet frame's worth, and more than any client sends
	minPacket   = 240  // the fixed fields and the cookie, RFC 2131 section 2
	maxClientID = 135  // type, IAID and the longest DUID: RFC 4361 section 6.1, RFC 8415 section 11.1
)

// Reason is why a packet was ignored.
type Reason string

// The reasons.
const (
	Size      Reason = "size"      // shorter than a DHCP packet or longer than a frame
	NoRequest Reason = "operation" // an answer, or a BOOTP request
	Hardware  Reason = "hardware"  // another hardware type or length than Ethernet's
	MAC       Reason = "mac"       // another MAC than the guest's
	Relayed   Reason = "relayed"   // with a relay's address or hops: nobody is between
	Malformed Reason = "malformed" // options that do not parse, are repeated, overloaded or of a wrong length
	Server    Reason = "server"    // meant for another server
	Address   Reason = "address"   // about an address that is not the guest's
	Rate      Reason = "rate"      // too many of them
)

// Reasons returns all reasons.
func Reasons() []Reason {
	return []Reason{Size, NoRequest, Hardware, MAC, Relayed, Malformed, Server, Address, Rate}
}

// request is what is used of a packet from the guest.
type request struct {
	kind      dhcpv4.MessageType
	packet    *dhcpv4.DHCPv4
	current   netip.Addr // ciaddr: the address that the client has
	requested netip.Addr // option 50; zero if there is none
	server    netip.Addr // option 54; zero if there is none
	clientID  []byte     // option 61
	windows   bool
}

// lengths are those of the options that are used, from one to another. The
// parser joins what is repeated (RFC 3396), so a repeated option has a wrong
// length as well.
var lengths = [...]struct {
	code     dhcpv4.OptionCode
	min, max int
}{
	{dhcpv4.OptionDHCPMessageType, 1, 1},
	{dhcpv4.OptionRequestedIPAddress, 4, 4},
	{dhcpv4.OptionServerIdentifier, 4, 4},
	{dhcpv4.OptionClientIdentifier, 2, maxClientID},
	{dhcpv4.OptionParameterRequestList, 1, 255},
	{dhcpv4.OptionClassIdentifier, 1, 255},
	{dhcpv4.OptionMaximumDHCPMessageSize, 2, 2},
}

// parse reads a packet of the guest that has the MAC given. reason is "" if it
// is a request.
func parse(b []byte, mac [6]byte) (r request, reason Reason) {
	if len(b) < minPacket || len(b) > maxPacket {
		return r, Size
	}
	// The fixed fields as they came: the parser mends a wrong length of the
	// hardware address.
	switch {
	case b[0] != byte(dhcpv4.OpcodeBootRequest):
		return r, NoRequest
	case b[1] != 1 || b[2] != 6:
		return r, Hardware
	case !bytes.Equal(b[28:34], mac[:]):
		return r, MAC
	case b[3] != 0 || !bytes.Equal(b[24:28], make([]byte, 4)):
		return r, Relayed
	}
	p, err := dhcpv4.FromBytes(b)
	if err != nil {
		return r, Malformed
	}
	for _, l := range lengths {
		if v, ok := p.Options[l.code.Code()]; ok && (len(v) < l.min || len(v) > l.max) {
			return r, Malformed
		}
	}
	// Overload puts options where names are; no client does, and it hides them from the checks above.
	if p.Options.Has(dhcpv4.OptionOptionOverload) {
		return r, Malformed
	}
	if !p.Options.Has(dhcpv4.OptionDHCPMessageType) {
		return r, NoRequest
	}
	r = request{
		kind: p.MessageType(), packet: p, clientID: p.GetOneOption(dhcpv4.OptionClientIdentifier),
		windows: bytes.HasPrefix(p.GetOneOption(dhcpv4.OptionClassIdentifier), []byte("MSFT")),
	}
	r.current, _ = netip.AddrFromSlice(p.ClientIPAddr)
	r.requested, _ = netip.AddrFromSlice(p.GetOneOption(dhcpv4.OptionRequestedIPAddress))
	r.server, _ = netip.AddrFromSlice(p.GetOneOption(dhcpv4.OptionServerIdentifier))
	return r, ""
}
