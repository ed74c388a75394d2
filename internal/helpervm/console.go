package helpervm

import (
	"bytes"
	"io"
	"slices"
	"strings"

	"imprint/internal/job"
)

const (
	// consoleKept is how many bytes of the VM's last words are kept, and consoleShown how
	// many of its lines an error quotes.
	consoleKept  = 16 << 10
	consoleShown = 3
	// maxConsole is how many bytes of the console [Config.Console] gets.
	maxConsole = 1 << 20
)

// console takes whatever the VM prints, keeps the end of it in bounded memory, and
// passes a bounded amount on, in lines that are cleaned.
type console struct {
	ring  []byte
	next  int
	full  bool
	more  io.Writer // may be nil
	left  int
	line  []byte
	clean *strings.Replacer
}

func newConsole(more io.Writer, clean *strings.Replacer) *console {
	return &console{ring: make([]byte, consoleKept), more: more, left: maxConsole, clean: clean}
}

// Write implements [io.Writer] and never fails.
func (c *console) Write(b []byte) (int, error) {
	if c.more != nil && c.left > 0 {
		part := b[:min(len(b), c.left)]
		c.left -= len(part)
		c.pass(part)
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

func (c *console) pass(b []byte) {
	c.line = append(c.line, b...)
	for {
		end := bytes.IndexByte(c.line, '\n')
		next := end + 1
		if end < 0 || end > job.MaxLine {
			if len(c.line) <= job.MaxLine {
				return
			}
			end, next = job.MaxLine, job.MaxLine
		}
		if _, err := io.WriteString(c.more, c.text(c.line[:end])+"\n"); err != nil {
			c.left = 0
		}
		c.line = append(c.line[:0], c.line[next:]...)
	}
}

func (c *console) text(line []byte) string {
	return c.clean.Replace(job.Printable(bytes.TrimRight(line, "\r\n")))
}

// last returns in one line what the VM printed last or, if its kernel gave up, why:
// that is not what it prints last.
func (c *console) last() string {
	text := c.ring[:c.next]
	if c.full {
		text = slices.Concat(c.ring[c.next:], text)
	}
	var lines []string
	for line := range bytes.Lines(text) {
		if line := strings.TrimSpace(c.text(line)); line != "" {
			lines = append(lines, line)
		}
	}
	if i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, "Kernel panic") }); i >= 0 {
		lines = lines[:i+1]
	}
	return strings.Join(lines[max(0, len(lines)-consoleShown):], "; ")
}
