//go:build bench

package bench

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// run starts cmd, whose output goes nowhere, and ends it with the test.
func run(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Errorf("stop %s: %v", cmd.Path, err)
		}
		cmd.Wait()
	})
}

// cpuTime returns how long a process has been on a CPU, in user and system mode.
func cpuTime(t testing.TB, process *os.Process) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	// Fields 14 and 15 of proc_pid_stat(5), counted behind the name in parentheses.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const utime, ticks = 14 - 3, 100 // USER_HZ is 100 on every Linux
	var sum time.Duration
	for _, f := range fields[utime : utime+2] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(n) * time.Second / ticks
	}
	return sum
}

// freeAddress returns a loopback address that was free a moment ago.
func freeAddress(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// awaitTLS returns when address accepts a TLS connection.
func awaitTLS(t testing.TB, roots *x509.CertPool, address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := connect(ctx, address, roots)
		if err == nil {
			c.conn.Close()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s does not answer: %v", address, err)
		}
	}
}
