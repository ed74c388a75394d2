package install_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"imprint/internal/install"
)

// What a process that kills itself is told in its environment.
const (
	killDir   = "IMPRINT_TEST_KILL_DIR"
	killAfter = "IMPRINT_TEST_KILL_AFTER"
)

// TestKillMe is no test, but the process that TestKilledAnywhere kills.
func TestKillMe(t *testing.T) {
	dir := os.Getenv(killDir)
	if dir == "" {
		return
	}
	left, err := strconv.Atoi(os.Getenv(killAfter))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(dir)
	w.moment = func(what string) error {
		if left--; left < 0 {
			w.note("killed", what)
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}
	if err := w.installer().Run(t.Context(), w.plan(), false); err != nil {
		t.Fatal(err)
	}
}

// The process is killed at every moment of an installation: at each boundary of a step,
// and within each. No machine is started from what it leaves, unless that is complete,
// and the next run makes the same disk of it as one that was never disturbed.
func TestKilledAnywhere(t *testing.T) { // not parallel: a child has the locks of its parent until it is another program
	moments := map[string]bool{}
	for n := 0; ; n++ {
		w := newWorld(t.TempDir())
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKillMe$")
		cmd.Env = append(os.Environ(), killDir+"="+w.dir, fmt.Sprintf("%s=%d", killAfter, n))
		out, err := cmd.CombinedOutput()
		if err == nil {
			w.expectWhole(t)
			break
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("%v\n%s", err, out)
		}
		at := w.notes("killed")[0]
		moments[at] = true
		in := w.installer()
		f, err := in.Journal.Find(w.disk())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		why := f.Unfinished
		begun := at == "write" || strings.HasPrefix(at, "change")
		if begun && why == "" {
			t.Errorf("killed at %q: a machine may be started from the disk", at)
		}
		writes := len(w.notes("writes"))
		if err := in.Run(t.Context(), w.plan(), false); err != nil {
			t.Fatalf("killed at %q, and again: %v", at, err)
		}
		w.expectWhole(t)
		if last := w.notes("timeline"); !strings.HasPrefix(last[len(last)-1], "finished") {
			t.Errorf("killed at %q: the timeline ends with %q", at, last[len(last)-1])
		}
		// What was complete is not done again, and that is said.
		for _, afterwards := range []string{"after report written", "tell repaired begun"} {
			if skipped := len(w.notes("writes")) == writes; at == afterwards && afterwards == "after report written" && (!skipped || !strings.Contains(w.said(), "written skipped")) {
				t.Errorf("killed at %q: the image was written again\n%s", at, w.said())
			}
		}
		if begun && !strings.Contains(w.said(), "interrupted") {
			t.Errorf("killed at %q, and it is not said: %s", at, w.said())
		}
		if f, err := in.Journal.Find(w.disk()); err != nil || f.Unfinished != "" || f.Instance != w.plan().Instance {
			t.Errorf("killed at %q, and again: no machine may be started: %+v, %v", at, f, err)
		}
	}
	for _, at := range []string{"fetch", "write", "change repaired", "change personalized", "change scripts", "before report written", "after report written",
		"before report finished", "after report finished", "tell written begun", "tell finished done"} {
		if !moments[at] {
			t.Errorf("nothing was killed at %q", at)
		}
	}
}

// Two runs of the same process that is killed twice come to the same.
func TestKilledTwice(t *testing.T) {
	w := newWorld(t.TempDir())
	for _, n := range []int{15, 27} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKillMe$")
		cmd.Env = append(os.Environ(), killDir+"="+w.dir, fmt.Sprintf("%s=%d", killAfter, n))
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Fatalf("it was not killed\n%s", out)
		}
	}
	if err := w.installer().Run(t.Context(), w.plan(), false); err != nil {
		t.Fatal(err)
	}
	w.expectWhole(t)
	if n := slices.IndexFunc(w.notices, func(n install.Notice) bool { return n.State == install.Warning }); n < 0 {
		t.Error("nothing is said of what was found")
	}
}
