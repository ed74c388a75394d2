package main

import (
	"strings"
	"testing"
)

const recorded = `{"Action":"start","Package":"imprint/a"}
{"Action":"run","Package":"imprint/a","Test":"TestGood"}
{"Action":"output","Package":"imprint/a","Test":"TestGood","Output":"chatter\n"}
{"Action":"pass","Package":"imprint/a","Test":"TestGood","Elapsed":0.1}
{"Action":"run","Package":"imprint/a","Test":"TestSkipped"}
{"Action":"output","Package":"imprint/a","Test":"TestSkipped","Output":"=== RUN   TestSkipped\n"}
{"Action":"output","Package":"imprint/a","Test":"TestSkipped","Output":"    a_test.go:7: need: program pki (apt install strongswan-pki)\n"}
{"Action":"output","Package":"imprint/a","Test":"TestSkipped","Output":"--- SKIP: TestSkipped (0.00s)\n"}
{"Action":"skip","Package":"imprint/a","Test":"TestSkipped","Elapsed":0}
{"Action":"pass","Package":"imprint/a","Elapsed":0.2}
`

const failing = `{"Action":"run","Package":"imprint/b","Test":"TestBad"}
{"Action":"output","Package":"imprint/b","Test":"TestBad","Output":"    b_test.go:9: got 1, want 2\n"}
{"Action":"fail","Package":"imprint/b","Test":"TestBad","Elapsed":0.1}
{"Action":"fail","Package":"imprint/b","Elapsed":0.1}
{"ImportPath":"imprint/c","Action":"build-output","Output":"c.go:3:1: syntax error\n"}
{"ImportPath":"imprint/c","Action":"build-fail"}
{"Action":"output","Package":"imprint/c","Output":"FAIL\timprint/c [build failed]\n"}
{"Action":"fail","Package":"imprint/c","Elapsed":0}
`

// report reads events and returns what a user sees and whether all is well.
func report(t *testing.T, events string, strict bool) (string, bool) {
	t.Helper()
	var out strings.Builder
	r := newResult("go")
	if err := r.read(strings.NewReader(events), &out); err != nil {
		t.Fatal(err)
	}
	well := summarize(&out, []*result{r}, strict)
	return strings.Join(strings.Fields(out.String()), " "), well
}

func TestReportSkips(t *testing.T) {
	t.Parallel()
	got, well := report(t, recorded, false)
	for _, want := range []string{
		"ok imprint/a", "go 1 1 0 1 ",
		"skipped go: imprint/a.TestSkipped: need: program pki (apt install strongswan-pki)",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	if !well || strings.Contains(got, "chatter") {
		t.Errorf("well is %v for %q", well, got)
	}
	if _, well := report(t, recorded, true); well {
		t.Error("a skip is well although the run is strict")
	}
}

func TestReportFailures(t *testing.T) {
	t.Parallel()
	got, well := report(t, recorded+failing, false)
	if well {
		t.Error("failures are well")
	}
	for _, want := range []string{
		"got 1, want 2", "c.go:3:1: syntax error", "go 3 1 2 1 ",
		"FAILED go: imprint/b.TestBad", "FAILED go: imprint/c",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
}
