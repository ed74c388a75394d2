package guest

import (
	"fmt"
	"io"
	"strings"
	"sync"
)

// Console is where the agent says in plain words what it does and why it
// waits. Every line starts with "imprint-agent: ". It never gets a secret.
type Console struct {
	mu   sync.Mutex
	out  []io.Writer
	last map[string]string // the last sentence about each topic; guarded by mu
}

// NewConsole returns a Console that writes to every one of out, and ignores the
// errors of those that cannot be written to.
func NewConsole(out ...io.Writer) *Console {
	return &Console{out: out, last: make(map[string]string)}
}

// Say writes one line.
func (c *Console) Say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write(fmt.Sprintf(format, args...))
}

// About writes one line "topic: sentence", unless the last sentence about the
// topic was the same: what is tried again every second is said once.
func (c *Console) About(topic, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sentence := fmt.Sprintf(format, args...)
	if c.last[topic] == sentence {
		return
	}
	c.last[topic] = sentence
	c.write(topic + ": " + sentence)
}

// write keeps the console to one line a message, also when a peer or a program
// put control characters into what is quoted.
func (c *Console) write(line string) {
	line = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, line)
	for _, w := range c.out {
		fmt.Fprintf(w, "imprint-agent: %s\n", line)
	}
}
