//go:build vm

package helpervm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/demo/guest"
	"imprint/internal/helpervm"
	"imprint/internal/job"
	"imprint/internal/platform/qemu"
	"imprint/test/need"
)

// agent is the program under test, and hostile one that somebody took over. TestMain
// builds them.
var agent, hostile string

const cache = "../../.cache"

func TestMain(m *testing.M) {
	if dir := os.Getenv(orphanEnv); dir != "" {
		orphan(dir)
	}
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "build the agent:", err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "imprint-bin-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	agent, hostile = filepath.Join(dir, "imprint-helper"), filepath.Join(dir, "hostile")
	for program, pkg := range map[string]string{agent: "imprint/cmd/imprint-helper", hostile: "imprint/test/vm/hostile"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return 0, err
		}
	}
	return m.Run(), nil
}

// config is that of a helper VM whose console the test prints if it fails.
func config(t *testing.T) helpervm.Config {
	t.Helper()
	need.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	k, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	said := &record{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the console:\n%s", said.String())
		}
	})
	return helpervm.Config{
		Kernel: helpervm.Kernel{Image: k.Image, Modules: filepath.Join(k.Root, "lib/modules", k.ABI)},
		Init:   agent, Cache: cacheDir(t), RunDir: filepath.Join(t.TempDir(), "run"), TimeLimit: 5 * time.Minute, Instance: "web-1", Console: said,
	}
}

func TestEmptyJob(t *testing.T) {
	t.Parallel()
	r, err := helpervm.Run(t.Context(), config(t), job.Job{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the agent began %v after QEMU's start, was ready after %v, and all took %v", r.Booted, r.Ready, r.Took)
	if r.Booted <= 0 || r.Booted > r.Ready || r.Ready > r.Took {
		t.Errorf("times are %v, %v, %v", r.Booted, r.Ready, r.Took)
	}
}

// taken is the configuration of a VM whose agent somebody took over.
func taken(t *testing.T) helpervm.Config {
	c := config(t)
	c.Init = hostile
	return c
}

func task(name string) job.Job { return job.Job{Tasks: []job.Task{{Name: name, Zero: &job.Zero{}}}} }

// Whatever PID 1 of the VM does: it is a failure, named in one sentence, and soon over.
func TestTakenOver(t *testing.T) {
	for _, tt := range []struct {
		task  string
		limit time.Duration
		kind  imprint.Kind
		want  string
	}{
		{"panic", 0, imprint.Internal, "without a result; its console ends with: .*sysrq triggered crash"},
		{"power off", 0, imprint.Internal, "it powered off without a result"},
		{"hang", 3 * time.Second, imprint.Exhausted, "it had no result within 3s"},
		{"flood console", 0, imprint.Unavailable, "context canceled"},
		{"flood log", 0, imprint.Unavailable, "context canceled"},
		{"other nonce", 0, imprint.Invalid, "it sent the result of another job"},
		{"no frame", 0, imprint.Invalid, "a frame of 4294967295 bytes"},
	} {
		t.Run(tt.task, func(t *testing.T) {
			t.Parallel()
			c := taken(t)
			if tt.limit != 0 {
				c.TimeLimit = tt.limit
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			said, lines := &record{}, 0
			c.Console = said
			said.full = func() { cancel() }
			c.Log = func(job.Log) { lines++ }
			c.Progress = func(job.Progress) { cancel() }
			r, err := helpervm.Run(ctx, c, task(tt.task))
			if r != nil || imprint.KindOf(err) != tt.kind || !matches(tt.want, err) {
				t.Errorf("%v\n%s", err, said.String()[max(0, len(said.String())-2000):])
			}
			if err != nil && (strings.Contains(err.Error(), "\n") || len(err.Error()) > 16<<10) {
				t.Errorf("it is no sentence: %q", err)
			}
			if n := len(said.String()); n > 1<<20+1<<10 || tt.task == "flood console" && n < floodEnough {
				t.Errorf("it passed %d bytes of the console on", n)
			}
			if lines > 20_000 || tt.task == "flood log" && lines < 20_000 {
				t.Errorf("it passed %d lines of the log on", lines)
			}
			if list, err := helpervm.Running(c.RunDir); err != nil || len(list) > 0 {
				t.Errorf("still accounted: %v, %v", list, err)
			}
		})
	}
}

// A script is contained by the cage, so that the agent says what became of it.
func TestHostileScript(t *testing.T) {
	need.Program(t, "busybox", "busybox-static")
	for _, tt := range []struct {
		name, script, want string
		short              bool
	}{
		{"never ends", "while :; do :; done", "it was not done within 2s", true},
		{"forks endlessly", "f() { f | f & }; f; sleep 1; exit 3", "it had more than 20 processes at once", false},
		{"takes all memory", "x=$(yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa | tr -d '\\n')", "it used more memory than 64 MiB", false},
		{"fills /tmp", "dd if=/dev/zero of=/tmp/a bs=1M; for i in 1 2 3 4 5 6 7 8 9; do for j in 1 2 3 4 5 6 7 8 9; do head -c 1000000 /dev/zero > /tmp/$i$j; done; done", "(it used more memory than 64 MiB|it wrote a file of more than 1 MiB)", false},
		{"floods its output", "yes $(head -c 3000 /dev/zero | tr '\\\\0' x)", "it printed more than 1 MiB", false},
		{"crashes the kernel", "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; exit 5", "it ended with status 5", false},
		{"powers off", "poweroff -f; reboot -f; kill -9 1; exit 5", "it ended with status 5", false},
		{"forges the result", `
			for p in /dev/vport* /sys/class/virtio-ports/*/dev; do
				IFS=: read major minor < $p && mknod /tmp/port c $major $minor && echo forged > /tmp/port && exit 0
				echo forged > $p && exit 0
			done
			echo forged > /proc/1/fd/4 && exit 0
			for f in /dev/console /dev/ttyS0 /dev/kmsg; do echo '{"result":{}}' > $f; done
			for d in /dev/vd*; do echo bad > $d && exit 0; done
			exit 5`, "it ended with status 5", false},
		{"ends well", "exit 0", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := taken(t)
			c.Programs = []string{"busybox"}
			disk := newDisk(t, 1<<20)
			c.Disks = []helpervm.Disk{{Path: disk}}
			kind := "script: "
			if tt.short {
				kind = "short script: "
			}
			r, err := helpervm.Run(t.Context(), c, task(kind+tt.script))
			if tt.want == "" {
				if err != nil || r == nil {
					t.Fatal(err)
				}
				return
			}
			if r == nil || r.Fault == nil || !matches(tt.want, err) {
				t.Errorf("%v", err)
			}
			if b, err := os.ReadFile(disk); err != nil || !bytes.Equal(b, make([]byte, 1<<20)) {
				t.Error("the disk was written:", err)
			}
		})
	}
}

// What a task says gets out, and what it may not say does not.
func TestReports(t *testing.T) {
	t.Parallel()
	c := taken(t)
	var said, told []string
	c.Log = func(l job.Log) { said = append(said, l.Task+"|"+l.Line) }
	c.Progress = func(p job.Progress) { told = append(told, fmt.Sprint(p)) }
	j := job.Job{Tasks: []job.Task{{Name: "fine: \x1b[31mred", Zero: &job.Zero{}}, {Name: "secret", Zero: &job.Zero{}}}, Secrets: map[string]imprint.Secret{"password": imprint.NewSecret([]byte("correct horse"))}}
	screen := &record{}
	c.Console = screen
	r, err := helpervm.Run(t.Context(), c, j)
	if r == nil || err == nil || len(r.Tasks) != 2 {
		t.Fatalf("%v, %v", r, err)
	}
	if !slices.Contains(told, "{fine: \uFFFD[31mred 1 2 things}") {
		t.Errorf("progress was %q", told)
	}
	all := strings.Join(said, "\n") + err.Error()
	if !strings.Contains(screen.String(), "it is [redacted]") {
		t.Errorf("the console said %q", screen.String())
	}
	if !strings.Contains(all, "it is [redacted]") || !strings.Contains(all, "cannot use [redacted]") {
		t.Errorf("it said %q", all)
	}
	for _, text := range []string{all, screen.String()} {
		if strings.Contains(text, "correct horse") || strings.Contains(text, "\x1b[31") {
			t.Errorf("it said %q", text)
		}
	}
}

func TestStreams(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		in           io.Reader
		want, fault  string
	}{
		{name: "both ways", script: "stream", in: strings.NewReader(strings.Repeat("0123456789", 100_000)), want: "1000000 bytes: 01234567890123456789"},
		{name: "the task does not end it", script: "stream: cut", in: strings.NewReader("abc"), fault: "before the stream was complete"},
		{name: "the host cannot read", script: "stream", in: io.MultiReader(strings.NewReader("abc"), failing{}), fault: "read stream data: no more"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := taken(t)
			out := &record{}
			c.Streams = map[string]helpervm.Stream{"data": {In: tt.in, Out: out}}
			_, err := helpervm.Run(t.Context(), c, task(tt.script))
			if tt.fault == "" && (err != nil || out.String() != tt.want) {
				t.Errorf("%q, %v", out.String(), err)
			}
			if tt.fault != "" && !matches(tt.fault, err) {
				t.Errorf("%v", err)
			}
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("no more") }

// The disks are there whole, the read-only one is read-only, and what was written is
// in the file.
func TestDisks(t *testing.T) {
	t.Parallel()
	c := taken(t)
	disk, pkg := newDisk(t, 3<<20), filepath.Join(t.TempDir(), "package")
	text := bytes.Repeat([]byte("odd"), 1001) // no whole sectors
	if err := os.WriteFile(pkg, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Disks = []helpervm.Disk{{Path: disk}, {Path: pkg, ReadOnly: true}}
	var said []string
	c.Log = func(l job.Log) { said = append(said, l.Line) }
	if _, err := helpervm.Run(t.Context(), c, task("write")); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(said, "3072 bytes of package, 3145728 of disk") {
		t.Errorf("it saw %q", said)
	}
	if b, err := os.ReadFile(disk); err != nil || !bytes.HasPrefix(b, text) {
		t.Error("what was written is not on the disk", err)
	}
}

// While a VM runs nobody else gets its disk, and everybody sees for whom it runs.
func TestWhileItRuns(t *testing.T) {
	t.Parallel()
	c := taken(t)
	c.Disks = []helpervm.Disk{{Path: newDisk(t, 1<<20)}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error)
	c.Log = func(job.Log) {
		list, err := helpervm.Running(c.RunDir)
		if err != nil || len(list) != 1 || list[0].Instance != "web-1" || list[0].PID != os.Getpid() {
			t.Errorf("accounted are %v, %v", list, err)
		}
		if _, err := helpervm.Run(ctx, c, job.Job{}); imprint.KindOf(err) != imprint.Conflict {
			t.Errorf("another VM got the disk: %v", err)
		}
		cancel()
	}
	go func() {
		_, err := helpervm.Run(ctx, c, job.Job{Tasks: []job.Task{{Name: "fine: ready", Zero: &job.Zero{}}, {Name: "hang", Zero: &job.Zero{}}}})
		ended <- err
	}()
	if err := <-ended; imprint.KindOf(err) != imprint.Unavailable || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if list, err := helpervm.Running(c.RunDir); err != nil || len(list) > 0 {
		t.Errorf("still accounted: %v, %v", list, err)
	}
}

// What QEMU has of the host: nothing but what it needs.
func TestQEMUIsCaged(t *testing.T) {
	t.Parallel()
	need.Root(t)
	c := taken(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.Log = func(job.Log) {
		defer cancel()
		pid := machineOf(t, c)
		proc := "/proc/" + strconv.Itoa(pid)
		status, _ := os.ReadFile(proc + "/status")
		for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("%q is not in\n%s", want, status)
			}
		}
		for _, ns := range []string{"net", "mnt", "pid", "ipc", "uts"} {
			mine, _ := os.Readlink("/proc/self/ns/" + ns)
			if its, err := os.Readlink(proc + "/ns/" + ns); err != nil || its == mine {
				t.Errorf("it has the namespace %s of the host: %v", ns, err)
			}
		}
		entries, err := os.ReadDir(proc + "/root/")
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		for _, n := range names {
			if !slices.Contains([]string{"usr", "lib", "lib32", "lib64", "libx32", "bin", "sbin", "etc", "dev", "kernel", "initrd"}, n) {
				t.Errorf("it sees /%s", n)
			}
		}
		if err != nil || !slices.Contains(names, "initrd") {
			t.Errorf("its root has %q, %v", names, err)
		}
		if os.WriteFile(proc+"/root/usr/imprint-test", nil, 0o644) == nil || os.WriteFile(proc+"/root/imprint-test", nil, 0o644) == nil {
			t.Error("its root can be written")
		}
	}
	helpervm.Run(ctx, c, job.Job{Tasks: []job.Task{{Name: "fine: ready", Zero: &job.Zero{}}, {Name: "hang", Zero: &job.Zero{}}}})
}

func TestQEMUIsKilled(t *testing.T) {
	t.Parallel()
	c := taken(t)
	c.Log = func(job.Log) { unix.Kill(machineOf(t, c), unix.SIGKILL) }
	_, err := helpervm.Run(t.Context(), c, job.Job{Tasks: []job.Task{{Name: "fine: ready", Zero: &job.Zero{}}, {Name: "hang", Zero: &job.Zero{}}}})
	if imprint.KindOf(err) != imprint.Internal || !matches("QEMU ended: signal: killed without a result", err) {
		t.Errorf("%v", err)
	}
}

// started is what the other process is told.
type started struct {
	Kernel                     helpervm.Kernel
	Agent, Cache, RunDir, Disk string
}

const orphanEnv = "IMPRINT_TEST_ORPHAN"

// orphan runs a VM that hangs, for somebody who kills this process.
func orphan(config string) {
	var s started
	b, err := os.ReadFile(filepath.Join(config, "config.json"))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	c := helpervm.Config{Kernel: s.Kernel, Init: s.Agent, Cache: s.Cache, RunDir: s.RunDir, Disks: []helpervm.Disk{{Path: s.Disk}}}
	if err == nil {
		c.Log = func(job.Log) { fmt.Println("ready") }
		_, err = helpervm.Run(context.Background(), c, job.Job{Tasks: []job.Task{{Name: "fine: ready", Zero: &job.Zero{}}, {Name: "hang", Zero: &job.Zero{}}}})
	}
	fmt.Println(err)
	os.Exit(1)
}

// Who is not root has a cage as well, of what the host lets him have.
func TestAsAUser(t *testing.T) {
	t.Parallel()
	need.Root(t) // to become one
	c := taken(t)
	open, err := os.MkdirTemp("", "imprint-user-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(open)
	b, err := json.Marshal(started{c.Kernel, filepath.Join(open, "agent"), filepath.Join(open, "cache"), filepath.Join(open, "run"), filepath.Join(open, "disk")})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{hostile: "agent", self: "program"} {
		program, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(open, to), program, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range map[string][]byte{"config.json": b, "disk": make([]byte, 1<<20)} {
		if err := os.WriteFile(filepath.Join(open, name), data, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	const user = 65534
	for _, name := range []string{"", "disk"} {
		if err := os.Chown(filepath.Join(open, name), user, user); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(filepath.Join(open, "program"))
	cmd.Dir, cmd.Env = open, []string{"PATH=" + os.Getenv("PATH"), orphanEnv + "=" + open, qemu.AccelEnv + "=" + os.Getenv(qemu.AccelEnv)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	line := make([]byte, 6)
	if _, err := io.ReadFull(out, line); err != nil || string(line) != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	c.RunDir = filepath.Join(open, "run")
	proc := "/proc/" + strconv.Itoa(machineOf(t, c))
	status, _ := os.ReadFile(proc + "/status")
	for _, want := range []string{"CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("%q is not in\n%s", want, status)
		}
	}
	if exec.Command("unshare", "--user", "true").Run() != nil {
		return // this host lets nobody have one
	}
	for _, ns := range []string{"net", "pid", "ipc", "user"} {
		mine, _ := os.Readlink("/proc/self/ns/" + ns)
		if its, err := os.Readlink(proc + "/ns/" + ns); err != nil || its == mine {
			t.Errorf("it has the namespace %s of the host: %v", ns, err)
		}
	}
}

// The program that runs a VM is killed: the VM goes with it, and nothing is left.
func TestHostProgramIsKilled(t *testing.T) {
	t.Parallel()
	c := taken(t)
	c.Console, c.Disks = nil, []helpervm.Disk{{Path: newDisk(t, 1<<20)}}
	dir, temp := t.TempDir(), t.TempDir()
	b, err := json.Marshal(started{c.Kernel, c.Init, c.Cache, c.RunDir, c.Disks[0].Path})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), orphanEnv+"="+dir, "TMPDIR="+temp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 6)
	if _, err := io.ReadFull(out, line); err != nil || string(line) != "ready\n" {
		cmd.Process.Kill()
		t.Fatalf("%q, %v", line, err)
	}
	machine, err := unix.PidfdOpen(machineOf(t, c), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(machine)
	cmd.Process.Kill()
	cmd.Wait()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(machine), Events: unix.POLLIN}}, 20_000); n != 1 {
		t.Fatalf("QEMU is still there: %v", err)
	}
	if list, err := helpervm.Running(c.RunDir); err != nil || len(list) > 0 {
		t.Errorf("still accounted: %v, %v", list, err)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
	c.Init = agent
	if _, err := helpervm.Run(t.Context(), c, job.Job{}); err != nil {
		t.Errorf("the next one does not start: %v", err)
	}
}

// A filesystem that has the kernel panic takes the VM down, and nothing else.
func TestFilesystemPanicsTheKernel(t *testing.T) {
	t.Parallel()
	need.Program(t, "mke2fs", "e2fsprogs")
	need.Program(t, "debugfs", "e2fsprogs")
	c := taken(t)
	disk := newDisk(t, 16<<20)
	for _, args := range [][]string{
		{"mke2fs", "-q", "-F", "-t", "ext4", disk}, {"tune2fs", "-e", "panic", disk},
		{"debugfs", "-w", "-R", "set_inode_field <2> block[0] 0xffffff", disk}, {"debugfs", "-w", "-R", "set_inode_field <2> mode 0100644", disk},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	c.Disks = []helpervm.Disk{{Path: disk}}
	r, err := helpervm.Run(t.Context(), c, task("mount"))
	if r != nil || !matches("without a result; its console ends with: .*Kernel panic - not syncing: EXT4-fs [^;]*: panic forced after error$", err) {
		t.Errorf("%v, %v", r, err)
	}
}

func newDisk(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// machineOf returns the process that is the VM of c.
func machineOf(t *testing.T, c helpervm.Config) int {
	t.Helper()
	list, err := helpervm.Running(c.RunDir)
	if err != nil || len(list) != 1 || list[0].QEMU == 0 {
		t.Fatalf("running are %v, %v", list, err)
	}
	return list[0].QEMU
}

func matches(want string, err error) bool {
	return err != nil && regexp.MustCompile("(?s)"+want).MatchString(err.Error())
}

// cacheDir is one for all tests, so that only the first unpacks the kernel.
func cacheDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join(cache, "helpervm"))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// A QEMU without microvm has PCs.
func TestOnAPC(t *testing.T) {
	t.Parallel()
	c := taken(t)
	c.Machine, c.Network = qemu.Q35, true
	c.Disks = []helpervm.Disk{{Path: newDisk(t, 1<<20)}, {Path: newDisk(t, 1<<10), ReadOnly: true}}
	if _, err := helpervm.Run(t.Context(), c, task("write")); err != nil {
		t.Error(err)
	}
}
