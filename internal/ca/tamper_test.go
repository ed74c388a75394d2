package ca

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"imprint"
)

// copyLog reads a log directory into memory, to be damaged.
func copyLog(t testing.TB, log fs.FS) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	err := fs.WalkDir(log, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(log, name)
		files[name] = &fstest.MapFile{Data: data}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// with returns a copy of files in which one file has other contents.
func with(files fstest.MapFS, name string, data []byte) fstest.MapFS {
	changed := maps.Clone(files)
	changed[name] = &fstest.MapFile{Data: data}
	return changed
}

func without(files fstest.MapFS, name string) fstest.MapFS {
	changed := maps.Clone(files)
	delete(changed, name)
	return changed
}

// seen reports whether a verification noticed that file was changed.
func seen(report *LogReport, err error, file string) bool {
	return err != nil || slices.Contains(report.Unused, file)
}

// matters reports whether a file is part of the log: not tessera's own locks.
func matters(name string) bool {
	return name == checkpointName || name == treeStateName || strings.HasPrefix(name, "tile/")
}

// growing returns the files of a log of n entries that was written in pieces, so
// that it has partial tiles, and its checkpoint at half the size.
func growing(t testing.TB, n int) (files fstest.MapFS, verifier string, older []byte) {
	t.Helper()
	l := newTestLog(t)
	l.fill(t, 1)
	l.fill(t, n/2-1)
	l.close(t)
	older, err := fs.ReadFile(l.fs(), checkpointName)
	if err != nil {
		t.Fatal(err)
	}
	l.open(t)
	l.fill(t, n-n/2)
	l.close(t)
	return copyLog(t, l.fs()), l.verifier, older
}

func TestVerifySeesEveryByte(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ entries, step int }{{4, 29}, {300, 79999}} {
		files, verifier, _ := growing(t, test.entries)
		if report, err := VerifyLog(files, verifier, VerifyOptions{}); err != nil || len(report.Unused) > 0 {
			t.Fatal(report, err)
		}
		for name, file := range files {
			if !matters(name) {
				continue
			}
			step := test.step
			if name == checkpointName {
				step = 1
			}
			for at := 0; at < len(file.Data); at += step {
				for _, bit := range []byte{1, 0x20} {
					data := slices.Clone(file.Data)
					data[at] ^= bit
					report, err := VerifyLog(with(files, name, data), verifier, VerifyOptions{})
					if !seen(report, err, name) {
						t.Errorf("%d entries: byte %d of %s changed unseen", test.entries, at, name)
					}
				}
			}
			for what, data := range map[string][]byte{
				"cut":     file.Data[:len(file.Data)-1],
				"emptied": nil,
				"longer":  append(slices.Clone(file.Data), 0),
				"doubled": append(slices.Clone(file.Data), file.Data...),
			} {
				report, err := VerifyLog(with(files, name, data), verifier, VerifyOptions{})
				if !seen(report, err, name) {
					t.Errorf("%d entries: %s %s unseen", test.entries, what, name)
				}
			}
			// Earlier states of the last tiles may go: tessera removes them itself.
			needed := name == checkpointName || !strings.Contains(name, ".p/") && name != treeStateName
			if _, err := VerifyLog(without(files, name), verifier, VerifyOptions{}); needed && err == nil {
				t.Errorf("%d entries: %s removed unseen", test.entries, name)
			}
		}
	}
}

func TestVerifyNamesTheFirstCorruptEntry(t *testing.T) {
	t.Parallel()
	files, verifier, _ := growing(t, 300)
	offset := func(name string, entry int) int { // of an entry in a bundle
		at, data := 0, files[name].Data
		for range entry {
			at += 2 + int(data[at])<<8 + int(data[at+1])
		}
		return at + 2
	}
	for _, test := range []struct {
		name  string
		at    int
		index uint64
	}{
		{"tile/entries/000", offset("tile/entries/000", 0), 0},
		{"tile/entries/000", offset("tile/entries/000", 17) + 40, 17},
		{"tile/entries/001.p/44", offset("tile/entries/001.p/44", 43) + 99, 299},
		{"tile/0/000", 32*200 + 5, 200},
		{"tile/0/001.p/44", 32*3 + 5, 259},
		{"tile/1/000.p/1", 0, 0},
	} {
		data := slices.Clone(files[test.name].Data)
		data[test.at] ^= 1
		_, err := VerifyLog(with(files, test.name, data), verifier, VerifyOptions{})
		var c *CorruptError
		if !errors.As(err, &c) || c.Index != test.index || imprint.KindOf(err) != imprint.Conflict {
			t.Errorf("byte %d of %s: %v; the entry is %d", test.at, test.name, err, test.index)
		}
	}
}

func TestVerifySeesOlderStates(t *testing.T) {
	t.Parallel()
	files, verifier, older := growing(t, 6)
	rolledBack := with(files, checkpointName, older)
	if _, err := VerifyLog(rolledBack, verifier, VerifyOptions{}); err == nil {
		t.Error("an older checkpoint is unseen")
	}
	if report, err := VerifyLog(rolledBack, verifier, VerifyOptions{Live: true}); err != nil || report.Size != 3 || report.Unsigned != 3 {
		t.Errorf("live: %+v, %v", report, err)
	}
	// Without the private tree state the newer files remain visible.
	if report, err := VerifyLog(without(rolledBack, treeStateName), verifier, VerifyOptions{}); err != nil || len(report.Unused) == 0 {
		t.Errorf("no tree state: %+v, %v", report, err)
	}
	// A log that was cut back in every file is whole; that it had more is known from elsewhere.
	var c *CorruptError
	if _, err := VerifyLog(files, verifier, VerifyOptions{AtLeast: 7}); !errors.As(err, &c) || c.Index != 6 {
		t.Errorf("cut back: %v", err)
	}
	if report, err := VerifyLog(with(files, "tile/entries/005", []byte("x")), verifier, VerifyOptions{}); err != nil || !slices.Equal(report.Unused, []string{"tile/entries/005"}) {
		t.Errorf("added file: %+v, %v", report, err)
	}
}

// A log that someone wrote anew, with all hashes right, fails at the signature.
func TestVerifySeesARewrittenLog(t *testing.T) {
	t.Parallel()
	files, verifier, _ := growing(t, 4)
	forged, forgedKey, _ := growing(t, 4)
	if _, err := VerifyLog(forged, verifier, VerifyOptions{}); err == nil {
		t.Error("another log's checkpoint passes")
	}
	if _, err := VerifyLog(with(forged, checkpointName, files[checkpointName].Data), verifier, VerifyOptions{}); err == nil {
		t.Error("another log's entries pass")
	}
	both := append(slices.Clone(files[checkpointName].Data), []byte("— other.example AAAAAAAA\n")...)
	if _, err := VerifyLog(with(files, checkpointName, both), verifier, VerifyOptions{}); err == nil {
		t.Error("a second signature passes")
	}
	if _, err := VerifyLog(files, forgedKey, VerifyOptions{}); err == nil {
		t.Error("a key of the same name passes")
	}
	if _, err := VerifyLog(files, "nonsense", VerifyOptions{}); imprint.KindOf(err) != imprint.Invalid {
		t.Error(err)
	}
}
