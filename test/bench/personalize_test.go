//go:build bench

package bench

import (
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint/demo/guest"
	"imprint/internal/helpervm"
	"imprint/internal/job"
	"imprint/test/need"
)

// Everybody unpacks once to have his caches, and then this often.
var personalizeTurns = flag.Int("personalize.turns", 5, "turns of each way to unpack a package")

// packageTree makes 300 files with 38 MB, which do not compress, and a package of them.
func packageTree(t *testing.T, dir string) (tree, archive string) {
	t.Helper()
	tree, archive = filepath.Join(dir, "tree"), filepath.Join(dir, "package.tar")
	r := rand.NewChaCha8([32]byte{1})
	for i := range 300 {
		b := make([]byte, 127<<10)
		r.Read(b)
		path := filepath.Join(tree, fmt.Sprintf("srv/data/%02d/file%03d", i%20, i))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("tar", "--owner=0", "--group=0", "-C", tree, "-cf", archive, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	return tree, archive
}

// TestPersonalize puts 38 MB in 300 files onto a Debian system in an ext4 image, whole
// from the call until the helper VM is gone, under emulation: imprint beside what
// libguestfs has for that. Each turn has a copy of the image of its own.
func TestPersonalize(t *testing.T) {
	virtTarIn, virtCustomize, guestfish := need.Program(t, "virt-tar-in", "libguestfs-tools"), need.Program(t, "virt-customize", "libguestfs-tools"), need.Program(t, "guestfish", "libguestfs-tools")
	need.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	need.Root(t)
	t.Setenv("IMPRINT_ACCEL", "tcg")
	const cache = "../../.cache"
	k, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	debian, err := guest.Debian(t.Context(), cache, k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tree, archive := packageTree(t, dir)
	info, err := os.Stat(archive)
	if err != nil {
		t.Fatal(err)
	}
	modules := filepath.Join(k.Root, "lib/modules", k.ABI)
	agent := filepath.Join(dir, "imprint-helper")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", agent, "imprint/cmd/imprint-helper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// supermin looks there, whatever kernel it is given.
	if err := os.Mkdir("/lib/modules", 0o755); err == nil {
		t.Cleanup(func() { os.Remove("/lib/modules") })
	}
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	libguestfs := append(os.Environ(), "LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_BACKEND_SETTINGS=force_tcg", "TMPDIR="+filepath.Join(dir, "tmp"),
		"LIBGUESTFS_CACHEDIR="+dir, "SUPERMIN_KERNEL="+absolute(t, k.Image), "SUPERMIN_MODULES="+absolute(t, modules))
	program := func(name string, arg ...string) func(string) error {
		return func(image string) error {
			cmd := exec.CommandContext(t.Context(), name, slices.Replace(slices.Clone(arg), slices.Index(arg, "IMAGE"), slices.Index(arg, "IMAGE")+1, image)...)
			cmd.Env = libguestfs
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			return nil
		}
	}
	var booted, unpacked []time.Duration
	ways := []struct {
		name string
		run  func(image string) error
	}{
		{"imprint", func(image string) error {
			r, err := helpervm.Run(t.Context(), helpervm.Config{
				Kernel: helpervm.Kernel{Image: k.Image, Modules: modules}, Init: agent, Cache: filepath.Join(dir, "cache"), RunDir: filepath.Join(dir, "run"), TimeLimit: 2 * time.Minute,
				Disks: []helpervm.Disk{{Path: image}, {Path: archive, ReadOnly: true}},
			}, job.Job{Tasks: []job.Task{{Unpack: &job.Unpack{Disk: 0, Package: 1, Size: info.Size()}}}})
			if err == nil {
				booted, unpacked = append(booted, r.Booted), append(unpacked, r.Tasks[0].Took)
			}
			return err
		}},
		{"virt-tar-in", program(virtTarIn, "-a", "IMAGE", archive, "/")},
		{"virt-customize --copy-in", program(virtCustomize, "-q", "-a", "IMAGE", "--no-network", "--copy-in", tree+"/srv:/")},
		{"guestfish tar-in", program(guestfish, "-a", "IMAGE", "-m", "/dev/sda", "tar-in", archive, "/")},
	}
	took := map[string][]time.Duration{}
	for turn := range *personalizeTurns + 1 {
		for _, w := range ways {
			image := filepath.Join(dir, "disk.raw")
			if out, err := exec.Command("cp", "--sparse=always", debian, image).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v\n%s", err, out)
			}
			began := time.Now()
			if err := w.run(image); err != nil {
				t.Fatalf("%s: %v", w.name, err)
			}
			if d := time.Since(began); turn > 0 {
				took[w.name] = append(took[w.name], d)
			}
			if turn == 0 {
				arrived(t, image, tree, w.name)
			}
		}
	}
	ours := quantilesOf(took["imprint"]).p50
	for _, w := range ways {
		q := quantilesOf(took[w.name])
		t.Logf("%-25s %5.2f s (%.2f to %.2f), %.1f times imprint's", w.name, q.p50.Seconds(), slices.Min(took[w.name]).Seconds(), q.max.Seconds(), float64(q.p50)/float64(ours))
	}
	t.Logf("imprint's agent ran %v after QEMU's start, and unpacked in %v", quantilesOf(booted[1:]).p50.Round(time.Millisecond), quantilesOf(unpacked[1:]).p50.Round(time.Millisecond))
	t.Logf("median of %d turns; %s", *personalizeTurns, machine(t))
}

// arrived fails the test unless the image has the files of the tree.
func arrived(t *testing.T, image, tree, way string) {
	t.Helper()
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "7") {
			return err
		}
		want, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		got, err := exec.Command("debugfs", "-R", "cat "+strings.TrimPrefix(path, tree), image).Output()
		if err == nil && string(got) != string(want) {
			err = fmt.Errorf("%s has %d bytes, which are not those of the package", path, len(got))
		}
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", way, err)
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
