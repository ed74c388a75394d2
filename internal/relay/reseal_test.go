package relay

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/hostapi"
	"imprint/internal/seal"
)

// sealedFiles returns the files of the copy below dir.
func sealedFiles(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "copy"))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, "copy", e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// opens reports how many of files a copy of the key file opens.
func opens(t *testing.T, keys []byte, files map[string][]byte) int {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kek")
	if err := os.WriteFile(path, keys, 0o600); err != nil {
		t.Fatal(err)
	}
	ring, err := seal.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for name, blob := range files {
		if _, err := ring.Open(blob, "copy/"+name); err == nil {
			n++
		}
	}
	return n
}

func keyFile(t *testing.T, dir string) []byte {
	t.Helper()
	path := filepath.Join(dir, "kek")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key file: %v, %v", info.Mode(), err)
	}
	return b
}

// fill puts records, as they are at a revision, facts and values into the copy, and
// returns how many files.
func fill(t *testing.T, r *running, p *plane, at int64) int {
	t.Helper()
	p.lines <- hostapi.Notice{Tenant: &hostapi.TenantFacts{Name: "default", Facts: dialect.Facts{CA: "ca"}}}
	for _, id := range []imprint.InstanceID{one, two} {
		p.lines <- hostapi.Notice{Revision: at, Relist: true, Instance: &hostapi.Instance{Revision: at, Instance: *record(id, at)}}
		<-r.notices
		p.mu.Lock()
		p.values[string(id)+"db"] = "the value of " + string(id)
		p.mu.Unlock()
		if _, err := r.Param(t.Context(), id, "db"); err != nil {
			t.Fatal(err)
		}
	}
	p.lines <- hostapi.Notice{Revision: at, Synced: true}
	<-r.notices
	return 5
}

// TestFollow: when the control plane has another key, the copy has, too; once, and
// also if that happened while the host was away. Old copies of the files do not open
// with the new key file, nor the new files with an old one, and nothing is lost.
func TestFollow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir, p := t.TempDir(), newPlane()
		r := start(t, dir, p)
		n := fill(t, r, p, 1)
		keys, files := keyFile(t, dir), sealedFiles(t, dir)
		if len(files) != n || opens(t, keys, files) != n {
			t.Fatalf("%d files", len(files))
		}
		rotated := func(key string) {
			t.Helper()
			p.lines <- hostapi.Notice{Sealing: key}
			until(t, "the file that says which key was followed", func() bool {
				b, err := os.ReadFile(filepath.Join(dir, followedFile))
				return err == nil && string(b) == key
			})
			newKeys, newFiles := keyFile(t, dir), sealedFiles(t, dir)
			if got := opens(t, newKeys, newFiles); got != n || len(newFiles) != n {
				t.Errorf("the new key opens %d of %d files", got, len(newFiles))
			}
			if opens(t, keys, newFiles) != 0 || opens(t, newKeys, files) != 0 {
				t.Error("an old key opens a new file, or the new key an old one")
			}
			keys, files = newKeys, newFiles
		}
		rotated("first")
		rotated("second")
		p.lines <- hostapi.Notice{Sealing: "second"}
		p.lines <- hostapi.Notice{Revision: 3, Synced: true} // which drops all, as the list is empty
		<-r.notices
		synctest.Wait()
		if string(keyFile(t, dir)) != string(keys) {
			t.Error("the same key again made another one")
		}
		n = fill(t, r, p, 4)
		keys, files = keyFile(t, dir), sealedFiles(t, dir)
		r.stop()

		r = start(t, dir, p)
		for range 2 {
			<-r.notices
		}
		rotated("third")
		for _, id := range []imprint.InstanceID{one, two} {
			if v, ok := r.copy.value(id, "db"); !ok || string(v.Reveal()) != "the value of "+string(id) {
				t.Errorf("the value: %q, %t", v.Reveal(), ok)
			}
		}
	})
}

// TestResealBrokenOff: wherever a crash breaks it off, the next start ends it, with
// one key and every file.
func TestResealBrokenOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for done := range 7 {
			dir, p := t.TempDir(), newPlane()
			r := start(t, dir, p)
			n := fill(t, r, p, 1)
			r.stop()
			keys, files := keyFile(t, dir), sealedFiles(t, dir)
			ring, err := seal.OpenFile(filepath.Join(dir, "kek"))
			if err == nil {
				_, err = ring.Rotate()
			}
			if err != nil {
				t.Fatal(err)
			}
			c := &copied{dir: filepath.Join(dir, "copy"), keys: ring, logger: slog.New(slog.DiscardHandler)}
			rewrapped := 0
			for name := range files {
				if rewrapped == done {
					break
				}
				if _, err := c.rewrapFile(name); err != nil {
					t.Fatal(err)
				}
				rewrapped++
			}
			// What the writing of a key file leaves of itself.
			torn := filepath.Join(dir, ".kek.new-ABCDEFGH")
			if err := os.WriteFile(torn, keys, 0o600); err != nil {
				t.Fatal(err)
			}

			r = start(t, dir, p)
			newKeys, newFiles := keyFile(t, dir), sealedFiles(t, dir)
			if got := opens(t, newKeys, newFiles); got != n || opens(t, keys, newFiles) != 0 || strings.Count(string(newKeys), "imprint-kek-v1") != 1 {
				t.Errorf("broken off after %d files: %d of %d open, with the keys\n%s", rewrapped, got, n, newKeys)
			}
			if _, err := os.Stat(torn); !os.IsNotExist(err) {
				t.Errorf("a torn key file is left: %v", err)
			}
			r.stop()
		}
	})
}

// TestResealThatFails leaves everything as it can be read, heaps up no keys, and
// succeeds when the disk does.
func TestResealThatFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir, p := t.TempDir(), newPlane()
		r := start(t, dir, p)
		n := fill(t, r, p, 1)
		// The marker cannot be written, so that each attempt fails at its end.
		path := filepath.Join(dir, followedFile)
		if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o700); err != nil {
			t.Fatal(err)
		}
		for try := range 3 {
			before := string(keyFile(t, dir))
			p.lines <- hostapi.Notice{Sealing: fmt.Sprint("key ", try)}
			until(t, "the attempt", func() bool { return string(keyFile(t, dir)) != before && r.copy.keys.Older() == 0 })
			synctest.Wait()
			if opens(t, keyFile(t, dir), sealedFiles(t, dir)) != n {
				t.Error("a file does not open any more")
			}
		}
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		p.lines <- hostapi.Notice{Sealing: "key 2"}
		until(t, "the attempt that succeeds", func() bool { b, err := os.ReadFile(path); return err == nil && string(b) == "key 2" })
	})
}

// TestStartWithoutRoom: a host whose disk takes nothing serves all the same what it
// has under two keys, and ends the reseal when it can.
func TestStartWithoutRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir, p := t.TempDir(), newPlane()
		r := start(t, dir, p)
		fill(t, r, p, 1)
		r.stop()
		ring, err := seal.OpenFile(filepath.Join(dir, "kek"))
		if err != nil {
			t.Fatal(err)
		}
		// A name beside which no temporary one is short enough stands for the disk.
		name := strings.Repeat("x", 250)
		blob, err := ring.Seal(imprint.NewSecret([]byte("x")), "copy/"+name)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "copy", name), blob, 0o600)
		}
		if err == nil {
			_, err = ring.Rotate()
		}
		if err != nil {
			t.Fatal(err)
		}
		r = start(t, dir, p)
		for range 2 {
			<-r.notices
		}
		if v, ok := r.copy.value(one, "db"); !ok || string(v.Reveal()) != "the value of "+string(one) {
			t.Errorf("the value: %q, %t", v.Reveal(), ok)
		}
		if err := os.Remove(filepath.Join(dir, "copy", name)); err != nil {
			t.Fatal(err)
		}
		p.lines <- hostapi.Notice{Sealing: "now"}
		until(t, "the end of the reseal", func() bool {
			_, err := os.Stat(filepath.Join(dir, followedFile))
			return err == nil && strings.Count(string(keyFile(t, dir)), "imprint-kek-v1") == 1
		})
	})
}
