//go:build bench

package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/media"
	"imprint/test/need"
)

// mediaRounds is how often each writer writes, one after the other in turn.
const mediaRounds = 60

// TestMedia writes a config drive as an ISO and as a floppy, whole from the
// instance to the file, beside the programs that people script. Nobody syncs.
func TestMedia(t *testing.T) {
	genisoimage, mformat, mcopy := need.Program(t, "genisoimage", "genisoimage"), need.Program(t, "mformat", "mtools"), need.Program(t, "mcopy", "mtools")
	dir := t.TempDir()
	inst := &imprint.Instance{
		ID: imprint.NewInstanceID(), Generation: 1, Updated: time.Now(),
		Spec: imprint.Spec{Name: "web-1", Tenant: imprint.DefaultTenant, UserData: "#cloud-config\n" + strings.Repeat("# what it is for\n", 200)},
	}
	d, err := dialect.DriveOf("openstack")
	if err != nil {
		t.Fatal(err)
	}
	render := func() *media.Volume {
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
	tree := filepath.Join(dir, "tree") // the programs find it ready
	for path, b := range render().Files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(tree, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, path), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "medium")
	ours := func(carrier string) func() {
		c, err := media.CarrierOf(carrier)
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			f, err := os.Create(out)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := c.Write(f, render(), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	program := func(name string, arg ...string) {
		if b, err := exec.Command(name, arg...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, b)
		}
	}
	for _, pair := range []struct {
		name, peer   string
		ours, theirs func()
	}{
		{"iso", "genisoimage", ours("iso"), func() { program(genisoimage, "-quiet", "-J", "-r", "-V", "config-2", "-o", out, tree) }},
		{"floppy", "mformat and mcopy", ours("floppy"), func() {
			program(mformat, "-C", "-f", "1440", "-v", "CONFIG-2", "-i", out, "::")
			program(mcopy, "-s", "-i", out, filepath.Join(tree, "openstack"), filepath.Join(tree, "ec2"), "::")
		}},
	} {
		var us, them []time.Duration
		for range mediaRounds {
			for list, f := range map[*[]time.Duration]func(){&us: pair.ours, &them: pair.theirs} {
				os.Remove(out)
				start := time.Now()
				f()
				*list = append(*list, time.Since(start))
			}
		}
		median := func(d []time.Duration) time.Duration { slices.Sort(d); return d[len(d)/2] }
		a, b := median(us), median(them)
		fmt.Printf("%-7s imprint %8.3f ms   %s %8.2f ms   ratio %.0f\n", pair.name, a.Seconds()*1e3, pair.peer, b.Seconds()*1e3, b.Seconds()/a.Seconds())
	}
}
