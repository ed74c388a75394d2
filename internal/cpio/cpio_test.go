package cpio

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
)

// The kernel reads what is checked here; test/vm shows that it does.
func TestArchive(t *testing.T) {
	t.Parallel()
	build := func() []byte {
		var b bytes.Buffer
		a := NewWriter(&b)
		a.File("bin/busybox", 0o755, []byte("program"))
		a.Link("/bin/sh", "busybox")
		a.Link("bin/../bin/sh", "of two the first counts")
		a.Dir("tmp", 0o777|fs.ModeSticky)
		a.File("a/b/c", 0o600, nil)
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	got := build()
	if !bytes.Equal(got, build()) {
		t.Error("the same entries give other bytes")
	}
	want := []string{
		"40755 bin ", "100755 bin/busybox program", "120777 bin/sh busybox", "41777 tmp ",
		"40755 a ", "40755 a/b ", "100600 a/b/c ", "0 TRAILER!!! ",
	}
	if entries := list(t, got); !slices.Equal(entries, want) {
		t.Errorf("got %q\nwant %q", entries, want)
	}
}

// list reads an archive as the format's description says: a header of thirteen
// numbers, the name, padding to four bytes, the data, padding.
func list(t *testing.T, b []byte) (entries []string) {
	t.Helper()
	r := bytes.NewReader(b)
	take := func(n int) string {
		buf := make([]byte, n)
		if _, err := io.ReadFull(r, buf); err != nil {
			t.Fatalf("after %d entries: %v", len(entries), err)
		}
		return string(buf)
	}
	pad := func() { take(-(len(b) - r.Len()) & 3) }
	for r.Len() > 0 {
		if magic := take(6); magic != "070701" {
			t.Fatalf("after %d entries: magic %q", len(entries), magic)
		}
		var field [13]int
		for i := range field {
			if _, err := fmt.Sscanf(take(8), "%x", &field[i]); err != nil {
				t.Fatal(err)
			}
		}
		name := strings.TrimSuffix(take(field[11]), "\x00")
		pad()
		data := take(field[6])
		pad()
		entries = append(entries, fmt.Sprintf("%o %s %s", field[1], name, data))
	}
	return entries
}
