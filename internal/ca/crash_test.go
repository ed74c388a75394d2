package ca

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"imprint"
	"imprint/internal/store"
)

// Environment of the child process that TestLogSurvivesKill kills.
const (
	childDir = "IMPRINT_TEST_LOG_DIR"
	childKey = "IMPRINT_TEST_LOG_KEY"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		issueForEver(dir, imprint.NewSecret([]byte(os.Getenv(childKey))))
		return
	}
	if dir := os.Getenv(childDisk); dir != "" {
		if err := fillDisk(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// durableQueue is a queue that survives its process.
func durableQueue(ctx context.Context, dir string) (*store.Store, error) {
	return store.OpenEmbedded(ctx, store.Embedded{Dir: filepath.Join(dir, "store"), Reserve: 1})
}

// issueForEver issues into the log in dir from eight goroutines and prints the
// serial numbers of what was queued.
func issueForEver(dir string, key imprint.Secret) {
	ctx := context.Background()
	fail := func(err error) {
		fmt.Println("error", err)
		os.Exit(1)
	}
	queue, err := durableQueue(ctx, dir)
	if err != nil {
		fail(err)
	}
	l := &testLog{dir: filepath.Join(dir, "log"), queue: queue, key: key}
	if l.Log, err = OpenLog(ctx, l.config()); err != nil {
		fail(err)
	}
	var t testing.T // for the helpers, which do not fail
	c := newTestCA(&t, testProfile())
	c.Authority.log = l
	grant := testGrant(&t)
	grant.SSHHost = ""
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				g := grant
				g.Serial = imprint.NewSerial()
				if _, err := l.issue(ctx, c, g); err != nil {
					fail(err)
				}
				fmt.Println(g.Serial)
			}
		})
	}
	wg.Wait()
}

func TestLogSurvivesKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key, verifier, err := GenerateLogKey("server.example")
	if err != nil {
		t.Fatal(err)
	}
	acknowledged := map[imprint.Serial]int{} // how often it is in the log
	for round := range 3 {
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), childDir+"="+dir, childKey+"="+string(key.Reveal()))
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 0
		for scan := bufio.NewScanner(out); scan.Scan(); lines++ {
			serial := imprint.Serial(scan.Text())
			if _, ok := serial.Int(); !ok {
				t.Fatalf("child: %q", serial)
			}
			acknowledged[serial] = 0
			if lines == 100+337*round {
				child.Process.Kill()
			}
		}
		child.Wait()
		// Straight after the crash: whole, though the last entries may not be signed yet.
		report, err := VerifyLog(os.DirFS(filepath.Join(dir, "log")), verifier, VerifyOptions{Live: true})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		t.Logf("round %d: %d acknowledged, %d signed, %d not yet, %d unused files", round, len(acknowledged), report.Size, report.Unsigned, len(report.Unused))
	}
	queue, err := durableQueue(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer queue.Close()
	l := &testLog{dir: filepath.Join(dir, "log"), queue: queue, key: key}
	l.open(t) // takes in and signs what is left
	l.close(t)
	if _, err := VerifyLog(l.fs(), verifier, VerifyOptions{AtLeast: uint64(len(acknowledged))}); err != nil {
		t.Fatal(err)
	}
	for e, err := range Entries(l.fs(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if acknowledged[e.Serial]++; acknowledged[e.Serial] > 1 {
			t.Errorf("%s is in the log twice", e.Serial)
		}
	}
	for serial, n := range acknowledged {
		if n == 0 {
			t.Errorf("%s was acknowledged and is not in the log", serial)
		}
	}
}
