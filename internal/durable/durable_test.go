//go:build unix

package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"imprint/internal/durable"
)

// childDir tells a child process where to write what no disk takes.
const childDir = "IMPRINT_TEST_DIR"

func TestMain(m *testing.M) {
	dir := os.Getenv(childDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	// A file that may not grow, as on a full disk.
	err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 4, Max: 4})
	if err == nil {
		err = durable.WriteFile(filepath.Join(dir, "key"), []byte("too much"), 0o600)
	}
	if !errors.Is(err, syscall.EFBIG) {
		fmt.Println(err)
		os.Exit(1)
	}
}

// A disk that takes half of the content leaves the old, and nothing of the new.
func TestFullDiskLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "key"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = []string{childDir + "=" + dir}
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantFile(t, filepath.Join(dir, "key"), "old", 0o600)
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left %q", got)
	}
}

// names are what is in dir.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func wantFile(t *testing.T, path, content string, mode fs.FileMode) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != content {
		t.Errorf("%s has %q, %v; want %q", path, b, err, content)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
		t.Errorf("%s has mode %v, %v; want %v", path, info.Mode(), err, mode)
	}
}

func TestWriteFileReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key.pem")
	for _, tt := range []struct {
		content string
		mode    fs.FileMode
	}{{"first", 0o600}, {"second", 0o666}, {"", 0o400}, {"fourth", 0o600}} {
		if err := durable.WriteFile(path, []byte(tt.content), tt.mode); err != nil {
			t.Fatal(err)
		}
		wantFile(t, path, tt.content, tt.mode)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left %q", got)
	}
}

// A relative name is written beside itself, not in the system's directory for
// temporary files, from where it could not be renamed.
func TestRelativeName(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("TMPDIR", filepath.Join(dir, "none"))
	if err := durable.WriteFile("a", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := durable.Create("b", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 2 {
		t.Errorf("made %q", got)
	}
}

// After an error the old content is there, and nothing else.
func TestFailureLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "full", "child"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(filepath.Join(dir, "full"), []byte("x"), 0o600); err == nil {
		t.Error("a file took the place of a directory")
	}
	if err := durable.WriteFile(filepath.Join(dir, "none", "file"), []byte("x"), 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that does not exist: %v", err)
	}
	f, err := durable.Create(filepath.Join(dir, "new"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("half"))
	f.Discard()
	f.Discard()
	if got := names(t, dir); len(got) != 1 || got[0] != "full" {
		t.Errorf("left %q", got)
	}
}

func TestCreateNeverReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "root.pem")
	f, err := durable.Create(path, 0o400)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Discard()
	if _, err := f.Write([]byte("mine")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the name is there before the content: %v", err)
	}
	rival, err := durable.Create(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := rival.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a rival's file: %v", err)
	}
	if _, err := durable.Create(path, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := durable.Create(filepath.Join(dir, "link"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a link to nowhere: %v", err)
	}
	wantFile(t, path, "", 0o600)
	if got := names(t, dir); len(got) != 2 {
		t.Errorf("left %q", got)
	}
}

// Writers that meet leave the content of one of them, whole.
func TestConcurrentWriters(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	const size = 64 << 10
	var group sync.WaitGroup
	for w := range 8 {
		group.Go(func() {
			for range 10 {
				if err := durable.WriteFile(path, bytes.Repeat([]byte{byte('a' + w)}, size), 0o600); err != nil {
					t.Error(err)
				}
				b, err := os.ReadFile(path)
				if err != nil || len(b) != size || bytes.Count(b, b[:1]) != size {
					t.Errorf("a mixture of %d bytes, %v", len(b), err)
				}
			}
		})
	}
	group.Wait()
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left %q", got)
	}
}

func TestClean(t *testing.T) {
	dir := t.TempDir()
	f, err := durable.Create(filepath.Join(dir, "key.pem"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f.Close() // and the process is killed
	for _, name := range []string{"key.pem.new-1", ".hidden", ".new"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := durable.Clean(dir); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 3 {
		t.Errorf("left %q", got)
	}
	if err := durable.Clean(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that does not exist: %v", err)
	}
}

// A directory has its name once it is whole, and never takes another's.
func TestDirectoryAppearsWhole(t *testing.T) {
	parent := t.TempDir()
	path := filepath.Join(parent, "dir")
	begun := func() *durable.Dir {
		t.Helper()
		d, err := durable.CreateDir(path + "/")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a/b/file", "a/other", "top"} {
			if err := d.WriteFile(name, []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.WriteFile("top", nil, 0o600); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a file twice: %v", err)
		}
		return d
	}
	d, late := begun(), begun()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before it is whole: %v", err)
	}
	begun().Discard()
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	d.Discard()
	if err := late.Commit(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second: %v", err)
	}
	late.Discard()
	wantFile(t, filepath.Join(path, "a/b/file"), "a/b/file", 0o600)
	wantFile(t, filepath.Join(path, "top"), "top", 0o600)
	for _, dir := range []string{path, filepath.Join(path, "a/b")} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, info.Mode(), err)
		}
	}
	if got := names(t, parent); len(got) != 1 {
		t.Errorf("left %q", got)
	}
	if _, err := durable.CreateDir(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("where there is one: %v", err)
	}
}
