//go:build linux

package guest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"imprint"
)

func TestMain(m *testing.M) {
	if os.Getenv(asAgent) != "" {
		os.Exit(Command(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	goleak.VerifyTestMain(m)
}

// machine is one machine under test: its disk, its clock and what it said.
type machine struct {
	t       *testing.T
	root    string
	sources []source
	host    *fakeHost

	mu     sync.Mutex
	now    time.Time // of the machine's clock
	set    []time.Time
	output bytes.Buffer
	onNap  func() // called at every sleep
}

func newMachine(t *testing.T, host *fakeHost) *machine {
	t.Helper()
	root, err := os.MkdirTemp(memoryDir(), "imprint-guest-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	m := &machine{t: t, root: root, host: host, now: epoch}
	if host != nil {
		m.sources = []source{hostSource{host: host, name: "virtio port " + PortName}}
	}
	return m
}

// memoryDir is a file system in memory if the machine that runs the test has
// one: parameters go nowhere else.
func memoryDir() string {
	if ok, err := inMemory("/dev/shm"); err == nil && ok {
		return "/dev/shm"
	}
	return ""
}

func (m *machine) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.output.Write(p)
}

func (m *machine) said() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.output.String()
}

// agent returns a fresh agent on this machine, as after a restart.
func (m *machine) agent() *Agent {
	a := New(Options{Root: m.root, Once: true, TrustCA: true, SSH: true}, NewConsole(m))
	a.sources = m.sources
	a.random = func() float64 { return 0.5 }
	a.clock = &clock{
		system: func() time.Time { m.mu.Lock(); defer m.mu.Unlock(); return m.now },
		set: func(t time.Time) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.now, m.set = t, append(m.set, t)
			return nil
		},
	}
	a.sleep = func(ctx context.Context, d time.Duration) error {
		m.advance(d)
		if m.onNap != nil {
			m.onNap()
		}
		return context.Cause(ctx)
	}
	return a
}

// advance moves the machine's clock and its host's.
func (m *machine) advance(d time.Duration) {
	m.mu.Lock()
	m.now = m.now.Add(d)
	m.mu.Unlock()
	if m.host != nil {
		m.host.do(func() { m.host.now = m.host.now.Add(d) })
	}
}

func (m *machine) run(a *Agent) error {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return a.Run(ctx)
}

func (m *machine) mustRun() *Agent {
	m.t.Helper()
	a := m.agent()
	if err := m.run(a); err != nil {
		m.t.Fatalf("Run: %v\n%s", err, m.said())
	}
	return a
}

func (m *machine) key() *ecdsa.PrivateKey {
	m.t.Helper()
	key, err := Layout{m.root}.loadKey()
	if err != nil {
		m.t.Fatal(err)
	}
	return key
}

func (m *machine) read(path string) string {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join(m.root, path))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

func (m *machine) write(path, content string, mode os.FileMode) {
	m.t.Helper()
	path = filepath.Join(m.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		m.t.Fatal(err)
	}
}

func TestEnrolsOverALiveChannel(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	m := newMachine(t, host)
	m.mustRun()

	if host.state != imprint.Closed || host.issued != 1 || host.confirms != 1 {
		t.Errorf("the host is %s after %d certificates and %d confirmations", host.state, host.issued, host.confirms)
	}
	for path, mode := range map[string]os.FileMode{
		"etc/imprint": 0o755 | os.ModeDir, "etc/imprint/key.pem": 0o600, "etc/imprint/identity.json": 0o600,
		"etc/imprint/cert.pem": 0o644, "etc/imprint/ca.pem": 0o644,
		"run/imprint/params": 0o700 | os.ModeDir, "run/imprint/params/db-key": 0o400, "run/imprint/params/color": 0o400,
	} {
		info, err := os.Stat(filepath.Join(m.root, path))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v; want %v", path, info, err, mode)
		}
	}
	for name, p := range host.params {
		if got := m.read("run/imprint/params/" + name); got != p.value {
			t.Errorf("parameter %s = %q, want %q", name, got, p.value)
		}
	}
	for _, secret := range []string{"private-canary", "secret-canary", "PRIVATE KEY"} {
		if strings.Contains(m.said(), secret) {
			t.Errorf("the console shows %q:\n%s", secret, m.said())
		}
	}
	for line := range strings.Lines(m.said()) {
		if !strings.HasPrefix(line, "imprint-agent: ") {
			t.Errorf("a console line without its prefix: %q", line)
		}
	}
}

// errCrash ends a run where a crash would.
var errCrash = errors.New("crash")

func TestResumesAfterACrashAtEveryStep(t *testing.T) {
	t.Parallel()
	var steps []string
	m := newMachine(t, newFakeHost(t))
	a := m.agent()
	a.boundary = func(step string) error { steps = append(steps, step); return nil }
	if err := m.run(a); err != nil {
		t.Fatal(err)
	}
	if len(steps) < 9 {
		t.Fatalf("only the steps %q", steps)
	}
	for i, step := range steps {
		t.Run(fmt.Sprintf("%d-%s", i, step), func(t *testing.T) {
			t.Parallel()
			host := newFakeHost(t)
			m := newMachine(t, host)
			m.write("etc/imprint/enrolled.d/10-count", "#!/bin/sh\necho ran >>"+m.root+"/ran\n", 0o700)
			a := m.agent()
			at := 0
			a.boundary = func(string) error {
				if at++; at == i+1 {
					return errCrash
				}
				return nil
			}
			if err := m.run(a); !errors.Is(err, errCrash) {
				t.Fatalf("the first run: %v", err)
			}
			var before *ecdsa.PrivateKey
			if step != "record" {
				before = m.key()
			}
			m.mustRun()
			if before != nil && !m.key().Equal(before) {
				t.Error("the second run has another key")
			}
			if host.state != imprint.Closed || host.issued != 1 {
				t.Errorf("the host is %s after %d certificates", host.state, host.issued)
			}
			if m.read("ran") == "" {
				t.Error("enrolled.d did not run")
			}
			for _, r := range host.requests {
				if !bytes.Equal(r, host.requests[0]) {
					t.Error("a repeated request differs")
				}
			}
		})
	}
}
