//go:build vm

package vm_test

import (
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/demo/guest"
	"imprint/test/need"
	"imprint/test/netns"
)

// libvirtConfig lets libvirtd do without what a container of a test lacks: users
// and groups of its own, cgroups, a security driver, D-Bus.
var libvirtConfig = map[string]string{
	"/etc/libvirt/libvirtd.conf": `unix_sock_group = "root"
auth_unix_rw = "none"
`,
	"/etc/libvirt/qemu.conf": `user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
`,
}

// libvirt is a libvirtd of the test's own.
type libvirt struct{ t *testing.T }

// startLibvirt starts libvirtd on empty directories, in the mount and network
// namespaces that the test is in, and ends it with the test.
func startLibvirt(t *testing.T) *libvirt {
	t.Helper()
	for _, dir := range []string{"/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
			t.Fatal(err)
		}
	}
	for file, content := range libvirtConfig {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "libvirtd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("libvirtd")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l := &libvirt{t}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("libvirtd's log:\n%s", b)
		}
	})
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if _, err := l.try("uri"); err == nil {
			return l
		} else if time.Now().After(end) {
			t.Fatalf("libvirtd does not answer: %v", err)
		}
	}
}

func (l *libvirt) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", "qemu:///system"}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("virsh %s: %w\n%s", args[0], err, out)
	}
	return string(out), nil
}

func (l *libvirt) virsh(args ...string) string {
	l.t.Helper()
	out, err := l.try(args...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// run boots a domain that has the interface until it is off, and returns its
// console.
func (l *libvirt) run(name string, img guest.Image, nic string) string {
	l.t.Helper()
	console := filepath.Join(l.t.TempDir(), "console")
	text := func(s string) string {
		var b strings.Builder
		xml.EscapeText(&b, []byte(s))
		return b.String()
	}
	file := filepath.Join(l.t.TempDir(), "domain.xml")
	domain := fmt.Sprintf(`<domain type='qemu'>
  <name>%s</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>%s</kernel><initrd>%s</initrd><cmdline>%s</cmdline></os>
  <features><acpi/></features><cpu mode='maximum'/>
  <on_reboot>destroy</on_reboot>
  <devices>
    <serial type='file'><source path='%s'/><target port='0'/></serial>
    %s
  </devices>
</domain>`, name, text(img.Kernel), text(img.Initrd), text(guest.Append), text(console), nic)
	if err := os.WriteFile(file, []byte(domain), 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.virsh("create", file)
	l.t.Cleanup(func() { l.try("destroy", name) })
	begin := time.Now()
	read := func() string {
		b, _ := os.ReadFile(console)
		return strings.ReplaceAll(string(b), "\r", "")
	}
	l.t.Cleanup(func() {
		if l.t.Failed() {
			l.t.Logf("the console of %s:\n%s", name, read())
		}
	})
	for end := begin.Add(stockLimit); ; time.Sleep(100 * time.Millisecond) {
		if _, err := l.try("domid", name); err != nil { // what was created goes when it is off
			l.t.Logf("%s ran for %.1f s", name, time.Since(begin).Seconds())
			return read()
		}
		if time.Now().After(end) {
			l.t.Fatalf("%s runs for longer than %s", name, stockLimit)
		}
	}
}

// TestLibvirt boots machines from what "imprint nic libvirt" prints: one on a tap
// of imprint's, and one, twice, on a tap that libvirt makes and imprint adopts.
func TestLibvirt(t *testing.T) {
	needQEMU(t)
	need.Program(t, "libvirtd", "libvirt-daemon")
	need.Program(t, "virsh", "libvirt-clients")
	need.File(t, "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so", "libvirt-daemon-driver-qemu")
	if _, err := guest.FetchKernel(t.Context(), cache); err != nil { // while there is a network
		t.Fatal(err)
	}
	if !netns.IsolateWith(t, func(cmd *exec.Cmd) { cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNS }) {
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "server.yaml")
	if err := os.WriteFile(config, []byte("adopt: [{interface: \"vnet*\", instance: adopted-1}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, "--config", config)
	l := startLibvirt(t)
	img := image(t, script(t, "nic.sh"), "virtio_net", "af_packet")
	for _, name := range []string{"own-1", "adopted-1"} {
		private := canary("private")
		s.create(fmt.Sprintf("name: %s\ndnsNames: [%[1]s.lab.internal]\nchannels: [nic]\nparams: {private: {db-password: {env: DB_PASSWORD}}}\n", name), "DB_PASSWORD="+private)
		nic := s.imprint(nil, "nic", "libvirt", name)
		if managed := !strings.Contains(nic, "managed='no'"); managed != (name == "adopted-1") {
			t.Errorf("for %s it prints\n%s", name, nic)
		}
		console := l.run(name, img, nic)
		d := s.describe(name)
		expectConsole(t, console, "guest: MAC "+d.Instance.NIC.MAC, fmt.Sprintf("guest: address %s\n", d.Instance.NIC.IPv4),
			"guest: name "+name, "guest: parameter "+private)
		expectInOrder(t, d, imprint.EventReserved, imprint.EventNIC, imprint.EventClaimed, imprint.EventIssued, imprint.EventConfirmed, imprint.EventClosed)
		if c := d.Instance.Enrolment.Claim; c == nil || c.Tier != imprint.TierHost || c.Channel != imprint.LinkLocal {
			t.Errorf("%s: claim %+v; want tier 3 over its interface", name, c)
		}
	}

	// Its next start gives libvirt's tap another name and index, and imprint finds it.
	s.imprint(nil, "rebirth", "adopted-1")
	console := l.run("adopted-1", img, s.imprint(nil, "nic", "libvirt", "adopted-1"))
	expectConsole(t, console, "guest: name adopted-1")
	if d := s.describe("adopted-1"); d.Instance.Generation != 2 || d.Instance.Enrolment.State != imprint.Closed {
		t.Errorf("after its second start it is %+v", d.Instance.Enrolment)
	}
}
