package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// event is one line of "go test -json"; see "go doc test2json" and, for builds,
// "go help buildjson".
type event struct {
	Action     string
	Package    string
	ImportPath string // of a build event
	Test       string
	Output     string
	Elapsed    float64 // seconds
}

// result is what became of one tier.
type result struct {
	tier     string
	passed   int
	failures []string // tests, or packages that failed as a whole
	skips    []skip
	elapsed  time.Duration

	output map[string]*strings.Builder // of tests that have not ended, by package and name
	failed map[string]bool             // packages with a failed test
}

// skip is a test that did not run, and why.
type skip struct{ test, reason string }

func newResult(tier string) *result {
	return &result{tier: tier, output: map[string]*strings.Builder{}, failed: map[string]bool{}}
}

// broke records a failure of the tier itself.
func (r *result) broke(what string) { r.failures = append(r.failures, what) }

// read consumes the events and prints to out each package's outcome and what
// failed tests had printed.
func (r *result) read(events io.Reader, out io.Writer) error {
	dec := json.NewDecoder(bufio.NewReader(events))
	for {
		var e event
		if err := dec.Decode(&e); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read go test -json: %w", err)
		}
		r.event(e, out)
	}
}

func (r *result) event(e event, out io.Writer) {
	key := e.Package + "." + e.Test
	switch {
	case e.Action == "build-output":
		io.WriteString(out, e.Output)
	case e.Action == "output":
		if r.output[key] == nil {
			r.output[key] = &strings.Builder{}
		}
		r.output[key].WriteString(e.Output)
		return
	case e.Test == "":
		r.packageEnd(e, out)
	case e.Action == "pass":
		r.passed++
	case e.Action == "skip":
		r.skips = append(r.skips, skip{key, r.reason(key)})
	case e.Action == "fail":
		r.failures = append(r.failures, key)
		r.failed[e.Package] = true
		fmt.Fprintf(out, "FAIL %s\n%s", key, r.printed(key))
	default: // run, pause, cont, start: not an end
		return
	}
	delete(r.output, key)
}

// packageEnd notes how a package ended. One that failed without a failed test
// did not build, or ended too early.
func (r *result) packageEnd(e event, out io.Writer) {
	switch e.Action {
	case "fail":
		if !r.failed[e.Package] {
			r.failures = append(r.failures, e.Package)
			io.WriteString(out, r.printed(e.Package+"."))
		}
		fmt.Fprintf(out, "FAIL %s %.1f s\n", e.Package, e.Elapsed)
	case "pass":
		fmt.Fprintf(out, "ok   %s %.1f s\n", e.Package, e.Elapsed)
	}
}

func (r *result) printed(key string) string {
	if b := r.output[key]; b != nil {
		return b.String()
	}
	return ""
}

// reason finds what a skipped test said: its last line that is neither a
// heading nor a verdict, without the place in the source.
func (r *result) reason(key string) string {
	reason := "no reason given"
	for line := range strings.Lines(r.printed(key)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "--- ") || strings.HasPrefix(line, "=== ") {
			continue
		}
		if place, said, ok := strings.Cut(line, ": "); ok && strings.Contains(place, ".go:") {
			line = said
		}
		reason = line
	}
	return reason
}
