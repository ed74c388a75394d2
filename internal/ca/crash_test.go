package ca

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"imprint"
)

// Environment of the child process that TestLogSurvivesKill kills.
const (
	childDir = "IMPRINT_TEST_LOG_DIR"
	childKey = "IMPRINT_TEST_LOG_KEY"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		appendForEver(dir, imprint.NewSecret([]byte(os.Getenv(childKey))))
		return
	}
	goleak.VerifyTestMain(m)
}

// appendForEver issues into the log in dir from eight goroutines and prints
// index and serial of what was acknowledged.
func appendForEver(dir string, key imprint.Secret) {
	var t testing.T // for the helpers, which do not fail
	l := &testLog{dir: dir, key: key}
	var err error
	if l.Log, err = OpenLog(context.Background(), l.config()); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
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
				out, err := c.Issue(context.Background(), g)
				if err != nil {
					fmt.Println("error", err)
					os.Exit(1)
				}
				fmt.Println(out.LogIndex, out.Serial)
			}
		})
	}
	wg.Wait()
}

func TestLogSurvivesKill(t *testing.T) {
	t.Parallel()
	l := newTestLog(t)
	l.close(t)
	acknowledged := map[uint64]imprint.Serial{}
	for round := range 3 {
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), childDir+"="+l.dir, childKey+"="+string(l.key.Reveal()))
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 0
		for scan := bufio.NewScanner(out); scan.Scan(); lines++ {
			var index uint64
			var serial imprint.Serial
			if _, err := fmt.Sscan(scan.Text(), &index, &serial); err != nil {
				t.Fatalf("child: %q", scan.Text())
			}
			if have, ok := acknowledged[index]; ok {
				t.Fatalf("entry %d was acknowledged as %s and as %s", index, have, serial)
			}
			acknowledged[index] = serial
			if lines == 100+37*round {
				child.Process.Kill()
			}
		}
		child.Wait()
		// Straight after the crash: whole, though the last entries may not be signed yet.
		report, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{Live: true})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		t.Logf("round %d: %d acknowledged, %d signed, %d not yet, %d unused files", round, len(acknowledged), report.Size, report.Unsigned, len(report.Unused))
		for e, err := range Entries(l.fs(), 0) {
			if err != nil {
				t.Fatal(err)
			}
			if want, ok := acknowledged[e.Index]; ok && want != e.Serial {
				t.Fatalf("entry %d is %s; %s was acknowledged", e.Index, e.Serial, want)
			}
		}
		if got := report.Size + report.Unsigned; got < uint64(len(acknowledged)) {
			t.Fatalf("%d entries; %d were acknowledged", got, len(acknowledged))
		}
	}
	l.open(t) // signs what is on disk
	l.close(t)
	if _, err := VerifyLog(l.fs(), l.verifier, VerifyOptions{AtLeast: uint64(len(acknowledged))}); err != nil {
		t.Fatal(err)
	}
}
