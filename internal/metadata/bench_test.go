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
	"time"

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

// The load of BenchmarkGet: so many kept connections, and requests of each in
// one turn.
const (
	clients = 32
	turn    = 64
)

// BenchmarkGet is a small GET over loopback. The two servers take turns of a few
// milliseconds, so that whatever else the machine does meets both, and clients do
// next to nothing themselves. share is how many requests imprint answers for each
// that the bare handler does.
func BenchmarkGet(b *testing.B) {
	w := newWorld(b, instance(), nil)
	for _, path := range []string{"/latest/meta-data/instance-id", "/openstack/2018-08-27/meta_data.json"} {
		reply := httptest.NewRecorder()
		w.server.ServeHTTP(reply, request(processPort, "GET", path, ""))
		b.Run(fmt.Sprintf("%dB", reply.Body.Len()), func(b *testing.B) {
			imprint := newLoad(b, w.server.Serve, path)
			bare := newLoad(b, func(ctx context.Context, ln net.Listener) error {
				srv := &http.Server{Handler: bare(reply.Body.Bytes())}
				defer context.AfterFunc(ctx, func() { srv.Close() })()
				return srv.Serve(ln)
			}, path)
			for b.Loop() {
				bare.turn(b)
				imprint.turn(b)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(bare.perRequest(), "bare-ns/request")
			b.ReportMetric(imprint.perRequest(), "imprint-ns/request")
			b.ReportMetric(bare.perRequest()/imprint.perRequest(), "share")
		})
	}
}

// load is one server and its clients.
type load struct {
	line  []byte
	conns []net.Conn
	ins   []*bufio.Reader
	spent time.Duration
	done  int
}

func newLoad(b *testing.B, serve func(context.Context, net.Listener) error, path string) *load {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- serve(ctx, ln) }()
	l := &load{line: []byte("GET " + path + " HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Cloud-Init/26.2\r\nAccept: */*\r\n\r\n")}
	b.Cleanup(func() {
		for _, conn := range l.conns {
			conn.Close()
		}
		cancel()
		<-served
	})
	for range clients {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		l.conns, l.ins = append(l.conns, conn), append(l.ins, bufio.NewReader(conn))
	}
	return l
}

// turn lets every client send its requests.
func (l *load) turn(b *testing.B) {
	start := time.Now()
	var all sync.WaitGroup
	for i := range l.conns {
		all.Go(func() {
			for range turn {
				if _, err := l.conns[i].Write(l.line); err != nil {
					b.Error(err)
					return
				}
				if err := discardReply(l.ins[i]); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	l.spent += time.Since(start)
	l.done += clients * turn
}

func (l *load) perRequest() float64 { return float64(l.spent) / float64(l.done) }

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
