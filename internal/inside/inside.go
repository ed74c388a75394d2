// Package inside is the agent as PID 1 of a helper VM: it prepares the machine,
// takes a job from the virtio-serial port, runs its tasks one after the other, and
// reports. It never reports success by going away.
package inside

import (
	"context"
	"io"

	"imprint"
	"imprint/internal/job"
)

// Env is what a task has. It is of use only while the task runs.
type Env struct {
	secrets map[string]imprint.Secret
	report  func(*job.Message)
	task    string
}

// Disk returns the device node of the disk with that index in helpervm.Config.Disks.
// It fails with kind [imprint.NotFound].
func (e *Env) Disk(index int) (path string, err error) { return "", nil }

// Root mounts the root filesystem of that disk, unless an earlier task did, and
// returns where. It stays mounted until the job ends; a task that needs the
// filesystem unmounted, such as to check it, calls [Env.Unmount] first.
func (e *Env) Root(ctx context.Context, index int) (dir string, err error) { return "", nil }

// Unmount unmounts what [Env.Root] mounted.
func (e *Env) Unmount(index int) error { return nil }

// Modprobe loads a kernel module and what it needs. What is built in or loaded is
// fine; it fails with kind [imprint.NotFound] if the VM has no such module.
func (e *Env) Modprobe(name string) error { return nil }

// Secret returns one of the job's secrets. It fails with kind [imprint.NotFound].
func (e *Env) Secret(name string) (imprint.Secret, error) { return imprint.Secret{}, nil }

// Stream returns the stream of that name in helpervm.Config.Streams: what is written
// goes to the host, and Close tells it that no more comes. Reading ends with [io.EOF]
// where the host's ends. It fails with kind [imprint.NotFound], and if a task has it already.
func (e *Env) Stream(name string) (io.ReadWriteCloser, error) { return nil, nil }

// Logf says something in the task's log.
func (e *Env) Logf(format string, args ...any) {}

// Log returns a writer of lines to the task's log, for the output of programs.
func (e *Env) Log() io.Writer { return io.Discard }

// Progress says how far the task is; unit is "bytes", "files" or the like. It costs
// little: what comes too fast is dropped here.
func (e *Env) Progress(done, total int64, unit string) {}

// Is reports whether this process is PID 1 of a helper VM.
func Is() bool { return false }

// Main does the job and powers the machine off. It does not return.
func Main() { select {} }

// perform runs a task of its kind and fills in what came of it.
func (e *Env) perform(ctx context.Context, t *job.Task, o *job.Outcome) (err error) {
	switch {
	case t.Unpack != nil:
		o.Unpack, err = e.unpack(ctx, t.Unpack)
	case t.Repair != nil:
		o.Repair, err = e.repair(ctx, t.Repair)
	case t.Zero != nil:
		o.Zero, err = e.zero(ctx, t.Zero)
	case t.Script != nil:
		o.Script, err = e.script(ctx, t.Script)
	}
	return err
}
