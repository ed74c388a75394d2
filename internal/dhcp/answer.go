package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// Ports, RFC 2131 section 4.1.
const (
	ServerPort = 67
	clientPort = 68
)

// optMicrosoftRoute is option 249, option 121 before that had a number.
const optMicrosoftRoute = dhcpv4.GenericOptionCode(249)

// maxReply is the longest answer that every client takes: RFC 2131 section 2,
// less the headers of IP and UDP.
const maxReply = 576 - 20 - 8

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// event is what a request amounted to, and reply, unless it is nil, is the
// answer, which goes to the address to. reason is "" unless the request is ignored.
func (l Lease) answer(r request) (event Event, reply []byte, to netip.Addr, reason Reason) {
	event.Address = l.Address
	switch r.kind {
	case dhcpv4.MessageTypeDiscover:
		event.Kind = Offered
		return event, l.reply(r, dhcpv4.MessageTypeOffer), broadcast, ""

	case dhcpv4.MessageTypeRequest:
		// RFC 2131 section 4.3.2 tells the states apart.
		asked := r.requested
		switch {
		case r.server.IsValid() && r.server != l.Server:
			return event, nil, to, Server // SELECTING: another server's offer is taken
		case !r.requested.IsValid() && !r.current.IsUnspecified():
			asked = r.current // RENEWING, REBINDING
		case !r.requested.IsValid():
			return event, nil, to, Malformed
		}
		if asked != l.Address {
			event = Event{Kind: Refused, Address: asked}
			return event, l.refusal(r), broadcast, ""
		}
		event.Kind = Acknowledged
		if r.current == l.Address {
			return event, l.reply(r, dhcpv4.MessageTypeAck), l.Address, ""
		}
		return event, l.reply(r, dhcpv4.MessageTypeAck), broadcast, ""

	case dhcpv4.MessageTypeInform:
		if r.current != l.Address {
			return event, nil, to, Address
		}
		event.Kind = Informed
		return event, l.reply(r, dhcpv4.MessageTypeInform), l.Address, ""

	case dhcpv4.MessageTypeDecline, dhcpv4.MessageTypeRelease:
		about := r.requested
		event.Kind = Declined
		if r.kind == dhcpv4.MessageTypeRelease {
			event.Kind, about = Released, r.current
		}
		switch {
		case r.server.IsValid() && r.server != l.Server:
			return event, nil, to, Server
		case about != l.Address:
			return event, nil, to, Address
		}
		return event, nil, to, "" // nobody else gets the address, so there is nothing to do
	}
	return event, nil, to, NoRequest
}

// reply builds an offer or an acknowledgement; for an inform, the latter without
// an address and its times.
func (l Lease) reply(r request, kind dhcpv4.MessageType) []byte {
	o := dhcpv4.Options{}
	set := func(code dhcpv4.OptionCode, data []byte) { o[code.Code()] = data }

	your := l.Address
	if kind == dhcpv4.MessageTypeInform {
		kind, your = dhcpv4.MessageTypeAck, netip.IPv4Unspecified()
	} else {
		set(dhcpv4.OptionIPAddressLeaseTime, l.seconds(8))
		set(dhcpv4.OptionRenewTimeValue, l.seconds(4))
		set(dhcpv4.OptionRebindingTimeValue, l.seconds(7))
	}
	bits := 32
	if r.windows {
		bits = 16
	}
	set(dhcpv4.OptionSubnetMask, net.CIDRMask(bits, 32))
	set(dhcpv4.OptionClasslessStaticRoute, l.route())
	if r.windows || r.packet.IsOptionRequested(optMicrosoftRoute) {
		set(optMicrosoftRoute, l.route())
	}
	if len(l.DNS) > 0 {
		set(dhcpv4.OptionDomainNameServer, l.nameServers())
	}
	if l.MTU != 0 {
		set(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, l.MTU))
	}
	b := l.packet(r, kind, your, o)
	if l.Hostname == "" {
		return b
	}
	// Last, because it is what a guest can do without if there is no room.
	set(dhcpv4.OptionHostName, []byte(l.Hostname))
	if named := l.packet(r, kind, your, o); len(named) <= maxReply {
		return named
	}
	return b
}

// refusal tells the client that the address that it means is not its own.
func (l Lease) refusal(r request) []byte {
	r.packet.ClientIPAddr = net.IPv4zero // RFC 2131, table 3
	return l.packet(r, dhcpv4.MessageTypeNak, netip.IPv4Unspecified(), dhcpv4.Options{})
}

// packet adds to o what every answer has.
func (l Lease) packet(r request, kind dhcpv4.MessageType, your netip.Addr, o dhcpv4.Options) []byte {
	o[dhcpv4.OptionDHCPMessageType.Code()] = []byte{byte(kind)}
	o[dhcpv4.OptionServerIdentifier.Code()] = l.Server.AsSlice()
	if len(r.clientID) > 0 {
		o[dhcpv4.OptionClientIdentifier.Code()] = r.clientID // RFC 6842
	}
	p := dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        iana.HWTypeEthernet,
		ClientHWAddr:  l.MAC[:],
		TransactionID: r.packet.TransactionID,
		Flags:         r.packet.Flags & 0x8000,
		ClientIPAddr:  r.packet.ClientIPAddr,
		YourIPAddr:    your.AsSlice(),
		Options:       o,
	}
	return p.ToBytes()
}
