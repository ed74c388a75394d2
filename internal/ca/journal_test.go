package ca

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"imprint"
)

// entries returns n encoded entries.
func testEntries(t testing.TB, n int) [][]byte {
	t.Helper()
	c := newTestCA(t, testProfile())
	var list [][]byte
	for range n {
		g := testGrant(t)
		if _, err := c.Issue(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		data, err := c.log.entries[len(c.log.entries)-1].Encode()
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, data)
	}
	return list
}

// crashed leaves in l's directory what a server leaves that died before the
// tree had taken in entries, which follow those of a tree of the given size.
func (l *testLog) crashed(t testing.TB, size uint64, entries [][]byte) {
	t.Helper()
	j, err := openJournal(l.dir, size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.append(entries); err != nil {
		t.Fatal(err)
	}
	if err := j.file.Close(); err != nil {
		t.Fatal(err)
	}
}

// What was acknowledged and is only in the journal is found there, and gets its
// place in the tree when the log is opened again.
func TestJournalIsTakenIn(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	l.fill(t, 300)
	l.close(t)
	entries := testEntries(t, 5)
	l.crashed(t, 298, append(slices.Clone(entries[:2]), entries...)) // the tree has two of these already

	report, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{Live: true})
	if err != nil || report.Size != 300 || report.Unsigned != 5 || len(report.Unused) != 0 {
		t.Fatalf("crashed: %+v, %v", report, err)
	}
	if _, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{}); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("a log that a server left: %v", err)
	}
	read := func() (serials []imprint.Serial) {
		for e, err := range Entries(l.fs(), 300) {
			if err != nil || e.Index != 300+uint64(len(serials)) {
				t.Fatal(e.Index, err)
			}
			serials = append(serials, e.Serial)
		}
		return serials
	}
	before := read()
	l.open(t)
	l.fill(t, 1)
	l.close(t)
	report, err = VerifyLog(l.fs(), l.verifier, VerifyOptions{AtLeast: 306})
	if err != nil || report.Size != 306 || report.Unsigned != 0 {
		t.Errorf("opened again: %+v, %v", report, err)
	}
	if after := read(); len(before) != 5 || !slices.Equal(before, after[:5]) {
		t.Errorf("%v became %v", before, after)
	}
}

// A journal that begins after the tree's end shows that the tree lost entries.
func TestJournalAhead(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	l.fill(t, 3)
	l.close(t)
	l.crashed(t, 4, testEntries(t, 1))
	if _, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{}); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("verified: %v", err)
	}
	if log, err := OpenLog(t.Context(), l.config()); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("opened: %v, %v", log, err)
	}
}

// Records after a torn one, and those of earlier rounds, are not entries.
func TestJournalEndsAtDamage(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	l.close(t)
	entries := testEntries(t, 4)
	j, err := openJournal(l.dir, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer j.file.Close()
	read := func() (int, uint64) {
		raw, err := os.ReadFile(filepath.Join(l.dir, journalName))
		if err != nil {
			t.Fatal(err)
		}
		first, list := parseJournal(raw)
		return len(list), first
	}
	if _, err := j.append(entries); err != nil {
		t.Fatal(err)
	}
	if n, first := read(); n != 4 || first != 10 {
		t.Errorf("%d entries from %d", n, first)
	}
	j.rewind()
	if _, err := j.append(entries[:2]); err != nil { // over records of the same length
		t.Fatal(err)
	}
	if n, first := read(); n != 2 || first != 14 {
		t.Errorf("rewound: %d entries from %d", n, first)
	}
	if _, err := j.file.WriteAt([]byte{0xff}, j.end-1); err != nil {
		t.Fatal(err)
	}
	if n, first := read(); n != 1 || first != 14 {
		t.Errorf("torn: %d entries from %d", n, first)
	}
}

// A full journal makes appenders wait for the tree, and loses nothing.
func TestJournalFull(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	c := newTestCA(t, testProfile())
	if _, err := c.Issue(t.Context(), testGrant(t)); err != nil {
		t.Fatal(err)
	}
	e := c.log.entries[0]
	e.SSH = strings.Repeat("x", 60<<10)
	const n = maxJournal>>16 + 64
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if _, err := l.Append(t.Context(), e); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	l.close(t)
	if report, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{AtLeast: n}); err != nil {
		t.Errorf("%+v, %v", report, err)
	}
	if info, err := os.Stat(filepath.Join(l.dir, journalName)); err != nil || info.Size() > maxJournal {
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
}

// While the tree cannot be written nothing is issued; what was acknowledged
// before gets into it as soon as it can be.
func TestTreeCannotBeWritten(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	c := newTestCA(t, testProfile())
	c.Authority.log = l
	obstacle := filepath.Join(l.dir, "tile")
	if err := os.WriteFile(obstacle, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	issued := uint64(0)
	for {
		g := testGrant(t)
		if _, err := c.Issue(t.Context(), g); err != nil {
			if imprint.KindOf(err) != imprint.Unavailable || imprint.HintOf(err) == "" {
				t.Errorf("kind %v: %v", imprint.KindOf(err), err)
			}
			break
		}
		issued++
	}
	if err := os.Remove(obstacle); err != nil {
		t.Fatal(err)
	}
	for failed := true; failed; {
		_, err := c.Issue(t.Context(), testGrant(t))
		failed = err != nil
	}
	l.close(t)
	report, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{})
	if err != nil || report.Size != issued+1 || issued == 0 {
		t.Errorf("%d issued, %+v, %v", issued, report, err)
	}
}
