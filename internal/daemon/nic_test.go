package daemon_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"imprint"
	"imprint/api"
	"imprint/internal/tap"
	"imprint/test/netns"
)

// plugged is a guest's namespace at the end of its instance's interface, with the
// address that DHCP gave it.
type plugged struct {
	*netns.Namespace
	address netip.Addr
	port    int // the last that root spoke from: one cannot be used again at once
}

// interfaceOf waits for the instance's interface and returns its name.
func interfaceOf(t *testing.T, server *serving, ref string) (name string, d *api.Description) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		var err error
		if d, err = server.Describe(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(d.Ports, func(p api.Port) bool { return p.Channel == imprint.LinkLocal })
		if i >= 0 && d.Ports[i].Connected && d.Instance.NIC != nil {
			return d.Ports[i].Interface, d
		}
		if time.Now().After(end) {
			t.Fatalf("%s has no interface: ports %+v, NIC %+v", ref, d.Ports, d.Instance.NIC)
		}
	}
}

// plugIn configures a guest at the instance's interface by DHCP.
func plugIn(t *testing.T, server *serving, ref string) *plugged {
	t.Helper()
	name, d := interfaceOf(t, server, ref)
	mac, err := net.ParseMAC(d.Instance.NIC.MAC)
	if err != nil {
		t.Fatal(err)
	}
	g := &plugged{Namespace: netns.New(t)}
	g.Guest(t, name, "eth1", mac)
	g.Do(t, func() {
		client, err := nclient4.New("eth1", nclient4.WithTimeout(5*time.Second), nclient4.WithRetry(4))
		if err != nil {
			t.Error(err)
			return
		}
		defer client.Close()
		lease, err := client.Request(t.Context())
		if err != nil {
			t.Errorf("DHCP: %v", err)
			return
		}
		g.address, _ = netip.AddrFromSlice(lease.ACK.YourIPAddr.To4())
		if len(lease.ACK.Router()) != 0 || len(lease.ACK.DNS()) != 0 || lease.ACK.HostName() != ref {
			t.Errorf("the lease is %s", lease.ACK.Summary())
		}
		link, err := netlink.LinkByName("eth1")
		if err == nil {
			err = netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: g.address.AsSlice(), Mask: net.CIDRMask(32, 32)}})
		}
		for _, route := range lease.ACK.ClasslessStaticRoute() {
			if err == nil {
				err = netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: route.Dest})
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	if g.address != d.Instance.NIC.IPv4 {
		t.Errorf("DHCP gave %s, on record is %s", g.address, d.Instance.NIC.IPv4)
	}
	return g
}

// ask sends one request from the guest, as root or as any process, and returns
// status and body.
func (g *plugged) ask(t *testing.T, root bool, method, path, body string) (int, string) {
	t.Helper()
	status, _, text := g.request(t, root, method, path, body)
	return status, text
}

// request is ask that returns the reply's header too.
func (g *plugged) request(t *testing.T, root bool, method, path, body string) (int, http.Header, string) {
	t.Helper()
	dialer := &net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if root {
			c.Control(func(fd uintptr) { err = g.bindPrivileged(int(fd)) })
		}
		return err
	}}
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			g.Do(t, func() { conn, err = dialer.DialContext(ctx, "tcp4", address) })
			return conn, err
		},
	}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://169.254.169.254"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if method == "POST" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// bindPrivileged binds a socket to a port that only root has, as curl --local-port
// does: to the next that no agent in the guest has at present.
func (g *plugged) bindPrivileged(fd int) error {
	for range 1023 - 600 {
		if g.port--; g.port < 600 {
			g.port = 1023
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: g.port}); err != unix.EADDRINUSE {
			return err
		}
	}
	return unix.EADDRINUSE
}

// want fails the test unless the guest is answered with this status, and with a
// body that has text.
func (g *plugged) want(t *testing.T, root bool, path string, status int, text string) {
	t.Helper()
	if got, body := g.ask(t, root, "GET", path, ""); got != status || !strings.Contains(body, text) {
		t.Errorf("GET %s as root (%t): status %d, %q; want %d with %q", path, root, got, body, status, text)
	}
}

// TestLinkLocal runs a server whose guests have interfaces of their own: what
// stock software reads, who may read what, an enrolment with the host as its
// witness, and what of it is on the timeline.
func TestLinkLocal(t *testing.T) {
	if !isolated(t) {
		return
	}
	s := newSite(t)
	server := s.serve(t)
	spec := func(name imprint.InstanceName) imprint.Spec {
		return imprint.Spec{
			Name: name, DNSNames: []string{string(name) + ".lab.internal"}, Channels: []imprint.ChannelKind{imprint.LinkLocal},
			SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILjTEXSAp0dmCn0IX3qWvXN9vtVTcfGqeCFTDFzTS5k+ ann"}, UserData: "#cloud-config\n# of " + string(name) + "\n",
			Params: []imprint.Param{{Name: "motd", Visibility: imprint.Public, Value: "hello"}, {Name: "token", Visibility: imprint.Private}},
		}
	}
	created := map[string]*api.Created{}
	for _, name := range []imprint.InstanceName{"web-1", "web-2"} {
		c, err := server.Create(t.Context(), spec(name), map[string]imprint.Secret{"token": imprint.NewSecret([]byte("private of " + name))}, false)
		if err != nil {
			t.Fatal(err)
		}
		created[string(name)] = c
	}
	one, two := plugIn(t, server, "web-1"), plugIn(t, server, "web-2")
	if one.address == two.address {
		t.Fatalf("both guests have %s", one.address)
	}

	// What stock software reads, each guest its own.
	one.want(t, false, "/openstack/latest/meta_data.json", 200, `"name":"web-1"`)
	two.want(t, false, "/openstack/latest/meta_data.json", 200, `"name":"web-2"`)
	one.want(t, false, "/latest/meta-data/public-keys/0/openssh-key", 200, "ssh-ed25519 ")
	one.want(t, false, "/nocloud/meta-data", 200, "web-1")
	one.want(t, false, "/openstack/latest/user_data", 200, "# of web-1")
	two.want(t, false, "/latest/user-data", 200, "# of web-2")

	// Private values are for root, and user data for nobody once the guest is home.
	one.want(t, false, "/imprint/v1/param/token", 403, "")
	one.want(t, true, "/imprint/v1/param/token", 200, "private of web-1")
	one.want(t, false, "/imprint/v1/param/motd", 200, "hello")
	if status, body := two.ask(t, false, "POST", "/imprint/v1/phone-home", "hostname=web-2"); status/100 != 2 {
		t.Errorf("phone home: %d %s", status, body)
	}
	two.want(t, false, "/latest/user-data", 404, "")

	// A key over the same interface, for which the host vouches.
	enrolOver(t, one)
	one.want(t, true, "/imprint/v1/param/token", 200, "private of web-1")
	if status, _ := one.ask(t, true, "PUT", "/imprint/v1/ready", "ready"); status/100 != 2 {
		t.Errorf("ready: %d", status)
	}
	one.want(t, true, "/imprint/v1/param/token", 403, "")
	one.want(t, false, "/openstack/latest/user_data", 404, "")
	d, err := server.Describe(t.Context(), "web-1")
	if err != nil {
		t.Fatal(err)
	}
	if c := d.Instance.Enrolment.Claim; c == nil || c.Tier != imprint.TierHost || c.Channel != imprint.LinkLocal || d.Instance.Enrolment.State != imprint.Closed {
		t.Errorf("the enrolment is %+v", d.Instance.Enrolment)
	}
	timeline := ""
	for _, e := range d.Timeline {
		timeline += fmt.Sprintln(e.Kind, e.Detail["what"], e.Detail["param"], e.Detail["reason"], e.Detail["from"])
	}
	for _, line := range []string{
		"nic", "served openstack/latest/meta_data.json   any process, source port ", "refused   imprint/v1/param/token: read token: a private value is not sent in the clear over nic",
		"refused   imprint/v1/request: it needs a source port below 1024",
		"read  token", "claimed", "issued", "confirmed", "closed",
	} {
		if !strings.Contains("\n"+timeline, "\n"+line) {
			t.Errorf("the timeline lacks %q:\n%s", line, timeline)
		}
	}
	if strings.Contains(timeline, "private of") {
		t.Error("the timeline has a private value")
	}

	// The agent finds its payload there by itself, and needs no other channel.
	if _, err := server.Create(t.Context(), spec("web-3"), map[string]imprint.Secret{"token": imprint.NewSecret([]byte("private of web-3"))}, false); err != nil {
		t.Fatal(err)
	}
	root := agentIn(t, plugIn(t, server, "web-3"))
	if b, err := os.ReadFile(filepath.Join(root, "run/imprint/params/token")); string(b) != "private of web-3" {
		t.Errorf("the agent has the private value %q, %v", b, err)
	}
	if d, err = server.Describe(t.Context(), "web-3"); err != nil || d.Instance.Enrolment.State != imprint.Closed || d.Instance.Enrolment.Claim.Tier != imprint.TierHost {
		t.Errorf("after the agent the enrolment is %+v, %v", d.Instance.Enrolment, err)
	}

	// After a restart each has what it had, and what was deleted meanwhile goes.
	server.stop()
	server = s.serve(t)
	if _, d := interfaceOf(t, server, "web-2"); d.Instance.NIC.IPv4 != two.address {
		t.Errorf("web-2 had %s and has %s", two.address, d.Instance.NIC.IPv4)
	}
	two.want(t, false, "/latest/meta-data/local-hostname", 200, "web-2")
	two.want(t, false, "/latest/user-data", 404, "")
	if err := server.Delete(t.Context(), "web-1"); err != nil {
		t.Fatal(err)
	}
	gone := tap.NameOf(string(created["web-1"].Instance.ID))
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if _, err := net.InterfaceByName(gone); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the interface of a deleted instance stays")
		}
	}
}

// agentIn runs the agent in the guest, on files of its own, whose root it returns.
func agentIn(t *testing.T, g *plugged) (root string) {
	t.Helper()
	root = t.TempDir()
	run := filepath.Join(root, "run")
	if err := os.Mkdir(run, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", run, "tmpfs", 0, "size=1m"); err != nil { // where parameters may be
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(run, unix.MNT_DETACH) })
	if err := os.Symlink("/proc", filepath.Join(root, "proc")); err != nil {
		t.Fatal(err)
	}
	agentDoes(t, g, root, "run", "--once", "--wait", "10s")
	return root
}

// agentDoes runs a command of the agent in the guest and returns what it printed.
func agentDoes(t *testing.T, g *plugged, root string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], slices.Concat(args[:1], []string{"--root", root}, args[1:])...)
	cmd.Env = append(os.Environ(), childVariable+"="+childAgent)
	var said bytes.Buffer
	cmd.Stderr = &said
	var out []byte
	var err error
	g.Do(t, func() { out, err = cmd.Output() })
	if err != nil {
		t.Fatalf("the agent's %s: %v\n%s", args[0], err, &said)
	}
	return string(out)
}

// enrolOver takes the guest's key to a confirmed certificate over its interface.
func enrolOver(t *testing.T, g *plugged) {
	t.Helper()
	get := func(key string) []byte {
		status, body := g.ask(t, true, "GET", "/imprint/v1/"+key, "")
		if status != 200 {
			t.Fatalf("GET %s: %d %s", key, status, body)
		}
		return []byte(body)
	}
	put := func(key, value string) {
		if status, body := g.ask(t, true, "PUT", "/imprint/v1/"+key, value); status/100 != 2 {
			t.Fatalf("PUT %s: %d %s", key, status, body)
		}
	}
	var payload imprint.Payload
	if err := json.Unmarshal(get("payload"), &payload); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: payload.DNSNames}, key)
	if err != nil {
		t.Fatal(err)
	}
	request := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
	if status, _ := g.ask(t, false, "PUT", "/imprint/v1/request", request); status != 403 {
		t.Errorf("a request from any process: %d", status)
	}
	put("request", request)
	leaf, _ := pem.Decode(get("certificate"))
	if leaf == nil {
		t.Fatal("no certificate")
	}
	digest := sha256.Sum256(imprint.ConfirmationMessage(payload.Instance, payload.Generation, leaf.Bytes))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	put("confirmation", base64.StdEncoding.EncodeToString(signature))
}
