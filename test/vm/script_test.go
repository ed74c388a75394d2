//go:build vm

package vm_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"imprint"
	"imprint/demo/guest"
	"imprint/internal/helpervm"
	"imprint/internal/job"
	"imprint/internal/osdef"
	"imprint/test/need"
)

// scripts runs an OS definition's scripts in real helper VMs.
type scripts struct {
	*osdef.Runner
	mu   sync.Mutex
	said strings.Builder // guarded by mu
}

func newScripts(t *testing.T) *scripts {
	t.Helper()
	need.Root(t)
	s := &scripts{Runner: &osdef.Runner{Trust: osdef.Trust{Path: filepath.Join(t.TempDir(), "trusted-os")}, Scratch: t.TempDir(), Time: 2 * time.Minute}}
	s.Log = func(half osdef.Half, line string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		fmt.Fprintf(&s.said, "%s: %s\n", half, line)
	}
	s.VM = func(ctx context.Context, vm *osdef.VM) (*job.Result, error) {
		var disks []helpervm.Disk
		for _, d := range vm.Disks {
			disks = append(disks, helpervm.Disk{Path: d.Path, ReadOnly: d.ReadOnly})
		}
		c := helperVM(t, append(disks, helpervm.Disk{File: vm.Archive, ReadOnly: true})...)
		c.Network, c.Streams, c.TimeLimit = vm.Network, map[string]helpervm.Stream{}, 4*time.Minute
		for name, one := range vm.Streams {
			stream := helpervm.Stream{}
			if one.In != nil {
				stream.In = one.In
			}
			if one.Out != nil {
				stream.Out = one.Out
			}
			c.Streams[name] = stream
		}
		c.Log = func(l job.Log) { vm.Log(l.Line) }
		return helpervm.Run(ctx, c, vm.Job)
	}
	return s
}

func (s *scripts) output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said.String()
}

// definition writes an OS definition, for which exit 0 is what it does not say.
func definition(t *testing.T, files map[string]string) *osdef.Definition {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "demo")
	all := map[string]string{"ganeti_api_version": "20\n", "parameters.list": ""}
	for _, op := range []string{"create", "import", "export", "rename", "verify"} {
		all[op] = "#!/bin/sh\nexit 0\n"
	}
	for name, text := range files {
		all[name] = text
	}
	for name, text := range all {
		write(t, filepath.Join(dir, name), text)
		if strings.HasPrefix(text, "#!") {
			if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return found(t, dir)
}

func found(t *testing.T, dir string) *osdef.Definition {
	t.Helper()
	d, err := osdef.Find([]string{filepath.Dir(dir)}, filepath.Base(dir))
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Problems) > 0 {
		t.Fatal(d.Problems)
	}
	return d
}

func machine(params ...imprint.Param) *imprint.Instance {
	return &imprint.Instance{ID: "7c9f1c52-3b57-4a31-9d2e-0c6a5d0f7e11", Generation: 1, Spec: imprint.Spec{
		Name: "web-1", Tenant: imprint.DefaultTenant, DNSNames: []string{"web-1.lab.internal"}, Params: params,
	}}
}

func emptyDisk(t *testing.T, size int64) osdef.Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	write(t, path, "")
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return osdef.Disk{Path: path, Size: size, File: true}
}

// A script that nobody trusts makes a file system on the instance's disk and puts the
// parameters onto it, in the VM; nothing of it runs on this machine.
func TestUntrustedScriptInTheVM(t *testing.T) {
	t.Parallel()
	s := newScripts(t)
	d := definition(t, map[string]string{
		"parameters.list": "size x\nroot-password x\ndb-host x\n",
		"create": `#!/bin/bash
set -e
echo "$(id -u) as PID $$, $INSTANCE_NAME, $DISK_COUNT disk $DISK_0_PATH of $DISK_0_SIZE"
mke2fs -q -t ext4 "$DISK_0_PATH"
mount "$DISK_0_PATH" /tmp
echo "$OSP_SIZE $OSP_DB_HOST" > /tmp/params
cat "$OSP_ROOT_PASSWORD_FILE" > /tmp/secret
umount /tmp
test -z "$OSP_ROOT_PASSWORD"
echo "the password is $(cat "$OSP_ROOT_PASSWORD_FILE")"
cat /proc/cmdline
ls /dev/vport* 2>/dev/null && echo sees the port || true
`})
	disk := emptyDisk(t, 64<<20)
	in := &osdef.Input{
		Instance: machine(imprint.Param{Name: "size", Visibility: imprint.Public, Value: "7"}, imprint.Param{Name: "db-host", Visibility: imprint.Private},
			imprint.Param{Name: "root-password", Visibility: imprint.SecretOnly}),
		Values: map[string]imprint.Secret{"db-host": imprint.NewSecret([]byte("db-7.private")), "root-password": imprint.NewSecret([]byte("correct-horse"))},
		Disks:  []osdef.Disk{disk},
	}
	if err := s.Run(t.Context(), d, osdef.Create, "", in, osdef.Stdio{}); err != nil {
		t.Fatalf("%v\n%s", err, s.output())
	}
	at := mounted(t, disk.Path)
	for name, want := range map[string]string{"params": "7 db-7.private\n", "secret": "correct-horse"} {
		if b, err := os.ReadFile(filepath.Join(at, name)); err != nil || string(b) != want {
			t.Errorf("%s on the disk is %q, %v", name, b, err)
		}
	}
	said := s.output()
	if !strings.Contains(said, ", web-1.lab.internal, 1 disk /dev/vd") || !strings.Contains(said, "vm: the password is [redacted]\n") ||
		strings.Contains(said, "correct-horse") || strings.Contains(said, "sees the port") {
		t.Errorf("it said\n%s", said)
	}
}

// The halves talk from here into the VM and back, over the pipe and over the socket, and
// each sees the other's end.
func TestHalvesTalkIntoTheVM(t *testing.T) {
	t.Parallel()
	s := newScripts(t)
	d := definition(t, map[string]string{
		"create": `#!/bin/bash
exec 18>"$IMPRINT_WRITE" 19<"$IMPRINT_READ"
eval "exec ${IMPRINT_WRITE#/dev/fd/}>&-"
echo question >&18
read answer <&19; echo "was told: $answer"
head -c 300000 /dev/zero >&$IMPRINT_SOCKET_FD
read count <&$IMPRINT_SOCKET_FD; echo "counted there: $count"
exec 18>&-
echo "then: $(cat <&19)"
`,
		"create_untrusted": `#!/bin/bash
read question <"$IMPRINT_READ"; echo "was asked: $question"
echo "answer from $(uname -s) with PID $$" >"$IMPRINT_WRITE"
head -c 300000 <&$IMPRINT_SOCKET_FD | wc -c >&$IMPRINT_SOCKET_FD
rest=$(cat "$IMPRINT_READ"); echo "the other half has ended: [$rest]"
echo last words >"$IMPRINT_WRITE"
`})
	if err := s.Trust.Mark(d); err != nil {
		t.Fatal(err)
	}
	in := &osdef.Input{Instance: machine()}
	if err := s.Run(t.Context(), d, osdef.Create, "", in, osdef.Stdio{}); err != nil {
		t.Fatalf("%v\n%s", err, s.output())
	}
	for _, want := range []string{"vm: was asked: question\n", "host: was told: answer from Linux with PID", "host: counted there: 300000\n", "vm: the other half has ended: []\n", "host: then: last words\n"} {
		if !strings.Contains(s.output(), want) {
			t.Errorf("%q is not in\n%s", want, s.output())
		}
	}
}

// Whatever an untrusted script does, the VM ends, the fault is named, and it is no
// success: it cannot speak for the agent.
func TestHostileScriptsInTheVM(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		create string
		limit  func(*osdef.Runner)
		kind   imprint.Kind
		text   string
	}{
		"never ends":     {"while :; do sleep 1; done", func(r *osdef.Runner) { r.Time = 5 * time.Second }, imprint.Exhausted, "5s"},
		"floods":         {"while :; do echo floods; done", func(r *osdef.Runner) { r.Output = 256 << 10 }, imprint.Exhausted, "it printed more than"},
		"forks":          {"b() { b | b & b; }; b; exit 1", func(r *osdef.Runner) { r.Time, r.Processes = 20*time.Second, 64 }, 0, ""},
		"fills the disk": {"mke2fs -q \"$DISK_0_PATH\" && mount \"$DISK_0_PATH\" /tmp && cat /dev/zero >/tmp/x; exit 9", nil, imprint.Conflict, "status 9"},
		"powers off":     {"echo o > /proc/sysrq-trigger; exit 4", nil, imprint.Conflict, "status 4"},
		"forges": {`mkdir /tmp/d; mount -t devtmpfs none /tmp/d
for port in /tmp/d/vport*; do printf '\000\000\000\037{"result":{"nonce":"","tasks":[]}}' > $port && echo "wrote to $port"; done
kill -9 1; exit 5`, nil, imprint.Conflict, "status 5"},
		"prints its secrets": {"env; cat $OSP_ROOT_PASSWORD_FILE; exit 6", nil, imprint.Conflict, "status 6"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScripts(t)
			if test.limit != nil {
				test.limit(s.Runner)
			}
			d := definition(t, map[string]string{"create": "#!/bin/bash\n" + test.create + "\n", "parameters.list": "root-password x\n"})
			in := &osdef.Input{
				Instance: machine(imprint.Param{Name: "root-password", Visibility: imprint.SecretOnly}),
				Values:   map[string]imprint.Secret{"root-password": imprint.NewSecret([]byte("correct-horse"))},
				Disks:    []osdef.Disk{emptyDisk(t, 16<<20)},
			}
			err := s.Run(t.Context(), d, osdef.Create, "", in, osdef.Stdio{})
			if err == nil || test.kind != 0 && imprint.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), "run create for web-1: on the helper VM: ") {
				t.Errorf("got %v (%v)", err, imprint.KindOf(err))
			}
			if text := s.output() + fmt.Sprint(err); strings.Contains(text, "correct-horse") || strings.Contains(text, "wrote to") {
				t.Errorf("it said\n%s", text)
			}
			if left, _ := os.ReadDir(s.Scratch); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// Debian's own definition, as its package has it but for the two places where an
// administrator's settings and its cache are: here, those are beside its scripts, and the
// cache has a small system in the place of what debootstrap would fetch from a mirror.
// It makes and fills the disk, untrusted and in the VM.
func TestDebootstrapDefinition(t *testing.T) {
	t.Parallel()
	s := newScripts(t)
	dir := t.TempDir()
	output(t, "dpkg", "dpkg", "-x", debianPackage(t, "ganeti-instance-debootstrap"), dir)
	at := filepath.Join(dir, "usr/share/ganeti/os/debootstrap")
	common, err := os.ReadFile(filepath.Join(at, "common.sh"))
	if err != nil {
		t.Fatal(err)
	}
	moved := strings.NewReplacer("/etc/default/ganeti-instance-debootstrap", "./settings", "/var/cache/ganeti-instance-debootstrap", "./cache").Replace(string(common))
	if moved == string(common) {
		t.Fatal("it has its settings elsewhere now")
	}
	write(t, filepath.Join(at, "common.sh"), moved)
	write(t, filepath.Join(at, "settings"), "PARTITION_STYLE=none\nGENERATE_CACHE=no\nCLEAN_CACHE=\nSUITE=small\nARCH=amd64\nVARIANTS_DIR=./variants\n")
	write(t, filepath.Join(at, "variants/default.conf"), "# nothing of its own\n")
	write(t, filepath.Join(at, "imprint.yaml"), "files: [/etc/hosts, /etc/resolv.conf]\nparams: {filesystem: {enum: [ext2, ext3, ext4]}}\n")
	if err := os.Remove(filepath.Join(at, "variants.list")); err != nil { // a link to the package's file in /etc
		t.Fatal(err)
	}
	write(t, filepath.Join(at, "variants.list"), "default\n")

	tree := t.TempDir()
	busybox, err := os.ReadFile(need.Program(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(tree, "bin/passwd"), string(busybox))
	if err := os.Chmod(filepath.Join(tree, "bin/passwd"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(tree, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")
	write(t, filepath.Join(tree, "etc/shadow"), "root:!locked:19000:0:99999:7:::\n")
	write(t, filepath.Join(tree, "etc/inittab"), "# from the cache\n")
	write(t, filepath.Join(tree, "etc/network/options"), "")
	write(t, filepath.Join(at, "cache/README"), "a small system\n")
	output(t, "tar", "tar", "--owner=0", "--group=0", "-C", tree, "-cf", filepath.Join(at, "cache/cache-small-amd64.tar"), ".")

	d := found(t, at)
	disk := emptyDisk(t, 600<<20)
	in := &osdef.Input{Instance: machine(imprint.Param{Name: "filesystem", Visibility: imprint.Public, Value: "ext3"}), Disks: []osdef.Disk{disk}}
	if err := s.Run(t.Context(), d, osdef.Create, "default", in, osdef.Stdio{}); err != nil {
		t.Fatalf("%v\n%s", err, s.output())
	}
	if kind := output(t, "blkid", "util-linux", "-p", "-o", "value", "-s", "TYPE", disk.Path); kind != "ext3\n" {
		t.Errorf("the disk has the file system %q", kind)
	}
	// Its own verify, for a value that only it judges.
	d.Schema.Params[0].Enum = nil
	in.Instance.Spec.Params[0].Value = "ntfs"
	if err := s.Run(t.Context(), d, osdef.Verify, "default", in, osdef.Stdio{}); err == nil || !strings.Contains(err.Error(), "Invalid value 'ntfs' for the filesystem parameter") {
		t.Errorf("verify of a wrong value: %v", err)
	}
	root := mounted(t, disk.Path)
	for name, want := range map[string]string{
		"etc/hostname": "web-1.lab.internal\n", "etc/shadow": "root::", "etc/inittab": "# from the cache\nT0:23:respawn:/sbin/getty ttyS0 38400\n",
	} {
		if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || !strings.HasPrefix(string(b), want) {
			t.Errorf("%s is %q, %v", name, b, err)
		}
	}
}

// debianPackage downloads a package.
func debianPackage(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(cache, name)
	if old, _ := filepath.Glob(filepath.Join(dir, "*.deb")); len(old) == 1 {
		return old[0]
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(need.Program(t, "apt-get", "apt"), "-q", "download", name)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("apt-get: %v\n%s", err, out)
	}
	all, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(all) != 1 {
		t.Fatalf("apt-get left %v, %v", all, err)
	}
	return all[0]
}

// A whole installation: imprint install has the definition verify its parameters before
// the disk is touched, and create complete it when the image is there.
func TestInstallRunsTheScripts(t *testing.T) {
	t.Parallel()
	needQEMU(t)
	need.Root(t)
	k, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	d := definition(t, map[string]string{
		"parameters.list": "site x\nroot-password x\n",
		"imprint.yaml":    "params: {site: {required: true}, root-password: {visibility: secret, required: true}}\n",
		"verify":          "#!/bin/sh\ntest \"$1\" = parameters && test \"$OSP_SITE\" != forbidden || { echo \"not for $OSP_SITE\"; exit 1; }\n",
		"create":          "#!/bin/sh\nset -e\nmount \"$DISK_0_PATH\" /tmp\necho \"$OSP_SITE $(cat \"$OSP_ROOT_PASSWORD_FILE\") ${INSTANCE_REINSTALL:-first}\" >/tmp/etc/from-os\numount /tmp\n",
	})
	dir := t.TempDir()
	config := filepath.Join(dir, "server.yaml")
	write(t, config, fmt.Sprintf("osPath: [%s]\n", filepath.Dir(d.Dir)))
	s := newServer(t, "--config", config)
	image, disk := rootImage(t), filepath.Join(dir, "web-1.raw")
	write(t, filepath.Join(dir, "web-1.yaml"), fmt.Sprintf("name: web-1\nimage: {source: %s}\nos: demo\nparams: {public: {site: forbidden}, secret: {root-password: {env: PW}}}\n", image))
	run := func(args ...string) (string, error) {
		c := exec.CommandContext(t.Context(), program("imprint"), append(args, "--socket", filepath.Join(s.run(), "imprint.sock"))...)
		c.Env = append(os.Environ(), "PW=correct-horse", "IMPRINT_ACCEL=tcg", "XDG_CACHE_HOME="+dir)
		out, err := c.CombinedOutput()
		if strings.Contains(string(out), "correct-horse") {
			t.Errorf("%v shows the secret:\n%s", args, out)
		}
		return string(out), err
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := run(args...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return out
	}
	must("create", "-f", filepath.Join(dir, "web-1.yaml"))
	install := []string{"install", "web-1", "--disk", disk, "--no-agent", "--add-driver=", "--image-dir", filepath.Dir(image), "--cache", filepath.Join(dir, "cache"),
		"--journal", filepath.Join(dir, "journal"), "--os-path", filepath.Dir(d.Dir), "--trust-file", filepath.Join(dir, "trusted"), "--helper-kernel", k.Image}
	if out, err := run(install...); err == nil || !strings.Contains(out, "run verify for web-1: on the helper VM: it ended with status 1; it printed last:\nnot for forbidden") {
		t.Errorf("an installation that verify refuses: %v\n%s", err, out)
	}
	if _, err := os.Stat(disk); err == nil {
		t.Error("the disk was touched before that")
	}
	write(t, filepath.Join(dir, "site"), "lab\n")
	must("set", "web-1", "site", "--file", filepath.Join(dir, "site"))
	must(install...)
	if out := must("describe", "web-1"); !strings.Contains(out, "create of demo") || !strings.Contains(out, "for=its installation") {
		t.Errorf("on the timeline:\n%s", out)
	}
	if b, err := os.ReadFile(filepath.Join(mounted(t, disk), "etc/from-os")); err != nil || string(b) != "lab correct-horse first\n" {
		t.Errorf("on the disk is %q, %v", b, err)
	}
}
