//go:build bench

package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/vishvananda/netlink"

	"imprint"
	"imprint/api"
	"imprint/internal/tap"
	"imprint/test/need"
	"imprint/test/netns"
)

// births is how many instances TestFirstByte creates, one after the other; they
// all stay.
const births = 200

// metadataAddress is where a guest asks, over an interface of its own.
const metadataAddress = "169.254.169.254:80"

// TestFirstByte measures how long an operator who has asked for an instance waits
// until its guest can read: from the moment that the call of the API is sent to
// the first byte of a reply on the instance's interface. The server is the real
// one with its store and log on the disk; the guest is a network namespace that
// is plugged into the tap as a virtual machine would be.
func TestFirstByte(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	network, err := tap.Open(tap.Options{})
	need.Kernel(t, imprint.KindOf(err) != imprint.Unavailable, "nftables, netdev family")
	if err != nil {
		t.Fatal(err)
	}
	network.Close()
	dir, err := os.MkdirTemp("", "ib") // a socket's path holds 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) }) // after the server has ended
	client := startDaemon(t, dir)
	var returned, attached, servable, first []time.Duration
	const warm = 5 // which open the store's files and do not count
	for n := range births + warm {
		guest := netns.New(t)
		name := imprint.InstanceName(fmt.Sprintf("first-%d", n))
		sent := time.Now()
		if _, err := client.Create(t.Context(), imprint.Spec{
			Name: name, Tenant: imprint.DefaultTenant, DNSNames: []string{string(name) + ".lab.internal"},
			Channels: []imprint.ChannelKind{imprint.LinkLocal}, UserData: "#cloud-config\n{}\n",
		}, nil, false); err != nil {
			t.Fatal(err)
		}
		answered := time.Since(sent)
		port, nic := awaitInterface(t, client, string(name))
		there := time.Since(sent)
		plugIn(t, guest, port, nic)
		plugged := time.Since(sent)
		readFirstByte(t, guest)
		read := time.Since(sent)
		if n >= warm {
			returned, attached, first = append(returned, answered), append(attached, there), append(first, read)
			servable = append(servable, there+read-plugged)
		}
	}
	fmt.Printf("\nfrom sending `imprint create` to the first byte for the guest, %d instances, %s\n\n", births, machine(t))
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "\tp50 ms\tp99 ms\tmax ms\t")
	for _, row := range []struct {
		what string
		took []time.Duration
	}{{"the call has returned", returned}, {"the interface is on record as served", attached}, {"first byte, had the guest been plugged in by then", servable}, {"first byte", first}} {
		q := quantilesOf(row.took)
		fmt.Fprintf(table, "%s\t%.1f\t%.1f\t%.1f\t\n", row.what, ms(q.p50), ms(q.p99), ms(q.max))
	}
	table.Flush()
}

// awaitInterface returns the name of the instance's interface once the server
// says that it is served, and what belongs to the guest on it.
func awaitInterface(t *testing.T, client *api.Client, ref string) (name string, nic *imprint.NIC) {
	t.Helper()
	const poll = 500 * time.Microsecond // part of what is measured
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(poll) {
		d, err := client.Describe(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range d.Ports {
			if p.Channel == imprint.LinkLocal && p.Connected && d.Instance.NIC != nil {
				return p.Interface, d.Instance.NIC
			}
		}
		if time.Now().After(end) {
			t.Fatalf("%s has no interface: ports %+v", ref, d.Ports)
		}
	}
}

// plugIn connects the guest to the host's tap, with the addresses on record: DHCP
// is the guest's time.
func plugIn(t *testing.T, guest *netns.Namespace, port string, nic *imprint.NIC) {
	t.Helper()
	mac, err := net.ParseMAC(nic.MAC)
	if err != nil {
		t.Fatal(err)
	}
	guest.Guest(t, port, "eth1", mac)
	awaitCarrier(t, port)
	guest.Do(t, func() {
		link, err := netlink.LinkByName("eth1")
		if err == nil {
			err = netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: nic.IPv4.AsSlice(), Mask: net.CIDRMask(32, 32)}})
		}
		if err == nil {
			err = netlink.RouteAdd(&netlink.Route{
				LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: net.IPv4(169, 254, 169, 254), Mask: net.CIDRMask(32, 32)},
			})
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// awaitCarrier returns when the kernel sends over the interface. What is sent in
// the moment between carrier and that is lost, and asked for again a second later.
func awaitCarrier(t *testing.T, name string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		link, err := netlink.LinkByName(name)
		if err == nil && link.Attrs().OperState == netlink.OperUp {
			return
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("%s has no carrier: %v", name, err)
		}
	}
}

// readFirstByte asks from the guest and returns when the reply has begun. A host
// that does not listen yet is asked again.
func readFirstByte(t *testing.T, guest *netns.Namespace) {
	t.Helper()
	var conn net.Conn
	var err error
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		guest.Do(t, func() { conn, err = net.DialTimeout("tcp4", metadataAddress, 5*time.Second) })
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /latest/meta-data/hostname HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	const status = "HTTP/1.1 200 "
	line := make([]byte, len(status))
	if _, err := io.ReadFull(conn, line); err != nil || string(line) != status {
		t.Fatalf("the reply begins with %q: %v", line, err)
	}
}
