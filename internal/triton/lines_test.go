package triton

import (
	"bytes"
	"testing"
)

func TestLinesKeepNoMoreThanALine(t *testing.T) {
	t.Parallel()
	var l lines
	junk := bytes.Repeat([]byte("x"), readSize)
	for range 1 << 10 {
		if _, _, ok := l.next(junk); ok {
			t.Fatal("a line without an end")
		}
	}
	if cap(l.partial) > 2*MaxLine {
		t.Errorf("%d bytes are kept of a line of 4 MiB", cap(l.partial))
	}
	line, rest, ok := l.next([]byte("end\nnext\nthen"))
	if !ok || string(line) != "next" || string(rest) != "then" {
		t.Errorf("after it came %q, %q, %v", line, rest, ok)
	}
}
