package confine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/test/need"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// newRoot makes a root directory with a static busybox as its only program.
func newRoot(t *testing.T) string {
	t.Helper()
	need.Root(t)
	root := t.TempDir()
	for _, dir := range []string{"bin", "dev", "proc", "sys", "tmp", "run", "etc"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Not written by this process: another test's child would have it open for writing,
	// until it runs its own program, and then it cannot be run.
	if out, err := exec.Command("cp", need.Program(t, "busybox", "busybox-static"), filepath.Join(root, "bin/busybox")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"sh", "cat", "ls", "id", "mknod", "mount", "unshare", "chroot", "sleep", "yes", "head", "ps", "hostname", "dd", "ip", "grep", "env", "kill", "wc", "true"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// shell runs a script in the cage and returns what it printed on both outputs.
func shell(t *testing.T, c Command, script string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c.Path, c.Args, c.Stdout, c.Stderr = "/bin/sh", []string{"-c", script}, &out, &out
	if c.Env == nil {
		c.Env = []string{"PATH=/bin"}
	}
	if c.Limits.Time == 0 {
		c.Limits.Time = time.Minute
	}
	err := c.Run(t.Context())
	return out.String(), err
}

// A writer that has no lock gets both outputs, and in their order.
func TestBothOutputsInOrder(t *testing.T) {
	t.Parallel()
	const script = "i=0; while [ $i -lt 300 ]; do echo out; echo err >&2; i=$((i+1)); done"
	out, err := shell(t, Command{Root: newRoot(t)}, script)
	if want := strings.Repeat("out\nerr\n", 300); err != nil || out != want {
		t.Errorf("got %v, and %d bytes of %d in another order", err, len(out), len(want))
	}
}

func TestARootOfItsOwn(t *testing.T) {
	t.Parallel()
	root := newRoot(t)
	if err := os.WriteFile(filepath.Join(root, "etc/mine"), []byte("mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("theirs"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := shell(t, Command{Root: root}, "cat /etc/mine; ls "+outside+" 2>/dev/null; hostname; echo $$; ls /proc | grep -c '^[0-9]'; echo new > /etc/new; ls /dev")
	if err != nil {
		t.Fatal(err, out)
	}
	if !strings.HasPrefix(out, "mine\nlocalhost\n") || strings.Contains(out, "outside") {
		t.Errorf("it saw %q", out)
	}
	if got := strings.Fields(out)[3]; len(got) != 1 {
		t.Errorf("it saw %s processes", got)
	}
	if strings.Contains(out, "vda") || strings.Contains(out, "loop") || strings.Contains(out, "kvm") {
		t.Errorf("it saw the machine's devices: %q", out)
	}
	if _, err := os.Stat(filepath.Join(root, "etc/new")); err != nil {
		t.Error("what it wrote to its root is not there:", err)
	}
}

// What of the kernel and the hardware can be reached as root, and here not.
func TestRootIsNoRoot(t *testing.T) {
	t.Parallel()
	root := newRoot(t)
	for _, try := range []string{
		"mknod /dev/x b 7 0", "mknod /x b 7 0", "mount -t proc proc /tmp", "mount -o remount,rw /sys", "unshare -U true", "unshare -m true",
		"echo b > /proc/sysrq-trigger", "echo 1 > /proc/sys/kernel/sysrq", "hostname other", "kill -9 1 && sleep 1 && kill -0 1 && false",
		"cat /proc/1/environ", "for f in /proc/1/fd/*; do echo x > $f && exit 0; done; exit 1", "ls /proc/1/task/2/root/", "for t in /proc/1/task/*; do ls $t/root/ && exit 0; done; exit 1", "ls /proc/1/root/", "cat /proc/1/mem", "echo > /proc/1/mem", "echo > /sys/kernel/uevent_helper", "ip link set lo up", "cat /proc/kmsg",
	} {
		if out, err := shell(t, Command{Root: root}, "("+try+") 2>&1"); err == nil {
			t.Errorf("%s: it worked, and printed %q", try, out)
		}
	}
	out, err := shell(t, Command{Root: root}, "grep -E '^(Cap(Prm|Eff|Bnd)|NoNewPrivs|Seccomp):' /proc/self/status; ip -o link | wc -l")
	if err != nil {
		t.Fatal(err)
	}
	var mask uint64
	for _, c := range kept() {
		mask |= 1 << c
	}
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", fmt.Sprintf("CapPrm:\t%016x", mask), fmt.Sprintf("CapBnd:\t%016x", mask), fmt.Sprintf("CapEff:\t%016x", mask)} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %q", want, out)
		}
	}
	if !strings.HasSuffix(out, "\n1\n") {
		t.Errorf("it has other interfaces than lo: %q", out)
	}
}

// A link in the root leads a mount astray, but not out of it.
func TestARootWithLinksOut(t *testing.T) {
	t.Parallel()
	root := newRoot(t)
	os.Remove(filepath.Join(root, "run"))
	if err := os.Symlink("/etc", filepath.Join(root, "run")); err != nil {
		t.Fatal(err)
	}
	mark := fmt.Sprintf("imprint-test-%d", os.Getpid())
	out, err := shell(t, Command{Root: root}, "echo x > /run/"+mark+"; cat /etc/"+mark)
	if err != nil || out != "x\n" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := os.Stat("/etc/" + mark); err == nil {
		t.Error("it wrote outside its root")
		os.Remove("/etc/" + mark)
	}
}

func TestFilesMountsAndDevices(t *testing.T) {
	t.Parallel()
	root := newRoot(t)
	shared, private := t.TempDir(), t.TempDir()
	for _, dir := range []string{"shared", "private"} {
		os.Mkdir(filepath.Join(root, dir), 0o755)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := Command{
		Root: root, Stdin: strings.NewReader("from outside\n"), Files: []*os.File{w}, Dir: "/etc",
		Mounts: []Mount{{Source: shared, Target: "/shared", Writable: true}, {Source: private, Target: "/private"}},
		Env:    []string{"PATH=/bin", "OSP_NAME=value"}, UID: 1234, GID: 1234, Devices: []string{"/dev/net/tun"},
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		c.Devices = nil
	}
	os.Chmod(shared, 0o777)
	out, err := shell(t, c, "cat; id -u; echo $OSP_NAME; echo $PWD; echo three >&3; echo new > /shared/new && ! (echo new > /private/new) 2>/dev/null; ls /dev/net")
	w.Close()
	if c.Devices != nil && (err != nil || !strings.Contains(out, "tun")) {
		t.Errorf("%q, %v", out, err)
	}
	if !strings.HasPrefix(out, "from outside\n1234\nvalue\n/etc\n") {
		t.Errorf("it printed %q", out)
	}
	if b, _ := io.ReadAll(r); string(b) != "three\n" {
		t.Errorf("descriptor 3 got %q", b)
	}
	if _, err := os.Stat(filepath.Join(shared, "new")); err != nil {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	root := newRoot(t)
	for name, tt := range map[string]struct {
		limits Limits
		script string
		want   string
	}{
		"time":      {Limits{Time: 300 * time.Millisecond}, "sleep 100 & sleep 100", "it was not done within 300ms"},
		"output":    {Limits{Output: 1 << 20}, "yes", "it printed more than 1 MiB"},
		"file size": {Limits{FileSize: 1 << 20}, "exec dd if=/dev/zero of=/big bs=64k", "it wrote a file of more than 1 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := shell(t, Command{Root: root, Limits: tt.limits}, tt.script)
			if imprint.KindOf(err) != imprint.Exhausted || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v", err)
			}
			if int64(len(out)) > max(tt.limits.Output, 1000) {
				t.Errorf("it printed %d bytes", len(out))
			}
		})
	}
}

func TestHowItEnds(t *testing.T) {
	t.Parallel()
	root := newRoot(t)
	_, err := shell(t, Command{Root: root}, "exit 7")
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Status != 7 || imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("%v", err)
	}
	_, err = shell(t, Command{Root: root}, "kill -TERM $$")
	if !errors.As(err, &exit) || exit.Signal != unix.SIGTERM {
		t.Errorf("%v", err)
	}
	err = (&Command{Root: root, Path: "/bin/none"}).Run(t.Context())
	if imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&Command{Root: root, Path: "/bin/true"}).Run(ctx); err == nil {
		t.Error("it ran though nobody wanted it any more")
	}
}

// What the program leaves behind ends with it, though it is no child of it any more.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	root := newRoot(t)
	mark := fmt.Sprintf("%d.5", 100000+os.Getpid())
	out, err := shell(t, Command{Root: root}, "(sleep "+mark+" &) ; ps | grep -c "+mark)
	if err != nil {
		t.Fatal(err, out)
	}
	b, _ := exec.Command("ps", "axww", "-o", "args").Output()
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "sleep "+mark) {
			t.Errorf("%s is left", strings.TrimSpace(line))
		}
	}
}
