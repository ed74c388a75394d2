package inside

import (
	"bytes"
	"fmt"
	"io"
	"sync"
)

// Limits on the log of a script: each line is a message to the host, and costs as much
// as a message.
const (
	maxLogLines = 4000 // that are passed on as they come
	lastLines   = 40   // that are passed on at the end, of more
	maxLogLine  = 4 << 10
)

// boundedLog passes the first lines of what is written to it on, and the last ones at
// its end. Whoever floods it waits for nobody.
type boundedLog struct {
	to    io.Writer
	mu    sync.Mutex // of all below
	part  []byte     // of a line that has not ended
	lines int
	last  [][]byte // of those that were not passed on
}

func (l *boundedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			l.part = append(l.part, p[:min(len(p), max(0, maxLogLine-len(l.part)))]...) // the rest of a long line is left out
			break
		}
		l.line(append(l.part, p[:min(end, max(0, maxLogLine-len(l.part)))]...))
		p = p[end+1:]
	}
	return n, nil
}

func (l *boundedLog) line(text []byte) {
	l.part = nil
	if l.lines++; l.lines <= maxLogLines {
		l.to.Write(append(text, '\n'))
		return
	}
	if l.last = append(l.last, bytes.Clone(text)); len(l.last) > lastLines {
		l.last = l.last[1:]
	}
}

// end passes on what is left.
func (l *boundedLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.part) > 0 {
		l.line(l.part)
	}
	if out := l.lines - maxLogLines - len(l.last); out > 0 {
		fmt.Fprintf(l.to, "… %d lines are left out\n", out)
	}
	for _, text := range l.last {
		l.to.Write(append(text, '\n'))
	}
	l.last = nil
}
