//go:build bench

package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/metadata"
)

// metadataRole in the environment makes this test program one of the servers
// that guests ask:
//
//	imprint  one guest's server, on port 8001
//	bare     a net/http handler on port 8002 that writes what imprint would, with no checks
//	storm    a server and a listener for each of the guests of a boot storm
const metadataRole = "IMPRINT_BENCH_METADATA"

const (
	imprintPort = 8001
	barePort    = 8002
	novaPort    = 8003
)

// guests is how many a storm has.
const guests = 1000

// guestAddress is where guest i asks.
func guestAddress(i int) string { return fmt.Sprintf("127.1.%d.%d:80", i/250, i%250+1) }

// metadataGuest is an instance as stock guests know it.
func metadataGuest(i int) *imprint.Instance {
	name := fmt.Sprintf("web-%d", i)
	return &imprint.Instance{
		ID: imprint.InstanceID(fmt.Sprintf("6b1c2f0e-4a57-4d6e-9d0a-%012x", i)), Generation: 1,
		Spec: imprint.Spec{
			Name: imprint.InstanceName(name), Tenant: imprint.DefaultTenant, DNSNames: []string{name + ".example.org"},
			SSHKeys: []string{metadataKey}, UserData: "#cloud-config\n" + strings.Repeat("# what the machine is for\n", 40), Image: &imprint.Image{Source: "file:/debian-12"},
		},
		Enrolment: imprint.Enrolment{State: imprint.Reserved},
	}
}

const metadataKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBbbb alice@example.org"

// desk is what a guest's server needs; nothing that it is told matters here.
type desk struct{ snapshot *metadata.Snapshot }

func (d *desk) Snapshot() *metadata.Snapshot                                 { return d.snapshot }
func (d *desk) Report(context.Context, metadata.Access)                      {}
func (d *desk) PhoneHome(context.Context, metadata.Origin, url.Values) error { return nil }
func (d *desk) PostPassword(context.Context, metadata.Origin, []byte) error  { return nil }

// newMetadataServer returns inst's server, and how many bytes its values have.
func newMetadataServer(inst *imprint.Instance) (server *metadata.Server, data int, err error) {
	views := []*imprint.View{
		dialect.OpenStack(inst, dialect.Facts{}, make([]byte, dialect.SeedSize)), dialect.EC2(inst, dialect.Facts{}), dialect.NoCloud(inst),
		dialect.Ganeti(inst, dialect.Facts{}),
	}
	seen := map[string]bool{}
	for _, view := range views {
		for _, v := range view.Values {
			if !seen[string(v.Data)] { // versions of a dialect share their values
				seen[string(v.Data)] = true
				data += len(v.Data)
			}
		}
	}
	d := &desk{metadata.NewSnapshot(inst, metadata.Options{}, views...)}
	server, err = metadata.New(metadata.Config{Guest: d, Reporter: d, Inbox: d, SourcePorts: true, Logger: slog.New(slog.DiscardHandler)})
	return server, data, err
}

// memory is what a storm's servers take, each beyond its own data.
type memory struct{ Heap, Resident, Data int }

// serveMetadata is the server process. It says {} when it is ready, and what
// memory its guests take for every line on in until that ends.
func serveMetadata(role string, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	answer := json.NewEncoder(out)
	var running sync.WaitGroup
	serve := func(address string, serve func(net.Listener) error) error {
		ln, err := net.Listen("tcp4", address)
		if err == nil {
			running.Go(func() {
				if err := serve(ln); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
			})
		}
		return err
	}
	var err error
	var before, own memory
	switch role {
	case "imprint", "bare":
		var server *metadata.Server
		if server, _, err = newMetadataServer(metadataGuest(0)); err != nil {
			return err
		}
		if role == "imprint" {
			err = serve(fmt.Sprintf(":%d", imprintPort), func(ln net.Listener) error { return server.Serve(ctx, ln) })
			break
		}
		bare := &http.Server{Handler: bareHandler(server)}
		defer context.AfterFunc(ctx, func() { bare.Close() })()
		err = serve(fmt.Sprintf(":%d", barePort), func(ln net.Listener) error {
			if err := bare.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	case "storm":
		before = memoryInUse()
		for i := range guests {
			server, data, fault := newMetadataServer(metadataGuest(i))
			if fault != nil {
				return fault
			}
			own.Data += data
			if err = serve(guestAddress(i), func(ln net.Listener) error { return server.Serve(ctx, ln) }); err != nil {
				return err
			}
		}
	default:
		err = fmt.Errorf("%s is no role", role)
	}
	if err != nil {
		return err
	}
	answer.Encode(struct{}{})
	for lines := bufio.NewScanner(in); lines.Scan(); {
		now := memoryInUse()
		now.Heap, now.Resident, now.Data = (now.Heap-before.Heap-own.Data)/guests, (now.Resident-before.Resident-own.Data)/guests, own.Data/guests
		if err := answer.Encode(now); err != nil {
			return err
		}
	}
	cancel()
	running.Wait()
	return nil
}

// bareHandler writes the pages of server that are compared, with no checks.
func bareHandler(server http.Handler) http.Handler {
	pages := map[string]*httptest.ResponseRecorder{}
	for _, path := range metadataPages {
		r := httptest.NewRequest("GET", "http://169.254.169.254"+path, nil)
		pages[path] = httptest.NewRecorder()
		server.ServeHTTP(pages[path], r)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page := pages[r.URL.Path]
		w.Header()["Content-Type"] = page.Header()["Content-Type"]
		w.Write(page.Body.Bytes())
	})
}

// memoryInUse is after a collection: heap and stacks, and what is resident.
func memoryInUse() memory {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	var size, resident int
	if statm, err := os.ReadFile("/proc/self/statm"); err == nil {
		fmt.Sscan(string(statm), &size, &resident)
	}
	return memory{Heap: int(m.HeapAlloc + m.StackInuse), Resident: resident * os.Getpagesize()}
}

// startMetadata runs a server process in role until the test ends. What it
// returns asks it for its memory.
func startMetadata(t testing.TB, role string) (process *os.Process, ask func() memory) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), metadataRole+"="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server in the role %s: %v", role, err)
		}
	})
	lines := json.NewDecoder(out)
	if err := lines.Decode(new(any)); err != nil {
		t.Fatalf("the server in the role %s: %v", role, err)
	}
	return cmd.Process, func() (m memory) {
		if _, err := io.WriteString(in, "memory\n"); err != nil {
			t.Fatal(err)
		}
		if err := lines.Decode(&m); err != nil {
			t.Fatal(err)
		}
		return m
	}
}
