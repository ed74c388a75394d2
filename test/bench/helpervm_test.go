//go:build bench

package bench

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"imprint/demo/guest"
	"imprint/internal/helpervm"
	"imprint/internal/job"
	"imprint/test/need"
)

var helperTurns = flag.Int("helpervm.turns", 10, "how often a helper VM is started for an empty job")

// TestHelperVM starts helper VMs under emulation whose job has no task: what every job
// takes beside its tasks.
func TestHelperVM(t *testing.T) {
	need.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	t.Setenv("IMPRINT_ACCEL", "tcg")
	const cache = "../../.cache"
	k, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	agent := filepath.Join(t.TempDir(), "imprint-helper")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", agent, "imprint/cmd/imprint-helper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c := helpervm.Config{
		Kernel: helpervm.Kernel{Image: k.Image, Modules: filepath.Join(k.Root, "lib/modules", k.ABI)},
		Init:   agent, Cache: t.TempDir(), RunDir: t.TempDir(),
	}
	if _, err := helpervm.Run(t.Context(), c, job.Job{}); err != nil { // which unpacks the kernel
		t.Fatal(err)
	}
	var began, ready, took []time.Duration
	for range *helperTurns {
		r, err := helpervm.Run(t.Context(), c, job.Job{})
		if err != nil {
			t.Fatal(err)
		}
		began, ready, took = append(began, r.Booted), append(ready, r.Ready), append(took, r.Took)
	}
	for name, list := range map[string][]time.Duration{"QEMU's start to the agent's": began, "QEMU's start to the job asked for": ready, "the whole of an empty job": took} {
		slices.Sort(list)
		t.Logf("%-35s median %v, %v to %v", name, list[len(list)/2].Round(time.Millisecond), list[0].Round(time.Millisecond), list[len(list)-1].Round(time.Millisecond))
	}
}
