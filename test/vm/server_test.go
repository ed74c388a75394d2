//go:build vm

package vm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/api"
	"imprint/internal/daemon"
)

// patience bounds every wait for imprint itself.
const patience = 60 * time.Second

// server is a real "imprint serve" with a store of its own.
type server struct {
	t    *testing.T
	dir  string
	args []string  // more arguments of "imprint serve"
	cmd  *exec.Cmd // nil while it is down
}

// newServer starts a server, with more arguments than a test needs as a rule,
// that ends with the test.
func newServer(t *testing.T, args ...string) *server {
	t.Helper()
	// Not t.TempDir: the names of sockets have to stay short.
	dir, err := os.MkdirTemp("", "imprint-vm-")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: dir, args: args}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "serve.log"))
			t.Logf("the server's log:\n%s", log)
		}
		os.RemoveAll(dir)
	})
	s.start()
	return s
}

// thisHost and gateway are where a server of a test is: for what runs on this host, and
// for machines on QEMU's own network.
const (
	thisHost = "localhost"
	gateway  = "10.0.2.2"
)

// newCheckIn starts a server whose payloads lead machines to it at host.
func newCheckIn(t *testing.T, host string) *server {
	t.Helper()
	address := freeAddress(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "server.yaml")
	content := fmt.Sprintf("checkIn: {listen: %q, urls: [\"https://%s:%s\"]}\n", address, host, port)
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return newServer(t, "--config", config)
}

// start starts the server and returns once it is ready, which it says in the
// way of sd_notify(3).
func (s *server) start() {
	s.t.Helper()
	notify := filepath.Join(s.dir, "notify")
	os.Remove(notify)
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		s.t.Fatal(err)
	}
	defer ready.Close()
	log, err := os.OpenFile(filepath.Join(s.dir, "serve.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(program("imprint"), append([]string{"serve", "--data", s.data(), "--run", s.run(), "--operator", ""}, s.args...)...)
	s.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ready.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 4<<10)
	for {
		n, err := ready.Read(buf)
		if err != nil {
			s.t.Fatalf("the server did not become ready: %v", err)
		}
		if bytes.Contains(buf[:n], []byte("READY=1")) {
			return
		}
	}
}

// startLater starts a server that lives so much later than the machine that it
// runs on. It is none that can be killed: its process is the test's.
func (s *server) startLater(by time.Duration) {
	s.t.Helper()
	config := daemon.DefaultConfig()
	config.Data, config.Run, config.Operator = s.data(), s.run(), ""
	settings, err := config.Check()
	if err != nil {
		s.t.Fatal(err)
	}
	ready := make(chan struct{})
	d, err := daemon.Open(s.t.Context(), settings, daemon.Options{
		Logger:  slog.New(slog.NewTextHandler(s.t.Output(), nil)),
		Now:     func() time.Time { return time.Now().Add(by) },
		Serving: func() { close(ready) },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		s.t.Fatalf("the server ended: %v", err)
	}
}

// kill ends the server as a crash would.
func (s *server) kill() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s.cmd = nil
}

func (s *server) data() string { return filepath.Join(s.dir, "data") }
func (s *server) run() string  { return filepath.Join(s.dir, "run") }

// imprint runs a verb of the command line and returns what it printed.
func (s *server) imprint(env []string, args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program("imprint"), append([]string{"--socket", filepath.Join(s.run(), "imprint.sock")}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("imprint %s: %v: %s", strings.Join(args, " "), err, &complaint)
	}
	return string(out)
}

// create reserves the instance that a manifest declares and returns its identifier.
func (s *server) create(manifest string, env ...string) imprint.InstanceID {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		s.t.Fatal(err)
	}
	var created []api.Created
	if err := json.Unmarshal([]byte(s.imprint(env, "create", "-f", file, "-o", "json")), &created); err != nil || len(created) != 1 {
		s.t.Fatalf("create printed %v, %v", created, err)
	}
	return created[0].Instance.ID
}

func (s *server) describe(name string) api.Description {
	s.t.Helper()
	var d api.Description
	if err := json.Unmarshal([]byte(s.imprint(nil, "describe", name, "-o", "json")), &d); err != nil {
		s.t.Fatal(err)
	}
	return d
}

// until returns once the instance has reached the state.
func (s *server) until(name string, state imprint.State) {
	s.t.Helper()
	s.imprint(nil, "watch", name, "--until", string(state))
}

// socket is where the server listens for a channel of an instance.
func (s *server) socket(id imprint.InstanceID, kind imprint.ChannelKind) string {
	return filepath.Join(s.run(), string(id), string(kind)+".sock")
}

// kinds are the events of a timeline, in order.
func kinds(d api.Description) []imprint.EventKind {
	var list []imprint.EventKind
	for _, e := range d.Timeline {
		list = append(list, e.Kind)
	}
	return list
}

// expectByToken fails the test unless a machine enrolled at the check-in endpoint
// with its one-time token.
func expectByToken(t *testing.T, d api.Description) {
	t.Helper()
	expectInOrder(t, d, imprint.EventReserved, imprint.EventToken, imprint.EventClaimed, imprint.EventIssued,
		imprint.EventConfirmed, imprint.EventClosed)
	if c := d.Instance.Enrolment.Claim; c == nil || c.Tier != imprint.TierToken || c.Channel != imprint.NetworkEST {
		t.Errorf("%s: claim %+v; want tier 2 at the check-in endpoint", d.Instance.Spec.Name, c)
	}
}

// expectInOrder fails the test unless the events happened, in this order.
func expectInOrder(t *testing.T, d api.Description, want ...imprint.EventKind) {
	t.Helper()
	missing := want
	for _, kind := range kinds(d) {
		if len(missing) > 0 && kind == missing[0] {
			missing = missing[1:]
		}
	}
	if len(missing) > 0 {
		t.Errorf("no event %s, in this order, on the timeline %s", missing, kinds(d))
	}
	for _, kind := range kinds(d) {
		if kind == imprint.EventContested || kind == imprint.EventRevoked {
			t.Errorf("the enrolment was %s", kind)
		}
	}
}

// expectAbsent fails the test if a value is in any file of the server.
func (s *server) expectAbsent(values ...string) {
	s.t.Helper()
	expectAbsent(s.t, s.dir, values...)
}

// expectAbsent fails the test if a value is in any file below dir.
func expectAbsent(t *testing.T, dir string, values ...string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // the store replaces files all the time
			}
			return err
		}
		files++
		for _, v := range values {
			if bytes.Contains(b, []byte(v)) {
				t.Errorf("%s holds the value %s", path, v)
			}
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("searched %d files: %v", files, err)
	}
}

// canary is a value that no file may hold; it differs in every run.
func canary(kind string) string {
	return fmt.Sprintf("%s-canary-%s", kind, imprint.NewInstanceID())
}
