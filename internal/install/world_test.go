package install_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/install"
)

// chunk is in what pieces the image of a test is written.
const chunk = 256 << 10

// pattern is an image: 1 MiB in which every byte counts.
func pattern() []byte {
	b := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// world stands in for images, the helper VM and the server. Each thing that happens is
// a moment, at which a test may have it fail or end the process.
type world struct {
	dir     string
	image   []byte
	moment  func(what string) error
	notices []install.Notice
	denied  error          // what the timeline answers to a start
	current imprint.Digest // the installation that the timeline is of
	unready error          // why the helper VM cannot run
	away    bool           // the server cannot be reached, but for the start
}

func newWorld(dir string) *world {
	return &world{dir: dir, image: pattern(), moment: func(string) error { return nil }}
}

func (w *world) installer() *install.Installer {
	return &install.Installer{
		Journal: install.Journal{Dir: filepath.Join(w.dir, "journal")}, Images: w, Changes: w, Timeline: w, Now: time.Now,
		Tell: func(n install.Notice) {
			w.notices = append(w.notices, n)
			w.moment("tell " + string(n.Step) + " " + string(n.State))
		},
	}
}

func (w *world) disk() string { return filepath.Join(w.dir, "disk") }

func (w *world) plan() *install.Plan {
	return &install.Plan{Instance: "7c9e6679-7425-40de-944b-e07fc1f90ae7", Ref: "web-1", Generation: 1, Disk: w.disk(), Size: 2 << 20,
		Image: "https://images.example/debian.raw", Inputs: []string{"sum"}}
}

// note appends to what outlives the process.
func (w *world) note(file, line string) {
	f, err := os.OpenFile(filepath.Join(w.dir, file), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		fmt.Fprintln(f, line)
		f.Close()
	}
}

func (w *world) notes(file string) []string {
	b, _ := os.ReadFile(filepath.Join(w.dir, file))
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

func (w *world) Fetch(_ context.Context, progress func(done, total int64)) (install.Image, error) {
	for n := range int64(3) {
		progress(n, 3)
		if err := w.moment("fetch"); err != nil {
			return install.Image{}, err
		}
	}
	return install.Image{Digest: imprint.DigestOf(w.image), Format: "raw", Size: int64(len(w.image))}, nil
}

func (w *world) Write(ctx context.Context, disk *os.File, size int64, progress func(done, total int64)) error {
	w.note("writes", "write")
	for at := int64(0); at < size; at += chunk {
		b := make([]byte, chunk)
		if at < int64(len(w.image)) {
			copy(b, w.image[at:])
		}
		if _, err := disk.WriteAt(b, at); err != nil {
			return err
		}
		progress(at, size)
		if err := errors.Join(w.moment("write"), ctx.Err()); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) Ready() error { return w.unready }

// Change is not idempotent, as growing a filesystem or running a script is not.
func (w *world) Change(ctx context.Context, disk *os.File, progress func(what string, done, total int64), done func(imprint.InstallStep, string)) error {
	for n, step := range []imprint.InstallStep{imprint.InstallRepaired, imprint.InstallPersonalized, imprint.InstallScripts} {
		for at := int64(n) * 1000; at < int64(n)*1000+3; at++ {
			var b [1]byte
			if _, err := disk.ReadAt(b[:], at); err != nil {
				return err
			}
			b[0]++
			if _, err := disk.WriteAt(b[:], at); err != nil {
				return err
			}
			progress("change "+string(step), at, 3)
			if err := errors.Join(w.moment("change "+string(step)), ctx.Err()); err != nil {
				return err
			}
		}
		done(step, "")
	}
	return nil
}

func (w *world) Report(_ context.Context, id imprint.Digest, step imprint.InstallStep, image imprint.Digest, detail string) error {
	if step == imprint.InstallStarted && w.denied != nil {
		return w.denied
	}
	if w.away && step != imprint.InstallStarted {
		return imprint.Errorf(imprint.Unavailable, "reach", "server", "connection refused")
	}
	if err := w.moment("before report " + string(step)); err != nil {
		return err
	}
	switch {
	case step == imprint.InstallStarted:
		w.current = id
	case w.current != id:
		return imprint.Errorf(imprint.Conflict, "install", "web-1", "another installation was started since")
	}
	w.note("timeline", fmt.Sprintf("%s %s", step, detail))
	return w.moment("after report " + string(step))
}

// want is what the disk is to hold in the end.
func want() []byte {
	b := make([]byte, 2<<20)
	copy(b, pattern())
	for n := range 3 {
		for at := n * 1000; at < n*1000+3; at++ {
			b[at]++
		}
	}
	return b
}

func (w *world) expectWhole(t *testing.T) {
	t.Helper()
	got, err := os.ReadFile(w.disk())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want()) {
		t.Errorf("the disk has %d bytes, of which the first 3 are %x; it is not what was to be installed", len(got), got[:3])
	}
}

// said is all that was told, one notice a line.
func (w *world) said() string {
	var b strings.Builder
	for _, n := range w.notices {
		if n.State != install.Going {
			fmt.Fprintln(&b, n.Step, n.State, n.Text)
		}
	}
	return b.String()
}
