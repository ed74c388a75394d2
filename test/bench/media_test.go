//go:build bench

package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/durable"
	"imprint/internal/media"
	"imprint/test/need"
)

// Each writer has its turn this often, and writes so many media in it, as for a
// fleet.
const (
	mediaTurns   = 10
	mediaPerTurn = 10
)

// drive returns a function that renders the config drive of an instance with 3 KB
// of user data.
func drive(t *testing.T) func() *media.Volume {
	t.Helper()
	inst := &imprint.Instance{
		ID: imprint.NewInstanceID(), Generation: 1, Updated: time.Now(),
		Spec: imprint.Spec{Name: "web-1", Tenant: imprint.DefaultTenant, UserData: "#cloud-config\n" + strings.Repeat("# what it is for\n", 200)},
	}
	d, err := dialect.DriveOf("openstack")
	if err != nil {
		t.Fatal(err)
	}
	return func() *media.Volume {
		view, _, err := d.Render(inst, dialect.Facts{}, dialect.DriveInput{Readers: imprint.GuestRoot, Seed: make([]byte, dialect.SeedSize)})
		if err != nil {
			t.Fatal(err)
		}
		v := &media.Volume{Label: d.Label, Time: inst.Updated, Files: map[string][]byte{}}
		for path, value := range view.Values {
			v.Files[path] = value.Data
		}
		return v
	}
}

// writeTree writes the files of a volume below a directory.
func writeTree(t *testing.T, dir string, v *media.Volume) {
	t.Helper()
	for path, b := range v.Files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMedia makes a config drive as an ISO and as a floppy, from the files that are
// on it, in this process's memory and as a new file, beside the programs that people
// script, and as a NoCloud seed where the program writes nothing else. Nobody syncs.
func TestMedia(t *testing.T) {
	genisoimage, xorriso, localds := need.Program(t, "genisoimage", "genisoimage"), need.Program(t, "xorriso", "xorriso"), need.Program(t, "cloud-localds", "cloud-image-utils")
	mformat, mcopy := need.Program(t, "mformat", "mtools"), need.Program(t, "mcopy", "mtools")
	dir, render := t.TempDir(), drive(t)
	tree := filepath.Join(dir, "tree") // the programs find it ready
	writeTree(t, tree, render())
	out := filepath.Join(dir, "medium")
	volume := render() // and so does imprint
	ours := func(carrier string) map[string]func() {
		c, err := media.CarrierOf(carrier)
		if err != nil {
			t.Fatal(err)
		}
		write := func(f *os.File, err error) {
			if err == nil {
				err = c.Write(f, volume, 0)
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		}
		return map[string]func(){
			"imprint in memory": func() {
				fd, err := unix.MemfdCreate("medium", unix.MFD_CLOEXEC)
				write(os.NewFile(uintptr(fd), "medium"), err)
			},
			"imprint to a file": func() { write(os.Create(out)) },
		}
	}
	program := func(name string, arg ...string) {
		if b, err := exec.Command(name, arg...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, b)
		}
	}
	seed := seedFiles(t, dir)
	for _, pair := range []struct {
		name   string
		ours   map[string]func()
		theirs map[string]func()
	}{
		{"iso", ours("iso"), map[string]func(){
			"genisoimage":   func() { program(genisoimage, "-quiet", "-J", "-r", "-V", "config-2", "-o", out, tree) },
			"xorriso":       func() { program(xorriso, "-as", "mkisofs", "-quiet", "-J", "-r", "-V", "config-2", "-o", out, tree) },
			"cloud-localds": func() { program(localds, append([]string{out}, seed...)...) },
		}},
		{"floppy", ours("floppy"), map[string]func(){"mformat and mcopy": func() {
			program(mformat, "-C", "-f", "1440", "-v", "CONFIG-2", "-i", out, "::")
			program(mcopy, "-s", "-i", out, filepath.Join(tree, "openstack"), filepath.Join(tree, "ec2"), "::")
		}}},
	} {
		writers, took := maps.Clone(pair.theirs), map[string][]time.Duration{}
		maps.Copy(writers, pair.ours)
		for range mediaTurns {
			for name, write := range writers {
				for range mediaPerTurn {
					os.Remove(out)
					start := time.Now()
					write()
					took[name] = append(took[name], time.Since(start))
				}
			}
		}
		median := func(name string) float64 { d := took[name]; slices.Sort(d); return d[len(d)/2].Seconds() * 1e3 }
		for _, us := range slices.Sorted(maps.Keys(pair.ours)) {
			for _, peer := range slices.Sorted(maps.Keys(pair.theirs)) {
				fmt.Printf("%-7s %s %8.3f ms   %-18s %8.2f ms   ratio %.1f\n", pair.name, us, median(us), peer, median(peer), median(peer)/median(us))
			}
		}
	}
}

// seedFiles writes user data and metadata, which cloud-localds makes a seed of.
func seedFiles(t *testing.T, dir string) []string {
	t.Helper()
	files := []string{filepath.Join(dir, "user-data"), filepath.Join(dir, "meta-data")}
	for i, text := range []string{"#cloud-config\n" + strings.Repeat("# what it is for\n", 200), "instance-id: i-1\nlocal-hostname: web-1\n"} {
		if err := os.WriteFile(files[i], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// So many drives are written, by so many at a time, and each side has its turn for
// so many of them.
const (
	manyDrives   = 10_000
	driveWriters = 4
	drivesATurn  = 200
)

// TestMediaOfAFleet builds and writes the config drives of many instances as "imprint
// media" does, each synced, and in turn with them files of the same bytes: what the
// disk takes by itself.
func TestMediaOfAFleet(t *testing.T) {
	dir, render := t.TempDir(), drive(t)
	commit := func(name string, write func(io.Writer) error) error {
		f, err := durable.Create(filepath.Join(dir, name), 0o600)
		if err != nil {
			return err
		}
		defer f.Discard()
		if err := write(f); err != nil {
			return err
		}
		return f.Commit()
	}
	turn := func(name string, write func(io.Writer) error) time.Duration {
		start := time.Now()
		var group errgroup.Group
		group.SetLimit(driveWriters)
		for i := range drivesATurn {
			group.Go(func() error { return commit(fmt.Sprint(name, i), write) })
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	var image bytes.Buffer
	if err := media.ISO(&image, render()); err != nil {
		t.Fatal(err)
	}
	var ours, plain time.Duration
	for n := drivesATurn; n <= manyDrives; n += drivesATurn {
		ours += turn(fmt.Sprint("iso-", n, "-"), func(w io.Writer) error { return media.ISO(w, render()) })
		plain += turn(fmt.Sprint("plain-", n, "-"), func(w io.Writer) error { _, err := w.Write(image.Bytes()); return err })
		if n == manyDrives/10 || n == manyDrives {
			each := func(d time.Duration) float64 { return d.Seconds() * 1e3 / float64(n) }
			fmt.Printf("after %5d drives of %d KiB, %d at a time: imprint %.2f ms each, the bytes alone %.2f ms, ratio %.2f, memory %.1f MiB at most\n",
				n, image.Len()>>10, driveWriters, each(ours), each(plain), ours.Seconds()/plain.Seconds(), peakMemory(t))
		}
	}
}

// peakMemory returns the largest resident set of this process so far in MiB.
func peakMemory(t *testing.T) float64 {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return float64(usage.Maxrss) / 1024
}
