package host_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"imprint"
	"imprint/internal/host"
	"imprint/internal/tap"
	"imprint/test/need"
	"imprint/test/netns"
)

// slowRecord is a world that puts an interface on record when it is told to.
type slowRecord struct {
	*world
	asked  chan imprint.NIC
	answer chan error
}

func (s *slowRecord) Report(ctx context.Context, r imprint.Report) error {
	if r.Kind == imprint.ReportNIC {
		s.asked <- *r.NIC
		if err := <-s.answer; err != nil {
			return err
		}
	}
	return s.world.Report(ctx, r)
}

// An interface is made while what belongs to its guest goes on record, and
// nobody is served on it before that is durable; if it fails, the interface goes.
func TestNobodyIsServedBeforeTheRecord(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	network, err := tap.Open(tap.Options{})
	need.Kernel(t, imprint.KindOf(err) != imprint.Unavailable, "nftables, netdev family")
	if err != nil {
		t.Fatal(err)
	}
	s := &slowRecord{world: newWorld(t), asked: make(chan imprint.NIC), answer: make(chan error)}
	_, stop := start(t, s.world, runDir(t), func(c *host.Config) {
		c.Control = s
		c.Links = func() (*tap.Network, error) { return network, nil }
	})
	defer stop()
	id := imprint.NewInstanceID()
	s.set(&imprint.Instance{
		ID: id, Generation: 1, Enrolment: imprint.Enrolment{State: imprint.Reserved},
		Spec: imprint.Spec{Name: "web-1", Tenant: imprint.DefaultTenant, Host: "hv1.example", Channels: []imprint.ChannelKind{imprint.LinkLocal}},
	})
	name := tap.NameOf(string(id))
	until := func(what string, happened func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !happened(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited in vain for %s", what)
			}
		}
	}
	ready := func() bool {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return false
		}
		routes, err := netlink.RouteList(link, netlink.FAMILY_V4) // the last that is done
		return err == nil && len(routes) > 0
	}

	<-s.asked
	until("the interface", ready)
	s.answer <- imprint.Errorf(imprint.Unavailable, "record", "interface", "the store is away")
	until("the end of an interface that is not on record", func() bool { _, err := netlink.LinkByName(name); return err != nil })

	nic := <-s.asked // again
	until("the interface", ready)
	g := netns.New(t)
	mac, err := net.ParseMAC(nic.MAC)
	if err != nil {
		t.Fatal(err)
	}
	g.Guest(t, name, "eth1", mac)
	g.Do(t, func() {
		link, err := netlink.LinkByName("eth1")
		if err == nil {
			err = netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: nic.IPv4.AsSlice(), Mask: net.CIDRMask(32, 32)}})
		}
		if err == nil {
			err = netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: tap.MetadataIPv4.AsSlice(), Mask: net.CIDRMask(32, 32)}})
		}
		if err != nil {
			t.Error(err)
		}
	})
	dial := func() (conn net.Conn, err error) {
		g.Do(t, func() { conn, err = net.DialTimeout("tcp4", "169.254.169.254:80", 10*time.Second) })
		return conn, err
	}
	if conn, err := dial(); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("before the record the guest got %v, %v", conn, err)
	}
	s.answer <- nil
	var conn net.Conn
	until("the metadata service", func() bool { conn, err = dial(); return err == nil })
	defer conn.Close()
	io.WriteString(conn, "GET /latest/meta-data/local-hostname HTTP/1.0\r\nHost: 169.254.169.254\r\n\r\n")
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if reply, err := io.ReadAll(conn); err != nil || !strings.HasSuffix(string(reply), "\nweb-1") && !strings.HasSuffix(string(reply), "\nweb-1\n") {
		t.Errorf("%q, %v", reply, err)
	}
}

// deafRecord is a world that puts the MAC given on record no sooner than the
// request for it is given up.
type deafRecord struct {
	*world
	mac   string
	asked chan struct{}
}

func (d *deafRecord) Report(ctx context.Context, r imprint.Report) error {
	if r.Kind == imprint.ReportNIC && r.NIC.MAC == d.mac {
		d.asked <- struct{}{}
		<-ctx.Done()
		return imprint.Errorf(imprint.Unavailable, "record", "interface", "%w", ctx.Err())
	}
	return d.world.Report(ctx, r)
}

// A host ends also while the MAC that an interface was asked for with goes on
// record.
func TestTheHostEndsBeforeTheRecord(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	network, err := tap.Open(tap.Options{})
	need.Kernel(t, imprint.KindOf(err) != imprint.Unavailable, "nftables, netdev family")
	if err != nil {
		t.Fatal(err)
	}
	const mac = "52:54:00:0a:0b:0c"
	d := &deafRecord{world: newWorld(t), mac: mac, asked: make(chan struct{})}
	_, stop := start(t, d.world, runDir(t), func(c *host.Config) {
		c.Control = d
		c.Links = func() (*tap.Network, error) { return network, nil }
		c.Adopt = func(*imprint.Instance) (string, error) { return "gnt*", nil }
	})
	id := d.reserve("web-1")
	d.change(id, func(i *imprint.Instance) { i.Spec.Channels = []imprint.ChannelKind{imprint.LinkLocal} })
	d.settle(t)

	made := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "gnt0"}, Mode: netlink.TUNTAP_MODE_TAP}
	if err := netlink.LinkAdd(made); err != nil {
		t.Fatal(err)
	}
	for _, f := range made.Fds {
		f.Close()
	}
	link, err := netlink.LinkByName("gnt0")
	if err == nil {
		err = netlink.LinkSetAlias(link, "imprint:"+string(id)+" "+mac)
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	<-d.asked
	stop() // if it waits for ever, the test's time runs out and shows for what
}
