//go:build vm

package vm_test

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"imprint"
	"imprint/demo/guest"
	"imprint/internal/platform/qemu"
	"imprint/test/need"
	"imprint/test/netns"
)

// The agent enrols with what QEMU's firmware says, of which nothing is on QEMU's
// command line, for all users of the host to read.
func TestBirthFromFirmware(t *testing.T) {
	needQEMU(t)
	img := image(t, script(t, "firmware.sh"), "virtio_net", "qemu_fw_cfg")
	if !netns.Isolate(t) { // one of the machines has an interface, on the host's side alone
		return
	}
	s := newServer(t, "--check-in", freeAddress(t))
	dir := t.TempDir()
	write := func(name, carrier string) string {
		s.create(fmt.Sprintf("name: %s\ndnsNames: [%[1]s.lab.internal]\nchannels: [est]\n", name))
		out := filepath.Join(dir, name)
		s.imprint(nil, "media", name, "--dialect", "native", "--carrier", carrier, "--out", out)
		return out
	}
	fwCfg, strings11 := write("fw-1", "fw-cfg"), write("smbios-1", "smbios")
	var secrets []string
	for _, payload := range []string{
		read(t, filepath.Join(fwCfg, "org.imprint/payload")),
		s.imprint(nil, "media", "inspect", strings11, "--print", "org.imprint/payload"),
	} {
		p, err := imprint.DecodePayload([]byte(payload))
		if err != nil || p.Token == "" {
			t.Fatalf("no token in %q: %v", payload, err)
		}
		secrets = append(secrets, p.Token, base64.StdEncoding.EncodeToString([]byte(payload))[:60])
	}

	id := s.create("name: stock-1\nchannels: [nic]\n")
	m := enrolling(s, id, img)
	m.System = filepath.Join(dir, "system")
	s.imprint(nil, "media", "stock-1", "--dialect", "nocloud-net", "--carrier", "smbios-system", "--out", m.System)
	var stock qemu.Machine
	if err := stock.LookLike(qemu.NoCloud); err != nil {
		t.Fatal(err)
	}
	m.NICs = []qemu.NIC{{Open: true}}
	m.ReadConfig, m.OEMStrings = filepath.Join(fwCfg, "qemu.conf"), strings11
	v := boot(t, m, 60*time.Second)
	line := commandLineOfQEMU(t)
	if !strings.Contains(line, m.ReadConfig) || !strings.Contains(line, strings11) {
		t.Errorf("QEMU's command line is %q", line)
	}
	for _, secret := range secrets {
		if strings.Contains(line, secret) {
			t.Errorf("%q is on QEMU's command line", secret)
		}
	}
	console := v.poweredOff()
	for _, name := range []string{"fw-1", "smbios-1"} {
		expectByToken(t, s.describe(name))
	}
	expectConsole(t, console,
		"guest: root reads /sys/firmware/qemu_fw_cfg/by_name/opt/org.imprint/payload/raw", "guest: root reads /sys/firmware/dmi/tables/DMI",
		"guest: by fw_cfg: machine        fw-1", "guest: by SMBIOS: machine        smbios-1")
	// As where QEMU itself is told what cloud-init looks for.
	expectConsole(t, console, "guest: serial "+stock.Serial+"\n", "guest: uuid "+string(id)+"\n", "guest: vendor QEMU\n")
	if n := strings.Count(console, "guest: ended with status 0"); n != 2 {
		t.Errorf("%d of 2 machines enrolled", n)
	}
	if strings.Contains(console, "nobody MAY") {
		t.Error("an unprivileged process read a payload")
	}
}

// A stock Debian, with neither agent nor cloud-init, takes its name, its operator's
// keys and its users from the firmware; one of them logs in.
func TestStockSystemdCredentials(t *testing.T) {
	needQEMU(t)
	kernel, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	disk, initrd := debianImage(t, kernel), switchRoot(t)
	public, private := sshKeyPair(t)
	// A shell reads it from a disk like any file.
	look, content := filepath.Join(t.TempDir(), "look"), bytes.Replace(script(t, "systemd/credentials.sh"), []byte("ALICES KEY\n"), private, 1)
	if err := os.WriteFile(look, append(content, bytes.Repeat([]byte("\n"), 4096)...)[:4096], 0o600); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, "--check-in", freeAddress(t))
	credentials := func(name, fields, carrier string) (imprint.InstanceID, string) {
		id, out := s.create(fmt.Sprintf("name: %s\ndnsNames: [%[1]s.lab.internal]\n%s", name, fields)), filepath.Join(t.TempDir(), name)
		s.imprint(nil, "media", name, "--dialect", "credentials", "--carrier", carrier, "--out", out)
		return id, out
	}
	// Of what is in both, systemd takes what is in fw_cfg: the name. Only the other has keys.
	id, fwCfg := credentials("named-1", "", "fw-cfg")
	_, smbios := credentials("keys-1", fmt.Sprintf("sshKeys: [%q]\nusers:%s    sshKeys: [%q]\n  - name: bob\n", operatorKey, userAlice, public), "smbios")
	console := boot(t, qemu.Machine{
		CPUs: 2, MemoryMiB: 768, Kernel: initrd.Kernel, Initrd: initrd.Initrd, Instance: id,
		Append: quietDisk + ` cloud-init=disabled systemd.run="/bin/sh /dev/vdb"`,
		Disks:  []qemu.Disk{{Path: disk}, {Path: look}}, ReadConfig: filepath.Join(fwCfg, "qemu.conf"), OEMStrings: smbios,
	}, stockLimit).poweredOff()
	expectConsole(t, console, "guest: name named-1.lab.internal\n", "guest: key "+operatorKey+"\n",
		"guest: user alice:x:1042:1042:Alice Example:/home/alice:/bin/bash\n", "guest: groups alice adm builders\n",
		"guest: drwx------ alice alice /home/alice\n", "guest: -rw------- alice alice /home/alice/.ssh/authorized_keys\n",
		"guest: alice logs in and becomes root\n", "guest: alice:!*\n", ":/home/bob:/bin/sh\n", "guest: bob becomes nobody\n",
		"guest: -r-------- root system.hostname\n", "guest: nothing of imprint's on the disk\n")
	if strings.Contains(console, "nobody MAY") {
		t.Error("an unprivileged process reads a credential")
	}
}

// A Debian 13 that has the agent's program, but no name and no address, gets these from
// the firmware, and a user with a password, and enrols, started by it: by the unit of the
// package, which nobody has enabled, or where there is none by the one that is in the
// firmware too. Enrolled, it has what no medium may: the password of another user.
func TestBareSystemEnrolsByCredentials(t *testing.T) {
	needQEMU(t)
	need.Program(t, "systemctl", "systemd")
	kernel, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	disk := madeImage(t, kernel, guest.Bare)
	initrd, err := guest.Build(t.Context(), guest.Config{
		Cache: cache, Out: filepath.Join(t.TempDir(), "initrd.cpio"), Script: script(t, "systemd/boot.sh"),
	})
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, "--check-in", freeAddress(t))
	files := map[string]string{
		"usr/sbin/imprint-agent":              read(t, program("imprint-agent")),
		"etc/imprint/enrolled.d/10-passwords": string(script(t, "systemd/passwords.sh")),
		"etc/imprint/enrolled.d/20-tell":      string(script(t, "systemd/tell.sh")),
		"etc/hosts":                           "10.0.2.2 imprint.internal\n",
	}
	bobHash := strings.Replace(userHash, "saltsalt", "bobsalts", 1)
	for name, unit := range map[string]string{"bare-1": "imprint-enrol.service", "packaged-1": "imprint-agent.service"} {
		t.Run(unit, func(t *testing.T) {
			id := s.create(fmt.Sprintf(`name: %s
dnsNames: [%[1]s.lab.internal]
channels: [est]
network: {ethernets: {lan0: {macaddress: "52:54:00:12:34:56", addresses: [10.0.2.15/24]}}}
users:
  - {name: alice, uid: 1042, hashedPassword: alice-hash}
  - {name: bob, uid: 1043, hashedPassword: bob-hash}
params:
  public: {alice-hash: "`+userHash+`"}
  private: {bob-hash: {env: BOB_HASH}}
`, name), "BOB_HASH="+bobHash)
			m := qemu.Machine{
				CPUs: 2, MemoryMiB: 768, Kernel: initrd.Kernel, Initrd: initrd.Initrd, Instance: id, Append: quietDisk,
				OEMStrings: filepath.Join(t.TempDir(), "strings"),
				NICs:       []qemu.NIC{{MAC: "52:54:00:12:34:56", Open: true}},
			}
			s.imprint(nil, "media", name, "--dialect", "credentials", "--carrier", "smbios", "--out", m.OEMStrings)
			has := maps.Clone(files)
			if unit == "imprint-agent.service" {
				has["usr/lib/systemd/system/"+unit] = read(t, "../../packaging/agent/imprint-agent.service")
			}
			m.Disks = []qemu.Disk{{Path: disk}, {Path: archive(t, has)}}
			console := boot(t, m, stockLimit).poweredOff()
			expectByToken(t, s.describe(name))
			expectConsole(t, console, "guest: "+name+".lab.internal is enrolled by "+unit+"\n", "SMBIOS string org.imprint:payload=: found a payload",
				"guest: before it is enrolled alice has "+userHash+"\n", "guest: before it is enrolled bob has !*\n", "guest: bob has "+bobHash+"\n")
		})
	}
}

// sshKeyPair returns a new key's line for authorized_keys, and its file.
func sshKeyPair(t *testing.T) (public string, private []byte) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	line, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(line))), pem.EncodeToMemory(block)
}

// archive returns a tar archive, as a disk, of programs and other files by path.
func archive(t *testing.T, files map[string]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for name, content := range files {
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))})
		if _, failed := io.WriteString(w, content); err != nil || failed != nil {
			t.Fatal(err, failed)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// commandLineOfQEMU returns the command line of the one QEMU that this process runs.
func commandLineOfQEMU(t *testing.T) string {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range processes {
		stat, _ := os.ReadFile(dir + "/stat")
		_, after, _ := strings.Cut(string(stat), ") ") // behind the name: state, parent (proc_pid_stat(5))
		fields := strings.Fields(after)
		if line, _ := os.ReadFile(dir + "/cmdline"); len(fields) > 1 && fields[1] == fmt.Sprint(os.Getpid()) && bytes.Contains(line, []byte(qemu.Program)) {
			return string(line)
		}
	}
	t.Fatal("no QEMU runs")
	return ""
}
