package ca

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"imprint"
)

// What was queued when the server died is taken in by the next start, once.
func TestQueueIsTakenIn(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	l.fill(t, 3)
	l.close(t)
	c := newTestCA(t, testProfile())
	c.Authority.log = l.Log // is closed: nothing wakes it
	var want []imprint.Serial
	for range 300 {
		g := testGrant(t)
		g.SSHHost = ""
		entry, err := l.Entry(machineEntry(&g, certified(t, c, g)))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.queue.Enqueue(t.Context(), *entry); err != nil {
			t.Fatal(err)
		}
		want = append(want, g.Serial)
	}
	l.open(t)
	l.close(t)
	got := map[imprint.Serial]int{}
	for e, err := range Entries(l.fs(), 3) {
		if err != nil {
			t.Fatal(err)
		}
		got[e.Serial]++
	}
	for _, s := range want {
		if got[s] != 1 {
			t.Errorf("%s is in the log %d times", s, got[s])
		}
	}
	if _, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{AtLeast: 303}); err != nil {
		t.Error(err)
	}
}

// certified is g's certificate by c, made while its log is writable.
func certified(t *testing.T, c *testCA, g imprint.Grant) *imprint.Certificate {
	t.Helper()
	log := c.Authority.log
	defer func() { c.Authority.log = log }()
	c.Authority.log = discard{}
	cert, _, err := c.Issue(g)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// forgetful is a queue that may fail to take entries out.
type forgetful struct {
	Queue
	fails int // how many times from now on
}

func (f *forgetful) Dequeue(ctx context.Context, log string, entries []imprint.LogEntry, size uint64) error {
	if f.fails > 0 {
		f.fails--
		return imprint.Errorf(imprint.Unavailable, "take from queue of", log, "the store is away")
	}
	return f.Queue.Dequeue(ctx, log, entries, size)
}

// An entry that got into the tree but not out of the queue is in the tree once,
// whether the same process tries again or the next one.
func TestTakenInOnce(t *testing.T) {
	t.Parallel()
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprintf("crash %t", crash), func(t *testing.T) {
			t.Parallel()
			l := newTestLog(t)
			l.fill(t, 5)
			l.close(t)
			queue := l.queue
			fails := 1
			if crash {
				fails = 1000
			}
			l.queue = &forgetful{queue, fails}
			log, err := OpenLog(t.Context(), l.config())
			if err != nil {
				t.Fatal(err)
			}
			l.Log = log
			l.fill(t, 7)
			err = l.Settle(t.Context())
			if crash { // else it may have failed before
				if imprint.KindOf(err) != imprint.Unavailable {
					t.Fatalf("a queue that keeps what is taken out: %v", err)
				}
				if err := log.Close(); imprint.KindOf(err) != imprint.Unavailable {
					t.Fatal(err)
				}
				l.queue = queue
				l.open(t)
			} else {
				for err != nil {
					err = l.Settle(t.Context())
				}
			}
			l.fill(t, 1)
			l.close(t)
			report, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{})
			if err != nil || report.Size != 13 {
				t.Errorf("%+v, %v", report, err)
			}
		})
	}
}

// While the tree cannot be written no certificate leaves; what was queued
// gets into it as soon as it can be, and may leave then.
func TestTreeCannotBeWritten(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	c := newTestCA(t, testProfile())
	obstacle := filepath.Join(l.dir, "tile")
	if err := os.WriteFile(obstacle, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	first := testGrant(t)
	for _, g := range []imprint.Grant{first, testGrant(t)} { // the one is queued, and the other not even that
		if cert, err := l.issue(t.Context(), c, g); cert != nil || imprint.KindOf(err) != imprint.Unavailable || imprint.HintOf(err) == "" {
			t.Errorf("%v, kind %v: %v", cert, imprint.KindOf(err), err)
		}
	}
	if err := l.Await(t.Context(), l.Name(), first.Serial); imprint.KindOf(err) != imprint.Unavailable {
		t.Errorf("what is not in the tree may leave: %v", err)
	}
	if err := os.Remove(obstacle); err != nil {
		t.Fatal(err)
	}
	for failed := true; failed; {
		failed = l.Await(t.Context(), l.Name(), first.Serial) != nil
	}
	if !slices.Contains(l.serials(t), first.Serial) {
		t.Error("it may leave, and is not in the tree")
	}
	if _, err := l.issue(t.Context(), c, testGrant(t)); err != nil {
		t.Error(err)
	}
	l.close(t)
	report, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{})
	if err != nil || report.Size != 2 {
		t.Errorf("%+v, %v", report, err)
	}
}

// A queue that cannot be read stops a start, and says why.
func TestOpenLogNeedsTheQueue(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	l.close(t)
	l.queue = away{l.queue}
	if _, err := OpenLog(t.Context(), l.config()); !errors.Is(err, errAway) {
		t.Error(err)
	}
}

type away struct{ Queue }

var errAway = errors.New("the store is away")

func (away) LogSize(context.Context, string) (uint64, error) { return 0, errAway }
