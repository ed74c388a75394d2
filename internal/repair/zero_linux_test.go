package repair_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imprint/internal/job"
	"imprint/internal/repair"
)

// canary is what deleted files held.
const canary = "what-was-deleted-must-not-be-found-"

// count says how often text is in a file.
func count(t *testing.T, path, text string) int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, tail := 0, []byte{}
	b := make([]byte, 4<<20)
	for {
		k, err := f.Read(b)
		both := append(tail, b[:k]...)
		n += bytes.Count(both, []byte(text))
		tail = bytes.Clone(both[max(0, len(both)-len(text)+1):])
		if err == io.EOF {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// blocks is how many bytes of an image take space.
func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var n int64
	fmt.Sscan(run(t, "du", "-k", path), &n)
	return n << 10
}

// What was deleted is not in the image any more, what was not is, and the space goes
// back to the host; the filesystem's own program finds nothing wrong. The swap space
// keeps its UUID and label.
func TestZero(t *testing.T) {
	for _, kind := range linux() {
		t.Run(kind, func(t *testing.T) {
			path := image(t, (16+least(kind)+3)*mib, fmt.Sprintf("label: gpt\nsize=16MiB\nsize=%dMiB\n", least(kind)))
			device, detach := attach(t, path)
			format(t, "swap", device+"p1", "-L", "swap")
			scribble(t, device+"p1", 1<<20, strings.Repeat(canary, 1000))
			format(t, kind, device+"p2")
			with(t, device+"p2", "", func(dir string) {
				text := strings.Repeat(canary, 8<<20/len(canary))
				plant(t, dir, map[string]string{"kept": strings.Repeat("kept-", 1<<20)})
				for i := range 4 {
					plant(t, dir, map[string]string{fmt.Sprintf("deleted-%d", i): text})
				}
				run(t, "sync", "-f", dir)
				for i := range 4 {
					os.Remove(filepath.Join(dir, fmt.Sprintf("deleted-%d", i)))
				}
			})
			swap := tag(t, device+"p1", "UUID")
			run(t, "sync")
			before, used := count(t, path, canary), blocks(t, path)
			if before < 100000 {
				t.Fatalf("only %d canaries were planted", before)
			}
			dry, err := repair.Zero(t.Context(), env(t), device, &job.Zero{DryRun: true})
			if err != nil || len(dry.Volumes) != 2 {
				t.Errorf("dry run: %+v, %v", dry, err)
			}
			if n := count(t, path, canary); n != before {
				t.Errorf("a dry run left %d of %d canaries", n, before)
			}
			done, err := repair.Zero(t.Context(), env(t), device, &job.Zero{})
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range done.Volumes {
				if v.Bytes < 8*mib || v.Skipped != "" {
					t.Errorf("%+v", v)
				}
			}
			if tag(t, device+"p1", "UUID") != swap || tag(t, device+"p1", "LABEL") != "swap" {
				t.Error("the swap space has another UUID or label")
			}
			sound(t, kind, device+"p2")
			with(t, device+"p2", "", func(dir string) {
				if read(t, filepath.Join(dir, "kept")) != strings.Repeat("kept-", 1<<20) {
					t.Error("a file that was not deleted is another")
				}
			})
			detach()
			if n := count(t, path, canary); n != 0 {
				t.Errorf("the image has %d canaries", n)
			}
			if now := blocks(t, path); now > used-20*mib {
				t.Errorf("the image took %d MiB, and takes %d", used/mib, now/mib)
			}
		})
	}
}

// A swap space with a suspended system is left alone.
func TestZeroHibernated(t *testing.T) {
	_, device := attachOf(t, "label: gpt\nsize=16MiB\n", 18)
	format(t, "swap", device+"p1")
	scribble(t, device+"p1", 4086, "S1SUSPEND\x00")
	scribble(t, device+"p1", 1<<20, canary)
	done, err := repair.Zero(t.Context(), env(t), device, &job.Zero{})
	if err != nil || len(done.Volumes) != 1 || done.Volumes[0].Skipped == "" {
		t.Errorf("%+v, %v", done, err)
	}
	if count(t, device+"p1", canary) != 1 {
		t.Error("the suspended system was overwritten")
	}
}
