package disk_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"imprint/internal/disk"
)

// What a process that kills itself is told in its environment.
const (
	killDisk  = "IMPRINT_TEST_KILL_DISK"
	killAfter = "IMPRINT_TEST_KILL_AFTER"
)

// deadly is a disk whose process is killed instead of writing once more.
type deadly struct {
	*disk.File
	left int
}

func (d *deadly) WriteAt(b []byte, at int64) (int, error) {
	if d.left--; d.left < 0 {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	return d.File.WriteAt(b, at)
}

// TestKillMe is no test, but the process that TestProcessKilled kills.
func TestKillMe(t *testing.T) {
	path := os.Getenv(killDisk)
	if path == "" {
		return
	}
	f, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := strconv.Atoi(os.Getenv(killAfter))
	if err != nil {
		t.Fatal(err)
	}
	add(t, &deadly{f, n})
}

// A process is killed at each of its writes to a file. Then the next one has the
// disk for itself at once, and makes the partition.
func TestProcessKilled(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"gpt grown by 2 MiB", "gpt with damaged first entries", "mbr"} {
		path := filepath.Join(t.TempDir(), "disk")
		before := image(t, layouts()[name])
		m := &memory{data: bytes.Clone(before)}
		add(t, m)
		old, new := list(t, before), list(t, m.data)
		kills := 0
		for ; ; kills++ {
			if err := os.WriteFile(path, before, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKillMe$")
			cmd.Env = append(os.Environ(), killDisk+"="+path, fmt.Sprintf("%s=%d", killAfter, kills))
			out, err := cmd.CombinedOutput()
			if err == nil {
				break
			}
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("%v\n%s", err, out)
			}
			for who, got := range map[string][]string{"imprint": list(t, read(t, path)), "sfdisk": dumped(t, path)} {
				if !slices.Equal(got, old) && !slices.Equal(got, new) {
					t.Errorf("%s, killed before write %d: %s reads %v", name, kills, who, got)
				}
			}
			f, err := disk.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			s, err := disk.Prepare(f, config2())
			if err == nil {
				err = s.Add(fill)
			}
			if err != nil && !strings.Contains(err.Error(), "is called config-2 already") {
				t.Errorf("%s, killed before write %d: again: %v", name, kills, err)
			}
			f.Close()
			if got := list(t, read(t, path)); !slices.Equal(got, new) {
				t.Errorf("%s, killed before write %d: again: %v", name, kills, got)
			}
		}
		if kills < 4 {
			t.Errorf("%s: only %d kills", name, kills)
		}
	}
}
