package osdef

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/confine"
	"imprint/internal/job"
	"imprint/internal/script"
)

// Half names where a script runs.
type Half string

// The halves.
const (
	OnHost Half = "host" // trusted, in a cage
	InVM   Half = "vm"   // untrusted
)

// home is where the definition is in the cage: a directory that every machine has, and
// that no script mounts anything on.
const home = "/srv"

// nobody is whom a trusted script runs as that does not need to be root.
const nobody = 65534

// Streams of a job between the two halves, and for import and export.
const (
	pipeStream   = "pipe"
	socketStream = "socket"
	dataStream   = "data"
)

// VM is a helper VM that a script wants.
type VM struct {
	Job job.Job
	// Disks are the instance's, in the order of the input, by the paths that it has, and
	// behind them the archive, which is read-only.
	Disks   []Disk
	Archive *os.File
	Network bool
	Streams map[string]Stream
	// Log gets what the script prints, a line at a time, without values.
	Log func(line string)
}

// Stream is a stream to and from the VM: see helpervm.Stream.
type Stream struct {
	In  io.ReadCloser
	Out io.WriteCloser
}

// Runner runs the scripts of OS definitions.
type Runner struct {
	Trust Trust
	// VM does a job in a helper VM, as helpervm.Run does. It closes the streams' ends
	// when the VM is gone, at the latest.
	VM func(context.Context, *VM) (*job.Result, error)
	// Scratch is where definitions are copied to; "" is the system's temporary directory.
	Scratch string
	// Log gets what scripts print, without the values of parameters; nil discards.
	Log func(half Half, line string)
	// Time bounds each script, 0 to an hour, and Output what it prints, in bytes, 0 to 16 MiB.
	Time      time.Duration
	Output    int64
	Processes int // at once; 0 is 512
}

// Stdio is what import reads and export writes.
type Stdio struct {
	In  io.Reader
	Out io.Writer
}

// Where says where the scripts for op run: nil for neither. It fails with kind
// [imprint.Denied] if one would run on the host and the operator has not marked the
// definition, or it has changed since.
func (r *Runner) Where(d *Definition, op Op) ([]Half, error) {
	host, vm := d.Halves(op)
	trust := r.Trust.Trusts(d)
	switch {
	case host && vm:
		return []Half{OnHost, InVM}, trust
	case vm:
		return []Half{InVM}, nil
	case host && trust == nil:
		return []Half{OnHost}, nil
	case host:
		return []Half{InVM}, nil
	}
	return nil, nil
}

// Run runs op of the definition for the instance, on the host, in a helper VM, or
// both halves at once. It fails with kind [imprint.Conflict] if a script failed or a
// secret value is missing, which the error names; with [imprint.Denied] and
// [imprint.Invalid] before anything runs; and with [imprint.Exhausted] if a limit ended
// a script. The last lines that a script printed are in the error, without values.
func (r *Runner) Run(ctx context.Context, d *Definition, op Op, variant string, in *Input, stdio Stdio) error {
	if err := d.Usable(variant); err != nil {
		return err
	}
	if err := d.Schema.Check(in.Instance.Spec.Params, in.Values, ""); err != nil {
		return err
	}
	where, err := r.Where(d, op)
	if err != nil {
		return err
	}
	if (op == Export || op == Import) && (in.Index < 0 || in.Index >= len(in.Disks)) {
		return imprint.Errorf(imprint.Invalid, "run "+string(op)+" for", in.Instance.Ref(), "it has no disk %d", in.Index)
	}
	p, err := d.plan(op, variant, in)
	if err != nil {
		return err
	}
	dir, err := d.snapshot(r.Scratch)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	both := len(where) == 2
	var host, vm lines
	if both {
		if host, vm, err = connect(2); err != nil { // a pipe and a socket
			return err
		}
	}
	errs := make([]error, len(where))
	var halves sync.WaitGroup
	for n, half := range where {
		halves.Go(func() {
			var err error
			out := &output{scrub: p.scrub}
			if r.Log != nil {
				out.pass = func(line string) { r.Log(half, line) }
			}
			if half == OnHost {
				err = r.onHost(ctx, d, p, dir, host, stdio, out)
			} else {
				err = r.inVM(ctx, d, p, dir, both, vm, stdio, out)
			}
			errs[n] = p.failed(half, err, out)
		})
	}
	halves.Wait()
	return errors.Join(errs...)
}

// plan is one run of a script.
type plan struct {
	op      Op
	in      *Input
	args    []string
	env     []string
	secret  map[string]imprint.Secret // that come into the environment
	files   map[string]imprint.Secret // that come into files
	scrub   *scrubber
	program map[Half]string
}

func (d *Definition) plan(op Op, variant string, in *Input) (*plan, error) {
	p := &plan{op: op, in: in, program: map[Half]string{OnHost: string(op), InVM: string(op)}, scrub: newScrubber(in.Values)}
	if _, vm := d.Halves(op); vm {
		p.program[InVM] = string(op) + untrusted
	}
	if op == Verify {
		p.args = []string{"parameters"}
	}
	var err error
	p.env, p.secret, p.files, err = d.environment(op, variant, in)
	return p, err
}

// failed words how a half ended.
func (p *plan) failed(half Half, err error, out *output) error {
	if err == nil {
		return nil
	}
	kind, hint := imprint.KindOf(err), imprint.HintOf(err)
	var e *imprint.Error
	if errors.As(err, &e) && e.Err != nil {
		err = e.Err // which script it was is said already
	}
	what := p.scrub.line([]byte(err.Error()))
	if last := out.last(); last != "" {
		what += "; it printed last:\n" + last
	}
	failure := imprint.Errorf(kind, "run "+p.program[half]+" for", p.in.Instance.Ref(), "on the %s: %s", map[Half]string{OnHost: "host", InVM: "helper VM"}[half], what)
	if hint != "" {
		failure = failure.WithHint("%s", hint)
	}
	return failure
}

// onHost runs the trusted half. As nobody it has no disks: who needs them is root.
func (r *Runner) onHost(ctx context.Context, d *Definition, p *plan, dir string, to lines, stdio Stdio, out *output) error {
	defer to.close()
	s := script.Script{
		Command: confine.Command{
			Path: filepath.Join(home, p.program[OnHost]), Args: p.args, Env: slices.Clone(p.env), Dir: home,
			Network: d.Schema.Network, UID: nobody, GID: nobody,
			Mounts: []confine.Mount{{Source: dir, Target: home}},
			Stdin:  stdio.In, Stdout: stdout(stdio, out), Stderr: out,
			Limits: confine.Limits{Time: r.Time, Output: r.Output, Processes: r.Processes},
		},
		Secret: p.secret, SecretFiles: p.files,
	}
	if len(to) > 0 {
		s.Pipe, s.Socket = to[0], to[1]
	}
	if d.Schema.Privileged {
		s.UID, s.GID = 0, 0
		s.Capabilities = []int{unix.CAP_SYS_ADMIN, unix.CAP_MKNOD}
	}
	for n, disk := range p.in.Disks {
		s.Env = append(s.Env, diskVariables(p, n, disk.Path)...)
		switch {
		case !d.Schema.Privileged:
		case disk.File:
			s.Mounts = append(s.Mounts, confine.Mount{Source: disk.Path, Target: disk.Path, Writable: !disk.ReadOnly})
		default:
			s.Devices = append(s.Devices, disk.Path)
		}
	}
	return s.Run(ctx)
}

// inVM has the untrusted half run.
func (r *Runner) inVM(ctx context.Context, d *Definition, p *plan, dir string, both bool, to lines, stdio Stdio, out *output) error {
	defer to.close()
	if r.VM == nil {
		return imprint.Errorf(imprint.Unavailable, "run", p.program[InVM], "there is no helper VM to run it in")
	}
	f, size, err := archive(dir, r.Scratch)
	if err != nil {
		return imprint.Errorf(imprint.Unavailable, "copy", "OS definition "+d.Name, "%w", cause(err))
	}
	defer f.Close()
	t := job.Script{
		Archive: len(p.in.Disks), Size: size, Program: p.program[InVM], Args: p.args, Env: p.env,
		Secret: map[string]string{}, SecretFiles: map[string]string{}, Disks: map[string]int{},
		Programs: d.Schema.Programs, Files: d.Schema.Files, Modules: d.Schema.Modules,
		TimeLimit: r.Time, MaxOutput: r.Output, MaxProcesses: r.Processes,
	}
	vm := &VM{
		Disks: p.in.Disks, Archive: f, Network: d.Schema.Network, Streams: map[string]Stream{},
		Log: func(line string) { io.WriteString(out, line+"\n") },
	}
	vm.Job.Secrets = map[string]imprint.Secret{}
	for names, values := range map[*map[string]string]map[string]imprint.Secret{&t.Secret: p.secret, &t.SecretFiles: p.files} {
		for variable, value := range values {
			(*names)[variable] = variable
			vm.Job.Secrets[variable] = value
		}
	}
	for n := range p.in.Disks {
		for _, v := range diskVariables(p, n, "") {
			t.Disks[strings.TrimSuffix(v, "=")] = n
		}
	}
	if both {
		t.Pipe, t.Socket = pipeStream, socketStream
		vm.Streams[pipeStream] = Stream{to[0].r, to[0].w}
		vm.Streams[socketStream] = Stream{to[1].r, to[1].w}
	}
	if p.op == Import && stdio.In != nil {
		t.Stdin = dataStream
		vm.Streams[dataStream] = Stream{In: io.NopCloser(stdio.In)}
	}
	if p.op == Export && stdio.Out != nil {
		t.Stdout = dataStream
		vm.Streams[dataStream] = Stream{Out: nopCloser{stdio.Out}}
	}
	vm.Job.Tasks = []job.Task{{Name: p.program[InVM], Script: &t}}
	_, err = r.VM(ctx, vm)
	return err
}

// diskVariables are those that have the path of disk n.
func diskVariables(p *plan, n int, path string) []string {
	all := []string{pathVariable(n) + "=" + path}
	if (p.op == Export || p.op == Import) && n == p.in.Index {
		prefix := strings.ToUpper(string(p.op))
		all = append(all, prefix+"_DEVICE="+path, prefix+"_DISK_PATH="+path)
	}
	return all
}

func stdout(stdio Stdio, out *output) io.Writer {
	if stdio.Out != nil {
		return stdio.Out
	}
	return out
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// line is one end of a pipe in both directions. What one end wrote before it was
// closed arrives at the other, and then the end of file.
type line struct{ r, w *os.File }

func (l line) Read(b []byte) (int, error)  { return l.r.Read(b) }
func (l line) Write(b []byte) (int, error) { return l.w.Write(b) }
func (l line) CloseWrite() error           { return l.w.Close() }

type lines []line

func (all lines) close() {
	for _, l := range all {
		l.r.Close()
		l.w.Close()
	}
}

// connect makes n lines and returns their ends.
func connect(n int) (a, b lines, err error) {
	for range n {
		var ends [4]*os.File
		for i := 0; i < 4; i += 2 {
			if ends[i], ends[i+1], err = os.Pipe(); err != nil {
				a.close()
				b.close()
				return nil, nil, imprint.Errorf(imprint.Exhausted, "connect", "the halves of a script", "%w", err)
			}
		}
		a = append(a, line{ends[0], ends[3]})
		b = append(b, line{ends[2], ends[1]})
	}
	return a, b, nil
}
