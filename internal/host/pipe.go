package host

import (
	"bytes"
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"sync"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/triton"
)

// Limits on what waits in one direction of a pipe. With [imprint.MaxPipes] they
// bound what one instance can make its host keep.
const (
	maxMessages = 64        // messages
	maxWaiting  = 128 << 10 // bytes of them together
)

// A message has to fit a frame of the serial protocol (a failure to compile says
// that it does not).
const _ = uint(triton.MaxPut - triton.MaxKey - imprint.MaxMessage)

// message is one that waits.
type message struct {
	receipt string // by which whoever read it says so
	data    []byte
	read    bool // somebody was given it
}

// queue is one direction of a pipe. The zero value is empty.
//
// Reading does not remove: a reply may be lost, and the reader may die with the
// message in its hands. It is removed when the reader says by its receipt that it
// has it, so that a repetition removes nothing else.
type queue struct {
	mu       sync.Mutex
	messages []message
	bytes    int           // of all of them
	last     string        // how its sender called the message put last, even if it is gone
	arrived  chan struct{} // closed and replaced when a message arrives; nil if nobody ever waited
}

// put appends a message, unless its sender calls it id as it did the one before:
// then the reply to that was lost, and it is the same. "" is always another one. It
// returns how many bytes were added.
func (q *queue) put(data []byte, id string) (size int, err error) {
	if len(data) == 0 || len(data) > imprint.MaxMessage {
		return 0, imprint.Errorf(imprint.Exhausted, "write", "message", "%d bytes; a message has 1 to %d", len(data), imprint.MaxMessage)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if id != "" && id == q.last {
		return 0, nil
	}
	if len(q.messages) >= maxMessages || q.bytes+len(data) > maxWaiting {
		return 0, imprint.Errorf(imprint.Exhausted, "write", "message", "%d messages wait to be read, with %d bytes", len(q.messages), q.bytes).
			WithHint("write it again when the reader has caught up")
	}
	q.messages = append(q.messages, message{receipt: rand.Text(), data: bytes.Clone(data)})
	q.bytes += len(data)
	q.last = id
	if q.arrived != nil {
		close(q.arrived)
		q.arrived = nil
	}
	return len(data), nil
}

// next returns the oldest message, whose data must not be changed, and what is
// closed when one arrives.
func (q *queue) next() (m message, arrived <-chan struct{}, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.messages) == 0 {
		if q.arrived == nil {
			q.arrived = make(chan struct{})
		}
		return message{}, q.arrived, false
	}
	q.messages[0].read = true
	return q.messages[0], nil, true
}

// wait returns the oldest message as soon as there is one; its receipt is "" if
// ctx ended before, which is no error.
func (q *queue) wait(ctx context.Context) (data []byte, receipt string) {
	for {
		m, arrived, ok := q.next()
		if ok {
			return bytes.Clone(m.data), m.receipt
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return nil, ""
		}
	}
}

// take removes the oldest message if it has this receipt, and returns its size; 0
// if it is another one.
func (q *queue) take(receipt string) int {
	return q.drop(func(m message) bool { return m.receipt == receipt })
}

// takeDigest is take for a channel that carries no receipts. A message that
// nobody was given was not taken, even if it equals the one before.
func (q *queue) takeDigest(d imprint.Digest) int {
	return q.drop(func(m message) bool { return m.read && imprint.DigestOf(m.data) == d })
}

func (q *queue) drop(taken func(message) bool) (size int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.messages) == 0 || !taken(q.messages[0]) {
		return 0
	}
	size = len(q.messages[0].data)
	q.messages[0] = message{}
	q.messages = q.messages[1:]
	q.bytes -= size
	return size
}

// reset forgets everything, at the start of a new generation.
func (q *queue) reset() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.messages, q.bytes, q.last = nil, 0, ""
}

func (q *queue) waiting() Waiting {
	q.mu.Lock()
	defer q.mu.Unlock()
	return Waiting{len(q.messages), q.bytes}
}

// pipe is a queue to the machine and one from it.
type pipe struct{ down, up queue }

// pipes are those of an instance, made when they are first used.
type pipes struct {
	mu sync.Mutex
	m  map[string]*pipe // guarded by mu
}

func (p *pipes) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, one := range p.m { // somebody may wait at them
		one.down.reset()
		one.up.reset()
	}
}

// pipe returns one of the instance's pipes. It fails with kind
// [imprint.NotFound] if the instance does not declare it.
func (u *unit) pipe(name string) (*pipe, error) {
	snap, _ := u.current()
	if name != imprint.DefaultPipe && (snap == nil || !slices.Contains(snap.inst.Spec.Pipes, name)) {
		return nil, imprint.Errorf(imprint.NotFound, "use", "pipe "+name, "the instance declares no such pipe").
			WithHint("a pipe is listed under pipes in the instance's manifest; %q is always there", imprint.DefaultPipe)
	}
	u.pipes.mu.Lock()
	defer u.pipes.mu.Unlock()
	if u.pipes.m == nil {
		u.pipes.m = map[string]*pipe{}
	}
	if u.pipes.m[name] == nil {
		u.pipes.m[name] = &pipe{}
	}
	return u.pipes.m[name], nil
}

// pipeOf returns which pipe a key means, and the digest of a message behind it: a
// digest is too long for a name.
func pipeOf(key string) (name string, d imprint.Digest, ok bool) {
	rest, ok := strings.CutPrefix(key, dialect.KeyPipe)
	if !ok || rest != "" && rest[0] != '/' {
		return "", "", false
	}
	name, digest, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
	if len(name) > imprint.MaxNameLen && digest == "" {
		name, digest = "", name
	}
	if name == "" {
		name = imprint.DefaultPipe
	}
	return name, imprint.Digest(digest), true
}

// Pipe is what waits in one of an instance's pipes.
type Pipe struct {
	Name                   string
	ToMachine, FromMachine Waiting
}

// Waiting counts messages that their reader has not taken.
type Waiting struct{ Messages, Bytes int }

// Pipes returns the instance's pipes, [imprint.DefaultPipe] first. Like all that
// follow it fails with kind [imprint.NotFound] for an instance that is not here,
// and the others for a pipe that it does not declare.
func (h *Host) Pipes(id imprint.InstanceID) ([]Pipe, error) {
	u, err := h.known("list pipes of", id)
	if err != nil {
		return nil, err
	}
	names := []string{imprint.DefaultPipe}
	if snap, _ := u.current(); snap != nil {
		names = append(names, snap.inst.Spec.Pipes...)
	}
	u.pipes.mu.Lock()
	defer u.pipes.mu.Unlock()
	var list []Pipe
	for _, name := range names {
		one := Pipe{Name: name}
		if p := u.pipes.m[name]; p != nil {
			one.ToMachine, one.FromMachine = p.down.waiting(), p.up.waiting()
		}
		list = append(list, one)
	}
	return list, nil
}

// WritePipe puts a message for the machine on a pipe. If id is not "" and the
// same as that of the message before, it is that one, sent again. It fails with
// kind [imprint.Exhausted] if the message is larger than [imprint.MaxMessage] or
// too many wait.
func (h *Host) WritePipe(id imprint.InstanceID, pipe, messageID string, data []byte, by string) error {
	u, p, err := h.pipe("write pipe of", id, pipe)
	if err != nil {
		return err
	}
	size, err := p.down.put(data, messageID)
	u.traffic.add(u, passage{pipe, toMachine, written, "", by}, size)
	return err
}

// ReadPipe returns the machine's oldest message and its receipt, and leaves it
// there: [Host.TakePipe] takes it out. It waits for one until ctx ends; the
// receipt is "" if none came.
func (h *Host) ReadPipe(ctx context.Context, id imprint.InstanceID, pipe string) (data []byte, receipt string, err error) {
	_, p, err := h.pipe("read pipe of", id, pipe)
	if err != nil {
		return nil, "", err
	}
	data, receipt = p.up.wait(ctx)
	return data, receipt, nil
}

// TakePipe removes the machine's oldest message if it has this receipt; if it has
// another one, this one was taken before.
func (h *Host) TakePipe(id imprint.InstanceID, pipe, receipt, by string) error {
	u, p, err := h.pipe("take from pipe of", id, pipe)
	if err != nil {
		return err
	}
	u.traffic.add(u, passage{pipe, fromMachine, taken, "", by}, p.up.take(receipt))
	return nil
}

func (h *Host) pipe(op string, id imprint.InstanceID, name string) (*unit, *pipe, error) {
	u, err := h.known(op, id)
	if err != nil {
		return nil, nil, err
	}
	p, err := u.pipe(name)
	return u, p, err
}
