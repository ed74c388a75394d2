package qemu

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"imprint"
)

// DefaultTimeout ends a machine whose [Run] sets no limit.
const DefaultTimeout = 90 * time.Second

const (
	// stopGrace is how long QEMU has to end after SIGTERM before it is killed.
	stopGrace = 2 * time.Second
	// maxComplaint is how many bytes of QEMU's last words an error quotes.
	maxComplaint = 2 << 10
)

// Run says how to run a machine.
type Run struct {
	Timeout time.Duration // 0 is [DefaultTimeout]
	// Stdin is what [ConsoleStdio] reads; nil is nothing. With a terminal here
	// QEMU stays in the caller's process group, so that it may read it.
	Stdin  *os.File
	Stdout io.Writer // what QEMU prints and, with [ConsoleStdio], the guest; nil discards
	Stderr io.Writer // QEMU's complaints; nil keeps them for the error only
}

// Process is a running machine.
type Process struct {
	cmd     *exec.Cmd
	control *monitor      // nil unless [Machine.Control]
	medium  *Medium       // of the machine
	done    chan struct{} // closed when status, err and elapsed are set

	status  int
	err     error
	elapsed time.Duration
}

// Start starts the machine. It ends by itself when the guest powers off, at
// the latest after the timeout or when ctx ends; the caller calls [Process.Wait].
// Should the calling program be killed, the kernel kills the machine too. It
// fails with kind [imprint.Invalid] or [imprint.NotFound] before anything runs.
func (m *Machine) Start(ctx context.Context, run Run) (*Process, error) {
	args, err := m.Args()
	if err != nil {
		return nil, err
	}
	path, err := exec.LookPath(m.program())
	if err != nil {
		return nil, imprint.Errorf(imprint.NotFound, "boot", m.program(), "%w", err).
			WithHint("apt-get install qemu-system-x86")
	}
	for _, name := range m.files() {
		if _, err := os.Stat(name); err != nil {
			return nil, imprint.Errorf(imprint.NotFound, "boot", name, "%w", err)
		}
	}
	var control *monitor
	var theirs *os.File
	if m.Control {
		if control, theirs, err = openMonitor(); err != nil {
			return nil, imprint.Errorf(imprint.Internal, "boot", path, "%w", err)
		}
		defer theirs.Close()
	}
	p, err := start(ctx, run, path, args, control, theirs)
	if err != nil {
		return nil, err
	}
	p.medium = m.Medium
	return p, nil
}

// files returns what has to exist before the machine starts. Sockets are not
// among them: QEMU waits for those.
func (m *Machine) files() []string {
	var files []string
	for _, name := range []string{m.Kernel, m.Initrd, m.System, m.OEMStrings, m.ReadConfig} {
		if name != "" {
			files = append(files, name)
		}
	}
	for _, d := range m.Disks {
		files = append(files, d.Path)
	}
	for _, d := range m.media() {
		files = append(files, d.Path)
	}
	return files
}

// start runs QEMU. Unless control is nil it is the monitor, of which theirs is
// QEMU's end, and is closed with the machine's end.
func start(ctx context.Context, run Run, path string, args []string, control *monitor, theirs *os.File) (*Process, error) {
	if run.Timeout == 0 {
		run.Timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, run.Timeout, errTimeout)
	complaint := &tail{limit: maxComplaint}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = run.Stdout, io.Writer(complaint)
	if run.Stderr != nil {
		cmd.Stderr = io.MultiWriter(complaint, run.Stderr)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if run.Stdin != nil {
		cmd.Stdin = run.Stdin
		cmd.SysProcAttr.Setpgid = false
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace

	if control != nil {
		cmd.ExtraFiles = []*os.File{theirs}
	}
	p := &Process{cmd: cmd, control: control, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The parent-death signal goes with the thread that started the child
		// (prctl(2)), so that thread stays until the child has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer cancel()
		defer close(p.done)
		if control != nil {
			defer control.conn.Close()
		}
		begin := time.Now()
		if err := cmd.Start(); err != nil {
			started <- imprint.Errorf(imprint.Internal, "boot", path, "%w", err)
			return
		}
		started <- nil
		err := cmd.Wait()
		p.elapsed = time.Since(begin)
		p.status = cmd.ProcessState.ExitCode()
		p.err = verdict(context.Cause(ctx), err, path, run.Timeout, complaint.String())
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, err
	}
	return p, nil
}

var errTimeout = errors.New("time is up")

// verdict words how the machine ended; nil means that it ended by itself and well.
func verdict(cause, waitErr error, path string, limit time.Duration, complaint string) error {
	switch {
	case errors.Is(cause, errTimeout):
		return imprint.Errorf(imprint.Unavailable, "run", path, "the guest did not power off within %v", limit).
			WithHint("read the console log: its last line says where the guest stopped")
	case waitErr == nil:
		return nil
	case cause != nil:
		return imprint.Errorf(imprint.Unavailable, "run", path, "%w", cause)
	case complaint != "":
		return imprint.Errorf(imprint.Internal, "run", path, "%w: %s", waitErr, complaint)
	}
	return imprint.Errorf(imprint.Internal, "run", path, "%w", waitErr)
}

// PID returns the process identifier of QEMU.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the machine as a power cut would.
func (p *Process) Kill() { p.cmd.Process.Kill() }

// Done returns a channel that is closed when the machine has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the machine's end and returns QEMU's exit status, -1 if a
// signal ended it. It fails with kind [imprint.Unavailable] if the time was up or
// the context ended, and [imprint.Internal] if QEMU broke down.
func (p *Process) Wait() (status int, err error) {
	<-p.done
	return p.status, p.err
}

// Elapsed returns how long the machine ran; it is set once [Process.Wait] returned.
func (p *Process) Elapsed() time.Duration {
	<-p.done
	return p.elapsed
}

// tail keeps the last limit bytes written to it.
type tail struct {
	limit int
	b     []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - t.limit; over > 0 {
		t.b = t.b[over:]
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.b)) }
