//go:build vm

package vm_test

import (
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/demo/guest"
	"imprint/internal/platform/qemu"
)

// operatorKey is the SSH key of whoever operates the machines.
const operatorKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIClClga4j7TmeFRB7jhdbnbZbJawYCd+Iv3clQzbvOs operator@lab.internal"

// userHash is that of the password "imprint", and userAlice somebody who has it.
const (
	userHash  = "$6$saltsalt$o7uzWWVtT0VfP1CoBFwoCA6V4fgsro4ut97.Xtbe.aa7CD8Dg72kiXgXirW2ymD1DFPTAjitztLwomquPZXoL1"
	userAlice = `
  - name: alice
    gecos: Alice Example
    uid: 1042
    groups: [adm, builders]
    shell: /bin/bash
    admin: true
`
)

const stockManifest = `
name: stock-1
dnsNames: [stock-1.lab.internal]
sshKeys: ["` + operatorKey + `"]
users:` + userAlice + `    sshKeys: ["` + operatorKey + `"]
    hashedPassword: alice-hash
network:
  ethernets:
    eth0:
      macaddress: "52:54:00:12:34:56"
      addresses: [10.0.2.15/24]
      routes: [{to: default, via: 10.0.2.2}]
params:
  private: {db-password: {env: DB_PASSWORD}}
  public: {alice-hash: "` + userHash + `"}
userData: |
  #cloud-config
  runcmd:
    - |
      exec >/dev/ttyS0
      echo "guest: hostname $(hostname)"
      sed 's/^/guest: key /' /home/debian/.ssh/authorized_keys
      getent passwd alice | sed 's/^/guest: user /'
      echo "guest: groups $(id -Gn alice)"
      sed 's/^/guest: key of alice /' /home/alice/.ssh/authorized_keys
      stat -c 'guest: mode %a %U %n' /home/alice/.ssh/authorized_keys
      echo "guest: alice becomes $(su alice -c 'sudo -n id -un')"
      getent shadow alice | cut -d: -f1,2 | sed 's/^/guest: shadow /'
      echo "guest: address $(ip -4 -o addr show scope global | grep -o '10[.0-9]*/24')"
      grep -rqs "$(printf 'private-%s' canary)" /var/lib/cloud /var/log /run && echo "guest: the private value is in a file"
      echo "guest: user data ran"
  power_state: {mode: poweroff, delay: now, condition: true}
channels: [serial]
`

// Debian's own cloud-init, which knows nothing of imprint, is configured over
// ttyS1. It asks at every boot and waits for ever for an answer: imprint is down
// when it first asks, comes up, crashes between its two passes and comes back.
func TestStockCloudInit(t *testing.T) {
	needQEMU(t)
	kernel, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	disk := debianImage(t, kernel)
	initrd := switchRoot(t)
	s := newServer(t)
	private := canary("private")
	id := s.create(stockManifest, "DB_PASSWORD="+private)
	s.kill()

	v := boot(t, qemu.Machine{
		Type: qemu.PC, CPUs: 2, MemoryMiB: 1024, Kernel: initrd.Kernel, Initrd: initrd.Initrd,
		Append:   guest.Append + " systemd.show_status=1 " + guest.AppendDisk,
		Instance: id, Product: "SmartDC HVM", // by which cloud-init knows that the port speaks
		Disks:    []qemu.Disk{{Path: disk}},
		NICs:     []qemu.NIC{{MAC: "52:54:00:12:34:56"}},
		Channels: []qemu.Channel{{Kind: imprint.Serial2, Socket: s.socket(id, imprint.Serial2)}},
	}, 4*time.Minute)
	v.says("Is the host metadata service running?")
	s.start()
	v.says("Finished cloud-init-local") // the end of the first pass
	s.kill()
	s.start()

	console := v.poweredOff()
	expectConsole(t, console,
		"guest: hostname stock-1",
		"guest: key "+operatorKey,
		"guest: address 10.0.2.15/24",
		"guest: user data ran")
	expectAlice(t, console)
	if strings.Contains(console, "guest: the private value is in a file") || strings.Contains(console, private) {
		t.Error("cloud-init wrote the private value down")
	}
	if strings.Contains(console, "Invalid cloud-config") {
		t.Error("cloud-init finds fault with what it was given")
	}
	s.expectAbsent(private)
}

// expectAlice fails the test unless the machine made the user who was declared.
func expectAlice(t *testing.T, console string) {
	t.Helper()
	expectConsole(t, console,
		"guest: user alice:x:1042:1042:Alice Example:/home/alice:/bin/bash\n",
		"guest: groups alice adm builders\n",
		"guest: key of alice "+operatorKey+"\n",
		"guest: mode 600 alice /home/alice/.ssh/authorized_keys\n",
		"guest: alice becomes root\n",
		"guest: shadow alice:"+userHash+"\n")
}
