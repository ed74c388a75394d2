package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"imprint"
)

const (
	// controlFD is the descriptor at which QEMU finds its end of the connection: the
	// first of exec.Cmd's ExtraFiles. No socket in the file system, so nobody else
	// gets to the monitor.
	controlFD = 3
	// maxMessage is how many bytes a message of the monitor may have; a machine's
	// whole list of block nodes has some thousand.
	maxMessage = 1 << 20
	// maxUnheard is how many messages may come before the reply to a command.
	maxUnheard = 1000
)

// monitor speaks QEMU's machine protocol (QMP, docs/interop/qmp-spec.txt): one
// JSON object a line, each command with an id that its reply repeats.
type monitor struct {
	mu    sync.Mutex // a command and its reply
	conn  net.Conn
	in    *bufio.Scanner
	ready bool // capabilities were negotiated
	last  int  // id of the last command
}

// message is what the monitor says: a greeting, an event or a reply.
type message struct {
	ID     int             `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
}

// refusal is an error that QEMU answered.
type refusal struct{ class, text string }

func (r *refusal) Error() string { return "QEMU says: " + r.text }

// deviceNotFound is the class of the refusal for a device that is not there.
const deviceNotFound = "DeviceNotFound"

// openMonitor returns a monitor and QEMU's end of its connection.
func openMonitor() (m *monitor, theirs *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs = os.NewFile(uintptr(fds[1]), "control")
	ours := os.NewFile(uintptr(fds[0]), "control")
	defer ours.Close() // net.FileConn duplicates it
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return newMonitor(conn), theirs, nil
}

func newMonitor(conn net.Conn) *monitor {
	in := bufio.NewScanner(conn)
	in.Buffer(nil, maxMessage)
	return &monitor{conn: conn, in: in}
}

// execute runs a command and decodes what it returns into result, unless that is
// nil. It fails with a [*refusal] if QEMU refuses, and with kind
// [imprint.Unavailable] if it does not answer before ctx ends; it is not asked
// again then.
func (m *monitor) execute(ctx context.Context, command string, arguments, result any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer context.AfterFunc(ctx, func() { m.conn.Close() })()
	if !m.ready {
		if err := m.ask(ctx, "qmp_capabilities", nil, nil); err != nil {
			return err
		}
		m.ready = true
	}
	return m.ask(ctx, command, arguments, result)
}

func (m *monitor) ask(ctx context.Context, command string, arguments, result any) error {
	m.last++
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{command, arguments, m.last})
	if err == nil {
		_, err = m.conn.Write(append(request, '\n'))
	}
	var reply message
	if err == nil {
		reply, err = m.reply(m.last)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return imprint.Errorf(imprint.Unavailable, "ask", "QEMU", "it did not answer %s in time", command)
	case err != nil:
		return imprint.Errorf(imprint.Unavailable, "ask", "QEMU", "%s: %w", command, err)
	case reply.Error != nil:
		return &refusal{reply.Error.Class, reply.Error.Desc}
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(reply.Return, result); err != nil {
		return imprint.Errorf(imprint.Internal, "ask", "QEMU", "%s: %w", command, err)
	}
	return nil
}

// reply reads messages up to the reply to command id, past greeting, events and
// replies for which nobody waited long enough.
func (m *monitor) reply(id int) (message, error) {
	for range maxUnheard {
		if !m.in.Scan() {
			if err := m.in.Err(); err != nil {
				return message{}, err
			}
			return message{}, io.ErrUnexpectedEOF
		}
		var got message
		if err := json.Unmarshal(m.in.Bytes(), &got); err != nil {
			return message{}, fmt.Errorf("it does not speak its protocol: %w", err)
		}
		if got.Event == "" && got.ID == id && (got.Return != nil || got.Error != nil) {
			return got, nil
		}
	}
	return message{}, errors.New("it talks without answering")
}
