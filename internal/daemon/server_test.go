package daemon_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"imprint"
	"imprint/api"
	"imprint/internal/daemon"
)

// patience is how long something that a test waits for may take.
const patience = 30 * time.Second

// site is where a server of the test has its files. The same site can be served
// again and again.
type site struct {
	config daemon.Config
	log    *buffer
}

func newSite(t *testing.T) *site {
	t.Helper()
	// A socket's path may have 107 bytes, which a test's own directory can exceed.
	run, err := os.MkdirTemp("", "i")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	c := daemon.DefaultConfig()
	c.Name, c.Data, c.Run, c.Operator = "host-1", filepath.Join(t.TempDir(), "data"), run, ""
	return &site{config: c, log: &buffer{}}
}

// checkIn switches the check-in endpoint on and returns its base URL.
func (s *site) checkIn(t *testing.T) string {
	t.Helper()
	port := freePort(t)
	url := fmt.Sprintf("https://localhost:%d", port)
	s.config.CheckIn.Listen = fmt.Sprintf("127.0.0.1:%d", port)
	s.config.CheckIn.URLs = []string{url}
	s.config.CheckIn.PerAddress = 1000
	return url
}

func (s *site) settings(t *testing.T) *daemon.Settings {
	t.Helper()
	settings, err := s.config.Check()
	if err != nil {
		t.Fatal(err)
	}
	return settings
}

func (s *site) socket() string { return filepath.Join(s.config.Run, "imprint.sock") }

func (s *site) options() daemon.Options {
	return daemon.Options{Version: "test", Logger: slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
}

// serving is a server in this process.
type serving struct {
	*api.Client
	site *site
	stop func() // returns when the server has ended
}

// serve runs a server on the site until the test ends or stop is called.
func (s *site) serve(t *testing.T) *serving {
	t.Helper()
	o := s.options()
	ready := make(chan struct{})
	o.Serving = func() { close(ready) }
	d, err := daemon.Open(t.Context(), s.settings(t), o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return s.run(t, d, ready)
}

func (s *site) run(t *testing.T, d *daemon.Daemon, ready chan struct{}) *serving {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		t.Fatalf("Run: %v", err)
	}
	client := api.NewUnix(s.socket())
	stop := sync.OnceFunc(func() {
		client.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return &serving{Client: client, site: s, stop: stop}
}

// create reserves an instance.
func (s *serving) create(t *testing.T, spec imprint.Spec, values map[string]imprint.Secret) *api.Instance {
	t.Helper()
	created, err := s.Create(t.Context(), spec, values, false)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return &created.Instance
}

func (s *serving) get(t *testing.T, ref string) *api.Instance {
	t.Helper()
	i, err := s.Get(t.Context(), ref)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return i
}

// waitFor returns the instance once ok says so.
func (s *serving) waitFor(t *testing.T, ref string, ok func(*api.Instance) bool) *api.Instance {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for n, err := range s.Watch(ctx, api.Scope{Instance: ref}, 0) {
		if err != nil {
			t.Fatalf("Watch: %v", err)
		}
		if n.Instance != nil && ok(n.Instance) {
			return n.Instance
		}
	}
	t.Fatalf("waited in vain for %s", ref)
	return nil
}

func serialOnly(name string) imprint.Spec {
	return imprint.Spec{Name: imprint.InstanceName(name), Channels: []imprint.ChannelKind{imprint.Serial2}}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func wantKind(t *testing.T, err error, kind imprint.Kind) {
	t.Helper()
	if err == nil || imprint.KindOf(err) != kind {
		t.Fatalf("error %v (%v); want kind %v", err, imprint.KindOf(err), kind)
	}
	if imprint.HintOf(err) == "" {
		t.Errorf("error %q has no hint", err)
	}
}

// dial connects to a socket that the server is about to make.
func dial(t *testing.T, socket string) net.Conn {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return conn
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// join copies both ways; the channel gets an element for each way that ended.
func join(a, b io.ReadWriter) <-chan struct{} {
	ended := make(chan struct{}, 2)
	for _, way := range [][2]io.ReadWriter{{a, b}, {b, a}} {
		go func() {
			io.Copy(way[0], way[1])
			ended <- struct{}{}
		}()
	}
	return ended
}

// scrape returns the server's metrics.
func scrape(t *testing.T, s *serving) string {
	t.Helper()
	resp, err := http.Get("http://" + s.site.config.Operator + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
