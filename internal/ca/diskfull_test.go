package ca

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"imprint"
	"imprint/internal/store"
)

// childDisk tells a child process to run [fillDisk] in the directory that it names.
const childDisk = "IMPRINT_TEST_LOG_DISK"

// TestLogDiskFull has a log on a small disk of its own, in a mount namespace
// that ends with the child. It needs root for that.
func TestLogDiskFull(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childDisk+"="+t.TempDir())
	child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// fillDisk wants a log on a full disk to refuse certificates, to stay whole, and
// to go on when there is room again; and what was queued to be on it, and
// nothing else.
func fillDisk(dir string) error {
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=8m"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	key, verifier, err := GenerateLogKey("server.example")
	if err != nil {
		return err
	}
	queue := store.OpenMemory()
	defer queue.Close()
	l := &testLog{dir: filepath.Join(dir, "log"), queue: queue, key: key, verifier: verifier}
	if l.Log, err = OpenLog(ctx, l.config()); err != nil {
		return err
	}
	var t testing.T // for the helpers, which do not fail
	c := newTestCA(&t, testProfile())
	grant := testGrant(&t)
	issued := map[imprint.Serial]bool{} // whether the log has it
	issue := func() error {
		grant.Serial = imprint.NewSerial()
		cert, err := l.issue(ctx, c, grant)
		if err != nil && cert != nil {
			return fmt.Errorf("a certificate left with the error %w", err)
		}
		if _, queued := l.owed[grant.Serial]; err == nil || queued {
			issued[grant.Serial] = false
		}
		return err
	}
	for range 20 {
		if err := issue(); err != nil {
			return err
		}
	}
	if err := errors.Join(l.Settle(ctx), fill(filepath.Join(dir, "ballast"))); err != nil {
		return err
	}
	// The pages that the last files have are still to be filled.
	taken := len(issued)
	for err = issue(); err == nil; err = issue() {
		taken++
	}
	for range 20 {
		if imprint.KindOf(err) != imprint.Exhausted || !strings.Contains(imprint.HintOf(err), "the log's disk") || !strings.Contains(err.Error(), "no space left on device") {
			return fmt.Errorf("on a full disk: %w (%v), hint %q", err, imprint.KindOf(err), imprint.HintOf(err))
		}
		err = issue()
	}
	report, err := VerifyLog(l.fs(), verifier, VerifyOptions{Live: true})
	if err != nil {
		return fmt.Errorf("on a full disk: %w", err)
	}
	if got := report.Size + report.Unsigned; got != uint64(taken) {
		return fmt.Errorf("on a full disk the log has %d entries, %d fitted", got, taken)
	}

	if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
		return err
	}
	for err = issue(); err != nil; err = issue() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("after making room: %w", err)
		}
	}
	if err := errors.Join(issue(), l.Close()); err != nil {
		return fmt.Errorf("after making room: %w", err)
	}
	if report, err = VerifyLog(l.fs(), verifier, VerifyOptions{}); err != nil || report.Size != uint64(len(issued)) {
		return fmt.Errorf("at the end %d were queued: %+v, %w", len(issued), report, err)
	}
	for e, err := range Entries(l.fs(), 0) {
		if logged, queued := issued[e.Serial]; err != nil || !queued || logged {
			return fmt.Errorf("entry %d is %s: queued %t, in the log before %t: %w", e.Index, e.Serial, queued, logged, err)
		}
		issued[e.Serial] = true
	}
	return nil
}

// fill writes a file until the disk is full.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, block := range []int{1 << 20, 1} { // to the last byte
		if _, err := io.Copy(f, zeroes(block)); !errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("filling the disk: %w", err)
		}
	}
	return nil
}

// zeroes never ends, and comes in blocks of at most its size.
type zeroes int

func (z zeroes) Read(b []byte) (int, error) {
	b = b[:min(len(b), int(z))]
	clear(b)
	return len(b), nil
}
