package helpervm

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/job"
	"imprint/internal/platform/qemu"
)

// Defaults and limits of a [Config].
const (
	DefaultMemoryMiB = 512
	DefaultTimeLimit = time.Hour
	MaxDisks         = 16
	minMemoryMiB     = 128
)

// Run does j in a VM of its own, whose nonce and version it sets. It returns when the VM
// is gone and nothing of it is left on the host. What it reports as done is on the disks,
// past the host's cache.
//
// If the job reported a fault the result is returned beside the error that it
// carries. All else that goes wrong is an error without a result: kind
// [imprint.Invalid] and [imprint.NotFound] before anything runs; [imprint.Conflict]
// if a disk is in use; [imprint.Exhausted] if the time was up, or as many helper VMs run
// as may; [imprint.Unavailable] if ctx ended; [imprint.Internal] if the VM ended without
// a result. What the disks hold is then anybody's guess.
func Run(ctx context.Context, c Config, j job.Job) (*job.Result, error) {
	begin := time.Now()
	j.Version, j.Nonce = job.Version, rand.Text()
	if err := j.Check(); err != nil {
		return nil, err
	}
	if err := c.complete(); err != nil {
		return nil, err
	}
	accel, err := qemu.Probe{Program: c.QEMU, Kernel: c.Kernel.Image, Dir: c.Cache}.Accel(ctx)
	if err != nil {
		return nil, err
	}
	disks, err := openDisks(c.Disks)
	defer func() {
		for _, d := range disks {
			d.close()
		}
	}()
	if err != nil {
		return nil, err
	}
	s, err := takeSlot(c.RunDir, VM{Instance: c.Instance, PID: os.Getpid(), Since: begin, MemoryMiB: c.MemoryMiB, CPUs: c.CPUs})
	if err != nil {
		return nil, err
	}
	defer s.release()

	r, err := c.boot(ctx, accel, disks, &j, s.started)
	if err != nil {
		return nil, err
	}
	for _, d := range disks {
		if err := d.sync(); err != nil {
			return nil, err
		}
	}
	r.Took = time.Since(begin)
	return r, r.Fault.Err()
}

// Ready fails as [Run] does if the host has not what a VM of this description needs. It
// starts none, and looks at no disk.
func (c Config) Ready() error { return c.complete() }

// complete fills in defaults, and fails with kind [imprint.Invalid] or [imprint.NotFound].
func (c *Config) complete() error {
	c.MemoryMiB, c.CPUs = cmp.Or(c.MemoryMiB, DefaultMemoryMiB), cmp.Or(c.CPUs, 1)
	c.TimeLimit, c.RunDir = cmp.Or(c.TimeLimit, DefaultTimeLimit), cmp.Or(c.RunDir, RunDir())
	invalid := func(operand, format string, a ...any) error {
		return imprint.Errorf(imprint.Invalid, "describe", operand, format, a...)
	}
	switch {
	case c.MemoryMiB < minMemoryMiB || c.MemoryMiB > qemu.MaxMemoryMiB:
		return invalid("memory", "%d MiB; %d to %d are allowed", c.MemoryMiB, minMemoryMiB, qemu.MaxMemoryMiB)
	case c.CPUs < 1 || c.CPUs > qemu.MaxCPUs:
		return invalid("cpus", "%d; 1 to %d are allowed", c.CPUs, qemu.MaxCPUs)
	case !slices.Contains([]qemu.Type{"", qemu.Microvm, qemu.Q35, qemu.PC}, c.Machine):
		return invalid("machine type", "%q is none of microvm, q35, pc", c.Machine)
	case c.TimeLimit < 0:
		return invalid("time limit", "%v is less than none", c.TimeLimit)
	case len(c.Disks) > MaxDisks:
		return invalid("disks", "%d; %d are allowed", len(c.Disks), MaxDisks)
	case len(c.Streams) > job.MaxStreams:
		return invalid("streams", "%d; %d are allowed", len(c.Streams), job.MaxStreams)
	}
	for name := range c.Streams {
		if !job.ValidStream(name) {
			return invalid("stream", "%q is no word of lower-case letters", name)
		}
	}
	if c.Cache == "" {
		if dir, err := os.UserCacheDir(); err == nil {
			c.Cache = filepath.Join(dir, "imprint")
		} else if os.Geteuid() == 0 {
			c.Cache = "/var/cache/imprint"
		} // else nothing is kept: a directory that everybody can make is no place for a kernel
	}
	program, err := exec.LookPath(cmp.Or(c.QEMU, qemu.Program))
	if err == nil {
		program, err = filepath.Abs(program)
	}
	if err != nil {
		return imprint.Errorf(imprint.NotFound, "start", cmp.Or(c.QEMU, qemu.Program), "%w", err).WithHint("apt-get install qemu-system-x86")
	}
	c.QEMU = program
	if c.Kernel.Image == "" {
		if c.Kernel, err = FindKernel(); err != nil {
			return err
		}
	}
	if _, err := os.Stat(c.Kernel.Image); err != nil {
		return openError(c.Kernel.Image, err)
	}
	return nil
}

// wire is a connection to QEMU's process, which has the other end as a descriptor.
type wire struct{ ours, theirs *os.File }

func newWire(name string) (wire, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return wire{}, os.NewSyscallError("socketpair", err)
	}
	if err := unix.SetNonblock(pair[0], true); err != nil { // so that Close wakes who reads it
		return wire{}, os.NewSyscallError("fcntl", err)
	}
	return wire{os.NewFile(uintptr(pair[0]), name), os.NewFile(uintptr(pair[1]), name)}, nil
}

// boot runs the VM to its end; started learns its process.
func (c *Config) boot(ctx context.Context, accel qemu.Accel, disks []*openDisk, j *job.Job, started func(pid int)) (*job.Result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.TimeLimit, errTimeLimit)
	defer cancel()
	machine := cmp.Or(c.Machine, machineType(ctx, c.QEMU))
	v := &vm{accel: accel, machine: machine, memory: c.MemoryMiB, cpus: c.CPUs, tsc: qemu.HostTSC(), network: c.Network}
	names := sortedStreams(c.Streams)
	var wires []wire
	defer func() {
		for _, w := range wires {
			w.ours.Close()
			w.theirs.Close()
		}
	}()
	var files []*os.File
	for i, name := range append([]string{"console", "job"}, names...) {
		w, err := newWire(name)
		if err != nil {
			return nil, imprint.Errorf(imprint.Internal, "start", "helper VM", "%w", err)
		}
		wires, files = append(wires, w), append(files, w.theirs)
		if i >= 2 {
			v.streams = append(v.streams, streamPort{name, 3 + i})
		}
	}
	v.console, v.port = 3, 4
	for _, d := range disks {
		v.disks = append(v.disks, diskFD{fd: 3 + len(files), block: d.block, ro: d.ro})
		files = append(files, d.file)
	}
	needs := j.Needs()
	needs.Programs, needs.Modules = append(needs.Programs, c.Programs...), append(needs.Modules, c.Modules...)
	kernel, err := c.kernel(accel)
	if err != nil {
		return nil, err
	}
	image, err := initramfs(c, needs)
	if err != nil {
		return nil, err
	}
	g, err := newCgroup(c.Cgroup, v)
	if err != nil {
		return nil, err
	}
	defer g.remove()
	p, err := launch(c.QEMU, v, files, g, kernel, content{name: "initrd", data: image})
	if err != nil {
		return nil, err
	}
	started(p.cmd.Process.Pid)
	return c.follow(ctx, p, wires, names, j)
}

var errTimeLimit = errors.New("time is up")

// follow serves the VM's ports until there is a result, or the VM is gone, or ctx ends,
// and ends it.
func (c *Config) follow(ctx context.Context, p *process, wires []wire, names []string, j *job.Job) (*job.Result, error) {
	for _, w := range wires {
		w.theirs.Close() // so that its end is one here
	}
	clean := scrubber(j.Secrets)
	screen := newConsole(c.Console, clean)
	var readers sync.WaitGroup
	readers.Go(func() { io.Copy(screen, wires[0].ours) })
	broken := make(chan error, 2*len(names))
	for i, name := range names {
		c.Streams[name].pump(&readers, name, wires[2+i].ours, broken)
	}
	s := &session{conn: job.NewConn(wires[1].ours), job: j, begin: p.begin, clean: clean, c: c}
	type answer struct {
		r   *job.Result
		err error
	}
	answered := make(chan answer, 1)
	readers.Go(func() {
		r, err := s.run()
		answered <- answer{r, err}
	})

	var a answer
	select {
	case a = <-answered:
	case a.err = <-broken:
	case <-ctx.Done():
		a.err = ctx.Err()
	}
	switch {
	case a.err == nil:
		p.stop()
	case gone(a.err) && ctx.Err() == nil:
		p.settle()
	default:
		p.kill()
	}
	// QEMU is gone, so every port ends behind what is still in its socket.
	for _, name := range names {
		c.Streams[name].close(a.err != nil)
	}
	readers.Wait()
	if a.err == nil && len(broken) > 0 {
		a.err = <-broken
	}
	if a.err == nil {
		return a.r, nil
	}
	return nil, c.verdict(ctx, p, a.err, screen.last())
}

// settle waits a moment for a VM that broke off its connection, to learn how it ended.
func (p *process) settle() {
	select {
	case <-p.done:
	case <-time.After(stopGrace):
		p.kill()
	}
}

// verdict words why there is no result.
func (c *Config) verdict(ctx context.Context, p *process, err error, last string) error {
	operand := "helper VM"
	if c.Instance != "" {
		operand += " of " + c.Instance
	}
	words := ""
	if last != "" {
		words = "; its console ends with: " + last
	}
	if complaint := p.complaint.String(); complaint != "" {
		words += "; QEMU says: " + job.Printable([]byte(complaint))
	}
	switch {
	case errors.Is(context.Cause(ctx), errTimeLimit):
		return imprint.Errorf(imprint.Exhausted, "run", operand, "it had no result within %v%s", c.TimeLimit, words)
	case ctx.Err() != nil:
		return imprint.Errorf(imprint.Unavailable, "run", operand, "%w", context.Cause(ctx))
	case gone(err):
		how := "it powered off"
		var exit *exec.ExitError
		if errors.As(p.err, &exit) {
			how = "QEMU ended: " + exit.Error()
		}
		return imprint.Errorf(imprint.Internal, "run", operand, "%s without a result%s", how, words)
	}
	e := imprint.Errorf(imprint.KindOf(err), "run", operand, "%w%s", err, words)
	e.Hint = imprint.HintOf(err)
	return e
}

// kernel is what QEMU boots.
func (c *Config) kernel(accel qemu.Accel) (content, error) {
	image := c.Kernel.Image
	if accel != qemu.KVM { // the processor itself unpacks it in no time
		if path := unpacked(image, c.Cache); path != "" {
			image = path
		}
	}
	return file("kernel", image)
}
