package dhcp_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"imprint"
	"imprint/internal/dhcp"
	"imprint/internal/tap"
	"imprint/test/need"
	"imprint/test/netns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what has to happen.
const patience = 20 * time.Second

// world is a host that serves one guest, whose namespace has its interface and
// no address.
type world struct {
	*netns.Namespace
	nic       tap.NIC
	attached  *tap.Attachment
	responder *dhcp.Responder
	events    chan dhcp.Event
	last      dhcp.EventKind
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		Namespace: netns.New(t), events: make(chan dhcp.Event, 64),
		nic: tap.NIC{Name: "imp-test", MAC: tap.MAC{0x02, 0, 0, 0, 0, 1}, IPv4: netip.MustParseAddr("169.254.1.1")},
	}
	var err error
	w.responder, err = dhcp.New(
		dhcp.Lease{MAC: w.nic.MAC, Address: w.nic.IPv4, Server: tap.MetadataIPv4, Hostname: "web-1"},
		dhcp.Options{Observe: func(e dhcp.Event) { w.events <- e }})
	if err != nil {
		t.Fatal(err)
	}
	network, err := tap.Open(tap.Options{})
	need.Kernel(t, imprint.KindOf(err) != imprint.Unavailable, "nftables, netdev family")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	if w.attached, err = network.Attach(w.nic, w.serve); err != nil {
		t.Fatal(err)
	}
	w.Guest(t, w.nic.Name, "eth1", w.nic.MAC[:])
	return w
}

// serve answers DHCP, and says "metadata" to whoever connects to port 80.
func (w *world) serve(ctx context.Context, l *tap.Link) error {
	conn, err := l.ListenDHCP(ctx)
	if err != nil {
		return err
	}
	listener, err := l.Listen(ctx, "tcp4", tap.MetadataPort)
	if err != nil {
		conn.Close()
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "metadata")
			c.Close()
		}
	}()
	err = w.responder.Serve(ctx, conn)
	listener.Close()
	<-ended
	return err
}

// expect waits until the client did what kinds say, one after the other. A
// client may say a thing twice.
func (w *world) expect(t *testing.T, kinds ...dhcp.EventKind) {
	t.Helper()
	limit := time.After(patience)
	for len(kinds) > 0 {
		select {
		case e := <-w.events:
			switch {
			case e.Kind == kinds[0] && e.Address == w.nic.IPv4:
				w.last, kinds = kinds[0], kinds[1:]
			case e.Kind != w.last:
				t.Fatalf("the client %s %s; want %s", e.Kind, e.Address, kinds[0])
			}
		case <-limit:
			t.Fatalf("nothing was %s within %v; counted %+v", kinds[0], patience, w.responder.Stats())
		}
	}
}

// configured asserts that the guest has its address and the route to the
// metadata service, no other route, and reaches it.
func (w *world) configured(t *testing.T) {
	t.Helper()
	w.Do(t, func() {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		if err != nil {
			t.Error(err)
		}
		var found []string
		for _, r := range routes {
			found = append(found, r.Dst.String())
		}
		if len(found) != 1 || found[0] != "169.254.169.254/32" {
			t.Errorf("routes %v; want the one to the metadata service", found)
		}
		conn, err := net.DialTimeout("tcp", "169.254.169.254:80", patience)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		if local := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); local != w.nic.IPv4 {
			t.Errorf("speaks from %s", local)
		}
		if b, err := io.ReadAll(conn); err != nil || string(b) != "metadata" {
			t.Errorf("metadata: %q, %v", b, err)
		}
	})
	// Nothing that a stock client does looks like an attack.
	if drops, err := w.attached.Drops(); err != nil || drops.Forged()+drops.Port+drops.Other != 0 {
		t.Errorf("the client was counted %+v, %v", drops, err)
	}
}

// udhcpcScript does what the scripts of busybox's distributions do.
const udhcpcScript = `#!/bin/sh
echo "$1 ip=$ip mask=$mask router=$router dns=$dns hostname=$hostname staticroutes=$staticroutes lease=$lease" >&2
case $1 in
deconfig) ip addr flush dev $interface; ip link set $interface up ;;
bound)
	ip addr add $ip/$mask dev $interface
	set -- $staticroutes
	while [ $# -ge 2 ]; do
		if [ $2 = 0.0.0.0 ]; then ip route add $1 dev $interface; else ip route add $1 via $2; fi
		shift 2
	done ;;
esac
`

func TestUdhcpc(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	busybox := need.Program(t, "busybox", "busybox-static")
	need.Program(t, "ip", "iproute2")
	w := newWorld(t)
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte(udhcpcScript), 0o755); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd := exec.CommandContext(t.Context(), busybox, "udhcpc", "-f", "-R", "-n", "-i", "eth1", "-s", script)
	cmd.Stdout, cmd.Stderr = &out, &out
	w.start(t, cmd)
	w.expect(t, dhcp.Offered, dhcp.Acknowledged)
	waitForRoute(t, w)
	w.configured(t)
	cmd.Process.Signal(syscall.SIGUSR1) // renew
	w.expect(t, dhcp.Acknowledged)
	cmd.Process.Signal(syscall.SIGTERM) // with -R, release
	w.expect(t, dhcp.Released)
	cmd.Wait()
	if want := "bound ip=169.254.1.1 mask=32 router= dns= hostname=web-1 staticroutes=169.254.169.254/32 0.0.0.0 lease=604800\n"; !strings.Contains(out.String(), want) {
		t.Errorf("udhcpc was told:\n%s\nwant %s", out.String(), want)
	}
}

func (w *world) start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var err error
	w.Do(t, func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

// waitForRoute waits until the client's script has done its work, of which its
// last step is the route.
func waitForRoute(t *testing.T, w *world) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		n := 0
		w.Do(t, func() {
			routes, _ := netlink.RouteList(nil, netlink.FAMILY_V4)
			n = len(routes)
		})
		if n > 0 {
			return
		}
	}
	t.Fatalf("the client made no route within %v", patience)
}

// isc runs Debian's dhclient with its own scripts, which may change what they
// like in a mount namespace and under a host name of their own.
func (w *world) isc(t *testing.T, dir string, args ...string) {
	t.Helper()
	args = append([]string{"--mount", "--uts", "sh", "-c", `mount -t tmpfs tmpfs /run && exec dhclient "$@"`, "dhclient",
		"-pf", filepath.Join(dir, "pid"), "-lf", filepath.Join(dir, "leases"), "-v"}, append(args, "eth1")...)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", args...)
	log, err := os.Create(filepath.Join(dir, "log")) // a file: the daemon keeps it open
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	w.Do(t, func() { err = cmd.Run() })
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("dhclient: %v\n%s", err, text)
	}
}

// ephemeral is how cloud-init asks for metadata before the network is
// configured, with its own code: it gets a lease, makes what the lease says, by
// commands of its own and not dhclient's scripts, and takes it away again.
const ephemeral = `
import socket
from cloudinit import subp
from cloudinit.net.ephemeral import EphemeralDHCPv4
with EphemeralDHCPv4("eth1") as lease:
    print("lease", lease["fixed-address"], lease["subnet-mask"], lease["rfc3442-classless-static-routes"], lease.get("routers"))
    print("route", subp.subp(["ip", "-4", "route"]).stdout.strip())
    c = socket.create_connection(("169.254.169.254", 80), timeout=20)
    print("read", c.recv(100).decode(), "from", c.getsockname()[0])
print("left", subp.subp(["ip", "-4", "-o", "addr", "show", "eth1"]).stdout + subp.subp(["ip", "-4", "route"]).stdout, end=".")
`

func TestCloudInit(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	need.Program(t, "dhclient", "isc-dhcp-client")
	need.File(t, "/usr/lib/python3/dist-packages/cloudinit/net/ephemeral.py", "cloud-init")
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// It waits for dhclient to become a child of process 1, which therefore is its own; /sys has its interfaces.
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", `mount -t tmpfs tmpfs /run && mount -t sysfs sysfs /sys && exec /usr/bin/python3 -c "$1"`, "sh", ephemeral)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	w.start(t, cmd)
	w.expect(t, dhcp.Offered, dhcp.Acknowledged)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("cloud-init: %v\n%s", err, out.String())
	}
	const want = "lease 169.254.1.1 255.255.255.255 32,169,254,169,254,0,0,0,0 None\n" +
		"route 169.254.169.254 dev eth1 scope link\n" +
		"read metadata from 169.254.1.1\n" +
		"left ."
	if got := strings.ReplaceAll(out.String(), " \n", "\n"); got != want {
		t.Errorf("cloud-init says:\n%s\nwant:\n%s", got, want)
	}
	if drops, err := w.attached.Drops(); err != nil || drops.Forged()+drops.Port+drops.Other != 0 {
		t.Errorf("the client was counted %+v, %v", drops, err)
	}
}

func TestDhclient(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	need.Program(t, "dhclient", "isc-dhcp-client")
	need.File(t, "/etc/dhcp/dhclient-exit-hooks.d/rfc3442-classless-routes", "isc-dhcp-client")
	w := newWorld(t)
	dir := t.TempDir()
	w.isc(t, dir, "-1")
	w.expect(t, dhcp.Offered, dhcp.Acknowledged)
	w.configured(t)
	w.isc(t, dir, "-x") // stops, and keeps the lease
	w.isc(t, dir, "-1") // INIT-REBOOT
	w.expect(t, dhcp.Acknowledged)
	w.configured(t)
	w.isc(t, dir, "-r")
	w.expect(t, dhcp.Released)
}
