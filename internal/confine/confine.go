// Package confine runs a program that nobody trusts: in namespaces of its own, in
// a root of its own, without the capabilities and system calls that reach the kernel
// or the hardware, and with limits on time, memory, processes and output.
//
// What builds the cage runs as a process of its own, which is this program once
// more: its main function has to begin with [Main].
package confine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
)

// Command is a program to run, by root. The zero value of every field but Path has
// a working meaning.
type Command struct {
	Path string   // absolute, as seen from Root
	Args []string // without the program's name
	Env  []string // all of it; nothing is inherited
	Dir  string   // working directory, as seen from Root; "" is /

	// Root becomes the program's root directory; "" is the caller's, read-only. Over
	// what it has there are mounted a /proc, a /dev, a read-only /sys, and an empty
	// /tmp and /run, as far as it has those directories.
	Root   string
	Mounts []Mount
	// Devices are device nodes of the caller that the program gets under the same
	// path, beside null, zero, full, random, urandom and tty.
	Devices []string
	// Capabilities are kept beside the few that let root be root among files
	// (unix.CAP_*). With CAP_SYS_ADMIN little of the cage is left but its limits.
	Capabilities []int
	Network      bool // has the caller's network; otherwise there is none
	UID, GID     uint32

	// Stdin is read until its end or that of the program; one Read that blocks then may
	// outlast Run. nil is empty.
	Stdin io.Reader
	// Stdout and Stderr are written to from a goroutine each. If they are the same, and
	// can be compared, one goroutine writes what comes as it comes. nil discards; the
	// program may write up to Limits.Output to both together.
	Stdout, Stderr io.Writer
	Files          []*os.File // descriptors 3, 4 and so on
	// Started is called once the cage has Files, which the caller may close then; nil is
	// nobody.
	Started func()

	Limits Limits
}

// Mount is a directory or file of the caller that the program sees.
type Mount struct {
	Source, Target string // Target as seen from Root; it has to exist there
	Writable       bool
}

// Limits bound what the program uses. 0 is the default of that limit. Memory and
// Processes take a cgroup of version 2 that the caller may divide, as PID 1 of a helper
// VM can; elsewhere Memory bounds each process by itself, and root's processes are not
// counted.
type Limits struct {
	Time      time.Duration // 0 is an hour
	Memory    int64         // bytes, of all processes and of /tmp and /run; 0 is no limit
	Processes int           // at once; 0 is 512
	Output    int64         // bytes on Stdout and Stderr; more end the program; 0 is 16 MiB
	FileSize  int64         // bytes of one file that it writes; 0 is no limit
	OpenFiles int           // descriptors of one process; 0 is 1024
}

// The defaults of [Limits].
const (
	DefaultTime      = time.Hour
	DefaultProcesses = 512
	DefaultOutput    = 16 << 20
	DefaultOpenFiles = 1024
)

// ExitError is how a program ended that failed by itself.
type ExitError struct {
	Status int            // exit status, if no signal ended it
	Signal syscall.Signal // what ended it, or 0
}

func (e *ExitError) Error() string {
	if e.Signal != 0 {
		return "it was ended by the signal " + unix.SignalName(e.Signal)
	}
	return fmt.Sprintf("it ended with status %d", e.Status)
}

// name is how the process that builds the cage is called. What it is to do is no
// argument, since that may be private.
const name = "imprint-confine"

// spec is what that process is told, and report what it says.
type (
	spec struct {
		Path         string
		Args, Env    []string
		Dir, Root    string
		Mounts       []Mount
		Devices      []string
		Capabilities []int
		UID, GID     uint32
		Files        int
		Limits       Limits
		Cgroup       bool // does what limits here could not
	}
	report struct {
		Failed string // what did not work before the program ran, or ""
		Status int
		Signal syscall.Signal
	}
)

// Run runs the program to its end; no process of it is left. It fails with kind
// [imprint.Exhausted] if a limit ended it, which the error names; with
// [imprint.Conflict] and an [ExitError] in the chain if it failed by itself, with
// [imprint.Invalid] and [imprint.Internal] if it could not be run, and with
// [imprint.Unavailable] if ctx ended.
func (c *Command) Run(ctx context.Context) error {
	limits := c.Limits
	limits.fill()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(limits.Time, func() { cancel(errTime) })
	defer timer.Stop()

	g := newCgroup(limits)
	defer g.remove()
	r, err := c.start(ctx, cancel, limits, g)
	if err != nil {
		return imprint.Errorf(imprint.Internal, "run", c.Path, "%w", err)
	}
	exhausted := func(format string, a ...any) error {
		return imprint.Errorf(imprint.Exhausted, "run", c.Path, format, a...)
	}
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errTime):
		return exhausted("it was not done within %v", limits.Time)
	case errors.Is(cause, errOutput):
		return exhausted("it printed more than %s", size(limits.Output))
	case g.outOfMemory():
		return exhausted("it used more memory than %s", size(limits.Memory))
	case cause != nil:
		return imprint.Errorf(imprint.Unavailable, "run", c.Path, "%w", cause)
	case r == nil:
		return imprint.Errorf(imprint.Internal, "run", c.Path, "what runs it was ended from outside")
	case r.Failed != "":
		return imprint.Errorf(imprint.Invalid, "run", c.Path, "%s", r.Failed)
	case r.Signal == unix.SIGXFSZ:
		return exhausted("it wrote a file of more than %s", size(limits.FileSize))
	case r.Status == 0 && r.Signal == 0:
		return nil
	case g.outOfProcesses():
		return exhausted("it had more than %d processes at once", limits.Processes)
	}
	return imprint.Errorf(imprint.Conflict, "run", c.Path, "%w", &ExitError{r.Status, r.Signal})
}

var (
	errTime   = errors.New("time is up")
	errOutput = errors.New("too much output")
)

func (l *Limits) fill() {
	if l.Time == 0 {
		l.Time = DefaultTime
	}
	if l.Processes == 0 {
		l.Processes = DefaultProcesses
	}
	if l.Output == 0 {
		l.Output = DefaultOutput
	}
	if l.OpenFiles == 0 {
		l.OpenFiles = DefaultOpenFiles
	}
}

func size(n int64) string {
	if n >= 1<<20 && n%(1<<20) == 0 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d bytes", n)
}

// start runs the cage to its end; the report is nil if there was none.
func (c *Command) start(ctx context.Context, cancel context.CancelCauseFunc, limits Limits, g *cgroup) (*report, error) {
	// The parent-death signal goes with the thread that starts the child (prctl(2)).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	specR, specW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer specW.Close()
	defer specR.Close()
	reportR, reportW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer reportR.Close()
	defer reportW.Close()

	left := &atomic.Int64{}
	left.Store(limits.Output)
	bounded := func(w io.Writer) io.Writer {
		if w == nil {
			w = io.Discard
		}
		return &limited{w: w, left: left, over: func() { cancel(errOutput) }}
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{name}
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.Dir = "/"
	cmd.Stdout = bounded(c.Stdout)
	if cmd.Stderr = cmd.Stdout; !same(c.Stdout, c.Stderr) {
		cmd.Stderr = bounded(c.Stderr)
	}
	if f, ok := c.Stdin.(*os.File); ok {
		cmd.Stdin = f
	} else if c.Stdin != nil {
		in, feed, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer in.Close()
		cmd.Stdin = in
		go func() {
			defer feed.Close()
			io.Copy(feed, c.Stdin)
		}()
	}
	cmd.ExtraFiles = append([]*os.File{specR, reportW}, c.Files...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL, Setsid: true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	if !c.Network {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	g.apply(cmd.SysProcAttr)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	specR.Close()
	reportW.Close()
	if c.Started != nil {
		c.Started()
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		json.NewEncoder(specW).Encode(spec{
			c.Path, c.Args, c.Env, c.Dir, c.Root, c.Mounts, c.Devices, c.Capabilities, c.UID, c.GID, len(c.Files), limits, g != nil,
		})
		specW.Close()
	})
	var r *report
	wg.Go(func() {
		var got report
		if json.NewDecoder(io.LimitReader(reportR, maxReport)).Decode(&got) == nil {
			r = &got
		}
	})
	cmd.Wait() // how it ended is in the report
	wg.Wait()
	return r, nil
}

// same reports whether two writers are one.
func same(a, b io.Writer) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && (a == nil || reflect.TypeOf(a).Comparable() && a == b)
}

// maxReport bounds what is read of the report, in bytes.
const maxReport = 64 << 10

// limited passes on as many bytes as are left and swallows the rest, so that who
// writes it does not block until it is ended.
type limited struct {
	w    io.Writer
	left *atomic.Int64
	over func()
}

func (l *limited) Write(b []byte) (int, error) {
	rest := l.left.Add(-int64(len(b)))
	if rest < 0 {
		l.over()
	}
	if keep := int64(len(b)) + min(rest, 0); keep > 0 {
		if _, err := l.w.Write(b[:keep]); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// cgroup is what limits all processes together; nil where there is none.
type cgroup struct {
	dir  string
	file *os.File
}

// cgroupRoot is where a helper VM has its cgroups.
const cgroupRoot = "/sys/fs/cgroup"

// ownThreads is how many threads what builds the cage has at most, which count too.
const ownThreads = 16

// newCgroup makes one if this is PID 1 of a machine whose cgroups it may divide.
func newCgroup(l Limits) *cgroup {
	control, err := os.ReadFile(cgroupRoot + "/cgroup.subtree_control")
	if err != nil || !strings.Contains(string(control), "pids") || !strings.Contains(string(control), "memory") {
		return nil
	}
	dir, err := os.MkdirTemp(cgroupRoot, "confine-")
	if err != nil {
		return nil
	}
	g := &cgroup{dir: dir}
	set := func(file, value string) bool { return os.WriteFile(dir+"/"+file, []byte(value), 0) == nil }
	ok := set("pids.max", fmt.Sprint(l.Processes+ownThreads))
	if l.Memory > 0 {
		ok = ok && set("memory.max", fmt.Sprint(l.Memory)) && set("memory.oom.group", "1")
	}
	if ok {
		g.file, err = os.Open(dir)
	}
	if !ok || err != nil {
		g.remove()
		return nil
	}
	return g
}

func (g *cgroup) apply(attr *syscall.SysProcAttr) {
	if g != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(g.file.Fd())
	}
}

func (g *cgroup) outOfMemory() bool    { return g.event("memory.events", "oom_kill") }
func (g *cgroup) outOfProcesses() bool { return g.event("pids.events", "max") }

// event reports whether something happened that the file counts.
func (g *cgroup) event(file, key string) bool {
	if g == nil {
		return false
	}
	b, _ := os.ReadFile(g.dir + "/" + file)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == key {
			return f[1] != "0"
		}
	}
	return false
}

func (g *cgroup) remove() {
	if g == nil {
		return
	}
	if g.file != nil {
		g.file.Close()
	}
	os.Remove(g.dir)
}
