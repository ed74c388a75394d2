package ca

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/note"

	"imprint"
	"imprint/internal/store"
)

// A certificate leaves when its entry can be read in the tree, whatever the size
// of the tree and however many come at once.
func TestInTheTreeBeforeItLeaves(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	l.fill(t, 250)
	c := newTestCA(t, testProfile())
	g := testGrant(t)
	g.SSHHost = ""
	for range 20 {
		g.Serial = imprint.NewSerial()
		if _, err := l.issue(t.Context(), c, g); err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(l.serials(t), g.Serial) {
			t.Fatalf("%s left and is not in the tree", g.Serial)
		}
	}
}

// What may have been recorded, though nobody knows, is in the tree before whoever
// finds it recorded may have it.
func TestDoubt(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	c := newTestCA(t, testProfile())
	g := testGrant(t)
	entry, err := l.Entry(machineEntry(&g, certified(t, c, g)))
	if err != nil {
		t.Fatal(err)
	}
	l.Expect(entry)
	l.Doubt()
	if err := l.queue.Enqueue(t.Context(), *entry); err != nil { // later than the doubt
		t.Fatal(err)
	}
	if err := l.Await(t.Context(), l.Name(), g.Serial); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(l.serials(t), g.Serial) {
		t.Error("it may leave and is not in the tree")
	}
	if err := l.Await(t.Context(), l.Name(), imprint.NewSerial()); err != nil {
		t.Errorf("a certificate that nobody doubts: %v", err)
	}
}

// A server that finds a certificate which another one recorded and did not log,
// for it may never come back, logs it too.
func TestAnotherServersEntry(t *testing.T) {
	t.Parallel()
	ended := newTestLog(t)
	c := newTestCA(t, testProfile())
	g := testGrant(t)
	entry, err := ended.Entry(machineEntry(&g, certified(t, c, g)))
	if err != nil {
		t.Fatal(err)
	}
	entry.Log = "imprint/other.example"
	ended.close(t)
	if err := ended.queue.Enqueue(t.Context(), *entry); err != nil {
		t.Fatal(err)
	}
	l := newTestLog(t)
	l.close(t)
	l.queue = ended.queue
	l.open(t)
	for range 2 {
		if err := l.Await(t.Context(), entry.Log, g.Serial); err != nil {
			t.Fatal(err)
		}
		if err := l.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.serials(t); !slices.Equal(got, []imprint.Serial{g.Serial}) {
		t.Errorf("the log has %v", got)
	}
	left, err := l.queue.Queued(t.Context(), entry.Log, imprint.LogEntry{}, 10)
	if err != nil || len(left) != 1 {
		t.Errorf("the other server's queue has %d entries, %v", len(left), err)
	}
}

// held is a queue that lets no checkpoint follow one that is on the disk, from
// when it is told to until the test is over.
type held struct {
	Queue
	hold, over chan struct{}
	holding    chan struct{} // closed when it does
	once       sync.Once
}

func newHeld(queue Queue) *held {
	return &held{Queue: queue, hold: make(chan struct{}), over: make(chan struct{}), holding: make(chan struct{})}
}

func (h *held) Dequeue(ctx context.Context, log string, entries []imprint.LogEntry, size uint64) error {
	err := h.Queue.Dequeue(ctx, log, entries, size)
	select {
	case <-h.hold:
		h.once.Do(func() { close(h.holding) })
		<-h.over
	default:
	}
	return err
}

// A batch that fails when some of its files are written leaves the tree as it was.
func TestBatchFailsHalfWay(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	l.close(t)
	h := newHeld(l.queue)
	l.queue = h
	defer close(h.over)
	l.open(t)
	close(h.hold)
	l.fill(t, 1)
	<-h.holding
	l.fill(t, 254)
	obstacle := filepath.Join(l.dir, "tile/entries/000") // the hash tile is written before it
	if err := os.MkdirAll(filepath.Join(obstacle, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := newTestCA(t, testProfile())
	if _, err := l.issue(t.Context(), c, testGrant(t)); imprint.KindOf(err) != imprint.Unavailable {
		t.Error(err)
	}
	report, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{Live: true})
	if err != nil || report.Size+report.Unsigned != 255 {
		t.Errorf("%+v, %v", report, err)
	}
	if err := os.Rename(obstacle, filepath.Join(t.TempDir(), "away")); err != nil { // at once: the log tries again meanwhile
		t.Fatal(err)
	}
	for failed := true; failed; {
		_, err := l.issue(t.Context(), c, testGrant(t))
		failed = err != nil
	}
	report, err = VerifyLog(l.fs(), l.verifier, VerifyOptions{Live: true})
	if err != nil || report.Size+report.Unsigned != 257 || len(report.Unused) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

// What a crash left and no checkpoint covers goes when the log is opened.
func TestSweep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	keep := []string{
		"tile/0/000", "tile/0/001.p/44", "tile/0/001.p/3", "tile/1/000.p/1",
		"tile/entries/000", "tile/entries/001.p/44", "tile/entries/001.p/3", "tile/strange",
	}
	gone := []string{
		"tile/0/000.p/9", "tile/0/001.p/45", "tile/0/001", "tile/0/002.p/1", "tile/1/000.p/2", "tile/1/000", "tile/2/000.p/1",
		"tile/entries/000.p/9", "tile/entries/001.p/45", "tile/entries/001", "tile/entries/002.p/1",
	}
	for _, name := range slices.Concat(keep, gone) {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, nil, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := sweep(dir, 300); err != nil {
		t.Fatal(err)
	}
	left := copyLog(t, os.DirFS(dir))
	for _, name := range keep {
		if left[name] == nil {
			t.Errorf("%s is part of the tree, or not ours, and is gone", name)
		}
		delete(left, name)
	}
	for name := range left {
		t.Errorf("%s is left", name)
	}
}

// After a power failure the disk has what was synced, and of what was written
// since then any part. The log goes on from its checkpoint, and has every entry
// that was acknowledged, once.
func TestPowerFailure(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for round := range 6 {
		t.Run(fmt.Sprintf("seed %d round %d", seed, round), func(t *testing.T) { powerFailure(t, random) })
	}
}

func powerFailure(t *testing.T, random *rand.Rand) {
	l := newTestLog(t)
	l.close(t)
	queue := l.queue
	h := newHeld(queue)
	l.queue = h
	l.open(t)
	l.fill(t, random.IntN(600))
	if err := l.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(h.hold)
	l.fill(t, 1)
	<-h.holding
	synced := copyLog(t, l.fs())
	for range 1 + random.IntN(5) {
		l.fill(t, 1+random.IntN(150))
	}
	written, acknowledged := copyLog(t, l.fs()), l.serials(t)
	after := &testLog{dir: t.TempDir(), queue: store.OpenMemory(), key: l.key, verifier: l.verifier}
	t.Cleanup(func() { after.queue.(*store.Store).Close() })
	waiting, err := queue.Queued(t.Context(), l.Name(), imprint.LogEntry{}, 10000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range waiting {
		if err := after.queue.Enqueue(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	size, err := queue.LogSize(t.Context(), l.Name())
	if err == nil {
		err = after.queue.Dequeue(t.Context(), l.Name(), nil, size)
	}
	close(h.over)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(l.verifier)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := readCheckpoint(synced, verifier)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range written {
		data, left := afterPowerFailure(random, synced[name], f)
		if !left {
			continue
		}
		path := filepath.Join(after.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	after.open(t)
	if got := after.serials(t); !sameSet(got, acknowledged) {
		t.Errorf("%d acknowledged, of which %d under the checkpoint; now the log has %d", len(acknowledged), signed.Size, len(got))
	}
	after.close(t)
	if report, err := VerifyLog(after.fs(), l.verifier, VerifyOptions{}); err != nil || len(report.Unused) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

// afterPowerFailure returns what the disk may have of a file that was in one
// state when it was synced, or was not there, and in another when the power failed.
func afterPowerFailure(random *rand.Rand, synced, written *fstest.MapFile) (data []byte, left bool) {
	data = written.Data
	if synced != nil && bytes.Equal(synced.Data, data) {
		return data, true
	}
	switch random.IntN(4) {
	case 0: // it got there
		return data, true
	case 1: // a part of it
		return data[:random.IntN(len(data)+1)], true
	case 2: // its length
		return make([]byte, len(data)), true
	}
	if synced != nil { // nothing
		return synced.Data, true
	}
	return nil, false
}

func sameSet(a, b []imprint.Serial) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, func(x, y imprint.Serial) int { return strings.Compare(string(x), string(y)) })
	slices.SortFunc(b, func(x, y imprint.Serial) int { return strings.Compare(string(x), string(y)) })
	return slices.Equal(a, b)
}

// overtaken is a log that grows once, between the opening of a file and its reading.
type overtaken struct {
	fs.FS
	name string
	grow func()
}

func (g *overtaken) Open(name string) (fs.File, error) {
	f, err := g.FS.Open(name)
	if grow := g.grow; name == g.name && err == nil && grow != nil {
		g.grow = nil
		grow()
	}
	return f, err
}

// Whoever opened the last bundle just before it grew reads the wider one, which is no damage.
func TestGrowsWhileItIsRead(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	l.close(t)
	h := newHeld(l.queue) // so that no checkpoint covers, and keeps, the last bundle
	l.queue = h
	defer close(h.over)
	l.open(t)
	close(h.hold)
	l.fill(t, 1)
	<-h.holding
	l.fill(t, 2)
	read := 0
	for _, err := range Entries(&overtaken{l.fs(), "tile/entries/000.p/3", func() { l.fill(t, 2) }}, 0) {
		if err != nil {
			t.Fatal(err)
		}
		read++
	}
	if read != 3 {
		t.Errorf("%d entries, of the 3 that there were", read)
	}
}

// dequeued is a queue that says what left it.
type dequeued struct {
	Queue
	left chan imprint.LogEntry
}

func (d *dequeued) Dequeue(ctx context.Context, log string, entries []imprint.LogEntry, size uint64) error {
	err := d.Queue.Dequeue(ctx, log, entries, size)
	for _, e := range entries {
		d.left <- e
	}
	return err
}

// An entry that a checkpoint covered before it was known where it is leaves the queue too,
// though nothing comes after it.
func TestCoveredBeforeItLanded(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	l.close(t)
	q := &dequeued{l.queue, make(chan imprint.LogEntry, 1)}
	l.queue = q
	l.open(t)
	c := newTestCA(t, testProfile())
	g := testGrant(t)
	entry, err := l.Entry(machineEntry(&g, certified(t, c, g)))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.queue.Enqueue(t.Context(), *entry); err != nil {
		t.Fatal(err)
	}
	verifier, err := logVerifier(l.key)
	if err != nil {
		t.Fatal(err)
	}
	_, land := l.arrival(entry)
	for covered := false; !covered; {
		l.mu.Lock()
		var changed <-chan struct{}
		changed = l.changed
		l.mu.Unlock()
		signed, err := readCheckpoint(l.fs(), verifier)
		if err != nil {
			t.Fatal(err)
		}
		covered = signed.Size >= 1
		if !covered {
			<-changed
		}
	}
	land()
	select {
	case <-q.left:
	case <-time.After(10 * time.Second):
		t.Error("it stays in the queue until another comes")
	}
}
