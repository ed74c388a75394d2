package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"imprint"
)

var (
	guestMAC  = [6]byte{0x02, 0, 0, 0, 0, 1}
	guestAddr = netip.MustParseAddr("169.254.1.1")
	hostAddr  = netip.MustParseAddr("169.254.169.254")
	elsewhere = netip.MustParseAddr("192.0.2.9")
)

func testLease() Lease {
	return Lease{MAC: guestMAC, Address: guestAddr, Server: hostAddr, Hostname: "web-1.lab.internal", Time: time.Hour}
}

// ask builds what a client sends; change may be nil.
func ask(kind dhcpv4.MessageType, change func(*dhcpv4.DHCPv4)) []byte {
	p, err := dhcpv4.New(dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(guestMAC[:]), dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4}))
	if err != nil {
		panic(err)
	}
	if change != nil {
		change(p)
	}
	return p.ToBytes()
}

func requested(a netip.Addr) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptRequestedIPAddress(a.AsSlice())) }
}

func current(a netip.Addr) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) { p.ClientIPAddr = a.AsSlice() }
}

func from(server netip.Addr) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptServerIdentifier(server.AsSlice())) }
}

func all(changes ...func(*dhcpv4.DHCPv4)) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) {
		for _, c := range changes {
			c(p)
		}
	}
}

func responder(t testing.TB, l Lease) *Responder {
	t.Helper()
	r, err := New(l, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.now = func() time.Time { return time.Unix(0, 0) }
	r.limit.SetBurst(1 << 30)
	return r
}

// The client's states of RFC 2131 section 4.3.2, and its other messages.
func TestAnswers(t *testing.T) {
	const silent = dhcpv4.MessageTypeNone
	for name, c := range map[string]struct {
		packet []byte
		answer dhcpv4.MessageType
		to     netip.Addr
		event  EventKind
		reason Reason
	}{
		"discover":                         {ask(dhcpv4.MessageTypeDiscover, nil), dhcpv4.MessageTypeOffer, broadcast, Offered, ""},
		"discover that prefers another":    {ask(dhcpv4.MessageTypeDiscover, requested(elsewhere)), dhcpv4.MessageTypeOffer, broadcast, Offered, ""},
		"selecting":                        {ask(dhcpv4.MessageTypeRequest, all(requested(guestAddr), from(hostAddr))), dhcpv4.MessageTypeAck, broadcast, Acknowledged, ""},
		"selecting another address":        {ask(dhcpv4.MessageTypeRequest, all(requested(elsewhere), from(hostAddr))), dhcpv4.MessageTypeNak, broadcast, Refused, ""},
		"selecting another server":         {ask(dhcpv4.MessageTypeRequest, all(requested(guestAddr), from(elsewhere))), silent, netip.Addr{}, "", Server},
		"init-reboot":                      {ask(dhcpv4.MessageTypeRequest, requested(guestAddr)), dhcpv4.MessageTypeAck, broadcast, Acknowledged, ""},
		"init-reboot from another network": {ask(dhcpv4.MessageTypeRequest, requested(elsewhere)), dhcpv4.MessageTypeNak, broadcast, Refused, ""},
		"renewing":                         {ask(dhcpv4.MessageTypeRequest, current(guestAddr)), dhcpv4.MessageTypeAck, guestAddr, Acknowledged, ""},
		"renewing another address":         {ask(dhcpv4.MessageTypeRequest, current(elsewhere)), dhcpv4.MessageTypeNak, broadcast, Refused, ""},
		"request for nothing":              {ask(dhcpv4.MessageTypeRequest, nil), silent, netip.Addr{}, "", Malformed},
		"inform":                           {ask(dhcpv4.MessageTypeInform, current(guestAddr)), dhcpv4.MessageTypeAck, guestAddr, Informed, ""},
		"inform from another address":      {ask(dhcpv4.MessageTypeInform, current(elsewhere)), silent, netip.Addr{}, "", Address},
		"decline":                          {ask(dhcpv4.MessageTypeDecline, all(requested(guestAddr), from(hostAddr))), silent, netip.Addr{}, Declined, ""},
		"decline of another address":       {ask(dhcpv4.MessageTypeDecline, requested(elsewhere)), silent, netip.Addr{}, "", Address},
		"release":                          {ask(dhcpv4.MessageTypeRelease, all(current(guestAddr), from(hostAddr))), silent, netip.Addr{}, Released, ""},
		"release of another address":       {ask(dhcpv4.MessageTypeRelease, current(elsewhere)), silent, netip.Addr{}, "", Address},
		"an offer":                         {ask(dhcpv4.MessageTypeOffer, nil), silent, netip.Addr{}, "", NoRequest},
	} {
		r := responder(t, testLease())
		reply, to := r.handle(c.packet)
		if to != c.to && reply != nil {
			t.Errorf("%s: answered to %s, want %s", name, to, c.to)
		}
		got := silent
		if reply != nil {
			p, err := dhcpv4.FromBytes(reply)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got = p.MessageType()
		}
		if got != c.answer {
			t.Errorf("%s: answered %v, want %v", name, got, c.answer)
		}
		s := r.Stats()
		if c.reason != "" && s.Ignored[c.reason] != 1 || c.event != "" && s.Events[c.event] != 1 || len(s.Ignored)+len(s.Events) != 1 {
			t.Errorf("%s: counted %+v, want %q%q", name, s, c.event, c.reason)
		}
	}
}

// Whatever is wrong with a packet, there is no answer and a count.
func TestIgnores(t *testing.T) {
	good := ask(dhcpv4.MessageTypeDiscover, nil)
	set := func(at int, v ...byte) []byte {
		b := slices.Clone(good)
		copy(b[at:], v)
		return b
	}
	options := func(o ...byte) []byte { return append(slices.Clone(good[:minPacket]), o...) }
	for name, c := range map[string]struct {
		packet []byte
		reason Reason
	}{
		"nothing":                    {nil, Size},
		"half of a packet":           {good[:200], Size},
		"more than a frame":          {append(slices.Clone(good), make([]byte, 1500)...), Size},
		"an answer":                  {set(0, 2), NoRequest},
		"token ring":                 {set(1, 6), Hardware},
		"no hardware address":        {set(2, 0), Hardware},
		"a long hardware address":    {set(2, 255), Hardware},
		"a neighbour's MAC":          {set(33, 2), MAC},
		"hops":                       {set(3, 1), Relayed},
		"a relay":                    {set(24, 10, 0, 0, 1), Relayed},
		"another cookie":             {set(236, 1), Malformed},
		"BOOTP":                      {options(255), NoRequest},
		"no end":                     {options(53, 1, 1), Malformed},
		"an option beyond the end":   {options(53, 1, 1, 61, 200, 1, 2), Malformed},
		"two message types":          {options(53, 1, 1, 53, 1, 3, 255), Malformed},
		"a message type of two":      {options(53, 2, 1, 1, 255), Malformed},
		"half of an address":         {options(53, 1, 3, 50, 2, 169, 254, 255), Malformed},
		"two addresses":              {options(53, 1, 3, 50, 4, 169, 254, 1, 1, 50, 4, 169, 254, 1, 2, 255), Malformed},
		"overloaded":                 {options(53, 1, 1, 52, 1, 3, 255), Malformed},
		"an endless client ID":       {options(slices.Concat([]byte{53, 1, 1, 61, 200}, make([]byte, 200), []byte{255})...), Malformed},
		"a client ID in many pieces": {options(slices.Concat([]byte{53, 1, 1, 61, 100}, make([]byte, 100), []byte{61, 100}, make([]byte, 100), []byte{255})...), Malformed},
		"an unknown message type":    {options(53, 1, 99, 255), NoRequest},
	} {
		r := responder(t, testLease())
		if reply, _ := r.handle(c.packet); reply != nil {
			t.Errorf("%s: was answered", name)
		}
		if s := r.Stats(); s.Ignored[c.reason] != 1 || len(s.Events) != 0 {
			t.Errorf("%s: counted %+v, want %q", name, s, c.reason)
		}
	}
}

func TestOptions(t *testing.T) {
	l := testLease()
	offer := func(change func(*dhcpv4.DHCPv4)) *dhcpv4.DHCPv4 {
		t.Helper()
		reply, _ := responder(t, l).handle(ask(dhcpv4.MessageTypeDiscover, change))
		p, err := dhcpv4.FromBytes(reply)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	route := string([]byte{32, 169, 254, 169, 254, 0, 0, 0, 0})

	p := offer(func(p *dhcpv4.DHCPv4) {
		p.UpdateOption(dhcpv4.OptClientIdentifier([]byte("who")))
		p.UpdateOption(dhcpv4.OptParameterRequestList(dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer))
		p.SetBroadcast()
	})
	if !p.YourIPAddr.Equal(net.IP(guestAddr.AsSlice())) || p.TransactionID != [4]byte{1, 2, 3, 4} || string(p.ClientHWAddr) != string(guestMAC[:]) || !p.IsBroadcast() {
		t.Errorf("offer %s", p.Summary())
	}
	if p.Options.Has(dhcpv4.OptionRouter) || p.Options.Has(dhcpv4.OptionDomainNameServer) {
		t.Errorf("a guest that asks for a router and a name server gets one: %s", p.Summary())
	}
	if m := p.SubnetMask(); m.String() != "ffffffff" {
		t.Errorf("mask %s", m)
	}
	if got := string(p.GetOneOption(dhcpv4.OptionClasslessStaticRoute)); got != route || p.Options.Has(optMicrosoftRoute) {
		t.Errorf("routes % x", got)
	}
	if p.HostName() != l.Hostname || string(p.GetOneOption(dhcpv4.OptionClientIdentifier)) != "who" {
		t.Errorf("offer %s", p.Summary())
	}
	if p.IPAddressLeaseTime(0) != time.Hour || p.IPAddressRenewalTime(0) != 30*time.Minute || p.IPAddressRebindingTime(0) != 3150*time.Second {
		t.Errorf("times %s", p.Summary())
	}

	windows := offer(func(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptClassIdentifier("MSFT 5.0")) })
	if m := windows.SubnetMask(); m.String() != "ffff0000" || string(windows.GetOneOption(optMicrosoftRoute)) != route {
		t.Errorf("to Windows: %s", windows.Summary())
	}

	l.DNS, l.MTU = []netip.Addr{elsewhere}, 1400
	p = offer(nil)
	if mtu := p.GetOneOption(dhcpv4.OptionInterfaceMTU); len(p.DNS()) != 1 || len(mtu) != 2 || binary.BigEndian.Uint16(mtu) != 1400 {
		t.Errorf("configured: %s", p.Summary())
	}

	informed, _ := responder(t, l).handle(ask(dhcpv4.MessageTypeInform, current(guestAddr)))
	p, err := dhcpv4.FromBytes(informed)
	if err != nil || !p.YourIPAddr.IsUnspecified() || p.Options.Has(dhcpv4.OptionIPAddressLeaseTime) || p.HostName() == "" {
		t.Errorf("informed: %v, %v", p, err)
	}
}

func TestRateIsLimited(t *testing.T) {
	r, err := New(testLease(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(0, 0)
	r.now = func() time.Time { return now }
	flood := func() (answers int) {
		for range 1000 {
			if reply, _ := r.handle(ask(dhcpv4.MessageTypeDiscover, nil)); reply != nil {
				answers++
			}
		}
		return answers
	}
	if n := flood(); n != packetsAtOnce {
		t.Errorf("%d answers at once, want %d", n, packetsAtOnce)
	}
	now = now.Add(time.Second)
	if n := flood(); n != packetsPerSecond {
		t.Errorf("%d answers in a second, want %d", n, packetsPerSecond)
	}
	if s := r.Stats(); s.Ignored[Rate] != 2000-packetsAtOnce-packetsPerSecond {
		t.Errorf("counted %+v", s)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*Lease){
		"no MAC":            func(l *Lease) { l.MAC = [6]byte{} },
		"a group's MAC":     func(l *Lease) { l.MAC[0] = 1 },
		"no address":        func(l *Lease) { l.Address = netip.Addr{} },
		"IPv6":              func(l *Lease) { l.Address = netip.MustParseAddr("fe80::1") },
		"the server's":      func(l *Lease) { l.Address = l.Server },
		"no server":         func(l *Lease) { l.Server = netip.Addr{} },
		"a host name":       func(l *Lease) { l.Hostname = "$(reboot)" },
		"four name servers": func(l *Lease) { l.DNS = []netip.Addr{elsewhere, elsewhere, elsewhere, elsewhere} },
		"a second":          func(l *Lease) { l.Time = time.Second },
		"for ever":          func(l *Lease) { l.Time = MaxTime + 1 },
		"a small MTU":       func(l *Lease) { l.MTU = 100 },
	} {
		l := testLease()
		change(&l)
		if _, err := New(l, Options{}); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A guest may send what it wants: what it gets is an answer to itself that keeps
// what was promised, or nothing.
func FuzzAnswer(f *testing.F) {
	f.Add(ask(dhcpv4.MessageTypeDiscover, nil))
	f.Add(ask(dhcpv4.MessageTypeDiscover, func(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptClassIdentifier("MSFT 5.0")) }))
	f.Add(ask(dhcpv4.MessageTypeRequest, all(requested(guestAddr), from(hostAddr))))
	f.Add(ask(dhcpv4.MessageTypeRequest, requested(elsewhere)))
	f.Add(ask(dhcpv4.MessageTypeRequest, current(guestAddr)))
	f.Add(ask(dhcpv4.MessageTypeInform, current(guestAddr)))
	f.Add(ask(dhcpv4.MessageTypeDecline, requested(guestAddr)))
	f.Add(ask(dhcpv4.MessageTypeRelease, current(guestAddr)))
	f.Fuzz(func(t *testing.T, packet []byte) {
		r := responder(t, testLease())
		reply, to := r.handle(packet)
		if s := r.Stats(); len(s.Events)+len(s.Ignored) != 1 {
			t.Errorf("counted %+v", s)
		}
		if reply == nil {
			return
		}
		p, err := dhcpv4.FromBytes(reply)
		if err != nil {
			t.Fatal(err)
		}
		your, _ := netip.AddrFromSlice(p.YourIPAddr)
		switch {
		case to != broadcast && to != guestAddr,
			your != guestAddr && !your.IsUnspecified(),
			string(p.ClientHWAddr) != string(guestMAC[:]),
			p.Options.Has(dhcpv4.OptionRouter), p.Options.Has(dhcpv4.OptionDomainNameServer),
			!p.GatewayIPAddr.IsUnspecified(), p.OpCode != dhcpv4.OpcodeBootReply, len(reply) > maxReply:
			t.Errorf("answered %d bytes to %s: %s", len(reply), to, p.Summary())
		}
	})
}
