//go:build vm

// Package vm_test boots real kernels under QEMU, and runs the agents of other
// systems under emulation, against a real "imprint serve".
package vm_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/demo/guest"
	"imprint/internal/confine"
	"imprint/internal/platform/qemu"
	"imprint/test/need"
)

// bin is where TestMain puts the programs under test.
var bin string

// cache keeps what takes long to make, as the demonstration does.
const cache = "../../.cache"

func TestMain(m *testing.M) {
	confine.Main() // OS definitions' scripts that are trusted run in cages of this program
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "build the programs:", err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (code int, err error) {
	if bin, err = os.MkdirTemp("", "imprint-bin-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(bin)
	for _, p := range []struct{ name, pkg, flags string }{
		{"imprint", "imprint/cmd/imprint", ""},
		{"imprint-agent", "imprint/cmd/imprint-agent", "-s -w"},
		{"imprint-helper", "imprint/cmd/imprint-helper", "-s -w"},
		{"attacker", "imprint/test/vm/attacker", "-s -w"},
		{"poweroff", "imprint/test/vm/poweroff", "-s -w"},
	} {
		cmd := exec.Command("go", "build", "-ldflags", p.flags, "-o", program(p.name), p.pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return 0, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return m.Run(), nil
}

// program returns the path of a program under test.
func program(name string) string { return filepath.Join(bin, name) }

// needQEMU skips the test where no guest can be built or booted.
func needQEMU(t *testing.T) {
	t.Helper()
	need.Program(t, qemu.Program, "qemu-system-x86")
	need.Program(t, "busybox", "busybox-static")
	need.Program(t, "modprobe", "kmod")
}

// image builds a guest with the agent that runs script once it is up; nil is
// the demonstration's. It has the named kernel modules beside the usual ones.
func image(t *testing.T, script []byte, modules ...string) guest.Image {
	t.Helper()
	img, err := guest.Build(t.Context(), guest.Config{
		Cache: cache, Out: filepath.Join(t.TempDir(), "guest.cpio"), Agent: program("imprint-agent"), Script: script, Modules: modules,
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// script reads a script for the guest.
func script(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// vm is a booted machine.
type vm struct {
	t       *testing.T
	process *qemu.Process
	console string // the file that keeps what the guest prints
}

// boot starts a machine; it is cut off at the limit, or at the end of the test.
func boot(t *testing.T, m qemu.Machine, limit time.Duration) *vm {
	t.Helper()
	accel, err := qemu.Probe{Kernel: m.Kernel, Dir: cache}.Accel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v := &vm{t: t, console: filepath.Join(t.TempDir(), "console")}
	m.Accel, m.TSCKHz = accel, qemu.HostTSC()
	m.Console = qemu.Console{Kind: qemu.ConsoleFile, Path: v.console}
	if v.process, err = m.Start(context.Background(), qemu.Run{Timeout: limit}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		v.process.Kill()
		<-v.process.Done()
		if t.Failed() {
			t.Logf("the guest's console:\n%s", v.text())
		}
	})
	return v
}

// text is what the guest has printed so far.
func (v *vm) text() string {
	b, _ := os.ReadFile(v.console)
	return strings.ReplaceAll(string(b), "\r", "")
}

// poweredOff returns the console once the guest has ended by itself.
func (v *vm) poweredOff() string {
	v.t.Helper()
	if _, err := v.process.Wait(); err != nil {
		v.t.Fatal(err)
	}
	v.t.Logf("the machine ran for %.1f s", v.process.Elapsed().Seconds())
	return v.text()
}

// says returns once the guest has printed the text. The console is a file that
// QEMU writes, so it is looked at in short steps.
func (v *vm) says(text string) {
	v.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(v.text(), text) {
		select {
		case <-tick.C:
		case <-v.process.Done():
			v.t.Fatalf("the machine ended before it printed %q", text)
		}
	}
}

// enrolling describes a machine for an instance of s with the given channels.
func enrolling(s *server, id imprint.InstanceID, img guest.Image, kinds ...imprint.ChannelKind) qemu.Machine {
	m := qemu.Machine{
		MemoryMiB: 256, Kernel: img.Kernel, Initrd: img.Initrd, Append: guest.Append, Instance: id,
	}
	for _, kind := range kinds {
		m.Channels = append(m.Channels, qemu.Channel{Kind: kind, Socket: s.socket(id, kind)})
	}
	return m
}

// expectConsole fails the test unless the console has every one of the texts.
func expectConsole(t *testing.T, console string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(console, w) {
			t.Errorf("the console does not say %q", w)
		}
	}
}
