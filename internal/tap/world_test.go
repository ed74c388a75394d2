package tap_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/tap"
	"imprint/test/attack"
	"imprint/test/need"
	"imprint/test/netns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what has to happen.
const patience = 10 * time.Second

// guest is a namespace at the end of a tap, and what the host serves it.
type guest struct {
	*netns.Namespace
	*tap.Attachment
	nic    tap.NIC
	heard  chan string // one line for each connection that the host accepted from it
	served chan *tap.Link
	link   *tap.Link // its first life, of a guest that joined
}

// nic returns the nth guest's interface.
func nic(n byte) tap.NIC {
	return tap.NIC{
		Name: tap.NameOf("guest " + strconv.Itoa(int(n))),
		MAC:  tap.MAC{0x02, 0, 0, 0, 0, n},
		IPv4: netip.AddrFrom4([4]byte{169, 254, 1, n}),
	}
}

// open opens a Network and closes it when the test ends.
func open(t *testing.T) *tap.Network {
	t.Helper()
	n, err := tap.Open(tap.Options{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	need.Kernel(t, imprint.KindOf(err) != imprint.Unavailable, "nftables, netdev family")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// join attaches the nth guest and plugs in a namespace that is configured as
// DHCP would have done it.
func join(t *testing.T, network *tap.Network, n byte) *guest {
	t.Helper()
	g := attach(t, network, nic(n))
	g.link = next(t, g.served, "life of the interface")
	g.Namespace = netns.New(t)
	g.Guest(t, g.nic.Name, "eth1", g.nic.MAC[:])
	g.Do(t, func() { configureGuest(t, g.nic.IPv4, tap.HostMAC) })
	return g
}

func configureGuest(t *testing.T, ip netip.Addr, host tap.MAC) {
	link, err := netlink.LinkByName("eth1")
	if err != nil {
		t.Error(err)
		return
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(32, 32)}}); err != nil {
		t.Error(err)
	}
	// Everything goes out by this interface, as an attacker would have it.
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}}); err != nil {
		t.Error(err)
	}
	// Known for good, so that the guest's own kernel never asks for them: see [wire.settle].
	for _, a := range []netip.Addr{tap.MetadataIPv4, attack.HostIPv4} {
		if err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: host[:],
		}); err != nil {
			t.Error(err)
		}
	}
}

// attach attaches nic and serves it: each connection is told who it came from.
func attach(t *testing.T, network *tap.Network, nic tap.NIC) *guest {
	t.Helper()
	g := &guest{nic: nic, heard: make(chan string, 64), served: make(chan *tap.Link, 16)}
	var err error
	if g.Attachment, err = network.Attach(nic, g.serve); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *guest) serve(ctx context.Context, l *tap.Link) error {
	var listeners []net.Listener
	for _, network := range l.Networks() {
		listener, err := l.Listen(ctx, network, tap.MetadataPort)
		if err != nil {
			return err
		}
		defer listener.Close()
		listeners = append(listeners, listener)
	}
	ended := make(chan struct{})
	for _, listener := range listeners {
		if err := tap.SetHopLimit(listener.(syscall.Conn), 1); err != nil {
			return err
		}
		go func() {
			defer func() { ended <- struct{}{} }()
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
				address, _, _ := strings.Cut(host, "%")
				g.heard <- address
				io.WriteString(conn, g.nic.Name)
				conn.Close()
			}
		}()
	}
	g.served <- l
	<-ctx.Done()
	for _, listener := range listeners {
		listener.Close()
		<-ended
	}
	return nil
}

// dial connects from the guest and returns what the host wrote.
func (g *guest) dial(t *testing.T, address string, limit time.Duration) (answer string, err error) {
	t.Helper()
	var conn net.Conn
	g.Do(t, func() { conn, err = net.DialTimeout("tcp", address, limit) })
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(conn)
	return string(b), err
}

// Where guests find the metadata service. The zone is the guest's own interface.
const (
	metadata4 = "169.254.169.254:80"
	metadata6 = "[fe80::a9fe:a9fe%eth1]:80"
)

// next waits for the next value of c.
func next[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s within %v", what, patience)
	}
	panic("unreachable")
}
