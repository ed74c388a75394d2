package tap

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"imprint"
)

// Link is one life of an interface: from when it is ready to when it vanishes.
type Link struct {
	NIC   NIC // with the name of the interface, also if it was found by a pattern
	Index int
	IPv6  bool // false where the kernel has no IPv6
}

// Networks are what [Link.Listen] can listen on here: "tcp4", and "tcp6" where
// the interface may have IPv6.
func (l *Link) Networks() []string {
	if l.IPv6 {
		return []string{"tcp4", "tcp6"}
	}
	return []string{"tcp4"}
}

// Listen listens on the metadata address of network, "tcp4" or "tcp6", at port.
// What it accepts came in by this interface: the kernel sees to it, whatever the
// packets say. It fails with kind [imprint.Conflict] if another program has the
// port, and with kind [imprint.Denied] without CAP_NET_BIND_SERVICE for a port
// below 1024.
func (l *Link) Listen(ctx context.Context, network string, port uint16) (net.Listener, error) {
	address := MetadataIPv4
	if network == "tcp6" {
		// Not the address itself, at which package net would look for its zone among
		// the names of all interfaces: what came to another is closed at once.
		address = netip.IPv6Unspecified()
	}
	config := net.ListenConfig{Control: l.bind()}
	// Package net listens for MPTCP as well, whose connections can be joined over
	// other interfaces (RFC 8684 section 3.2), and which has no hop limit.
	config.SetMultipathTCP(false)
	listener, err := config.Listen(ctx, network, netip.AddrPortFrom(address, port).String())
	if err != nil {
		return nil, l.listenFault("TCP port "+strconv.Itoa(int(port)), err)
	}
	if tcp, ok := listener.(*net.TCPListener); ok && network == "tcp6" {
		return &metadataListener{tcp}, nil
	}
	return listener, nil
}

// metadataListener accepts what came to [MetadataIPv6] and closes the rest, of
// which the filter lets none through.
type metadataListener struct{ *net.TCPListener }

func (l *metadataListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			return nil, err
		}
		if to, ok := conn.LocalAddr().(*net.TCPAddr); ok && to.IP.Equal(MetadataIPv6.AsSlice()) {
			return conn, nil
		}
		conn.Close()
	}
}

// ListenDHCP returns a socket that hears DHCP requests on this interface only,
// and may send to the broadcast address. It fails as [Link.Listen] does.
func (l *Link) ListenDHCP(ctx context.Context) (net.PacketConn, error) {
	config := net.ListenConfig{Control: l.bind(
		// Beside a DHCP server for other interfaces, which may be bound to all.
		option{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		// No checksum (RFC 768): a tap leaves them to the card, and old clients,
		// which read below the guest's UDP, then take every answer for damaged.
		option{unix.SOL_SOCKET, unix.SO_NO_CHECK, 1},
	)}
	conn, err := config.ListenPacket(ctx, "udp4", net.JoinHostPort("0.0.0.0", strconv.Itoa(dhcpServerPort)))
	if err != nil {
		return nil, l.listenFault("UDP port "+strconv.Itoa(dhcpServerPort), err)
	}
	return conn, nil
}

// SetHopLimit sets how many hops what is sent on conn may go, 1 to 255: with 1,
// an answer reaches the guest and nothing that the guest forwards to. conn is
// one that a listener of [Link.Listen] accepted, or such a listener: then it is
// for all that it accepts.
func SetHopLimit(conn syscall.Conn, hops int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return imprint.Errorf(imprint.Internal, "set", "hop limit", "%w", err)
	}
	cerr := raw.Control(func(fd uintptr) {
		var family int
		if family, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
			return
		}
		level, name := unix.IPPROTO_IP, unix.IP_TTL
		if family == unix.AF_INET6 {
			level, name = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
		}
		err = unix.SetsockoptInt(int(fd), level, name, hops)
	})
	if err := errors.Join(cerr, err); err != nil {
		return imprint.Errorf(imprint.Invalid, "set", "hop limit", "to %d: %w", hops, err)
	}
	return nil
}

type option struct{ level, name, value int }

// bind binds a socket to the interface before it has an address. The socket
// keeps the index: it hears nothing of a later interface with the same name.
func (l *Link) bind(more ...option) func(_, _ string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) {
			if err = unix.BindToDevice(int(fd), l.NIC.Name); err != nil {
				return
			}
			for _, o := range more {
				if err = unix.SetsockoptInt(int(fd), o.level, o.name, o.value); err != nil {
					return
				}
			}
		})
		return errors.Join(cerr, err)
	}
}

func (l *Link) listenFault(port string, err error) error {
	op := "listen on " + port + " of"
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return imprint.Errorf(imprint.Conflict, op, l.NIC.Name, "%w", err).
			WithHint("another program has that port on every address of this host; bind it to the addresses that it is for")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return imprint.Errorf(imprint.Denied, op, l.NIC.Name, "%w", err).
			WithHint("give imprint CAP_NET_BIND_SERVICE and CAP_NET_RAW")
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EADDRNOTAVAIL):
		return imprint.Errorf(imprint.Unavailable, op, l.NIC.Name, "the interface is gone: %w", err)
	}
	return imprint.Errorf(imprint.Internal, op, l.NIC.Name, "%w", err)
}
