package inside

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"imprint"
	"imprint/internal/job"
	"imprint/internal/repair"
)

// progressInterval is the least time between two reports of progress.
const progressInterval = 100 * time.Millisecond

// machine is what the tasks of a job share.
type machine struct {
	perform    performer
	conn       *job.Conn
	secrets    map[string]imprint.Secret
	roots      map[int]*repair.System // mounted, by the disk's index
	partitions map[int]int            // that have root filesystems, where the job says so
	streams    map[string]bool
}

// Env is what a task has. It is of use only while the task runs.
type Env struct {
	machine *machine
	task    string
	mu      sync.Mutex // of said
	said    time.Time  // when progress was reported last
}

// Disk returns the device node of the disk with that index in helpervm.Config.Disks.
// It fails with kind [imprint.NotFound].
func (e *Env) Disk(index int) (path string, err error) { return findDisk(index) }

// Root mounts the root filesystem of that disk, unless an earlier task did, and
// returns where. It stays mounted until the job ends; a task that needs the
// filesystem unmounted, such as to check it, calls [Env.Unmount] first.
func (e *Env) Root(ctx context.Context, index int) (dir string, err error) {
	return e.machine.mountRoot(ctx, e, index)
}

// Unmount unmounts what [Env.Root] mounted; nothing mounted is fine. It fails with
// kind [imprint.Conflict] if something still uses it.
func (e *Env) Unmount(index int) error { return e.machine.unmount(index) }

// Modprobe loads a kernel module and what it needs. What is built in or loaded is
// fine; it fails with kind [imprint.NotFound] if the VM has no such module.
func (e *Env) Modprobe(name string) error { return modprobe(name) }

// Secret returns one of the job's secrets. It fails with kind [imprint.NotFound].
func (e *Env) Secret(name string) (imprint.Secret, error) {
	s, ok := e.machine.secrets[name]
	if !ok {
		return s, imprint.Errorf(imprint.NotFound, "read", "secret "+name, "the job has none of that name")
	}
	return s, nil
}

// Stream returns the stream of that name in helpervm.Config.Streams: what is written
// goes to the host, and Close tells it that no more comes. Reading ends with [io.EOF]
// where the host's ends. It fails with kind [imprint.NotFound], and with
// [imprint.Conflict] if a task had it already.
func (e *Env) Stream(name string) (io.ReadWriteCloser, error) {
	if e.machine.streams[name] {
		return nil, imprint.Errorf(imprint.Conflict, "open", "stream "+name, "a task had it already")
	}
	port, err := openPort(job.StreamPrefix + name)
	if err != nil {
		return nil, err
	}
	e.machine.streams[name] = true
	return job.NewStream(port), nil
}

// Logf says something in the task's log.
func (e *Env) Logf(format string, args ...any) {
	io.WriteString(e.Log(), fmt.Sprintf(format, args...)+"\n")
}

// Log returns a writer of lines to the task's log, for the output of programs. A
// line without an end is said once the next begins, so end each.
func (e *Env) Log() io.Writer {
	return &lines{say: func(line string) {
		e.machine.conn.Send(&job.Message{Log: &job.Log{Task: e.task, Line: line}})
	}}
}

// Progress says how far the task is; unit is "bytes", "files" or the like. It costs
// little: what comes too fast is dropped here.
func (e *Env) Progress(done, total int64, unit string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := time.Now(); done == total || now.Sub(e.said) >= progressInterval {
		e.said = now
		e.machine.conn.Send(&job.Message{Progress: &job.Progress{Task: e.task, Done: done, Total: total, Unit: unit}})
	}
}

// lines says what is written to it line by line.
type lines struct {
	mu   sync.Mutex
	rest []byte
	say  func(string)
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, b...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 && len(l.rest) < job.MaxLine {
			return len(b), nil
		}
		if i < 0 || i > job.MaxLine {
			i = job.MaxLine
			l.say(job.Printable(l.rest[:i]))
			l.rest = l.rest[i:]
			continue
		}
		l.say(job.Printable(l.rest[:i]))
		l.rest = l.rest[i+1:]
	}
}
