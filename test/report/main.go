// Command report runs the project's tests tier by tier and ends with one table of
// what ran, passed, failed and was skipped, and why. It fails if a test failed
// and, with IMPRINT_TEST_STRICT=1, if a test was skipped.
//
// Usage: go run ./test/report [tier...]
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// tier is one group of tests: what it needs is what its name says.
type tier struct {
	name string
	args []string // of "go test"
}

var tiers = []tier{
	{"go", []string{"-timeout", "8m", "./..."}},
	{"vm", []string{"-timeout", "25m", "-tags", "vm", "./test/vm/...", "./internal/helpervm/"}},
	{"interop", []string{"-timeout", "10m", "-tags", "interop", "./test/interop/..."}},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var results []*result
	for _, t := range tiers {
		if names := os.Args[1:]; len(names) > 0 && !slices.Contains(names, t.name) {
			continue
		}
		fmt.Printf("\n== tier %s: go test %s\n", t.name, strings.Join(t.args, " "))
		results = append(results, t.run(ctx, os.Stdout))
	}
	if len(results) == 0 {
		fmt.Fprintf(os.Stderr, "report: no such tier %q\n", os.Args[1:])
		os.Exit(2)
	}
	if !summarize(os.Stdout, results, os.Getenv("IMPRINT_TEST_STRICT") == "1") {
		os.Exit(1)
	}
}

// run runs the tier's tests and prints packages and failures as they come.
func (t tier) run(ctx context.Context, out io.Writer) *result {
	r := newResult(t.name)
	begin := time.Now()
	defer func() { r.elapsed = time.Since(begin) }()
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, t.args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stderr = out
	events, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.broke(err.Error())
		return r
	}
	if err := r.read(events, out); err != nil {
		r.broke(err.Error())
	}
	if err := cmd.Wait(); err != nil && len(r.failures) == 0 {
		r.broke("go test: " + err.Error())
	}
	return r
}

// summarize prints the table and reports whether everything is well.
func summarize(out io.Writer, results []*result, strict bool) bool {
	fmt.Fprintf(out, "\n%-10s %8s %8s %8s %8s %9s\n", "tier", "ran", "passed", "failed", "skipped", "seconds")
	well := true
	for _, r := range results {
		fmt.Fprintf(out, "%-10s %8d %8d %8d %8d %9.1f\n", r.tier, r.passed+len(r.failures), r.passed, len(r.failures), len(r.skips), r.elapsed.Seconds())
		well = well && len(r.failures) == 0 && (!strict || len(r.skips) == 0)
	}
	for _, r := range results {
		slices.SortFunc(r.skips, func(a, b skip) int { return cmp.Or(cmp.Compare(a.reason, b.reason), cmp.Compare(a.test, b.test)) })
		for _, s := range r.skips {
			fmt.Fprintf(out, "skipped %s: %s: %s\n", r.tier, s.test, s.reason)
		}
		for _, f := range r.failures {
			fmt.Fprintf(out, "FAILED %s: %s\n", r.tier, f)
		}
	}
	return well
}
