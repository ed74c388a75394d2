package metadata_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"

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

type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}

// BenchmarkGet is a small GET over loopback, with 32 kept connections whose
// clients do next to nothing themselves.
func BenchmarkGet(b *testing.B) {
	w := newWorld(b, instance(), func(c *metadata.Config) { c.Names = []string{"127.0.0.1"} })
	for _, path := range []string{"/latest/meta-data/instance-id", "/openstack/2018-08-27/meta_data.json"} {
		reply := httptest.NewRecorder()
		w.server.ServeHTTP(reply, request(processPort, "GET", path, ""))
		for _, peer := range []struct {
			name  string
			serve func(context.Context, net.Listener) error
		}{
			{"bare", func(ctx context.Context, ln net.Listener) error {
				srv := &http.Server{Handler: bare(reply.Body.Bytes())}
				defer context.AfterFunc(ctx, func() { srv.Close() })()
				srv.Serve(ln)
				return nil
			}},
			{"imprint", w.server.Serve},
		} {
			b.Run(fmt.Sprintf("%dB/%s", reply.Body.Len(), peer.name), func(b *testing.B) { benchGet(b, peer.serve, path) })
		}
	}
}

func benchGet(b *testing.B, serve func(context.Context, net.Listener) error, path string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, ln) }()
	defer func() { cancel(); <-done }()
	line := []byte("GET " + path + " HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Cloud-Init/26.2\r\nAccept: */*\r\n\r\n")
	b.ReportAllocs()
	b.SetParallelism(32 / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		for pb.Next() {
			if _, err := conn.Write(line); err != nil {
				b.Error(err)
				return
			}
			if err := discardReply(in); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// discardReply reads a reply with a Content-Length without allocating.
func discardReply(in *bufio.Reader) error {
	length := 0
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		const field = "Content-Length: "
		if len(line) > len(field) && string(line[:len(field)]) == field {
			length = 0
			for _, c := range line[len(field) : len(line)-2] {
				length = length*10 + int(c-'0')
			}
		}
		if len(line) == 2 {
			_, err = in.Discard(length)
			return err
		}
	}
}

// BenchmarkIdle reports what an idle guest takes: its server, its listener and
// its snapshot, less the bytes of its values.
func BenchmarkIdle(b *testing.B) {
	const guests = 1000
	for b.Loop() {
		data := 0
		for _, page := range bodies(newWorld(b, instance(), nil)) {
			data += page
		}
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		before := inUse()
		worlds := make([]*world, guests)
		for i := range worlds {
			inst := instance()
			w := newWorld(b, inst, nil)
			w.put, w.down, w.up, w.arrived = nil, nil, nil, nil
			worlds[i] = w
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			running.Go(func() { w.server.Serve(ctx, ln) })
			conn, err := net.Dial("tcp", ln.Addr().String()) // it has been used
			if err != nil {
				b.Fatal(err)
			}
			fmt.Fprintf(conn, "GET /latest/meta-data/instance-id HTTP/1.0\r\nHost: 169.254.169.254\r\n\r\n")
			io.Copy(io.Discard, conn)
			conn.Close()
		}
		b.ReportMetric(float64(inUse()-before)/guests, "B/guest")
		b.ReportMetric(float64(data), "data-B/guest")
		runtime.KeepAlive(worlds)
		cancel()
		running.Wait()
	}
}

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
	return m.HeapInuse + m.StackInuse
}
