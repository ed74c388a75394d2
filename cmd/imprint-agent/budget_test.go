package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// maxSize is the size limit of the program in bytes.
const maxSize = 6_500_000

// thirdParty lists every package outside the standard library and this module
// that the agent contains. It must stay short enough to be read aloud.
func thirdParty() []string {
	return []string{
		"golang.org/x/sys/unix",
		"golang.org/x/sys/windows",
		"golang.org/x/sys/windows/svc",
		"golang.org/x/time/rate", // the protocol's host end, in the same package as the guest end
	}
}

type target struct{ os, arch string }

func targets() []target {
	return []target{{"linux", "amd64"}, {"linux", "arm64"}, {"windows", "amd64"}}
}

func goTool(t *testing.T, to target, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+to.os, "GOARCH="+to.arch)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestSize(t *testing.T) {
	t.Parallel()
	for _, to := range targets() {
		path := filepath.Join(t.TempDir(), "imprint-agent")
		goTool(t, to, "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s/%s: %d bytes", to.os, to.arch, info.Size())
		if info.Size() > maxSize {
			t.Errorf("%s/%s: %d bytes; the limit is %d", to.os, to.arch, info.Size(), maxSize)
		}
	}
}

func TestThirdPartyPackages(t *testing.T) {
	t.Parallel()
	var got []string
	for _, to := range targets() {
		out := goTool(t, to, "list", "-deps", "-f", "{{if and (not .Standard) .Module}}{{.ImportPath}}{{end}}", ".")
		for path := range strings.Lines(out) {
			path = strings.TrimSpace(path)
			if path == "imprint" || strings.HasPrefix(path, "imprint/") || strings.Contains(path, "/internal/") {
				continue
			}
			got = append(got, path)
		}
	}
	slices.Sort(got)
	if got = slices.Compact(got); !slices.Equal(got, thirdParty()) {
		t.Errorf("the agent contains %q, the list says %q", got, thirdParty())
	}
}
