//go:build linux

package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/media"
)

// onVolume returns a machine whose payload is on a volume, as imprint writes that, and
// what makes its agents. The volume is the file dev/vdb1; write may be nil for a floppy.
func onVolume(t *testing.T, write func(io.Writer, *media.Volume) error, more map[string][]byte) (*machine, *fakeEndpoint, func() *Agent) {
	t.Helper()
	host := newFakeHost(t)
	e := newFakeEndpoint(t, host)
	m := newMachine(t, host)
	b, err := host.payload.Encode()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{PayloadName: b}
	maps.Copy(files, more)
	if write == nil {
		write = media.Floppy
	}
	m.volume("vdb1", files, write)
	return m, e, func() *Agent {
		a := m.agent()
		a.o.TakeAway = true
		a.volumes.mount = func(device, dir string) (func() error, error) { return nil, errors.New("there is no driver") }
		a.sources = []source{a.volumes}
		a.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, e.Listener.Addr().String())
		}
		return a
	}
}

// volume gives m a block device with a volume of files on it.
func (m *machine) volume(device string, files map[string][]byte, write func(io.Writer, *media.Volume) error) {
	m.t.Helper()
	m.write("sys/class/block/"+device+"/dev", "254:17\n", 0o444)
	m.write("dev/"+device, "", 0o600)
	f, err := os.Create(filepath.Join(m.root, "dev", device))
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	if err := write(f, &media.Volume{Label: VolumeLabel, Time: epoch, Files: files}); err != nil {
		m.t.Fatal(err)
	}
}

// payloadOf is another machine's.
func payloadOf(t *testing.T, name imprint.InstanceName) map[string][]byte {
	t.Helper()
	p := newFakeHost(t).payload
	p.Name = name
	b, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{PayloadName: b}
}

func fatOf(table media.Table, size int64) func(io.Writer, *media.Volume) error {
	return func(w io.Writer, v *media.Volume) error { return media.FAT(w, v, table, size) }
}

func partition(w io.Writer, v *media.Volume) error {
	return media.Partition(w, v, media.Place{Start: 1 << 20, Size: 17 << 20, Sector: 4096})
}

func isBlank(s string) bool { return len(s) > 0 && strings.Trim(s, "\x00") == "" }

// A volume that imprint made, and on which the payload came, is blank once the machine
// is confirmed, and imprint hears of it by the digest that it has on record. Others are
// not touched.
func TestTakesItsVolumeAway(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(io.Writer, *media.Volume) error{
		"floppy": media.Floppy, "FAT16": fatOf(media.NoTable, 16<<20), "FAT32": fatOf(media.NoTable, 64<<20), "large sectors": partition,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, e, agent := onVolume(t, write, nil)
			before := m.read("dev/vdb1")
			c, err := media.Inspect(strings.NewReader(before), int64(len(before)))
			if err != nil {
				t.Fatal(err)
			}
			m.volume("vdc1", payloadOf(t, "db-1"), media.Floppy)
			m.volume("vdd1", map[string][]byte{"letter.txt": []byte("mine")}, media.Floppy)
			others := m.read("dev/vdc1") + m.read("dev/vdd1")
			for range 2 { // the second start has nothing to do
				if err := m.run(agent()); err != nil {
					t.Fatalf("%v\n%s", err, m.said())
				}
				os.RemoveAll(m.root + "/sys/class/block/vdc1") // its payload would be found now
			}
			if after := m.read("dev/vdb1"); !isBlank(after) || len(after) != len(before) {
				t.Errorf("of %d bytes it has %d, blank %t", len(before), len(after), isBlank(after))
			}
			if m.read("dev/vdc1")+m.read("dev/vdd1") != others {
				t.Error("another volume was written to")
			}
			want := []imprint.MediumEnd{{Digest: c.Digest(), State: imprint.MediumTaken, Detail: "overwritten with zeros by the machine, and read back: vdb1"}}
			if !slices.Equal(e.host.media, want) {
				t.Errorf("reported %+v", e.host.media)
			}
		})
	}
}

// What is not to be overwritten stays as it is, and imprint hears why, at each start.
func TestLeavesWhatIsNotToBeOverwritten(t *testing.T) {
	t.Parallel()
	edit := func(at int, text string) func(*machine) {
		return func(m *machine) {
			b := []byte(m.read("dev/vdb1"))
			copy(b[at:], text)
			m.write("dev/vdb1", string(b), 0o600)
		}
	}
	for name, tt := range map[string]struct {
		write  func(io.Writer, *media.Volume) error
		more   map[string][]byte
		change func(*machine)
		keep   bool
		why    string
	}{
		"CD":               {write: media.ISO, why: "take away vdb1: it is a CD image, which the machine does not write to"},
		"another's":        {change: edit(3, "mkfs.fat"), why: "take away vdb1: imprint did not make its file system"},
		"with other files": {more: map[string][]byte{"photos/1.jpg": []byte("mine")}, why: "take away vdb1: it holds more than the payload"},
		"told to":          {keep: true, why: "take away vdb1: the agent was told to leave it (--take-away=false)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, e, agent := onVolume(t, tt.write, tt.more)
			if tt.change != nil {
				tt.change(m)
			}
			before := m.read("dev/vdb1")
			for range 2 {
				a := agent()
				a.o.TakeAway = !tt.keep
				if err := m.run(a); err != nil {
					t.Fatalf("%v\n%s", err, m.said())
				}
			}
			if m.read("dev/vdb1") != before {
				t.Error("it was written to")
			}
			want := imprint.MediumEnd{Digest: e.digest(t), State: imprint.MediumLeft, Detail: tt.why}
			if !slices.Equal(e.host.media, []imprint.MediumEnd{want, want}) {
				t.Errorf("reported %+v", e.host.media)
			}
			if !strings.Contains(m.said(), "the volume that the payload was on stays: "+tt.why) {
				t.Errorf("the console does not say why:\n%s", m.said())
			}
		})
	}
}

// digest is that of the payload's file, as the server has it on record.
func (e *fakeEndpoint) digest(t *testing.T) imprint.Digest {
	t.Helper()
	b, err := e.host.payload.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return imprint.DigestOfFiles(map[string][]byte{"payload.json": b})
}

// mediumSteps are those at which a run may crash while it takes the volume away.
var mediumSteps = []string{"confirmed", "hooks", "medium begun", "medium cleared", "medium blank", "medium reported"}

// crashAt runs an agent that crashes at a step.
func crashAt(t *testing.T, m *machine, a *Agent, step string) {
	t.Helper()
	reached := false
	a.boundary = func(s string) error {
		if reached = reached || s == step; reached {
			return errCrash
		}
		return nil
	}
	m.run(a)
	if !reached {
		t.Fatalf("no run came to %q\n%s", step, m.said())
	}
}

func TestResumesTakingAwayAfterACrash(t *testing.T) {
	t.Parallel()
	for _, step := range mediumSteps {
		m, e, agent := onVolume(t, nil, nil)
		crashAt(t, m, agent(), step)
		e.host.do(func() { e.host.media = nil })
		if err := m.run(agent()); err != nil {
			t.Fatalf("after a crash at %q: %v\n%s", step, err, m.said())
		}
		if !isBlank(m.read("dev/vdb1")) {
			t.Errorf("after a crash at %q it is not blank", step)
		}
		if len(e.host.media) != 1 || e.host.media[0].State != imprint.MediumTaken || e.host.media[0].Digest != e.digest(t) {
			t.Errorf("after a crash at %q: reported %+v\n%s", step, e.host.media, m.said())
		}
	}
}

// A volume that is not the machine's any more when the next run comes is not touched.
func TestNeverOverwritesWhatCameInItsPlace(t *testing.T) {
	t.Parallel()
	for name, replace := range map[string]func(*testing.T, *machine){
		"another machine's": func(t *testing.T, m *machine) { m.volume("vdb1", payloadOf(t, "db-1"), media.Floppy) },
		"files of a user's": func(t *testing.T, m *machine) {
			b := []byte(m.read("dev/vdb1"))
			first := bytes.Clone(b[:bootSector])
			m.volume("vdb1", map[string][]byte{"letter.txt": []byte("mine")}, media.Floppy)
			b = []byte(m.read("dev/vdb1"))
			copy(b, first) // which mkfs would have written anew, and a copy of files does not
			m.write("dev/vdb1", string(b), 0o600)
		},
		"nothing known": func(t *testing.T, m *machine) { m.write("dev/vdb1", strings.Repeat("x", media.FloppySize), 0o600) },
		"another file system with the label": func(t *testing.T, m *machine) {
			b := []byte(m.read("dev/vdb1"))
			copy(b[3:], "mkfs.fat")
			b[600] = 1
			m.write("dev/vdb1", string(b), 0o600)
		},
	} {
		for _, step := range mediumSteps[1:4] {
			t.Run(name+" at "+step, func(t *testing.T) {
				t.Parallel()
				m, e, agent := onVolume(t, nil, nil)
				crashAt(t, m, agent(), step)
				e.host.do(func() { e.host.media = nil })
				replace(t, m)
				before := m.read("dev/vdb1")
				a := agent()
				a.sources = []source{fileSource{"/none"}} // another machine's payload would end it
				if err := m.run(a); err != nil {
					t.Fatalf("%v\n%s", err, m.said())
				}
				if m.read("dev/vdb1") != before {
					t.Error("it was overwritten")
				}
				for _, end := range e.host.media {
					if end.State == imprint.MediumTaken {
						t.Errorf("reported %+v", end)
					}
				}
			})
		}
	}
}

// A volume that is gone before the machine came to it is no news; it is taken away when
// it is there again.
func TestTakesAVolumeAwayThatComesBack(t *testing.T) {
	t.Parallel()
	m, e, agent := onVolume(t, nil, nil)
	content := m.read("dev/vdb1")
	a := agent()
	a.boundary = func(step string) error {
		if step == "hooks" {
			os.Remove(m.root + "/dev/vdb1")
		}
		return nil
	}
	if err := m.run(a); err != nil || len(e.host.media) > 0 {
		t.Fatalf("%v, reported %+v", err, e.host.media)
	}
	m.write("dev/vdb1", content, 0o600)
	if err := m.run(agent()); err != nil || !isBlank(m.read("dev/vdb1")) || len(e.host.media) != 1 {
		t.Errorf("%v, reported %+v\n%s", err, e.host.media, m.said())
	}
	// And so is another copy of it.
	m.write("dev/vdb1", content, 0o600)
	if err := m.run(agent()); err != nil || !isBlank(m.read("dev/vdb1")) || len(e.host.media) != 2 {
		t.Errorf("a copy: %v, reported %+v\n%s", err, e.host.media, m.said())
	}
}

// What cannot be reported is, at the next start, without another word to the volume.
func TestReportsAVolumeLater(t *testing.T) {
	t.Parallel()
	for status, tries := range map[int]int{http.StatusServiceUnavailable: mediumReports, http.StatusConflict: 1, http.StatusNotFound: 1} {
		m, e, agent := onVolume(t, nil, nil)
		e.refusesMedia = status
		if err := m.run(agent()); err != nil || !isBlank(m.read("dev/vdb1")) {
			t.Fatalf("%d: %v\n%s", status, err, m.said())
		}
		if len(e.host.media) != tries {
			t.Errorf("%d: reported %d times", status, len(e.host.media))
		}
		e.host.do(func() { e.refusesMedia, e.host.media = 0, nil })
		os.RemoveAll(m.root + "/sys/class/block")
		if err := m.run(agent()); err != nil {
			t.Fatal(err)
		}
		want := 1
		if status == http.StatusNotFound { // it is on no record, and never will be
			want = 0
		}
		if len(e.host.media) != want || want == 1 && e.host.media[0].State != imprint.MediumTaken {
			t.Errorf("%d: later reported %+v", status, e.host.media)
		}
	}
}

// A volume that cannot be overwritten is reported as it is, and tried again.
func TestAVolumeThatFails(t *testing.T) {
	t.Parallel()
	m, e, agent := onVolume(t, nil, nil)
	a := agent()
	a.volumes.zero = func(context.Context, *os.File, int64, int64) error { return errors.New("input/output error") }
	if err := m.run(a); err != nil {
		t.Fatal(err)
	}
	if len(e.host.media) != 1 || e.host.media[0].State != imprint.MediumLeft || e.host.media[0].Detail != "overwrite vdb1: input/output error" {
		t.Errorf("reported %+v", e.host.media)
	}
	if err := m.run(agent()); err != nil || !isBlank(m.read("dev/vdb1")) || len(e.host.media) != 2 || e.host.media[1].State != imprint.MediumTaken {
		t.Errorf("%v, reported %+v", err, e.host.media)
	}
}
