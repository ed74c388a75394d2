//go:build bench

package bench

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"imprint"
	"imprint/internal/disk"
	"imprint/internal/image"
	"imprint/test/need"
)

// The image that is written: half of it zeros, in runs.
const (
	imageSize   = 2 << 30 // bytes
	imageRun    = 4 << 20 // bytes of data, and then of zeros
	imageRounds = 3
)

// TestImage writes an image with its SHA-256 verified to a new file, and makes it safe
// on the disk, beside the programs that people script: each with the same bytes, in
// turns. Where the program verifies nothing, sha256sum reads the image before.
func TestImage(t *testing.T) {
	qemuImg, bmaptool, zstd := need.Program(t, "qemu-img", "qemu-utils"), need.Program(t, "bmaptool", "bmap-tools"), need.Program(t, "zstd", "zstd")
	dir := t.TempDir()
	raw := filepath.Join(dir, "image.raw")
	makeImage(t, raw)
	program := func(script string) {
		t.Helper()
		c := exec.Command("sh", "-ec", script)
		c.Dir = dir
		if b, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, b)
		}
	}
	program(qemuImg + " convert -O qcow2 image.raw image.qcow2")
	program(bmaptool + " create -o image.bmap image.raw && " + zstd + " -q -k -T2 image.raw && sync")
	ours := func(name string) func() {
		sum := hashOf(t, filepath.Join(dir, name))
		return func() {
			if err := writeImage(t, filepath.Join(dir, name), sum, filepath.Join(dir, "disk")); err != nil {
				t.Fatal(err)
			}
		}
	}
	qemu := func(name, format string) func() {
		return func() {
			program("sha256sum " + name + " >/dev/null; " + qemuImg + " convert -n -t none -W -m 8 -f " + format + " -O raw " + name + " disk")
		}
	}
	ways := map[string]func(){
		"imprint raw":                ours("image.raw"),
		"imprint qcow2":              ours("image.qcow2"),
		"imprint zstd":               ours("image.raw.zst"),
		"sha256sum, qemu-img raw":    qemu("image.raw", "raw"),
		"sha256sum, qemu-img qcow2":  qemu("image.qcow2", "qcow2"),
		"qemu-img raw, unverified":   func() { program(qemuImg + " convert -n -t none -W -m 8 -f raw -O raw image.raw disk") },
		"qemu-img qcow2, unverified": func() { program(qemuImg + " convert -n -t none -W -m 8 -f qcow2 -O raw image.qcow2 disk") },
		"bmaptool":                   func() { program(bmaptool + " -q copy --bmap image.bmap image.raw disk; sync disk") },
		"bmaptool, unverified":       func() { program(bmaptool + " -q copy --no-verify --bmap image.bmap image.raw disk; sync disk") },
		"zstd -d, dd": func() {
			program(zstd + " -q -dc image.raw.zst | dd bs=4M of=disk conv=notrunc,fsync iflag=fullblock status=none")
		},
		"zstd -d, dd sparse": func() {
			program(zstd + " -q -dc image.raw.zst | dd bs=4M of=disk conv=sparse,notrunc,fsync iflag=fullblock status=none")
		},
	}
	took := map[string][]time.Duration{}
	for round := range imageRounds {
		for _, name := range slices.Sorted(maps.Keys(ways)) {
			os.Remove(filepath.Join(dir, "disk"))
			program("truncate -s 2G disk; sync")
			start := time.Now()
			ways[name]()
			took[name] = append(took[name], time.Since(start))
			if round == 0 {
				program("cmp image.raw disk")
			}
		}
	}
	median := func(name string) float64 { d := took[name]; slices.Sort(d); return d[len(d)/2].Seconds() }
	names := slices.SortedFunc(maps.Keys(ways), func(a, b string) int { return cmp.Compare(median(a), median(b)) })
	for _, name := range names {
		fmt.Printf("%-42s %6.2f s (%.2f to %.2f)  %5.0f MiB/s\n", name, median(name), took[name][0].Seconds(), took[name][len(took[name])-1].Seconds(), imageSize/median(name)/(1<<20))
	}
	fmt.Printf("memory: this process %.0f MiB at most, a child %.0f; %s\n", peakMemory(t), peakOfChildren(t), machine(t))
}

// peakOfChildren returns the largest resident set of a process that this one waited for,
// in MiB: of imprint's sandboxes, if no program had more.
func peakOfChildren(t *testing.T) float64 {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &usage); err != nil {
		t.Fatal(err)
	}
	return float64(usage.Maxrss) / 1024
}

// makeImage writes the image that is installed.
func makeImage(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	source := rand.NewChaCha8([32]byte{1})
	b := make([]byte, imageRun)
	for at := int64(0); at < imageSize; at += 2 * imageRun {
		// Half of what is not zeros repeats, as programs and text do.
		source.Read(b[:imageRun/2])
		copy(b[imageRun/2:], bytes.Repeat([]byte("all work and no play makes jack a dull boy\n"), imageRun/80))
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, imageRun), at+imageRun); err != nil {
			t.Fatal(err)
		}
	}
}

func hashOf(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("sha256sum", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	return "sha256:" + string(out[:64])
}

func writeImage(t *testing.T, source, sum, path string) error {
	s, err := image.NewStore(image.Config{}).Open(t.Context(), imprint.Image{Source: source, Sum: sum}, image.OpenOptions{})
	if err != nil {
		return err
	}
	defer s.Close()
	d, err := disk.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = s.Write(t.Context(), d, image.WriteOptions{})
	return err
}
