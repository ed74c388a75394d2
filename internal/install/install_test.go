package install_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"imprint"
	"imprint/internal/install"
	"imprint/test/need"
)

func TestInstallsOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t.TempDir())
	in := w.installer()
	if v, err := in.Preview(w.plan(), false); err != nil || v.Exists {
		t.Errorf("before: %+v, %v", v, err)
	}
	if err := in.Run(t.Context(), w.plan(), false); err != nil {
		t.Fatal(err)
	}
	w.expectWhole(t)
	var steps []string
	for _, line := range w.notes("timeline") {
		step, _, _ := strings.Cut(line, " ")
		steps = append(steps, step)
	}
	if want := []string{"started", "fetched", "written", "repaired", "personalized", "scripts", "finished"}; !slices.Equal(steps, want) {
		t.Errorf("the timeline has %v; want %v", steps, want)
	}
	if v, err := in.Preview(w.plan(), false); err != nil || !v.Finished || v.Size != 2<<20 {
		t.Errorf("afterwards: %+v, %v", v, err)
	}

	// A machine has run from the disk since: nothing of that is lost.
	if err := os.WriteFile(w.disk(), bytes.Repeat([]byte("mine"), 1<<19), 0o600); err != nil {
		t.Fatal(err)
	}
	w.notices = nil
	if err := in.Run(t.Context(), w.plan(), false); err != nil || !strings.Contains(w.said(), "finished skipped web-1 was installed on") {
		t.Errorf("again: %v\n%s", err, w.said())
	}
	if b, _ := os.ReadFile(w.disk()); !bytes.HasPrefix(b, []byte("mineminemine")) {
		t.Error("a finished installation was done again")
	}
	if err := in.Run(t.Context(), w.plan(), true); err != nil {
		t.Fatal(err)
	}
	w.expectWhole(t)
}

// Another plan on the same disk: a new life of the instance goes on, and says what it
// overwrites; another instance has to be meant.
func TestAnotherPlanForTheDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t.TempDir())
	in := w.installer()
	w.moment = func(what string) error {
		if what == "change personalized" {
			return imprint.Errorf(imprint.Denied, "unpack", "etc/shadow", "no")
		}
		return nil
	}
	if err := in.Run(t.Context(), w.plan(), false); imprint.KindOf(err) != imprint.Denied {
		t.Fatal(err)
	}
	w.moment = func(string) error { return nil }
	stranger := w.plan()
	stranger.Instance, stranger.Ref = "00000000-7425-40de-944b-e07fc1f90ae7", "web-2"
	before, _ := os.ReadFile(w.disk())
	err := in.Run(t.Context(), stranger, false)
	if imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "a failed installation of web-1") || !strings.Contains(imprint.HintOf(err), "--again") {
		t.Errorf("another instance: %v; %s", err, imprint.HintOf(err))
	}
	if after, _ := os.ReadFile(w.disk()); !bytes.Equal(before, after) {
		t.Error("the disk of another instance was touched")
	}
	reborn := w.plan()
	reborn.Generation = 2
	w.notices = nil
	if err := in.Run(t.Context(), reborn, false); err != nil || !strings.Contains(w.said(), "a failed installation of another plan, generation 1") {
		t.Errorf("the next life: %v\n%s", err, w.said())
	}
	w.expectWhole(t)
	w.notices = nil
	if err := in.Run(t.Context(), stranger, true); err != nil || !strings.Contains(w.said(), "a finished installation of web-1, which is overwritten") {
		t.Errorf("another instance, meant: %v\n%s", err, w.said())
	}
}

// Whatever fails is called failed: in the error with what became of the disk, on the
// timeline, and on the disk, from which nothing boots. The next run is whole.
func TestFailureIsSaid(t *testing.T) {
	t.Parallel()
	for at, c := range map[string]struct{ became, marked string }{
		"fetch":                  {"was not touched", ""},
		"write":                  {"is marked as failed, and nothing boots from it", "no space left"},
		"change repaired":        {"is marked as failed, and nothing boots from it", "no space left"},
		"change scripts":         {"is marked as failed, and nothing boots from it", "no space left"},
		"before report finished": {"is complete, but the timeline does not say so", ""},
	} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t.TempDir())
			in := w.installer()
			w.moment = func(what string) error {
				if what == at {
					return imprint.Errorf(imprint.Exhausted, "write", "something", "no space left")
				}
				return nil
			}
			err := in.Run(t.Context(), w.plan(), false)
			if imprint.KindOf(err) != imprint.Exhausted || !strings.Contains(err.Error(), "no space left; "+w.disk()+" "+c.became) {
				t.Fatalf("%v", err)
			}
			if imprint.HintOf(err) == "" && at != "fetch" {
				t.Error("no remedy")
			}
			lines := w.notes("timeline")
			if last := lines[len(lines)-1]; !strings.HasPrefix(last, "failed ") || !strings.Contains(last, "no space left") || !strings.Contains(last, c.became) {
				t.Errorf("the timeline ends with %q", last)
			}
			if at == "fetch" {
				if _, err := os.Lstat(w.disk()); err == nil {
					t.Error("a file was left where none was before")
				}
			} else {
				b, _ := os.ReadFile(w.disk())
				if marked := bytes.HasPrefix(b, []byte("imprint: the installation of web-1 (")); marked != (c.marked != "") || !bytes.Contains(b[:512], []byte(c.marked)) {
					t.Errorf("on the disk: %q", b[:512])
				}
				if c.marked != "" && b[510] == 0x55 {
					t.Error("it has a boot sector")
				}
				// Also where nobody has the journal.
				for _, dir := range []string{in.Journal.Dir, w.dir} {
					if f, err := (install.Journal{Dir: dir}).Find(w.disk()); (f.Unfinished != "") != (c.marked != "") || !strings.Contains(f.Unfinished, c.marked) || err != nil {
						t.Errorf("what is known of the disk: %+v, %v", f, err)
					}
				}
			}
			w.moment = func(string) error { return nil }
			w.notices = nil
			if err := in.Run(t.Context(), w.plan(), false); err != nil {
				t.Fatal(err)
			}
			w.expectWhole(t)
			if c.marked != "" && !strings.Contains(w.said(), "the installation failed before") {
				t.Errorf("it is not said that it failed before: %s", w.said())
			}
		})
	}
}

// What the helper VM lacks is found while the disk is as it was.
func TestNothingIsWrittenThatCannotBeChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t.TempDir())
	w.unready = imprint.Errorf(imprint.NotFound, "find", "a kernel for the helper VM", "there is none")
	before := bytes.Repeat([]byte("mine"), 512<<10)
	if err := os.WriteFile(w.disk(), before, 0o600); err != nil {
		t.Fatal(err)
	}
	err := w.installer().Run(t.Context(), w.plan(), false)
	if imprint.KindOf(err) != imprint.NotFound || !strings.Contains(err.Error(), "there is none; "+w.disk()+" was not touched") {
		t.Errorf("%v", err)
	}
	if after, _ := os.ReadFile(w.disk()); !bytes.Equal(before, after) {
		t.Error("it was touched")
	}
}

// A disk is complete, the timeline was not told, and then became that of another
// installation: the same command tells it all the same, and installs nothing.
func TestCompleteDiskIsToldAfterAnotherInstallation(t *testing.T) {
	t.Parallel()
	w := newWorld(t.TempDir())
	in := w.installer()
	w.away = true
	if err := in.Run(t.Context(), w.plan(), false); err == nil || !strings.Contains(err.Error(), "is complete, but the timeline does not say so") {
		t.Fatal(err)
	}
	w.away = false
	if err := w.Report(t.Context(), imprint.DigestOf([]byte("another")), imprint.InstallStarted, "", ""); err != nil {
		t.Fatal(err)
	}
	w.notices = nil
	if err := in.Run(t.Context(), w.plan(), false); err != nil || strings.Contains(w.said(), "written begun") {
		t.Errorf("%v\n%s", err, w.said())
	}
	w.expectWhole(t)
	if lines := w.notes("timeline"); !strings.HasPrefix(lines[len(lines)-1], "finished ") {
		t.Errorf("the timeline ends with %q", lines[len(lines)-1])
	}
}

// An interrupted run ends as one that failed, and what was interrupted says so.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	w := newWorld(t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	w.moment = func(what string) error {
		if what == "write" {
			cancel()
		}
		return nil
	}
	err := w.installer().Run(ctx, w.plan(), false)
	if !errors.Is(err, context.Canceled) || !strings.Contains(w.said(), "interrupted; "+w.disk()+" is marked as failed") {
		t.Errorf("%v\n%s", err, w.said())
	}
	if lines := w.notes("timeline"); !strings.HasPrefix(lines[len(lines)-1], "failed it was interrupted") {
		t.Errorf("the timeline ends with %q", lines[len(lines)-1])
	}
}

// An image that is larger than the disk is refused before anything is written, and the
// disk is as it was: Ganeti's dd cuts it off and calls that done.
func TestGaneti18ImageLargerThanTheDiskIsNotCutOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t.TempDir())
	old := bytes.Repeat([]byte("old"), 100_000)[:256<<10]
	if err := os.WriteFile(w.disk(), old, 0o600); err != nil {
		t.Fatal(err)
	}
	p := w.plan()
	p.Size = 0
	err := w.installer().Run(t.Context(), p, false)
	if imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), "the image needs 1048576 bytes and there are 262144") || !strings.Contains(err.Error(), "was not touched") {
		t.Errorf("%v", err)
	}
	if b, _ := os.ReadFile(w.disk()); !bytes.Equal(b, old) {
		t.Error("the disk was changed")
	}
	lines := w.notes("timeline")
	if !strings.HasPrefix(lines[len(lines)-1], "failed ") {
		t.Errorf("the timeline ends with %q", lines[len(lines)-1])
	}
}

// Who may not install the instance finds the disk as it was.
func TestRefusedByTheServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t.TempDir())
	if err := os.WriteFile(w.disk(), pattern(), 0o600); err != nil {
		t.Fatal(err)
	}
	w.denied = imprint.Errorf(imprint.Conflict, "install", "web-1", "a machine has claimed generation 1 already").WithHint("imprint rebirth web-1")
	err := w.installer().Run(t.Context(), w.plan(), false)
	if imprint.KindOf(err) != imprint.Conflict || imprint.HintOf(err) != "imprint rebirth web-1" || len(w.notes("writes")) > 1 {
		t.Errorf("%v; %s", err, imprint.HintOf(err))
	}
	if b, _ := os.ReadFile(w.disk()); !bytes.Equal(b, pattern()) {
		t.Error("the disk was changed")
	}
}

// Ganeti warns when it cannot push what an instance needs, and goes on as if all were
// well. Here an installation of which the server knows nothing is none.
func TestGaneti8ServerAwayIsAFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t.TempDir())
	w.away = true
	err := w.installer().Run(t.Context(), w.plan(), false)
	if imprint.KindOf(err) != imprint.Unavailable || !strings.Contains(err.Error(), "is complete, but the timeline does not say so") {
		t.Fatalf("%v", err)
	}
	w.away, w.notices = false, nil
	if err := w.installer().Run(t.Context(), w.plan(), false); err != nil || len(w.notes("writes")) != 1 {
		t.Errorf("when the server is back: %v, written %d times", err, len(w.notes("writes")))
	}
	w.expectWhole(t)
	if lines := w.notes("timeline"); !strings.HasPrefix(lines[len(lines)-1], "finished ") {
		t.Errorf("the timeline ends with %q", lines[len(lines)-1])
	}
}

// Two installations to one disk: the second is refused, whatever its journal, and the
// first ends as if nothing had been.
func TestOneInstallationADisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t.TempDir())
	var second error
	w.moment = func(what string) error {
		if what == "write" && second == nil {
			other := newWorld(t.TempDir())
			p := other.plan()
			p.Disk = w.disk()
			second = other.installer().Run(t.Context(), p, true)
			if len(other.notices) > 0 || other.notes("timeline")[0] != "" {
				t.Errorf("the second began: %s", other.said())
			}
		}
		return nil
	}
	if err := w.installer().Run(t.Context(), w.plan(), false); err != nil {
		t.Fatal(err)
	}
	if imprint.KindOf(second) != imprint.Conflict || !strings.Contains(second.Error(), "in use") {
		t.Errorf("the second: %v", second)
	}
	w.expectWhole(t)
}

// A disk that is replaced by another of the same name has nothing installed on it.
func TestAnotherDiskOfTheSameName(t *testing.T) {
	t.Parallel()
	w := newWorld(t.TempDir())
	in := w.installer()
	if err := in.Run(t.Context(), w.plan(), false); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(w.disk(), filepath.Join(w.dir, "away")); err != nil {
		t.Fatal(err)
	}
	if err := in.Run(t.Context(), w.plan(), false); err != nil || len(w.notes("writes")) != 2 {
		t.Errorf("%v, written %d times", err, len(w.notes("writes")))
	}
	w.expectWhole(t)
}

// An image that changed where it comes from, or a disk that somebody wrote to, is not
// taken for the one of which the journal knows.
func TestWrittenIsCheckedBeforeItIsBuiltUpon(t *testing.T) {
	t.Parallel()
	for what, disturb := range map[string]func(*world){
		"the image is another now":             func(w *world) { w.image = slices.Clone(w.image); w.image[5] ^= 0xff },
		"something changed the disk meanwhile": func(w *world) { os.WriteFile(w.disk(), bytes.Repeat([]byte("x"), 2<<20), 0o600) },
	} {
		w := newWorld(t.TempDir())
		in := w.installer()
		in.Changes = nil
		w.moment = func(at string) error {
			if at == "tell written done" { // as if it had been killed here
				panic(at)
			}
			return nil
		}
		func() {
			defer func() { recover() }()
			in.Run(t.Context(), w.plan(), false)
		}()
		w.moment = func(string) error { return nil }
		disturb(w)
		w.notices = nil
		in.Changes = w
		if err := in.Run(t.Context(), w.plan(), false); err != nil || len(w.notes("writes")) != 2 || !strings.Contains(w.said(), what) {
			t.Errorf("%s: %v, written %d times\n%s", what, err, len(w.notes("writes")), w.said())
		}
	}
}

// A server that is away for a moment is told later, in order.
func TestTimelineIsToldLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t.TempDir())
	failures := 0
	w.moment = func(what string) error {
		if what == "before report written" && failures < 2 {
			failures++
			return imprint.Errorf(imprint.Unavailable, "reach", "server", "connection refused")
		}
		return nil
	}
	if err := w.installer().Run(t.Context(), w.plan(), false); err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, line := range w.notes("timeline") {
		step, _, _ := strings.Cut(line, " ")
		steps = append(steps, step)
	}
	if want := []string{"started", "fetched", "written", "repaired", "personalized", "scripts", "finished"}; !slices.Equal(steps, want) || failures != 2 {
		t.Errorf("the timeline has %v; want %v", steps, want)
	}
}

// Without a journal nothing is begun: nobody would know what is on the disk.
func TestNoJournalNoInstallation(t *testing.T) {
	t.Parallel()
	w := newWorld(t.TempDir())
	in := w.installer()
	in.Journal.Dir = "/proc/journal"
	err := in.Run(t.Context(), w.plan(), false)
	if err == nil || !strings.Contains(imprint.HintOf(err), "--journal") || w.notes("writes")[0] != "" {
		t.Errorf("%v; %s", err, imprint.HintOf(err))
	}
	if _, err := os.Lstat(w.disk()); err == nil {
		t.Error("a file was left where none was before")
	}
}

// A loop device is the disk that is behind it: another file of the same name has nothing
// installed on it.
func TestAnotherFileBehindALoop(t *testing.T) { // not parallel: see TestKilledAnywhere
	need.Root(t)
	_, err := os.Stat("/dev/loop-control")
	need.Kernel(t, err == nil, "loop devices")
	w := newWorld(t.TempDir())
	attach := func() *install.Plan {
		image := filepath.Join(w.dir, "image")
		if err := errors.Join(os.WriteFile(image+".new", nil, 0o600), os.Truncate(image+".new", 2<<20), os.Rename(image+".new", image)); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(need.Program(t, "losetup", "mount"), "--find", "--show", image).Output()
		if err != nil {
			t.Fatal(err)
		}
		p := w.plan()
		p.Disk, p.Size = strings.TrimSpace(string(out)), 0
		t.Cleanup(func() { exec.Command("losetup", "-d", p.Disk).Run() })
		return p
	}
	in := w.installer()
	first := attach()
	for range 2 { // the second finds what the first did
		if err := in.Run(t.Context(), first, false); err != nil || len(w.notes("writes")) != 1 {
			t.Fatalf("%v, written %d times", err, len(w.notes("writes")))
		}
	}
	if out, err := exec.Command("losetup", "-d", first.Disk).CombinedOutput(); err != nil {
		t.Fatal(string(out), err)
	}
	if err := in.Run(t.Context(), attach(), false); err != nil || len(w.notes("writes")) != 2 {
		t.Errorf("%v, written %d times; an empty disk was called installed", err, len(w.notes("writes")))
	}
}

// What a script printed is for who installs, and neither on the timeline nor on the disk.
func TestOutputStaysHere(t *testing.T) {
	t.Parallel()
	w := newWorld(t.TempDir())
	in := w.installer()
	w.moment = func(what string) error {
		if what == "change scripts" {
			return imprint.Errorf(imprint.Conflict, "run create for", "web-1", "on the helper VM: it ended with status 1; it printed last:\nhunter2")
		}
		return nil
	}
	if err := in.Run(t.Context(), w.plan(), false); err == nil || !strings.Contains(err.Error(), "hunter2") {
		t.Errorf("who installs is told %v", err)
	}
	disk, _ := os.ReadFile(w.disk())
	if lines := strings.Join(w.notes("timeline"), "\n"); strings.Contains(lines, "hunter2") || !strings.Contains(lines, "it ended with status 1; "+w.disk()) || bytes.Contains(disk, []byte("hunter2")) {
		t.Errorf("the timeline has %s; the disk begins with %q", lines, disk[:512])
	}
}

// A machine may write a mark to its disk, and with it to the terminal of who looks.
func TestMarkIsPrintable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "disk")
	b := make([]byte, 1<<20)
	copy(b, "imprint: the installation of \x1b[31m \u009b31m \u202e \xff")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := (install.Journal{Dir: t.TempDir()}).Find(path)
	if err != nil || f.Unfinished == "" || strings.ContainsFunc(f.Unfinished, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }) {
		t.Errorf("%q, %v", f.Unfinished, err)
	}
}
