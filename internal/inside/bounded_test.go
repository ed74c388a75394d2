package inside

import (
	"fmt"
	"strings"
	"testing"
)

// A log that is flooded has its beginning and its end, and says what is between.
func TestBoundedLog(t *testing.T) {
	t.Parallel()
	var got strings.Builder
	l := &boundedLog{to: &got}
	for n := range 3 * maxLogLines {
		fmt.Fprintf(l, "line %d", n)
		fmt.Fprint(l, "\n")
	}
	fmt.Fprint(l, strings.Repeat("x", 1<<20))
	l.end()
	lines := strings.Split(strings.TrimSuffix(got.String(), "\n"), "\n")
	if len(lines) != maxLogLines+1+lastLines || lines[0] != "line 0" || lines[maxLogLines-1] != fmt.Sprintf("line %d", maxLogLines-1) {
		t.Errorf("%d lines, from %q", len(lines), lines[0])
	}
	if want := fmt.Sprintf("… %d lines are left out", 2*maxLogLines+1-lastLines); lines[maxLogLines] != want {
		t.Errorf("got %q, want %q", lines[maxLogLines], want)
	}
	if last := lines[len(lines)-1]; len(last) != maxLogLine {
		t.Errorf("the last line has %d bytes", len(last))
	}
}
