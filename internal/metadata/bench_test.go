package metadata_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"

	"imprint/internal/dialect"
	"imprint/internal/metadata"
)

// bare writes the same bytes with no checks.
func bare(body []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
		w.Write(body)
	})
}

// BenchmarkHandler is what a request costs beside net/http itself.
func BenchmarkHandler(b *testing.B) {
	w := newWorld(b, instance(), nil)
	r := request(processPort, "GET", "/latest/meta-data/instance-id", "", "User-Agent", "Cloud-Init/26.2", "Accept", "*/*")
	reply := httptest.NewRecorder()
	w.server.ServeHTTP(reply, r)
	for _, peer := range []struct {
		name    string
		handler http.Handler
	}{{"bare", bare(reply.Body.Bytes())}, {"imprint", w.server}} {
		b.Run(peer.name, func(b *testing.B) {
			sink := &discard{http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(sink.header)
				peer.handler.ServeHTTP(sink, r)
			}
		})
	}
}

// BenchmarkRender is what a change of an instance costs: all dialects, and the
// trees for all audiences.
func BenchmarkRender(b *testing.B) {
	w := newWorld(b, instance(), nil)
	b.ReportAllocs()
	for b.Loop() {
		w.render()
	}
}

type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}

// BenchmarkIdle reports what an idle guest takes whose server has answered a
// request: its snapshot, server, listener and goroutine. data-B is what of it are
// the bytes of its values.
func BenchmarkIdle(b *testing.B) {
	const guests = 1000
	data := 0
	for _, size := range bodies(newWorld(b, instance(), nil)) {
		data += size
	}
	for b.Loop() {
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		shared := newWorld(b, instance(), nil)
		kept := make([]any, 0, 2*guests)
		before := inUse()
		for range guests {
			inst := instance()
			c := shared.config
			still := &fixed{metadata.NewSnapshot(inst, metadata.Options{},
				dialect.OpenStack(inst, dialect.Facts{}, nil), dialect.EC2(inst, dialect.Facts{}), dialect.NoCloud(inst), dialect.Ganeti(inst, dialect.Facts{}))}
			c.Guest = still
			server, err := metadata.New(c)
			if err != nil {
				b.Fatal(err)
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			kept = append(kept, still, server)
			running.Go(func() { server.Serve(ctx, ln) })
			conn, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			fmt.Fprintf(conn, "GET /latest/meta-data/instance-id HTTP/1.0\r\nHost: 169.254.169.254\r\n\r\n")
			io.Copy(io.Discard, conn)
			conn.Close()
		}
		b.ReportMetric(float64(inUse()-before)/guests, "B/guest")
		b.ReportMetric(float64(data), "data-B/guest")
		runtime.KeepAlive(kept)
		cancel()
		running.Wait()
	}
}

// fixed is a guest that does not change.
type fixed struct{ snapshot *metadata.Snapshot }

func (f *fixed) Snapshot() *metadata.Snapshot { return f.snapshot }

// bodies returns the size of every page that is not another's.
func bodies(w *world) []int {
	seen := map[string]bool{}
	var sizes []int
	for _, path := range crawl(w) {
		if _, body := w.get(path); !seen[body] {
			seen[body] = true
			sizes = append(sizes, len(body))
		}
	}
	return sizes
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
