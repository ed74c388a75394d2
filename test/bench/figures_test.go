//go:build bench

package bench

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// quantiles is how long something took.
type quantiles struct{ p50, p99, max time.Duration }

// quantilesOf sorts took, which has at least one element.
func quantilesOf(took []time.Duration) quantiles {
	slices.Sort(took)
	return quantiles{took[len(took)/2], took[len(took)*99/100], took[len(took)-1]}
}

// machine says on what a table was measured, and how busy that is with this and
// with other work.
func machine(t testing.TB) string {
	t.Helper()
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d CPUs, %s, load %s", runtime.NumCPU(), runtime.Version(), strings.Join(strings.Fields(string(load))[:2], " "))
}
