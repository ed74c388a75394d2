package ca

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"imprint"
	"imprint/internal/store"
)

// testLog is an open log with its keys.
type testLog struct {
	*Log
	dir      string
	queue    Queue
	key      imprint.Secret
	verifier string
}

func newTestLog(t testing.TB) *testLog {
	t.Helper()
	key, verifier, err := GenerateLogKey("server.example")
	if err != nil {
		t.Fatal(err)
	}
	queue := store.OpenMemory()
	t.Cleanup(func() { queue.Close() })
	l := &testLog{dir: t.TempDir(), queue: queue, key: key, verifier: verifier}
	l.open(t)
	return l
}

func (l *testLog) config() LogConfig {
	return LogConfig{Dir: l.dir, Key: l.key, Queue: l.queue, Now: func() time.Time { return clock }, Logger: slog.New(slog.DiscardHandler)}
}

func (l *testLog) open(t testing.TB) {
	t.Helper()
	var err error
	if l.Log, err = OpenLog(t.Context(), l.config()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

func (l *testLog) close(t testing.TB) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// issue issues for g as a server does: what leaves is queued, and in the tree.
func (l *testLog) issue(ctx context.Context, c *testCA, g imprint.Grant) (*imprint.Certificate, error) {
	c.Authority.log = l
	cert, entry, err := c.Issue(g)
	if err != nil {
		return nil, err
	}
	l.Expect(entry)
	if err := l.queue.Enqueue(ctx, *entry); err != nil {
		return nil, err
	}
	if err := l.TakeIn(entry); err != nil {
		return nil, err
	}
	return cert, nil
}

// fill issues n certificates into the log.
func (l *testLog) fill(t testing.TB, n int) {
	t.Helper()
	c := newTestCA(t, testProfile())
	c.Authority.log = l // before there are several
	g := testGrant(t)
	g.SSHHost = ""
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			g := g
			g.Serial = imprint.NewSerial()
			if _, err := l.issue(t.Context(), c, g); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func (l *testLog) fs() fs.FS { return os.DirFS(l.dir) }

// serials returns the serial numbers that are in the tree now, under a checkpoint or not.
func (l *testLog) serials(t testing.TB) []imprint.Serial {
	t.Helper()
	var all []imprint.Serial
	for e, err := range Entries(l.fs(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e.Serial)
	}
	return all
}

func TestLogVerifies(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 255, 256, 300, 600} {
		l := newTestLog(t)
		l.fill(t, n)
		l.close(t)
		report, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{AtLeast: uint64(n)})
		if err != nil {
			t.Fatalf("%d entries: %v", n, err)
		}
		if report.Size != uint64(n) || report.Unsigned != 0 || len(report.Unused) != 0 || (report.Last == nil) != (n == 0) {
			t.Errorf("%d entries: %+v", n, report)
		}
		count := 0
		for e, err := range Entries(l.fs(), 0) {
			if err != nil || e.Index != uint64(count) {
				t.Fatal(count, e.Index, err)
			}
			count++
		}
		if count != n {
			t.Errorf("%d entries read of %d", count, n)
		}
	}
}

// What was acknowledged is in a copy of a log that was settled.
func TestSettle(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	for n := uint64(0); n < 9; n += 3 {
		if err := l.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		report, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{})
		if err != nil || report.Size != n {
			t.Errorf("%d entries: %+v, %v", n, report, err)
		}
		l.fill(t, 3)
	}
}

// What it costs to take in entries, from 32 at a time.
func BenchmarkTakeIn(b *testing.B) {
	l := newTestLog(b)
	c := newTestCA(b, testProfile())
	c.Authority.log = l
	g := testGrant(b)
	g.SSHHost = ""
	cert, _, err := c.Issue(g)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetParallelism(32 / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		g := g
		for pb.Next() {
			g.Serial = imprint.NewSerial()
			entry, err := l.Entry(machineEntry(&g, cert))
			if err == nil {
				err = l.TakeIn(entry)
			}
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
	l.close(b)
}

func TestOpenLogRefuses(t *testing.T) {
	t.Parallel()
	refused := func(l *testLog, what string) {
		t.Helper()
		log, err := OpenLog(t.Context(), l.config())
		if err == nil {
			log.Close()
		}
		if imprint.KindOf(err) != imprint.Conflict || imprint.HintOf(err) == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	l := newTestLog(t)
	refused(l, "in use")
	l.fill(t, 3)
	l.close(t)

	other := *l
	other.key, _, _ = GenerateLogKey("server.example")
	refused(&other, "another key")

	remove := func(name string) (back func()) {
		path := filepath.Join(l.dir, name)
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		return func() { os.Rename(path+".away", path) }
	}
	for name, what := range map[string]string{
		checkpointName:         "checkpoint lost",
		"tile/0/000.p/3":       "tile lost",
		"tile/entries/000.p/3": "entries lost",
	} {
		back := remove(name)
		refused(l, what)
		back()
		path := filepath.Join(l.dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		whole[len(whole)/2] ^= 1
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		refused(l, what+" to a flipped bit")
		whole[len(whole)/2] ^= 1
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	remove(treeStateName) // is made again from the checkpoint
	whole := l.dir
	l.dir = t.TempDir()
	refused(l, "all of it lost: the store knows how many entries there were")
	l.dir = whole
	l.open(t)
	l.fill(t, 1)
	l.close(t)
	if report, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{AtLeast: 4}); err != nil || report.Last == nil {
		t.Error(err)
	}
}

func TestAppendAfterClose(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	l.close(t)
	if err := l.Append(t.Context(), Entry{}); imprint.KindOf(err) != imprint.Unavailable {
		t.Error(err)
	}
}

func TestLogKeysAreNotPrinted(t *testing.T) {
	t.Parallel()
	cfg := LogConfig{Key: imprint.NewSecret([]byte("PRIVATE+KEY+x")), Dir: t.TempDir()}
	if _, err := OpenLog(t.Context(), cfg); imprint.KindOf(err) != imprint.Invalid || strings.Contains(err.Error(), "PRIVATE") {
		t.Error(err)
	}
}

// A log in use verifies while it grows.
func TestVerifyLive(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	var grown sync.WaitGroup
	done := make(chan struct{})
	grown.Go(func() {
		defer close(done)
		for range 10 {
			l.fill(t, 32)
		}
	})
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		if _, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{Live: true}); err != nil {
			t.Fatal(err)
		}
	}
	grown.Wait()
	l.close(t)
	if _, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{AtLeast: 320}); err != nil {
		t.Error(err)
	}
}

func BenchmarkVerifyLog(b *testing.B) {
	const entries = 2000
	l := newTestLog(b)
	l.fill(b, entries)
	l.close(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/entries, "ns/entry")
}
