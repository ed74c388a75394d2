package daemon_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"imprint"
)

// droppedAt returns what was dropped at an instance's interface, by reason.
func droppedAt(t *testing.T, server *serving, ref string) map[string]uint64 {
	t.Helper()
	d, err := server.Describe(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Ports {
		if p.Channel == imprint.LinkLocal {
			return p.Dropped
		}
	}
	return nil
}

// TestForgedPacketsAreShown: whoever looks at an instance sees that its guest
// forges packets, and so does whoever watches the server.
func TestForgedPacketsAreShown(t *testing.T) {
	s, server, ok := onLinkLocal(t)
	if !ok {
		return
	}
	for _, name := range []imprint.InstanceName{"web-1", "web-2"} {
		if _, err := server.Create(t.Context(), imprint.Spec{Name: name, Channels: []imprint.ChannelKind{imprint.LinkLocal}}, nil, false); err != nil {
			t.Fatal(err)
		}
	}
	g := plugIn(t, server, "web-1")
	plugIn(t, server, "web-2")
	g.want(t, false, "/latest/meta-data/hostname", 200, "web-1") // the guest knows the host's MAC now
	const forged, packets = "forged source address", 30
	if n := droppedAt(t, server, "web-1")[forged]; n != 0 {
		t.Fatalf("%d packets were dropped before any was forged", n)
	}
	stranger := net.IPv4(192, 0, 2, 1)
	for sent := range uint64(packets) {
		g.Do(t, func() {
			link, err := netlink.LinkByName("eth1")
			if err == nil && sent == 0 {
				err = netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: stranger, Mask: net.CIDRMask(32, 32)}})
			}
			if err != nil {
				t.Fatal(err)
			}
			conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: stranger}, &net.UDPAddr{IP: net.IPv4(169, 254, 169, 254), Port: 80})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte("x")); err != nil {
				t.Error(err)
			}
		})
		for end := time.Now().Add(patience); droppedAt(t, server, "web-1")[forged] != sent+1; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("after %d forged packets the instance shows %v", sent+1, droppedAt(t, server, "web-1"))
			}
		}
	}
	onTimeline(t, server.Client, "web-1", "refused dropped packets: 1 "+forged+" from the interface")
	if out, err := s.cli("describe", "web-1"); err != nil || !strings.Contains(out, "30 "+forged) {
		t.Errorf("describe: %v\n%s", err, out)
	}
	if metrics := scrape(t, server); !strings.Contains(metrics, `imprint_nic_dropped_packets_total{reason="`+forged+`"} 30`) {
		t.Errorf("the metrics are\n%s", metrics)
	}
	events, err := server.Timeline(t.Context(), "web-1", 0)
	told := 0
	for _, e := range events {
		if strings.Contains(e.Detail["reason"], "dropped packets: ") {
			told++
		}
	}
	if err != nil || told > packets*2/3 {
		t.Errorf("%d events of %d packets, %v", told, packets, err)
	}
	if n := droppedAt(t, server, "web-2")[forged]; n != 0 {
		t.Errorf("%d packets are counted at the neighbour's", n)
	}
}
