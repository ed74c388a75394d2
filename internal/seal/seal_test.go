package seal_test

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"imprint"
	"imprint/internal/seal"
)

func open(t testing.TB, path string) *seal.File {
	t.Helper()
	f, err := seal.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestSealedValuesOpenOnlyInTheirContext(t *testing.T) {
	ring := open(t, filepath.Join(t.TempDir(), "kek"))
	value := []byte("correct horse")
	blob, err := ring.Seal(imprint.NewSecret(value), "param/a")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(blob, value) {
		t.Error("the blob shows the value")
	}
	if got, err := ring.Open(blob, "param/a"); err != nil || !bytes.Equal(got.Reveal(), value) {
		t.Errorf("Open = %q, %v", got.Reveal(), err)
	}
	if _, err := ring.Open(blob, "param/b"); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("another context: %v", err)
	}
	for i := range blob {
		bad := bytes.Clone(blob)
		bad[i] ^= 0x80
		if _, err := ring.Open(bad, "param/a"); err == nil {
			t.Fatalf("opened with byte %d changed", i)
		}
		if _, err := ring.Open(blob[:i], "param/a"); err == nil {
			t.Fatalf("opened when cut to %d bytes", i)
		}
	}
}

func TestRotationWithoutDowntime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek")
	ring := open(t, path)
	value := imprint.NewSecret([]byte("v"))
	old, _ := ring.Seal(value, "c")
	before := ring.Primary()

	// Readers and writers go on while the key changes.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				b, err := ring.Seal(value, "c")
				if err == nil {
					_, err = ring.Open(b, "c")
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	if _, err := ring.Rotate(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if ring.Primary() == before {
		t.Fatal("the primary key is still the old one")
	}
	if _, err := ring.Open(old, "c"); err != nil {
		t.Errorf("value of the old key after rotation: %v", err)
	}
	rewrapped, changed, err := ring.Rewrap(old, "c")
	if err != nil || !changed {
		t.Fatalf("Rewrap = %v, %v", changed, err)
	}
	if _, changed, _ := ring.Rewrap(rewrapped, "c"); changed {
		t.Error("Rewrap changed a value of the primary key")
	}
	if err := ring.Retire(); err != nil {
		t.Fatal(err)
	}
	again := open(t, path) // what a restarted server sees
	if got, err := again.Open(rewrapped, "c"); err != nil || string(got.Reveal()) != "v" {
		t.Errorf("rewrapped value after retiring: %q, %v", got.Reveal(), err)
	}
	if _, err := again.Open(old, "c"); imprint.KindOf(err) != imprint.Unavailable || imprint.HintOf(err) == "" {
		t.Errorf("value of a retired key: %v", err)
	}
}

func TestAnotherProcessLearnsOfARotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek")
	a, b := open(t, path), open(t, path)
	if _, err := a.Rotate(); err != nil {
		t.Fatal(err)
	}
	blob, _ := a.Seal(imprint.NewSecret([]byte("v")), "c")
	if _, err := b.Open(blob, "c"); err != nil {
		t.Error(err)
	}
	if b.Primary() != a.Primary() {
		t.Error("b still seals with the old key")
	}
}

func TestKeyFilesThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"empty":     "",
		"comment":   "# nothing\n",
		"short":     "imprint-kek-v1 AAAA\n",
		"foreign":   "-----BEGIN PRIVATE KEY-----\nCANARY\n",
		"long line": "imprint-kek-v1 " + string(bytes.Repeat([]byte("A"), 70<<10)),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := seal.OpenFile(path)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if bytes.Contains([]byte(err.Error()), []byte("CANARY")) {
			t.Errorf("%s: the error shows the file's content: %v", name, err)
		}
		if after, _ := os.ReadFile(path); string(after) != content {
			t.Errorf("%s: the refused file was changed", name)
		}
	}
	path := filepath.Join(dir, "open")
	open(t, path)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.OpenFile(path); imprint.KindOf(err) != imprint.Denied {
		t.Errorf("readable by a group: %v", err)
	}
}

func TestFreshKeyFileIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek")
	open(t, path)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	entries, _ := os.ReadDir(filepath.Dir(path))
	if len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func FuzzOpen(f *testing.F) {
	ring := open(f, filepath.Join(f.TempDir(), "kek"))
	blob, _ := ring.Seal(imprint.NewSecret([]byte("v")), "c")
	f.Add(blob)
	f.Add(blob[:20])
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := ring.Open(b, "c"); err == nil && !bytes.Equal(b, blob) {
			t.Errorf("opened a forged blob: %q", v.Reveal())
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	ring := open(b, filepath.Join(b.TempDir(), "kek"))
	v := imprint.NewSecret(make([]byte, 64))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ring.Seal(v, "c"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	ring := open(b, filepath.Join(b.TempDir(), "kek"))
	blob, _ := ring.Seal(imprint.NewSecret(make([]byte, 64)), "c")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ring.Open(blob, "c"); err != nil {
			b.Fatal(err)
		}
	}
}

// Whoever reads the file again while the key changes does not bring the old one
// back: what is sealed after a rotation is sealed with its key.
func TestRotateAmongReloads(t *testing.T) {
	t.Parallel()
	// In memory, where nothing waits for a disk: a reader is late more often.
	dir, err := os.MkdirTemp("/dev/shm", "imprint-seal-test-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := open(t, filepath.Join(dir, "kek"))
	stop := make(chan struct{})
	var reading sync.WaitGroup
	for range 32 {
		reading.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f.Reload(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 300 {
		id, err := f.Rotate()
		if err != nil || f.Primary() != id {
			t.Errorf("after a rotation to %s the key is %s, %v", id, f.Primary(), err)
		}
		if err := f.Retire(); err != nil || f.Primary() != id || f.Older() != 0 {
			t.Errorf("after retiring the others the key is %s of %d, %v", f.Primary(), 1+f.Older(), err)
		}
	}
	close(stop)
	reading.Wait()
}
