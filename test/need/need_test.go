package need_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"imprint/test/need"
)

// outcome records how a test ended instead of ending it.
type outcome struct {
	testing.TB
	skipped, failed string
}

func (o *outcome) Helper()           {}
func (o *outcome) Skip(args ...any)  { o.skipped = fmt.Sprint(args...); runtime.Goexit() }
func (o *outcome) Fatal(args ...any) { o.failed = fmt.Sprint(args...); runtime.Goexit() }

func run(t *testing.T, f func(testing.TB)) *outcome {
	o := &outcome{TB: t}
	done := make(chan struct{})
	go func() { defer close(done); f(o) }()
	<-done
	return o
}

func TestProgram(t *testing.T) {
	absent := func(tb testing.TB) { need.Program(tb, "no-such-program", "its-package") }
	const reason = "need: program no-such-program (apt install its-package)"

	t.Setenv("IMPRINT_TEST_STRICT", "")
	if o := run(t, absent); o.skipped != reason || o.failed != "" {
		t.Errorf("skipped with %q, failed with %q", o.skipped, o.failed)
	}
	t.Setenv("IMPRINT_TEST_STRICT", "1")
	if o := run(t, absent); o.failed != reason || o.skipped != "" {
		t.Errorf("strict: skipped with %q, failed with %q", o.skipped, o.failed)
	}
	if o := run(t, func(tb testing.TB) { need.File(tb, "/no/such/file", "its-package") }); o.failed != "need: file /no/such/file (apt install its-package)" {
		t.Errorf("file: failed with %q", o.failed)
	}
	if o := run(t, func(tb testing.TB) { need.Kernel(tb, false, "tun") }); o.failed != "need: a kernel with tun" {
		t.Errorf("kernel: failed with %q", o.failed)
	}
	if path := need.Program(t, "go", "golang"); !strings.HasSuffix(path, "go") {
		t.Errorf("found go at %q", path)
	}
}
