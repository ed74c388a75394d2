package osdef

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"imprint"
	"imprint/internal/confine"
	"imprint/internal/job"
	"imprint/internal/script"
	"imprint/test/need"
)

// host runs scripts of a definition that is trusted, in a real cage on this machine.
type host struct {
	*Runner
	path []string
	name string
	mu   sync.Mutex
	log  strings.Builder // guarded by mu
}

func newHost(t *testing.T, files map[string]string) (*host, *Definition) {
	t.Helper()
	need.Root(t)
	path, d := define(t, "demo", files)
	h := &host{path: path, name: "demo"}
	h.Runner = &Runner{Trust: Trust{filepath.Join(t.TempDir(), "trusted-os")}, Scratch: t.TempDir(), Time: time.Minute}
	h.Log = func(half Half, line string) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.log.WriteString(string(half) + ": " + line + "\n")
	}
	if err := h.Trust.Mark(d); err != nil {
		t.Fatal(err)
	}
	return h, d
}

func (h *host) said() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.String()
}

func input() *Input { return &Input{Instance: instance(), Values: canaries()} }

// wantClean fails the test if a copy of a definition is left.
func wantClean(t *testing.T, r *Runner) {
	t.Helper()
	left, err := os.ReadDir(r.Scratch)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A trusted script has Ganeti's environment and nothing of its caller's, is nobody,
// reads its secrets from files in memory, and cannot write to the host.
func TestTrustedScript(t *testing.T) {
	t.Setenv("CANARY", "of the caller")
	h, d := newHost(t, map[string]string{"parameters.list": demoList, "imprint.yaml": demoYAML, "common.sh": "greeting=hello\n", "create": `#!/bin/sh
. ./common.sh
echo "$greeting $(id -u) $OSP_SIZE $OSP_MIRROR $INSTANCE_NAME [$CANARY]"
test "$(cat "$OSP_ROOT_PASSWORD_FILE")" = correct-horse-battery && test "$(cat "$OSP_ROOT_PASSWORD_FILE")" = correct-horse-battery && echo the secret is there twice
test "$OSP_DB_HOST" = db-7.private.internal && echo the private value is there
test -z "$OSP_ROOT_PASSWORD$OSP_SSH_KEY$OSP_MOTD" && echo and nothing else
echo x > "$OSP_ROOT_PASSWORD_FILE" && echo the secret was changed
printf x | dd of="$OSP_ROOT_PASSWORD_FILE" conv=notrunc status=none && echo the secret was changed
for at in /srv/x /etc/x /var/tmp/x /usr/x; do echo x 2>/dev/null >$at && echo "wrote $at"; done
touch /tmp/mine && echo has a /tmp
test -e /proc/1/root/etc/hostname && echo sees the host
ls -d /sys/class/net/* | wc -l
true
`})
	if err := h.Run(t.Context(), d, Create, "", input(), Stdio{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"host: hello 65534 7 one web-1.lab.internal []\n", "host: the secret is there twice\n", "host: the private value is there\n", "host: and nothing else\n", "host: has a /tmp\n",
	} {
		if !strings.Contains(h.said(), want) {
			t.Errorf("%q is not in\n%s", want, h.said())
		}
	}
	for _, never := range []string{"wrote", "was changed", "sees the host", "of the caller"} {
		if strings.Contains(h.said(), never) {
			t.Errorf("%q is in\n%s", never, h.said())
		}
	}
	wantClean(t, h.Runner)
}

// In Ganeti the last lines of a failing script, with the values in them, are what every
// user of its API reads.
func TestGanetiDefect14OutputIsScrubbed(t *testing.T) {
	t.Parallel()
	h, d := newHost(t, map[string]string{"parameters.list": demoList, "imprint.yaml": demoYAML + "secrets: environment\n", "create": `#!/bin/sh
set -x
env
echo "password: $OSP_ROOT_PASSWORD, $(printf %s "$OSP_ROOT_PASSWORD" | base64)"
printf 'no end of line: %s' "$OSP_DB_HOST" >&2
printf '\033[2J\r'
exit 7
`})
	err := h.Run(t.Context(), d, Create, "", input(), Stdio{})
	if imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "run create for web-1: on the host: it ended with status 7; it printed last:\n") {
		t.Fatalf("got %v", err)
	}
	for _, text := range []string{err.Error(), h.said()} {
		for name, v := range canaries() {
			if strings.Contains(text, string(v.Reveal())) {
				t.Errorf("the value of %s is in\n%s", name, text)
			}
		}
		if strings.Contains(text, "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5") || strings.ContainsAny(text, "\x1b\r") {
			t.Errorf("a form of a value, or a control, is in\n%s", text)
		}
		if !strings.Contains(text, "password: [redacted], [redacted]") || !strings.Contains(text, "no end of line: [redacted]") {
			t.Errorf("what is no value is not in\n%s", text)
		}
	}
}

// A line that is too long is cut, here or in the helper VM, and what is shown of it has no
// part of a value.
func TestCutLinesHaveNoPartOfAValue(t *testing.T) {
	t.Parallel()
	value := strings.Repeat("0123456789abcdef", 1000)
	for name, text := range map[string]string{
		"longer than a line": value, "cut by the VM": value[:job.MaxLine], "behind others": strings.Repeat("x", 100) + value + value,
	} {
		var got strings.Builder
		o := &output{scrub: newScrubber(map[string]imprint.Secret{"key": imprint.NewSecret([]byte(value))}), pass: func(line string) { got.WriteString(line + "\n") }}
		for part := range slices.Chunk([]byte(text+"\nnext\n"), 1000) {
			o.Write(part)
		}
		if strings.Contains(got.String(), "0123") || !strings.HasSuffix(got.String(), "[redacted]\nnext\n") {
			t.Errorf("%s: %.200q", name, got.String())
		}
	}
}

// Whatever a script does, it ends, is named, and leaves nothing.
func TestTrustedScriptsAreBounded(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		create string
		limit  func(*Runner)
		kind   imprint.Kind
		text   string
	}{
		"never ends":        {"trap '' TERM; while :; do sleep 1; done", func(r *Runner) { r.Time = time.Second }, imprint.Exhausted, "it was not done within 1s"},
		"floods its output": {"yes floods", func(r *Runner) { r.Output = 64 << 10 }, imprint.Exhausted, "it printed more than"},
		"leaves a process":  {"sleep 1000 & echo left", func(*Runner) {}, 0, ""},
		"forks endlessly":   {"b() { b | b & b; }; b", func(r *Runner) { r.Time, r.Processes = 5*time.Second, 64 }, imprint.Exhausted, ""},
		"fills its disk":    {"cat /dev/zero >/tmp/x; rm /tmp/x; exit 3", func(*Runner) {}, imprint.Conflict, "status 3"},
		"is killed":         {"kill -9 $$", func(*Runner) {}, imprint.Conflict, "ended by the signal SIGKILL"},
		"is no program":     {"", func(*Runner) {}, imprint.Invalid, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := "#!/bin/sh\n" + test.create + "\n"
			if test.create == "" {
				text = "#!/nowhere/sh\n"
			}
			h, d := newHost(t, map[string]string{"create": text})
			test.limit(h.Runner)
			err := h.Run(t.Context(), d, Create, "", input(), Stdio{})
			if test.text == "" && test.kind == 0 {
				if err != nil {
					t.Errorf("got %v", err)
				}
			} else if kind := imprint.KindOf(err); kind != test.kind && !(name == "forks endlessly" && kind == imprint.Conflict) || // where no cgroup counts, the script does
				!strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), "run create for web-1: on the host: ") {
				t.Errorf("got %v (%v)", err, imprint.KindOf(err))
			}
			wantClean(t, h.Runner)
		})
	}
}

// Without the operator's mark, or with one that is for other files, nothing of it
// runs on the host: a lone script goes to the VM, and a half of two is refused.
func TestUntrustedNeverRunsOnTheHost(t *testing.T) {
	t.Parallel()
	proof := filepath.Join(t.TempDir(), "ran")
	files := map[string]string{"create": "#!/bin/sh\necho here\n"}
	h, d := newHost(t, files)
	var jobs int
	h.VM = func(_ context.Context, vm *VM) (*job.Result, error) {
		jobs++
		if s := vm.Job.Tasks[0].Script; s.Program != "create" || s.Archive != 0 || s.Size == 0 {
			t.Errorf("the VM is to run %+v", s)
		}
		return nil, imprint.Errorf(imprint.Unavailable, "run", "helper VM", "it is broken")
	}
	write(t, filepath.Join(d.Dir, "common.sh"), "touch "+proof+"\n", 0o644)
	changed, err := Find(h.path, h.name)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Run(t.Context(), changed, Create, "", input(), Stdio{}); imprint.KindOf(err) != imprint.Unavailable || jobs != 1 || !strings.Contains(err.Error(), "on the helper VM: it is broken") {
		t.Errorf("a definition that changed: %v, %d jobs", err, jobs)
	}
	if err := h.Run(t.Context(), d, Create, "", input(), Stdio{}); imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "it changed while it was read") {
		t.Errorf("what was marked and is no more: %v", err)
	}
	h, d = newHost(t, map[string]string{"create": "#!/bin/sh\n", "create_untrusted": "#!/bin/sh\n"})
	if err := h.Trust.Unmark("demo"); err != nil {
		t.Fatal(err)
	}
	if err := h.Run(t.Context(), d, Create, "", input(), Stdio{}); imprint.KindOf(err) != imprint.Denied || !strings.Contains(err.Error(), "the operator has not marked it") {
		t.Errorf("two halves without a mark: %v", err)
	}
	if said := h.said(); said != "" {
		t.Errorf("it ran:\n%s", said)
	}
}

// inCage stands for a helper VM in tests of the two halves: it runs the job's script in
// a cage on this machine, with the streams that a VM has.
func inCage(d *Definition) func(context.Context, *VM) (*job.Result, error) {
	return func(ctx context.Context, vm *VM) (*job.Result, error) {
		t := vm.Job.Tasks[0].Script
		s := script.Script{Command: confine.Command{
			Path: home + "/" + t.Program, Dir: home, Env: t.Env, Mounts: []confine.Mount{{Source: d.Dir, Target: home}},
			Stdout: logger(vm.Log), Stderr: logger(vm.Log), Limits: confine.Limits{Time: time.Minute},
		}}
		s.Pipe, s.Socket = both(vm.Streams[t.Pipe]), both(vm.Streams[t.Socket])
		return &job.Result{}, s.Run(ctx)
	}
}

func both(s Stream) script.Stream { return line{s.In.(*os.File), s.Out.(*os.File)} }

type logger func(string)

func (l logger) Write(b []byte) (int, error) {
	for text := range strings.Lines(string(b)) {
		l(strings.TrimSuffix(text, "\n"))
	}
	return len(b), nil
}

// The halves run at the same time, answer each other, and each sees the other's end.
func TestHalvesTalk(t *testing.T) {
	t.Parallel()
	h, d := newHost(t, map[string]string{
		"create": `#!/bin/sh
exec 8>"$IMPRINT_WRITE" 9<"$IMPRINT_READ"
eval "exec ${IMPRINT_WRITE#/dev/fd/}>&-"
echo question >&8
read answer <&9; echo "asked, and was told: $answer"
exec 8>&-
echo "then: $(cat <&9)"
`,
		"create_untrusted": `#!/bin/sh
read question <"$IMPRINT_READ"; echo "was asked: $question"
echo 42 >"$IMPRINT_WRITE"
rest=$(cat "$IMPRINT_READ"); echo "the other half has ended: [$rest]"
echo last words >"$IMPRINT_WRITE"
`})
	h.VM = inCage(d)
	if err := h.Run(t.Context(), d, Create, "", input(), Stdio{}); err != nil {
		t.Fatalf("%v\n%s", err, h.said())
	}
	for _, want := range []string{"vm: was asked: question\n", "host: asked, and was told: 42\n", "vm: the other half has ended: []\n", "host: then: last words\n"} {
		if !strings.Contains(h.said(), want) {
			t.Errorf("%q is not in\n%s", want, h.said())
		}
	}
}

// A half that dies, however it does, is an end of file to the other, which then
// ends by itself; the whole has failed.
func TestBothEndsSeeTheOtherDie(t *testing.T) {
	t.Parallel()
	const waits = "#!/bin/bash\nrest=$(cat \"$IMPRINT_READ\"); echo \"end of the pipe after: $rest\"; cat <&$IMPRINT_SOCKET_FD; echo end of the socket\n"
	const dies = "#!/bin/bash\necho one >\"$IMPRINT_WRITE\"; kill -9 $$\n"
	for name, files := range map[string]map[string]string{
		"host": {"create": dies, "create_untrusted": waits},
		"vm":   {"create": waits, "create_untrusted": dies},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, d := newHost(t, files)
			h.VM = inCage(d)
			err := h.Run(t.Context(), d, Create, "", input(), Stdio{})
			other := map[string]string{"host": "vm", "vm": "host"}[name]
			if imprint.KindOf(firstOf(err)) != imprint.Conflict || !strings.Contains(err.Error(), "SIGKILL") {
				t.Errorf("got %v", err)
			}
			for _, want := range []string{other + ": end of the pipe after: one\n", other + ": end of the socket\n"} {
				if !strings.Contains(h.said(), want) {
					t.Errorf("%q is not in\n%s", want, h.said())
				}
			}
		})
	}
	// A VM that is not there at all is one too.
	h, d := newHost(t, map[string]string{"create": waits, "create_untrusted": waits})
	h.VM = func(context.Context, *VM) (*job.Result, error) {
		return nil, imprint.Errorf(imprint.Internal, "run", "helper VM", "it panicked")
	}
	err := h.Run(t.Context(), d, Create, "", input(), Stdio{})
	if err == nil || !strings.Contains(err.Error(), "on the helper VM: it panicked") || !strings.Contains(h.said(), "host: end of the pipe after: \n") {
		t.Errorf("got %v\n%s", err, h.said())
	}
}

func firstOf(err error) error {
	var e *imprint.Error
	if errors.As(err, &e) {
		return e
	}
	return err
}

// The socket carries bytes both ways, and each direction can end by itself.
func TestHalvesHaveASocket(t *testing.T) {
	t.Parallel()
	h, d := newHost(t, map[string]string{
		"create":           "#!/bin/bash\necho \"to the VM\" >&$IMPRINT_SOCKET_FD; read answer <&$IMPRINT_SOCKET_FD; echo \"got: $answer\"\n",
		"create_untrusted": "#!/bin/bash\nread line <&$IMPRINT_SOCKET_FD; echo \"$line, and back\" >&$IMPRINT_SOCKET_FD\n",
	})
	h.VM = inCage(d)
	if err := h.Run(t.Context(), d, Create, "", input(), Stdio{}); err != nil || !strings.Contains(h.said(), "host: got: to the VM, and back\n") {
		t.Errorf("got %v\n%s", err, h.said())
	}
}

// No value of a parameter, public ones apart, is in an argument or the environment of
// a process of the host's that runs meanwhile.
func TestValuesAreNotInPS(t *testing.T) {
	t.Parallel()
	h, d := newHost(t, map[string]string{"parameters.list": demoList, "imprint.yaml": demoYAML, "create": "#!/bin/sh\necho pid\nread line\n"})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	running := make(chan struct{})
	var once sync.Once
	h.Log = func(Half, string) { once.Do(func() { close(running) }) }
	done := make(chan error)
	go func() { done <- h.Run(t.Context(), d, Create, "", input(), Stdio{In: r}) }()
	select {
	case <-running:
	case err := <-done:
		t.Fatal(err)
	}
	seen := 0
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		for _, file := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(filepath.Join("/proc", e.Name(), file))
			if err != nil {
				continue
			}
			seen++
			for name, v := range canaries() {
				inOwn := file == "environ" && name == "db.host" // of the script itself, as Ganeti's scripts want it
				if strings.Contains(string(b), string(v.Reveal())) && !inOwn {
					t.Errorf("the value of %s is in /proc/%s/%s", name, e.Name(), file)
				}
			}
		}
	}
	if seen == 0 {
		t.Error("no process was looked at")
	}
	w.WriteString("\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A caller that gives up has the scripts ended.
func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	h, d := newHost(t, map[string]string{"create": "#!/bin/sh\necho started\nsleep 1000\n"})
	ctx, cancel := context.WithCancel(t.Context())
	h.Log = func(Half, string) { cancel() }
	if err := h.Run(ctx, d, Create, "", input(), Stdio{}); imprint.KindOf(err) != imprint.Unavailable {
		t.Errorf("got %v", err)
	}
	wantClean(t, h.Runner)
}

// A script that needs the disk says so, and has it then: that one, and no other.
func TestPrivilegedScriptHasItsDisk(t *testing.T) {
	t.Parallel()
	const create = "#!/bin/sh\nid -u; printf written | dd of=\"$DISK_0_PATH\" conv=notrunc status=none && echo wrote\n"
	for yaml, want := range map[string]string{"": "host: 65534\n", "privileged: true\n": "host: 0\nhost: wrote\n"} {
		h, d := newHost(t, map[string]string{"create": create, "imprint.yaml": yaml})
		dir, err := os.MkdirTemp("/var/tmp", "imprint-osdef-test-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		disk := filepath.Join(dir, "disk.raw")
		write(t, disk, strings.Repeat("\x00", 4096), 0o600)
		in := input()
		in.Disks = []Disk{{Path: disk, Size: 4096, File: true}}
		err = h.Run(t.Context(), d, Create, "", in, Stdio{})
		b, rerr := os.ReadFile(disk)
		if rerr != nil {
			t.Fatal(rerr)
		}
		if wrote := strings.HasPrefix(string(b), "written"); !strings.HasPrefix(h.said(), want) || wrote != (yaml != "") || wrote != (err == nil) {
			t.Errorf("%q: wrote %v, %v\n%s", yaml, wrote, err, h.said())
		}
	}
}

// Export writes the dump alone to where it belongs, and import reads it.
func TestExportAndImport(t *testing.T) {
	t.Parallel()
	h, d := newHost(t, map[string]string{
		"export": "#!/bin/sh\necho dumping \"$EXPORT_INDEX\" \"$EXPORT_DEVICE\" >&2\nprintf 'a dump\\0'\n",
		"import": "#!/bin/sh\ncat | wc -c\n",
	})
	in := input()
	in.Disks = []Disk{{Path: "/dev/vda"}, {Path: "/dev/vdb"}}
	in.Index = 1
	var dump strings.Builder
	if err := h.Run(t.Context(), d, Export, "", in, Stdio{Out: &dump}); err != nil || dump.String() != "a dump\x00" || h.said() != "host: dumping 1 /dev/vdb\n" {
		t.Errorf("dumped %q, %v\n%s", dump.String(), err, h.said())
	}
	if err := h.Run(t.Context(), d, Import, "", in, Stdio{In: strings.NewReader(dump.String())}); err != nil || !strings.HasSuffix(h.said(), "host: 7\n") {
		t.Errorf("%v\n%s", err, h.said())
	}
	in.Index = 2
	if err := h.Run(t.Context(), d, Export, "", in, Stdio{Out: &dump}); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("a disk that is not there: %v", err)
	}
}
