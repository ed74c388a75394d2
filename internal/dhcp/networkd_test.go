package dhcp_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"imprint/internal/dhcp"
	"imprint/test/need"
	"imprint/test/netns"
)

// networkd runs systemd-networkd for the guest's interface, alone in a mount
// namespace: a /run of its own, and a read-only /sys, by which it knows that
// there is no udev to wait for.
const networkd = `set -e
mount -t tmpfs tmpfs /run
mount -t sysfs -o ro sysfs /sys
mkdir -p /run/systemd/network /run/systemd/netif
printf '[Match]\nName=eth1\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' > /run/systemd/network/eth1.network
chown -R systemd-network /run/systemd/netif
exec /lib/systemd/systemd-networkd`

func TestNetworkd(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	need.File(t, "/lib/systemd/systemd-networkd", "systemd")
	w := newWorld(t)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	defer func() {
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("systemd-networkd:\n%s", text)
		}
	}()
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--uts", "sh", "-c", networkd)
	cmd.Env = append(os.Environ(), "SYSTEMD_LOG_TARGET=console", "SYSTEMD_LOG_LEVEL=debug")
	cmd.Stdout, cmd.Stderr = log, log
	w.start(t, cmd)
	w.expect(t, dhcp.Offered, dhcp.Acknowledged)
	waitForRoute(t, w)
	w.configured(t)
}
