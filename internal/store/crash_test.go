package store

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"imprint"
)

// childWriter is a child that opens the data directory in its first argument
// and makes writes; it prints a line for each one that was acknowledged.
const childWriter = "writer"

const (
	crashWriters = 1000 // at the same time
	crashAfter   = 400  // acknowledged writes
)

func runWriter() {
	s, err := OpenEmbedded(context.Background(), Embedded{Dir: os.Args[1]})
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(1)
	}
	if n := listeners(); n != 0 {
		fmt.Println("the store listens on", n, "network ports")
		os.Exit(1)
	}
	var wg sync.WaitGroup
	for n := range crashWriters {
		wg.Go(func() { write(s, n) })
	}
	wg.Wait()
	select {} // until it is killed
}

// write takes one instance through changes that touch every kind of key.
func write(s *Store, n int) {
	i := newInstance(fmt.Sprintf("crash-%d", n))
	i.Spec.Host = imprint.HostName(fmt.Sprintf("host-%d.example", n%7))
	c := reserved()
	c.WakeAt = time.Now().Add(time.Hour)
	if err := s.Create(context.Background(), i, map[string][]byte{"p": []byte("x")}, c); err != nil {
		fmt.Println("create:", err)
		return
	}
	fmt.Println("acknowledged", i.ID, i.Events)
	for n := range 4 {
		got, err := s.Update(context.Background(), i.ID, func(i *imprint.Instance) (imprint.Change, error) {
			c := imprint.Change{Events: []imprint.Event{event(imprint.EventClaimed), event(imprint.EventIssued)}}
			if n == 0 {
				key := imprint.KeyIDOf([]byte(i.ID))
				i.Enrolment.Claim = &imprint.Claim{Key: key}
				c.BindKey = key
			}
			return c, nil
		})
		if err != nil {
			fmt.Println("update:", err)
			return
		}
		fmt.Println("acknowledged", i.ID, got.Events)
	}
}

// listeners counts the TCP ports on which this process listens.
func listeners() int {
	sockets := make(map[string]bool)
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			sockets[target] = true
		}
	}
	n := 0
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		b, _ := os.ReadFile(table)
		for line := range strings.Lines(string(b)) {
			const state, inode, listen = 3, 9, "0A"
			if f := strings.Fields(line); len(f) > inode && f[state] == listen && sockets["socket:["+f[inode]+"]"] {
				n++
			}
		}
	}
	return n
}

// TestKill kills a process in the middle of concurrent writes: everything that
// was acknowledged is there afterwards and nothing is half-written.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	child := exec.Command(os.Args[0], dir)
	child.Env = append(os.Environ(), childVariable+"="+childWriter)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	acknowledged := make(map[imprint.InstanceID]uint64)
	lines := 0
	for in := bufio.NewScanner(out); in.Scan(); lines++ {
		var id imprint.InstanceID
		var events uint64
		if _, err := fmt.Sscanf(in.Text(), "acknowledged %s %d", &id, &events); err != nil {
			t.Errorf("the writer says: %s", in.Text())
			break
		}
		acknowledged[id] = max(acknowledged[id], events)
		if lines == crashAfter {
			child.Process.Kill() // what it had printed by then still comes
		}
	}
	child.Process.Kill()
	child.Wait()
	if lines <= crashAfter || lines >= 5*crashWriters {
		t.Fatalf("killed after %d acknowledged writes; want it to be in the middle", lines)
	}

	s := openEmbedded(t, dir)
	defer s.Close()
	for id, events := range acknowledged {
		if i, err := s.Instance(t.Context(), id); err != nil || i.Events < events {
			t.Errorf("instance %s: %v; %d events were acknowledged", id, err, events)
		}
	}
	wantConsistent(t, s)
}

func wantConsistent(t *testing.T, s *Store) {
	t.Helper()
	faults, err := inconsistencies(s, func(q query) (page, error) { return s.kv.read(t.Context(), q) })
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range faults {
		t.Error(fault)
	}
}

// TestInUse opens a data directory twice.
func TestInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openEmbedded(t, dir)
	_, err := OpenEmbedded(t.Context(), Embedded{Dir: dir})
	wantKind(t, err, imprint.Conflict)
	if want := fmt.Sprintf("already in use by process %d", os.Getpid()); !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %q does not say %q and %q", err, dir, want)
	}
	i := create(t, s, "in-use")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openEmbedded(t, dir)
	defer s.Close()
	if _, err := s.Instance(t.Context(), i.ID); err != nil {
		t.Errorf("after closing and opening again: %v", err)
	}
}

// TestNewerFormat refuses the data of a later release and leaves it alone.
func TestNewerFormat(t *testing.T) {
	t.Parallel()
	t.Run("directory", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, versionFile), []byte("2\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := OpenEmbedded(t.Context(), Embedded{Dir: dir})
		wantKind(t, err, imprint.Conflict)
		if !strings.Contains(err.Error(), "version 2") || imprint.HintOf(err) == "" {
			t.Errorf("error %q, hint %q", err, imprint.HintOf(err))
		}
		if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
			t.Errorf("the directory was touched: %v, %v", files, err)
		}
	})
	for _, found := range []string{"2", "cabbage"} {
		t.Run("cluster "+found, func(t *testing.T) {
			s := OpenMemory()
			defer s.Close()
			_, err := s.committer.commit(t.Context(), txn{then: []op{{verb: put, key: s.keys.format(), value: []byte(found)}}})
			if err != nil {
				t.Fatal(err)
			}
			wantKind(t, s.checkFormat(t.Context(), "etcd"), imprint.Conflict)
		})
	}
}
