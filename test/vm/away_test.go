//go:build vm

package vm_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/demo/guest"
)

// gone is what is said of a file when nothing is left of it.
const gone = "file blanked, verified and removed"

// "imprint boot" attaches a medium on each carrier, the machine enrols with it over
// QEMU's own network, and when it has confirmed the medium is taken away, under a
// guest that runs on.
func TestMediaAreTakenAway(t *testing.T) {
	needQEMU(t)
	img := awayImage(t, false)
	s := newCheckIn(t, gateway)
	for _, c := range []struct {
		carrier, medium string
		flags           []string
		how             string // "" if it stays in the machine's memory
	}{
		{"iso", "sr0", nil, "CD ejected, " + gone},
		{"iso", "sda", []string{"--as-disk", "--machine", "microvm"}, "disk unplugged, " + gone},
		{"fat-gpt", "sda1", []string{"--machine", "pc"}, "disk unplugged, " + gone},
		{"floppy", "fd0", nil, "floppy ejected, " + gone},
		{"initrd", "initrd", nil, ""},
		{"smbios", "smbios", nil, ""},
		{"fw-cfg", "fwcfg", nil, ""},
	} {
		name := c.carrier + "-" + c.medium
		t.Run(name, func(t *testing.T) {
			img := img
			if c.medium == "fd0" { // for which the kernel for virtual machines has no driver
				img = awayImage(t, true, "floppy")
			}
			s.create(fmt.Sprintf("name: %s\ndnsNames: [%[1]s.lab.internal]\nchannels: [est]\n", name))
			r := s.boot(t, name, img, c.carrier, c.medium, c.flags...)
			r.says("guest: up")
			within, gone := "", gone
			if c.carrier == "fw-cfg" { // a directory
				within, gone = "org.imprint/payload", "files blanked, verified and removed"
			}
			medium := r.open(within)
			before := r.read(medium)
			if len(bytes.Trim(before, "\x00")) == 0 {
				t.Error("there was nothing on the medium")
			}
			if c.how != "" { // QEMU has it open
				r.expectRefused(medium.Name())
				if !bytes.Equal(r.read(medium), before) {
					t.Error("a medium in a drive was blanked")
				}
			}
			r.enter()

			m := r.settled()
			if after := r.read(medium); len(after) != len(before) || len(bytes.Trim(after, "\x00")) > 0 {
				t.Errorf("of %d bytes the file has %d still, not all zero", len(before), len(after))
			}
			if left := r.files(); len(left) > 0 {
				t.Errorf("there is still %s", left)
			}
			if c.how != "" {
				if m.State != imprint.MediumTaken || m.Detail != c.how {
					t.Errorf("it is %s: %s", m.State, m.Detail)
				}
				expectMedium(t, s, name, imprint.EventTaken, "how", c.how)
			} else {
				why := gone + ", but it is in the machine's memory until that is switched off"
				if m.State != imprint.MediumLeft || m.Detail != why {
					t.Errorf("it is %s: %s", m.State, m.Detail)
				}
				expectMedium(t, s, name, imprint.EventLeft, "why", why)
			}
			r.enter()
			console := r.ended()
			expectConsole(t, console, "guest: ended with status 0")
			if c.how != "" {
				expectConsole(t, console, "guest: the medium is there\n", "guest: the medium is gone")
			} else {
				expectMedium(t, s, name, imprint.EventTaken, "how", "at the end of the run, "+gone)
			}
			d := s.describe(name)
			expectByToken(t, d)
			if m := d.Instance.Media[0]; m.State != imprint.MediumTaken || !m.Token || m.Carrier != c.carrier || strings.Contains(s.imprint(nil, "describe", name), "Media") {
				t.Errorf("at the end it is %+v", m)
			}
			if left, err := os.ReadDir(r.dir); err != nil || len(left) > 0 {
				t.Errorf("the run left %v, %v", left, err)
			}
		})
	}
}

// Somebody else has the medium's file open, so that it is not blanked. That stays
// to be seen, with the reason and the remedy.
func TestMediumThatIsInUseStaysVisible(t *testing.T) {
	needQEMU(t)
	s := newCheckIn(t, gateway)
	s.create("name: web-1\ndnsNames: [web-1.lab.internal]\nchannels: [est]\n")
	r := s.boot(t, "web-1", awayImage(t, false), "iso", "sr0")
	r.says("guest: up")
	medium := r.open("")
	before := r.read(medium)
	if err := unix.FcntlFlock(medium.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart}); err != nil {
		t.Fatal(err)
	}
	r.enter()
	m := r.settled()
	if m.State != imprint.MediumLeft || !strings.HasPrefix(m.Detail, "CD ejected, open ") || !strings.Contains(m.Detail, "another program has locked it, as QEMU does") {
		t.Errorf("it is %s: %s", m.State, m.Detail)
	}
	expectMedium(t, s, "web-1", imprint.EventLeft, "why", m.Detail)
	r.enter()
	console, err := r.wait()
	if err == nil || !strings.Contains(r.complain.String(), "take away medium 1 of web-1: at the end of the run its file was removed, but not blanked: ") {
		t.Errorf("imprint boot: %v: %s", err, &r.complain)
	}
	expectConsole(t, console, "guest: ended with status 0", "guest: the medium is gone")
	if after := r.read(medium); !bytes.Equal(after, before) {
		t.Error("the file of another program was written to")
	}
	m = s.describe("web-1").Instance.Media[0]
	if m.State != imprint.MediumLeft || !strings.HasPrefix(m.Detail, "at the end of the run its file was removed, but not blanked: ") {
		t.Errorf("at the end it is %s: %s", m.State, m.Detail)
	}
	text := s.imprint(nil, "describe", "web-1")
	for _, want := range []string{"1: native on iso with a one-time token", "not taken away", "removed, but not blanked", "imprint media forget web-1 NUMBER"} {
		if !strings.Contains(text, want) {
			t.Errorf("describe does not say %q:\n%s", want, text)
		}
	}
}

// Stock cloud-init finds the config drive in the CD drive, whose drivers are in the
// initial RAM disk as in Debian's own: ds-identify looks before udev loads any. Nobody
// enrols, so that the medium goes with the end of the run.
func TestStockCloudInitFromBoot(t *testing.T) {
	needQEMU(t)
	kernel, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	disk := debianImage(t, kernel)
	s := newServer(t)
	s.create(stockManifest, "DB_PASSWORD=x")
	r := s.boot(t, "stock-1", switchRoot(t, "virtio_scsi", "sr_mod"), "iso", "", "--dialect", "openstack", "--stock", "openstack", "--machine", "pc", "--cpus", "2", "--memory", "1024",
		"--append", strings.TrimPrefix(quietDisk, "console=ttyS0 "), "--disk", disk, "--channel", "serial", "--timeout", stockLimit.String())
	expectConsole(t, r.ended(), "guest: hostname stock-1", "guest: address 10.0.2.15/24", "guest: user data ran")
	expectMedium(t, s, "stock-1", imprint.EventTaken, "how", "at the end of the run, "+gone)
	if d := s.describe("stock-1"); d.Instance.Enrolment.State != imprint.Reserved {
		t.Errorf("a config drive made the machine %s", d.Instance.Enrolment.State)
	}
}

// awayImage builds the guest that waits for its medium to go.
func awayImage(t *testing.T, generic bool, modules ...string) guest.Image {
	t.Helper()
	img, err := guest.Build(t.Context(), guest.Config{
		Cache: cache, Out: filepath.Join(t.TempDir(), "guest.cpio"), Agent: program("imprint-agent"), Script: script(t, "away.sh"), Generic: generic,
		Modules: append([]string{"virtio_net", "virtio_scsi", "sr_mod", "sd_mod", "isofs", "vfat", "nls_cp437", "nls_ascii", "qemu_fw_cfg"}, modules...),
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// bootRun is an "imprint boot" in the background.
type bootRun struct {
	t        *testing.T
	s        *server
	name     string
	dir      string // where it makes its private directory
	console  string // the file with what the guest prints
	terminal io.WriteCloser
	cmd      *exec.Cmd
	over     chan error
	complain bytes.Buffer // written until over
}

func (s *server) boot(t *testing.T, name string, img guest.Image, carrier, medium string, flags ...string) *bootRun {
	t.Helper()
	r := &bootRun{t: t, s: s, name: name, dir: t.TempDir(), console: filepath.Join(t.TempDir(), "console"), over: make(chan error, 1)}
	out, err := os.Create(r.console)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	r.cmd = exec.Command(program("imprint"), append([]string{"--socket", filepath.Join(s.run(), "imprint.sock"), "boot", name,
		"--kernel", img.Kernel, "--initrd", img.Initrd, "--append", guest.Append + " medium=" + medium, "--memory", "256", "--timeout", "90s",
		"--carrier", carrier}, flags...)...)
	r.cmd.Env = append(os.Environ(), "TMPDIR="+r.dir)
	r.cmd.Stdout, r.cmd.Stderr = out, &r.complain
	if r.terminal, err = r.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { r.over <- r.cmd.Wait() }()
	t.Cleanup(func() {
		r.cmd.Process.Kill()
		r.over <- <-r.over
		if t.Failed() {
			t.Logf("imprint boot: %s\n%s", &r.complain, r.text())
		}
	})
	return r
}

func (r *bootRun) text() string {
	b, _ := os.ReadFile(r.console)
	return strings.ReplaceAll(string(b), "\r", "")
}

// until repeats done until it is true.
func (r *bootRun) until(what string, done func() bool) {
	r.t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit.C:
			r.t.Fatalf("waited in vain for %s", what)
		case err := <-r.over:
			r.over <- err
			r.t.Fatalf("the machine ended before %s: %v", what, err)
		}
	}
}

func (r *bootRun) says(text string) {
	r.t.Helper()
	r.until(text, func() bool { return strings.Contains(r.text(), text) })
}

// enter presses the return key at the console.
func (r *bootRun) enter() {
	r.t.Helper()
	if _, err := io.WriteString(r.terminal, "\n"); err != nil {
		r.t.Fatal(err)
	}
}

// files are those in the run's private directory.
func (r *bootRun) files() []string {
	found, err := filepath.Glob(filepath.Join(r.dir, "*", "*"))
	if err != nil {
		r.t.Fatal(err)
	}
	return found
}

// open opens the medium's file, which is the only one of the run's and nobody else's
// to read, or the one within it if it is a directory. It is found by this descriptor also
// when it has no name any more.
func (r *bootRun) open(within string) *os.File {
	r.t.Helper()
	files := r.files()
	if len(files) != 1 {
		r.t.Fatalf("the run has the files %s", files)
	}
	file := filepath.Join(files[0], within)
	for path, mode := range map[string]os.FileMode{file: 0o600, filepath.Dir(files[0]): os.ModeDir | 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			r.t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	f, err := os.Open(file)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { f.Close() })
	return f
}

// expectRefused fails the test unless the medium at path is one to leave alone.
func (r *bootRun) expectRefused(path string) {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), program("imprint"), "--socket", filepath.Join(r.s.run(), "imprint.sock"), "media", "blank", path)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another program has locked it, as QEMU does") {
		r.t.Errorf("media blank: %v: %s", err, out)
	}
}

func (r *bootRun) read(f *os.File) []byte {
	r.t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// settled returns the run's medium when it is said what became of it.
func (r *bootRun) settled() imprint.Medium {
	r.t.Helper()
	var m imprint.Medium
	r.until("the medium to be taken away", func() bool {
		media := r.s.describe(r.name).Instance.Media
		if len(media) != 1 {
			r.t.Fatalf("on record are %+v", media)
		}
		m = media[0]
		return m.State != imprint.MediumOut
	})
	return m
}

// wait returns the console, and how imprint ended, once the machine has.
func (r *bootRun) wait() (console string, err error) {
	err = <-r.over
	r.over <- err
	return r.text(), err
}

// ended returns the console once all has ended well.
func (r *bootRun) ended() string {
	r.t.Helper()
	console, err := r.wait()
	if err != nil {
		r.t.Errorf("imprint boot: %v: %s", err, &r.complain)
	}
	return console
}

// expectMedium fails the test unless the timeline tells what became of the medium.
func expectMedium(t *testing.T, s *server, name string, kind imprint.EventKind, key, text string) {
	t.Helper()
	timeline := s.describe(name).Timeline
	if !slices.ContainsFunc(timeline, func(e imprint.Event) bool {
		return e.Kind == kind && e.Detail["medium"] == "1" && e.Detail[key] == text
	}) {
		t.Errorf("no event %s with %s=%q on the timeline: %+v", kind, key, text, timeline)
	}
}
