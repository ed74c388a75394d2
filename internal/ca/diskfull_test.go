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
// to go on when there is room again; and what it acknowledged to be on it, and
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
	l := &testLog{dir: filepath.Join(dir, "log"), key: key, verifier: verifier}
	if l.Log, err = OpenLog(ctx, l.config()); err != nil {
		return err
	}
	var t testing.T // for the helpers, which do not fail
	c := newTestCA(&t, testProfile())
	c.Authority.log = l
	grant := testGrant(&t)
	issued, refused := map[uint64]imprint.Serial{}, map[imprint.Serial]bool{}
	issue := func() error {
		grant.Serial = imprint.NewSerial()
		out, err := c.Issue(ctx, grant)
		switch {
		case err == nil:
			issued[out.LogIndex] = grant.Serial
		case len(out.DER) > 0 || out.SSH != "":
			return fmt.Errorf("a certificate left with the error %w", err)
		default:
			refused[grant.Serial] = true
		}
		return err
	}
	for range 20 {
		if err := issue(); err != nil {
			return err
		}
	}
	if err := fill(filepath.Join(dir, "ballast")); err != nil {
		return err
	}
	// The journal has some room of its own, until the tree cannot follow.
	for err = issue(); err == nil && len(issued) < 10000; err = issue() {
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
	if got := report.Size + report.Unsigned; got != uint64(len(issued)) {
		return fmt.Errorf("on a full disk the log has %d entries, %d were acknowledged", got, len(issued))
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
		return fmt.Errorf("at the end %d were acknowledged: %+v, %w", len(issued), report, err)
	}
	for e, err := range Entries(l.fs(), 0) {
		if err != nil || issued[e.Index] != e.Serial || refused[e.Serial] {
			return fmt.Errorf("entry %d is %s, acknowledged was %s: %w", e.Index, e.Serial, issued[e.Index], err)
		}
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
