package daemon_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"imprint"
	"imprint/internal/daemon"
	"imprint/test/need"
	"imprint/test/netns"
)

// TestNameServers asks as busybox does: a guest is told the name servers that the
// configuration of its own host lists, none without one, and never a default route.
func TestNameServers(t *testing.T) {
	if !isolated(t) {
		return
	}
	s := newSite(t)
	s.withHosts(t)
	server := s.serve(t)
	create := func(name imprint.InstanceName, host imprint.HostName) {
		t.Helper()
		spec := imprint.Spec{Name: name, Host: host, DNSNames: []string{string(name) + ".lab.internal"}, Channels: []imprint.ChannelKind{imprint.LinkLocal}}
		if _, err := server.Create(t.Context(), spec, nil, false); err != nil {
			t.Fatal(err)
		}
	}
	told := func(where, ref, dns string) {
		t.Helper()
		t.Run(where, func(t *testing.T) { // the guest unplugs itself at the end: an interface has one
			want := "router= staticroutes=169.254.169.254/32 0.0.0.0 dns=" + dns + "\n"
			if got := udhcpc(t, server, ref); got != want {
				t.Errorf("%q; want %q", got, want)
			}
		})
	}

	// One after the other has interfaces on this machine.
	create("web-2", hypervisorName)
	h := s.hypervisor(t)
	h.config = write(t, t.TempDir(), "host.yaml", "dns: [203.0.113.53]\n")
	h.start(t, s.joinFile(t, hypervisorName))
	told("on a hypervisor", "web-2", "203.0.113.53")
	h.process.kill(syscall.SIGTERM)

	create("web-1", "")
	told("without a configuration", "web-1", "")
	server.stop()
	s.config.DNS = []string{"192.0.2.53", "198.51.100.53"}
	server = s.serve(t)
	told("on the server", "web-1", "192.0.2.53 198.51.100.53")
}

// udhcpc returns what a guest at the instance's interface is told.
func udhcpc(t *testing.T, server *serving, ref string) string {
	t.Helper()
	busybox := need.Program(t, "busybox", "busybox-static")
	name, d := interfaceOf(t, server, ref)
	mac, err := net.ParseMAC(d.Instance.NIC.MAC)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script, told := filepath.Join(dir, "script"), filepath.Join(dir, "told")
	const text = "#!/bin/sh\n[ $1 != bound ] || echo \"router=$router staticroutes=$staticroutes dns=$dns\" > $TOLD\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	g := netns.New(t)
	g.Guest(t, name, "eth1", mac)
	cmd := exec.CommandContext(t.Context(), busybox, "udhcpc", "-f", "-q", "-n", "-i", "eth1", "-s", script)
	cmd.Env = append(os.Environ(), "TOLD="+told)
	g.Do(t, func() {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("udhcpc: %v\n%s", err, out)
		}
	})
	b, err := os.ReadFile(told)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Name servers of which no guest can be told, or that none could reach, are
// refused, in the configuration of a server and of a hypervisor alike.
func TestNameServersAreChecked(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ text, problem string }{
		{`[192.0.2.53, 198.51.100.53, 203.0.113.53]`, ""},
		{`[]`, ""},
		{`[10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4]`, "check dns: 4 name servers are listed; guests are told 3 at most"},
		{`["2001:db8::53"]`, `check dns[0]: "2001:db8::53" is not an IPv4 address such as 192.0.2.53`},
		{`[10.0.0.1, 10.0.0.1]`, "check dns[1]: 10.0.0.1 is there already"},
		{`[0.0.0.0]`, "check dns[0]: a guest reaches no server at 0.0.0.0"},
		{`[127.0.0.53]`, "check dns[0]: a guest reaches no server at 127.0.0.53"},
		{`[224.0.0.251]`, "check dns[0]: a guest reaches no server at 224.0.0.251"},
		{`[255.255.255.255]`, "check dns[0]: a guest reaches no server at 255.255.255.255"},
		{`[169.254.169.254]`, "check dns[0]: 169.254.169.254 is link-local, and over its link-local interface a guest reaches only its metadata"},
		{`[resolver.lab.internal]`, `check dns[0]: "resolver.lab.internal" is not an IPv4 address`},
		{`[""]`, `check dns[0]: "" is not an IPv4 address`},
	} {
		path := write(t, t.TempDir(), "imprint.yaml", "dns: "+test.text+"\n")
		for role, read := range map[string]func() error{
			"serve": func() error {
				c, err := daemon.ReadConfig(path)
				if err == nil {
					_, err = c.Check()
				}
				return err
			},
			"host": func() error {
				c, err := daemon.ReadHostConfig(path)
				if err == nil {
					_, err = c.Check()
				}
				return err
			},
		} {
			switch err := read(); {
			case test.problem == "" && err != nil:
				t.Errorf("%s, dns: %s: %v", role, test.text, err)
			case test.problem != "" && (imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), test.problem)):
				t.Errorf("%s, dns: %s: %v; want %s", role, test.text, err, test.problem)
			}
		}
	}
}
