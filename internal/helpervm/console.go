package helpervm

import (
	"io"
	"strings"

	"imprint/internal/job"
)

const (
	// consoleKept is how many bytes of the VM's last words are kept, and consoleShown how
	// many of its lines an error quotes.
	consoleKept  = 16 << 10
	consoleShown = 6
	// maxConsole is how many bytes of the console [Config.Console] gets.
	maxConsole = 1 << 20
)

// console takes whatever the VM prints, keeps the end of it in bounded memory, and
// passes a bounded amount on.
type console struct {
	ring []byte
	next int
	full bool
	more io.Writer // may be nil
	left int
}

func newConsole(more io.Writer) *console {
	return &console{ring: make([]byte, consoleKept), more: more, left: maxConsole}
}

// Write implements [io.Writer] and never fails.
func (c *console) Write(b []byte) (int, error) {
	if c.more != nil && c.left > 0 {
		part := b[:min(len(b), c.left)]
		c.left -= len(part)
		if _, err := c.more.Write(part); err != nil {
			c.left = 0
		}
	}
	for rest := b; len(rest) > 0; {
		n := copy(c.ring[c.next:], rest)
		rest = rest[n:]
		if c.next += n; c.next == len(c.ring) {
			c.next, c.full = 0, true
		}
	}
	return len(b), nil
}

// last returns the last lines, without what would control a terminal, joined in one.
func (c *console) last() string {
	text := string(c.ring[:c.next])
	if c.full {
		text = string(c.ring[c.next:]) + text
	}
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(job.Printable([]byte(strings.TrimRight(line, "\r\n")))); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-consoleShown):], "; ")
}
