package job

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"imprint"
)

// Limits of what travels.
const (
	MaxFrame = 1 << 20  // bytes of a message
	MaxLine  = 4 << 10  // bytes of a log line; a longer one is cut
	MaxFault = 16 << 10 // bytes of a fault's cause; a longer one is cut
)

// Message is one frame. Exactly one field is set.
type Message struct {
	// From the host, in this order.
	Job    *Job         `json:"job,omitempty"`
	Secret *SecretFrame `json:"secret,omitempty"`
	Start  *Start       `json:"start,omitempty"`
	// From the guest.
	Hello    *Hello    `json:"hello,omitempty"`
	Log      *Log      `json:"log,omitempty"`
	Progress *Progress `json:"progress,omitempty"`
	Result   *Result   `json:"result,omitempty"`
}

// Hello is the agent's first word.
type Hello struct {
	Version int `json:"version"`
	// Age is how long the agent had been running by then, as its own clock says.
	Age time.Duration `json:"age,omitempty"`
}

// Start says that job and secrets are complete.
type Start struct{}

// SecretFrame carries one of [Job.Secrets] over the one channel that may.
type SecretFrame struct {
	Name  string `json:"name"`
	Value []byte `json:"value"`
}

// Format keeps the value out of what is printed.
func (s SecretFrame) Format(f fmt.State, _ rune) { io.WriteString(f, "secret "+s.Name) }

// Log is a line of a task's log.
type Log struct {
	Task string `json:"task,omitempty"`
	Line string `json:"line"`
}

// Progress is how far a task is. Total 0 means that it is not known.
type Progress struct {
	Task  string `json:"task"`
	Done  int64  `json:"done"`
	Total int64  `json:"total,omitempty"`
	Unit  string `json:"unit,omitempty"` // "bytes", "files"; "" is a bare count
}

// Conn is one end of the port. Sending is safe for concurrent use.
type Conn struct {
	r  io.Reader
	mu sync.Mutex // of writes
	w  io.Writer
}

// NewConn speaks over rw.
func NewConn(rw io.ReadWriter) *Conn { return &Conn{r: rw, w: rw} }

// Send sends m. It fails with kind [imprint.Invalid] if m is too large, and with
// the error of the port.
func (c *Conn) Send(m *Message) error {
	body, err := json.Marshal(m)
	if err != nil {
		return imprint.Errorf(imprint.Internal, "send", "message", "%w", err)
	}
	if len(body) > MaxFrame {
		return imprint.Errorf(imprint.Invalid, "send", "message", "it has %d bytes; %d are allowed", len(body), MaxFrame)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	frame = append(frame, body...)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err = c.w.Write(frame)
	return err
}

// Receive returns the next message. It fails with [io.EOF] at the end between two
// frames, with kind [imprint.Invalid] for a frame that is none, and otherwise
// with the error of the port.
func (c *Conn) Receive() (*Message, error) {
	var head [4]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, imprint.Errorf(imprint.Invalid, "receive", "message", "it ends within a frame")
		}
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxFrame {
		return nil, imprint.Errorf(imprint.Invalid, "receive", "message", "a frame of %d bytes; %d are allowed", n, MaxFrame)
	}
	// Memory is taken as bytes come, not as a length claims that they will.
	var body bytes.Buffer
	if got, err := io.CopyN(&body, c.r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, imprint.Errorf(imprint.Invalid, "receive", "message", "it ends after %d of %d bytes", got, n)
		}
		return nil, err
	}
	return decode(body.Bytes())
}

func decode(body []byte) (*Message, error) {
	if !utf8.Valid(body) {
		return nil, imprint.Errorf(imprint.Invalid, "receive", "message", "it is no UTF-8")
	}
	var m Message
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "receive", "message", "%w", err)
	}
	if d.More() {
		return nil, imprint.Errorf(imprint.Invalid, "receive", "message", "something follows it in its frame")
	}
	set := 0
	for _, is := range []bool{m.Job != nil, m.Secret != nil, m.Start != nil, m.Hello != nil, m.Log != nil, m.Progress != nil, m.Result != nil} {
		if is {
			set++
		}
	}
	if set != 1 {
		return nil, imprint.Errorf(imprint.Invalid, "receive", "message", "it is %d messages at once", set)
	}
	return &m, nil
}

// Printable is text as it may be shown on a terminal and sent in a message: what
// controls one, and what is no UTF-8, is replaced.
func Printable(b []byte) string {
	b = bytes.TrimSuffix(b, []byte{'\r'})
	if !bytes.ContainsFunc(b, func(r rune) bool { return (r < ' ' && r != '\t') || r >= 0x7f }) { // as nearly all is
		return string(b)
	}
	return strings.Map(func(r rune) rune {
		if r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, string(bytes.ToValidUTF8(b, []byte("\uFFFD"))))
}

// SendJob sends a job and its secrets.
func SendJob(c *Conn, j *Job) error {
	if err := c.Send(&Message{Job: j}); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(j.Secrets)) {
		if err := c.Send(&Message{Secret: &SecretFrame{Name: name, Value: j.Secrets[name].Reveal()}}); err != nil {
			return err
		}
	}
	return c.Send(&Message{Start: &Start{}})
}

// ReceiveJob returns a job with its secrets, which the host sends before all else. It
// fails as [Conn.Receive] and [Job.Check] do.
func ReceiveJob(c *Conn) (*Job, error) {
	m, err := c.Receive()
	if err != nil {
		return nil, err
	}
	j := m.Job
	if j == nil {
		return nil, imprint.Errorf(imprint.Invalid, "receive", "job", "something else came first")
	}
	if j.Version != Version {
		return nil, imprint.Errorf(imprint.Invalid, "receive", "job", "it is of version %d, the agent's is %d", j.Version, Version)
	}
	j.Secrets = map[string]imprint.Secret{}
	for {
		m, err := c.Receive()
		switch {
		case err != nil:
			return nil, err
		case m.Start != nil:
			return j, j.Check()
		case m.Secret == nil || len(j.Secrets) >= MaxSecrets:
			return nil, imprint.Errorf(imprint.Invalid, "receive", "job", "it is followed by what does not belong there")
		}
		j.Secrets[m.Secret.Name] = imprint.NewSecret(m.Secret.Value)
	}
}
