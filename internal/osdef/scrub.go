package osdef

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"unicode"

	"imprint"
)

// Limits on what is kept of a script's output.
const (
	tailLines = 20      // lines
	tailBytes = 8 << 10 // of them together
	maxLine   = 1 << 10 // bytes of one
)

// minScrubbed is the shortest value that is looked for in output: a shorter one would
// take every other word out, and says little.
const minScrubbed = 4

// scrubber takes values out of text that others may see.
type scrubber struct{ values [][]byte }

// newScrubber knows the values of all parameters, public ones excepted, in the forms
// in which scripts tend to print them.
func newScrubber(values map[string]imprint.Secret) *scrubber {
	s := &scrubber{}
	add := func(b []byte) {
		if b = bytes.TrimSpace(b); len(b) >= minScrubbed {
			s.values = append(s.values, b)
		}
	}
	for _, v := range values {
		b := v.Reveal()
		add(b)
		for line := range bytes.SplitSeq(b, []byte("\n")) { // output is scrubbed line by line
			add(line)
		}
		add([]byte(base64.StdEncoding.EncodeToString(b)))
		add([]byte(base64.RawURLEncoding.EncodeToString(b)))
		add([]byte(strings.ReplaceAll(string(b), "'", `'\''`))) // as set -x has it
	}
	// The longest first, or the rest of a value would stay behind a part of it.
	slices.SortFunc(s.values, func(a, b []byte) int { return len(b) - len(a) })
	return s
}

// line returns b as it may be shown: without values, controls and what is too long.
func (s *scrubber) line(b []byte) string {
	for _, v := range s.values {
		b = bytes.ReplaceAll(b, v, []byte("[redacted]"))
	}
	text := strings.Map(func(r rune) rune {
		if r != '\t' && !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(string(b), "?"))
	if len(text) > maxLine {
		text = strings.ToValidUTF8(text[:maxLine], "") + " …"
	}
	return text
}

// output takes what a script prints, passes scrubbed lines on, and keeps the last.
// A value that a script splits over two lines is not recognized.
type output struct {
	scrub *scrubber
	pass  func(line string) // nil passes nothing
	part  []byte            // of a line that has not ended
	tail  []string
	bytes int // of tail
}

// longest is how much of a line that does not end is looked at together.
const longest = 64 << 10

func (o *output) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			o.part = append(o.part, p...)
			break
		}
		o.end(append(o.part, p[:end]...))
		p = p[end+1:]
	}
	for len(o.part) > longest {
		o.end(o.part)
	}
	return n, nil
}

func (o *output) end(line []byte) {
	o.part = nil
	text := o.scrub.line(bytes.TrimSuffix(line, []byte("\r")))
	if o.pass != nil {
		o.pass(text)
	}
	o.tail = append(o.tail, text)
	o.bytes += len(text)
	for len(o.tail) > tailLines || o.bytes > tailBytes {
		o.bytes -= len(o.tail[0])
		o.tail = o.tail[1:]
	}
}

// last returns the last lines.
func (o *output) last() string {
	if len(o.part) > 0 {
		o.end(o.part)
	}
	return strings.TrimSpace(strings.Join(o.tail, "\n"))
}
