// Package inside is the agent as PID 1 of a helper VM: it prepares the machine,
// takes a job from the virtio-serial port, runs its tasks one after the other, and
// reports. It never reports success by going away.
package inside

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/job"
	"imprint/internal/repair"
)

// Is reports whether this process is PID 1 of a helper VM.
func Is() bool {
	if os.Getpid() != 1 {
		return false
	}
	_, err := os.Stat(job.Marker)
	return err == nil
}

// Main does the job, whose tasks perform runs, and powers the machine off. It does
// not return.
func Main(perform func(context.Context, *Env, *job.Task, *job.Outcome) error) {
	err := serve(context.Background(), time.Now(), perform)
	// The host does not take this for an answer; it quotes it if there is none.
	if err != nil {
		fmt.Fprintf(os.Stderr, "imprint-helper: %v\n", err)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // with -no-reboot as good as the former
	select {}
}

type performer = func(context.Context, *Env, *job.Task, *job.Outcome) error

// serve does one job. The result has left the machine when it returns nil.
func serve(ctx context.Context, begin time.Time, perform performer) error {
	if err := prepare(); err != nil {
		return err
	}
	port, err := openPort(job.PortName)
	if err != nil {
		return err
	}
	defer port.Close()
	conn := job.NewConn(port)
	if err := conn.Send(&job.Message{Hello: &job.Hello{Version: job.Version, Age: time.Since(begin)}}); err != nil {
		return err
	}
	j, err := job.ReceiveJob(conn)
	if err != nil {
		return err
	}
	result := work(ctx, conn, j, perform)
	if err := conn.Send(&job.Message{Result: result}); err != nil {
		return err
	}
	// The host ends the machine. If it is gone so is the port.
	_, err = conn.Receive()
	return err
}

// work runs the tasks, and leaves nothing mounted or unwritten.
func work(ctx context.Context, conn *job.Conn, j *job.Job, perform performer) *job.Result {
	r := &job.Result{Nonce: j.Nonce}
	m := &machine{perform: perform, conn: conn, secrets: j.Secrets, roots: map[int]*repair.System{}, partitions: j.Roots, streams: map[string]bool{}}
	var err error
	for i := range j.Tasks {
		t := &j.Tasks[i]
		r.Tasks = append(r.Tasks, job.Outcome{Name: t.String()})
		if err = m.run(ctx, t, &r.Tasks[i]); err != nil {
			break
		}
	}
	if left := m.unmountAll(); err == nil {
		err = left
	}
	r.Fault = job.NewFault(err)
	return r
}

// run runs one task.
func (m *machine) run(ctx context.Context, t *job.Task, o *job.Outcome) (err error) {
	begin := time.Now()
	defer func() { o.Took = time.Since(begin) }()
	if t.TimeLimit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t.TimeLimit, errTimeLimit)
		defer cancel()
	}
	defer func() {
		if p := recover(); p != nil {
			err = imprint.Errorf(imprint.Internal, "run", t.String(), "a defect of the agent: %v\n%s", p, debug.Stack())
		}
		if err != nil && errors.Is(context.Cause(ctx), errTimeLimit) {
			err = imprint.Errorf(imprint.Exhausted, "run", t.String(), "it was not done within %v", t.TimeLimit)
		}
	}()
	return m.perform(ctx, &Env{machine: m, task: t.String()}, t, o)
}

var errTimeLimit = errors.New("time is up")

// Perform runs a task of its kind and fills in what came of it.
func Perform(ctx context.Context, e *Env, t *job.Task, o *job.Outcome) (err error) {
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
