package qemu

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"imprint"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake puts a shell script in the place of QEMU, alone in PATH, and returns its path.
func fake(t *testing.T, script string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, Program)
	if err := os.WriteFile(path, []byte("#!/bin/sh\nPATH=/usr/bin:/bin\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	return path
}

func kernel(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(path, []byte("kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRunReturnsStatusAndOutput(t *testing.T) {
	fake(t, `echo "console: $#"; echo complaint >&2; exit 3`)
	var out, complaints bytes.Buffer
	m := Machine{Kernel: kernel(t)}
	p, err := m.Start(t.Context(), Run{Stdout: &out, Stderr: &complaints})
	if err != nil {
		t.Fatal(err)
	}
	status, err := p.Wait()
	if status != 3 || err == nil || !strings.Contains(err.Error(), "complaint") {
		t.Errorf("got status %d and %v; want 3 and QEMU's complaint", status, err)
	}
	if !strings.HasPrefix(out.String(), "console: ") || complaints.String() != "complaint\n" {
		t.Errorf("output %q, complaints %q", &out, &complaints)
	}
}

func TestRunEndsAtItsTimeout(t *testing.T) {
	fake(t, "exec sleep 60")
	m := Machine{Kernel: kernel(t)}
	p, err := m.Start(t.Context(), Run{Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Wait()
	if imprint.KindOf(err) != imprint.Unavailable || imprint.HintOf(err) == "" {
		t.Errorf("got %v; want kind unavailable with a hint", err)
	}
	if p.Elapsed() > 30*time.Second {
		t.Errorf("took %v", p.Elapsed())
	}
	if err := syscall.Kill(p.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there: %v", p.PID(), err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	fake(t, "exec sleep 60")
	ctx, cancel := context.WithCancel(t.Context())
	m := Machine{Kernel: kernel(t)}
	p, err := m.Start(ctx, Run{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := p.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

func TestStartNamesWhatIsMissing(t *testing.T) {
	fake(t, "exit 0")
	present := kernel(t)
	for operand, m := range map[string]Machine{
		"no-kernel": {Kernel: "no-kernel"},
		"no-initrd": {Kernel: present, Initrd: "no-initrd"},
		"no-disk":   {Kernel: present, Disks: []Disk{{Path: "no-disk"}}},
		"no-medium": {Kernel: present, Medium: &Medium{CDDrive, "no-medium"}},
		"no-oem":    {Kernel: present, OEMStrings: "no-oem"},
		"no-qemu":   {Kernel: present, Program: "no-qemu"},
	} {
		_, err := m.Start(t.Context(), Run{})
		if imprint.KindOf(err) != imprint.NotFound || !strings.Contains(err.Error(), operand) {
			t.Errorf("got %v; want kind not found, naming %s", err, operand)
		}
	}
}

func TestProbe(t *testing.T) {
	t.Setenv(AccelEnv, "")
	for name, c := range map[string]struct {
		script string
		want   Accel
	}{
		"works":  {`echo '[    0.000000] Linux version 6.12'; exec sleep 60`, KVM},
		"hangs":  {`echo 'Booting from ROM'; exec sleep 60`, TCG},
		"breaks": {`echo 'failed to initialize kvm' >&2; exit 1`, TCG},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(AccelEnv, "")
			calls := filepath.Join(t.TempDir(), "calls")
			program := fake(t, "echo >>"+calls+"\n"+c.script)
			device := kernel(t) // any file that opens for writing
			p := Probe{Program: program, Kernel: kernel(t), Device: device, Dir: t.TempDir()}
			for range 2 {
				if got, err := p.Accel(t.Context()); got != c.want || err != nil {
					t.Fatalf("got %q, %v; want %q", got, err, c.want)
				}
			}
			if b, _ := os.ReadFile(calls); len(b) != 1 {
				t.Errorf("probed %d times; the answer was to be remembered", len(b))
			}
			if err := os.Chtimes(p.Kernel, time.Time{}, time.Unix(1e9, 0)); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Accel(t.Context()); err != nil {
				t.Fatal(err)
			}
			if b, _ := os.ReadFile(calls); len(b) != 2 {
				t.Errorf("probed %d times; another kernel has another answer", len(b))
			}
		})
	}
}

func TestProbeNeedsTheDevice(t *testing.T) {
	t.Setenv(AccelEnv, "")
	p := Probe{Program: "/nonexistent", Device: filepath.Join(t.TempDir(), "kvm"), Dir: t.TempDir()}
	if got, err := p.Accel(t.Context()); got != TCG || err != nil {
		t.Errorf("got %q, %v; want tcg", got, err)
	}
}

func TestProbeForced(t *testing.T) {
	for value, want := range map[string]Accel{"tcg": TCG, "kvm": KVM, "hvf": ""} {
		t.Setenv(AccelEnv, value)
		got, err := Probe{Device: "/nonexistent"}.Accel(t.Context())
		if got != want || (want == "") != (imprint.KindOf(err) == imprint.Invalid && err != nil) {
			t.Errorf("%s=%s: got %q, %v", AccelEnv, value, got, err)
		}
	}
}

// A second death of the caller is not survivable in a test; what can be seen is
// that the machine runs in a process group of its own.
func TestOwnProcessGroup(t *testing.T) {
	fake(t, `ps -o pgid= -p $$; exec sleep 60`)
	m := Machine{Kernel: kernel(t)}
	out := &firstLine{line: make(chan string, 1)}
	p, err := m.Start(t.Context(), Run{Stdout: out})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(<-out.line); got != strconv.Itoa(p.PID()) {
		t.Errorf("process %d is in group %s", p.PID(), got)
	}
	p.Kill()
	if status, err := p.Wait(); status != -1 || err == nil {
		t.Errorf("got %d, %v after a kill", status, err)
	}
}

// firstLine hands on the first line written to it.
type firstLine struct {
	seen []byte
	line chan string
}

func (f *firstLine) Write(p []byte) (int, error) {
	before := bytes.IndexByte(f.seen, '\n')
	f.seen = append(f.seen, p...)
	if end := bytes.IndexByte(f.seen, '\n'); before < 0 && end >= 0 {
		f.line <- string(f.seen[:end])
	}
	return len(p), nil
}
