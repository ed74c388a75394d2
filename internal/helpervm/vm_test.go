//go:build vm

package helpervm_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"imprint/demo/guest"
	"imprint/internal/helpervm"
	"imprint/internal/job"
	"imprint/test/need"
)

// agent is the program under test, which TestMain builds.
var agent string

const cache = "../../.cache"

func TestMain(m *testing.M) {
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "build the agent:", err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "imprint-bin-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	agent = filepath.Join(dir, "imprint-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", agent, "imprint/cmd/imprint-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// config is that of a helper VM whose console the test prints if it fails.
func config(t *testing.T) helpervm.Config {
	t.Helper()
	need.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	k, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	said := &record{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the console:\n%s", said.String())
		}
	})
	return helpervm.Config{
		Kernel: helpervm.Kernel{Image: k.Image, Modules: filepath.Join(k.Root, "lib/modules", k.ABI)},
		Agent:  agent, Cache: t.TempDir(), RunDir: filepath.Join(t.TempDir(), "run"), TimeLimit: time.Minute, Instance: "web-1", Console: said,
	}
}

func TestEmptyJob(t *testing.T) {
	r, err := helpervm.Run(t.Context(), config(t), job.Job{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the agent ran %v after QEMU's start, the whole took %v", r.Booted, r.Took)
}
