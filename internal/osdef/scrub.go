package osdef

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"unicode"

	"imprint"
	"imprint/internal/job"
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

const redacted = "[redacted]"

// line returns b as it may be shown: without values, controls and what is too long.
func (s *scrubber) line(b []byte) string {
	cut := len(b) >= longest // here or in the helper VM, and maybe within a value
	for _, v := range s.values {
		b = bytes.ReplaceAll(b, v, []byte(redacted))
	}
	if n := s.begun(b); cut && n > 0 {
		b = append(b[:len(b)-n], redacted...)
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

// begun returns how many bytes at the end of b are the beginning of a value.
func (s *scrubber) begun(b []byte) (most int) {
	for _, v := range s.values {
		for n := min(len(v)-1, len(b)); n >= max(minScrubbed, most+1); n-- {
			if bytes.HasSuffix(b, v[:n]) {
				most = n
			}
		}
	}
	return most
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

// longest is how many bytes of a line are looked at; the rest is left out. Those of the
// helper VM have no more.
const longest = job.MaxLine

func (o *output) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			o.keep(p)
			break
		}
		o.keep(p[:end])
		o.end(o.part)
		p = p[end+1:]
	}
	return n, nil
}

func (o *output) keep(p []byte) {
	o.part = append(o.part, p[:min(len(p), longest-len(o.part))]...)
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
