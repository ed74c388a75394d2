//go:build vm

package vm_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"aead.dev/minisign"

	"imprint"
	"imprint/demo/guest"
	"imprint/internal/install"
	"imprint/internal/platform/qemu"
	"imprint/test/need"
)

// installing is what the tests of imprint install share.
type installing struct {
	*server
	kernel string // of the helper VM
	work   string // a directory
}

func newInstalling(t *testing.T, args ...string) *installing {
	t.Helper()
	needQEMU(t)
	kernel, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	return &installing{newServer(t, args...), kernel.Image, t.TempDir()}
}

func (i *installing) path(name string) string { return filepath.Join(i.work, name) }

func (i *installing) write(name, content string) string {
	i.t.Helper()
	if err := os.WriteFile(i.path(name), []byte(content), 0o600); err != nil {
		i.t.Fatal(err)
	}
	return i.path(name)
}

// command is imprint install of web-1 to a disk, with temporary files of its own.
func (i *installing) command(disk string, more ...string) *exec.Cmd {
	tmp := i.path("tmp")
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		i.t.Fatal(err)
	}
	args := append([]string{"--socket", filepath.Join(i.run(), "imprint.sock"), "install", "web-1", "--disk", disk, "--journal", i.path("journal"),
		"--cache", i.path("images"), "--helper-kernel", i.kernel}, more...)
	cmd := exec.Command(program("imprint"), args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	return cmd
}

// install returns what imprint install said, and how it ended.
func (i *installing) install(disk string, more ...string) (string, error) {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(i.t.Context(), 4*time.Minute)
	defer cancel()
	cmd := i.command(disk, more...)
	go func() {
		<-ctx.Done()
		if cmd.Process != nil {
			cmd.Process.Kill()
		}
	}()
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	i.t.Logf("imprint install took %.1f s", time.Since(begin).Seconds())
	return string(out), err
}

// installImage is a distributor: it serves an image with a list of sums that it signed,
// and returns the URL of its directory and its public key.
func installImage(t *testing.T) (url, key string) {
	t.Helper()
	need.Root(t)
	for name, pkg := range map[string]string{"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "sfdisk": "fdisk", "mkfs.vfat": "dosfstools", "mcopy": "mtools", "qemu-img": "qemu-utils"} {
		need.Program(t, name, pkg)
	}
	image, err := guest.Installable(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	sums := []byte(hex.EncodeToString(sum[:]) + "  debian-13.qcow2\n")
	public, private, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := public.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"/debian-13.qcow2": content, "/SHA256SUMS": sums, "/SHA256SUMS.minisig": minisign.Sign(private, sums)}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, r.URL.Path, time.Unix(1e9, 0), strings.NewReader(string(b)))
	}))
	t.Cleanup(s.Close)
	return s.URL, string(text)
}

// A Debian image, as a distributor has it, becomes a machine with an identity: from one
// "imprint install" and one "imprint boot".
func TestInstallStory(t *testing.T) {
	i := newInstalling(t)
	if _, err := qemu.UEFI(); err != nil {
		need.Program(t, "OVMF", "ovmf")
	}
	url, key := installImage(t)
	secret := canary("secret")
	i.create(fmt.Sprintf(`
name: web-1
dnsNames: [web-1.lab.internal]
params: {secret: {join-key: {env: JOIN_KEY}}}
image:
  source: %s/debian-13.qcow2
  sums: %[1]s/SHA256SUMS
  signature: %[1]s/SHA256SUMS.minisig
  key: |
%s
`, url, "    "+strings.ReplaceAll(strings.TrimSpace(key), "\n", "\n    ")), "JOIN_KEY="+secret)
	hook := i.write("hook", string(script(t, "installed.sh")))
	motd := i.write("motd", "Personalized.\n")
	disk := i.path("web-1.raw")
	out, err := i.install(disk, "--size", "1G", "--inject", hook+":/etc/imprint/enrolled.d/10-tell:0755", "--inject", motd+":/etc/motd")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	expectConsole(t, out, "fetched", "written", "repaired", "Debian GNU/Linux 13", "personalized", "finished", "Start it: imprint boot web-1 --disk "+disk)
	if left, err := os.ReadDir(i.path("tmp")); err != nil || len(left) != 0 {
		t.Errorf("temporary files are left: %v, %v", left, err) // Ganeti 22
	}
	expectAbsent(t, i.path("journal"), secret)

	console := i.path("console")
	boot := exec.Command(program("imprint"), "--socket", filepath.Join(i.run(), "imprint.sock"), "boot", "web-1", "--disk", disk, "--journal", i.path("journal"),
		"--console", console, "--memory", "768", "--cpus", "2", "--timeout", "200s")
	begin := time.Now()
	if out, err := boot.CombinedOutput(); err != nil {
		b, _ := os.ReadFile(console)
		t.Fatalf("imprint boot: %v\n%s\n%s", err, out, b)
	}
	t.Logf("the machine ran for %.1f s", time.Since(begin).Seconds())
	said := strings.ReplaceAll(read(t, console), "\r", "")
	expectConsole(t, said, "guest: enrolled web-1", "guest: motd Personalized.", "guest: driver virtio_blk", "guest: unit enabled")
	if strings.Contains(said, "guest: failed") {
		t.Error("a unit of the guest failed")
	}
	for name, shared := range map[string]string{"root filesystem": guest.InstallableRoot, "machine": "0123456789abcdef0123456789abcdef", "boot volume": guest.InstallableESP} {
		if strings.Contains(said, shared) {
			t.Errorf("the %s has the identifier that every copy of the image has", name)
		}
	}
	var mib int
	if _, after, ok := strings.Cut(said, "guest: root MiB "); !ok {
		t.Error("the size of the root filesystem is not said")
	} else if fmt.Sscan(after, &mib); mib < 850 {
		t.Errorf("the root filesystem has %d MiB on a disk of 1 GiB", mib)
	}
	if t.Failed() {
		t.Logf("the guest's console:\n%s", said)
	}

	d := i.describe("web-1")
	expectInOrder(t, d, imprint.EventReserved, imprint.EventInstall, imprint.EventDelivered, imprint.EventClaimed, imprint.EventIssued, imprint.EventConfirmed, imprint.EventClosed)
	var steps []string
	for _, e := range d.Timeline {
		if e.Kind == imprint.EventInstall {
			steps = append(steps, e.Detail["step"])
		}
	}
	if got := strings.Join(steps, " "); got != "started fetched written repaired personalized finished" {
		t.Errorf("the timeline has the steps %s", got)
	}
	if in := d.Instance.Installation; in == nil || in.Step != imprint.InstallFinished || in.Digest == "" || in.Image != url+"/debian-13.qcow2" {
		t.Errorf("on record: %+v", in)
	}
	// What is installed and enrolled is not installed beside itself.
	if out, err := i.install(disk); err == nil || !strings.Contains(out, "imprint rebirth web-1") {
		t.Errorf("again: %v\n%s", err, out)
	}
}

// smallImage returns a raw image of a system that is no more than its name, and 48 MiB
// of data for a kill to come into.
func smallImage(t *testing.T, dir string) string {
	t.Helper()
	mke2fs := need.Program(t, "mke2fs", "e2fsprogs")
	root, image := filepath.Join(dir, "root"), filepath.Join(dir, "small.raw")
	data := make([]byte, 48<<20)
	rand.Read(data)
	for name, content := range map[string]string{
		"usr/lib/os-release": "PRETTY_NAME=\"Small\"\n", "etc/fstab": "/dev/vda / ext4 defaults 0 1\n", "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
		"etc/group": "root:x:0:\n", "usr/sbin/here": "", "usr/lib/systemd/system/here": "", "data": string(data),
	} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	command(t, mke2fs, "-q", "-F", "-t", "ext4", "-U", guest.InstallableRoot, "-d", root, image, "80M")
	return image
}

// quick are the arguments of an installation that takes seconds.
func quick(image string) []string {
	return []string{"--image", image, "--size", "128M", "--add-driver", "", "--keep-identity", "-o", "json"}
}

// tree returns the digest of every file of the filesystem on a disk, by debugfs.
func tree(t *testing.T, disk string) map[string]string {
	t.Helper()
	debugfs := need.Program(t, "debugfs", "e2fsprogs")
	out := filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, "e2fsck", "-f", "-n", disk)
	command(t, debugfs, "-R", "rdump / "+out, disk)
	files := map[string]string{}
	err := filepath.WalkDir(out, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(out, path)
		files[name] = e.Type().String()
		switch {
		case e.Type().IsRegular():
			files[name] += fmt.Sprintf(" %x", sha256.Sum256([]byte(read(t, path))))
		case e.Type() == fs.ModeSymlink:
			to, err := os.Readlink(path)
			files[name] += " " + to
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// The real installation is killed at the boundary of each step, while the image is
// written, and while the helper VM works on the disk. The VM goes with it, no machine is
// started from what is left, and the next run makes the same disk of it.
func TestInstallKilled(t *testing.T) {
	i := newInstalling(t)
	i.create("name: web-1\ndnsNames: [web-1.lab.internal]\n")
	args := quick(smallImage(t, i.work))
	whole := i.path("whole.raw")
	if out, err := i.install(whole, args...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := tree(t, whole)
	if want["usr/sbin/imprint-agent"] == "" || want["etc/systemd/system/multi-user.target.wants/imprint-agent.service"] == "" || want["data"] == "" {
		t.Fatalf("installed: %v", want)
	}
	for name, at := range map[string]func(install.Notice) bool{
		"before the fetch":      func(n install.Notice) bool { return n.Step == imprint.InstallFetched && n.State == install.Begun },
		"before the write":      func(n install.Notice) bool { return n.Step == imprint.InstallWritten && n.State == install.Begun },
		"while it is written":   func(n install.Notice) bool { return n.Step == imprint.InstallWritten && n.State == install.Going },
		"when it is written":    func(n install.Notice) bool { return n.Step == imprint.InstallWritten && n.State == install.Done },
		"while the VM starts":   func(n install.Notice) bool { return n.Step == imprint.InstallRepaired && n.State == install.Begun },
		"while it is repaired":  func(n install.Notice) bool { return n.State == install.Begun && n.Text == "repair" },
		"while it is unpacked":  func(n install.Notice) bool { return n.State == install.Begun && n.Text == "unpack imprint-agent" },
		"when it is all done":   func(n install.Notice) bool { return n.Step == imprint.InstallPersonalized && n.State == install.Done },
		"when it is told of it": func(n install.Notice) bool { return n.Step == imprint.InstallFinished && n.State == install.Done },
	} {
		t.Run(name, func(t *testing.T) {
			disk := i.path(strings.ReplaceAll(name, " ", "-") + ".raw")
			killed := killAt(t, i.command(disk, args...), at)
			if !killed {
				t.Fatal("the moment did not come")
			}
			found, err := (install.Journal{Dir: i.path("journal")}).Find(disk)
			if err != nil {
				t.Fatal(err)
			}
			if begun := strings.HasPrefix(name, "while"); begun && found.Unfinished == "" {
				t.Error("a machine may be started from the disk")
			}
			out, err := i.install(disk, args...)
			if err != nil {
				t.Fatalf("again: %v\n%s", err, out)
			}
			for path, is := range tree(t, disk) {
				if want[path] != is {
					t.Errorf("%s is %s, and %s where nothing was disturbed", path, is, want[path])
				}
			}
			if name == "when it is written" && !strings.Contains(out, `"step":"written","state":"skipped"`) {
				t.Errorf("what was complete was done again:\n%s", out)
			}
		})
	}
}

// killAt runs cmd, and kills it when it says what at is waiting for.
func killAt(t *testing.T, cmd *exec.Cmd, at func(install.Notice) bool) (killed bool) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var n install.Notice
		if json.Unmarshal(lines.Bytes(), &n) == nil && at(n) {
			cmd.Process.Signal(syscall.SIGKILL)
			killed = true
			break
		}
	}
	cmd.Wait()
	if !killed {
		t.Log(complaint.String())
	}
	return killed
}

// expectFailed fails the test unless the last installation failed for the reason, and
// said so everywhere.
func (i *installing) expectFailed(out string, err error, disk, reason string) {
	t := i.t
	t.Helper()
	if err == nil || !strings.Contains(out, reason) || !strings.Contains(out, disk+" is marked as failed, and nothing boots from it") {
		t.Fatalf("%v\n%s", err, out)
	}
	in := i.describe("web-1").Instance
	if in.Installation == nil || in.Installation.Step != imprint.InstallFailed || !strings.Contains(in.Installation.Detail, reason) {
		t.Errorf("on record: %+v", in.Installation)
	}
	if in.Enrolment.State != imprint.Reserved { // Ganeti 24
		t.Errorf("the instance is %s", in.Enrolment.State)
	}
	boot := exec.Command(program("imprint"), "--socket", filepath.Join(i.run(), "imprint.sock"), "boot", "web-1", "--disk", disk, "--journal", i.path("elsewhere"), "--print")
	if out, err := boot.CombinedOutput(); err == nil || !strings.Contains(string(out), "is no disk to start from") {
		t.Errorf("imprint boot: %v\n%s", err, out)
	}
}

// A package that would leave the root filesystem is refused by name, and the disk is
// marked. Without it the same command goes through (Ganeti 24: a retry is whole).
func TestInstallPackageRefused(t *testing.T) {
	i := newInstalling(t)
	i.create("name: web-1\ndnsNames: [web-1.lab.internal]\n")
	disk, args := i.path("disk.raw"), quick(smallImage(t, i.work))
	bad := archive(t, map[string]string{"etc/motd": "x", "../../etc/shadow": "root::::::::\n"})
	out, err := i.install(disk, append(args, "--package", bad)...)
	i.expectFailed(out, err, disk, "../../etc/shadow")
	if !strings.Contains(out, "unpack "+bad+": ") {
		t.Errorf("it does not say which package:\n%s", out)
	}
	if out, err := i.install(disk, args...); err != nil {
		t.Fatalf("without it: %v\n%s", err, out)
	}
	if tree(t, disk)["usr/sbin/imprint-agent"] == "" {
		t.Error("the agent is not in it")
	}
	if tree(t, disk)["etc/systemd/system/multi-user.target.wants/imprint-ssh-keys.service"] == "" {
		t.Error("nothing makes SSH host keys")
	}
}

// Ganeti takes a helper that powers itself off for one that succeeded. Here it is one
// that failed, whatever it did before.
func TestGaneti21HelperThatPowersOffHasFailed(t *testing.T) {
	i := newInstalling(t)
	i.create("name: web-1\ndnsNames: [web-1.lab.internal]\n")
	disk, args := i.path("disk.raw"), quick(smallImage(t, i.work))
	out, err := i.install(disk, append(args, "--helper-program", program("poweroff"))...)
	i.expectFailed(out, err, disk, "without a result")
	if left, err := os.ReadDir(i.path("tmp")); err != nil || len(left) != 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}

// Ganeti's reinstall takes another way than its first installation, and leaves out or
// repeats what that did. Here both are one, and end alike.
func TestGaneti20ReinstallIsAnInstallation(t *testing.T) {
	i := newInstalling(t)
	i.create("name: web-1\ndnsNames: [web-1.lab.internal]\n")
	disk, args := i.path("disk.raw"), quick(smallImage(t, i.work))
	steps := func() (list []string) {
		d := i.describe("web-1")
		for _, e := range d.Timeline {
			if e.Kind == imprint.EventInstall && e.Generation == d.Instance.Generation {
				list = append(list, e.Detail["step"])
			}
		}
		return list
	}
	if out, err := i.install(disk, args...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	first, before := steps(), tree(t, disk)
	i.imprint(nil, "rebirth", "web-1")
	out, err := i.install(disk, args...)
	if err != nil || !strings.Contains(out, "a finished installation, generation 1") {
		t.Fatalf("%v\n%s", err, out)
	}
	if second := steps(); strings.Join(first, " ") != strings.Join(second, " ") {
		t.Errorf("first %v, and then %v", first, second)
	}
	for path, is := range tree(t, disk) {
		if before[path] != is {
			t.Errorf("%s is %s, and was %s", path, is, before[path])
		}
	}
}

// The scripts of an OS definition complete an installation; one that fails makes it a
// failure, in which no value is shown, and the next run is whole.
func TestInstallScripts(t *testing.T) {
	definitions := t.TempDir()
	config := filepath.Join(t.TempDir(), "server.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "osPath: [%q]\n", definitions), 0o600); err != nil {
		t.Fatal(err)
	}
	i := newInstalling(t, "--config", config)
	for name, content := range map[string]string{
		"create": "#!/bin/sh\nset -e\nmkdir -p /tmp/m\nmount \"$DISK_0_PATH\" /tmp/m\n" +
			"[ \"$OSP_COLOUR\" != red ] || { echo \"no red, and no $(cat \"$OSP_PIN_FILE\" 2>/dev/null || echo \"$OSP_PIN\")\"; exit 3; }\n" +
			"echo \"$OSP_COLOUR for $INSTANCE_NAME\" >/tmp/m/etc/scripted\ntest -x /tmp/m/usr/sbin/imprint-agent && echo after the agent >>/tmp/m/etc/scripted\numount /tmp/m\n",
		"import": "#!/bin/sh\n", "export": "#!/bin/sh\n", "rename": "#!/bin/sh\n", "verify": "#!/bin/sh\n",
		"ganeti_api_version": "20\n", "parameters.list": "colour What it is painted in\npin What nobody sees\n",
	} {
		path := filepath.Join(definitions, "painter", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	pin := canary("pin")
	i.create("name: web-1\ndnsNames: [web-1.lab.internal]\nos: painter\nparams: {public: {colour: red}, private: {pin: {env: PIN}}}\n", "PIN="+pin)
	disk := i.path("disk.raw")
	args := append(quick(smallImage(t, i.work)), "--os-path", definitions)
	out, err := i.install(disk, append(args, "--log")...)
	i.expectFailed(out, err, disk, "run create for web-1: on the helper VM: it ended with status 3")
	if said := "no red, and no [redacted]"; !strings.Contains(out, said) || strings.Contains(i.describe("web-1").Instance.Installation.Detail, said) {
		t.Errorf("what the script says is for the terminal, and for nobody else:\n%s", out)
	}
	if strings.Contains(out, pin) {
		t.Error("the value is shown")
	}
	i.expectAbsent(pin)
	expectAbsent(t, i.path("journal"), pin)

	i.imprint(nil, "set", "web-1", "colour", "--file", i.write("colour", "blue"))
	if out, err := i.install(disk, args...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dump := i.path("scripted")
	command(t, "debugfs", "-R", "dump /etc/scripted "+dump, disk)
	if got := read(t, dump); got != "blue for web-1.lab.internal\nafter the agent\n" && got != "blue for web-1\nafter the agent\n" {
		t.Errorf("the script wrote %q", got)
	}
}
