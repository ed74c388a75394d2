//go:build bench

package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// prepared is one HTTP/1.1 request, as it goes over the connection.
type prepared []byte

func prepare(method, url string, header http.Header, body []byte) (prepared, error) {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header
	}
	var raw bytes.Buffer
	if err := req.Write(&raw); err != nil {
		return nil, err
	}
	return raw.Bytes(), nil
}

// figures is what one run of the load showed.
type figures struct {
	perSecond float64
	p50, p99  time.Duration
	cpu       time.Duration // of the server, for one request
	load      time.Duration // of the clients, likewise
}

func (f figures) String() string {
	return fmt.Sprintf("%7.0f/s   p50 %6.2f ms   p99 %6.2f ms   server CPU %5.2f ms   clients' CPU %5.2f ms", f.perSecond, ms(f.p50), ms(f.p99), ms(f.cpu), ms(f.load))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// load sends every request once, from clients that each keep one TLS connection
// to the server at address and wait for each answer. Connections are made, and
// warmed by the request warm, before the clock starts. The clients do little
// more than TLS: they share the processors with the server.
func load(t testing.TB, clients int, server *os.Process, roots *x509.CertPool, address string, warm prepared, want int, requests []prepared) figures {
	t.Helper()
	var next atomic.Int64
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	took := make([]time.Duration, len(requests))
	for range clients {
		ready.Add(1)
		done.Go(func() {
			c, err := connect(t.Context(), address, roots)
			if err == nil {
				defer c.conn.Close()
				_, err = c.send(warm)
			}
			ready.Done()
			<-start
			for err == nil {
				i := next.Add(1) - 1
				if i >= int64(len(requests)) {
					return
				}
				began := time.Now()
				var status int
				status, err = c.send(requests[i])
				took[i] = time.Since(began)
				if err == nil && status != want {
					err = fmt.Errorf("request %d: status %d", i, status)
				}
			}
			t.Errorf("client: %v", err)
		})
	}
	ready.Wait()
	self := &os.Process{Pid: os.Getpid()}
	began, cpu, own := time.Now(), cpuTime(t, server), cpuTime(t, self)
	close(start)
	done.Wait()
	elapsed := time.Since(began)
	cpu, own = cpuTime(t, server)-cpu, cpuTime(t, self)-own
	if t.Failed() {
		t.FailNow()
	}
	slices.Sort(took)
	return figures{
		perSecond: float64(len(requests)) / elapsed.Seconds(),
		p50:       took[len(took)/2],
		p99:       took[len(took)*99/100],
		cpu:       cpu / time.Duration(len(requests)),
		load:      own / time.Duration(len(requests)),
	}
}

// loadTime bounds one connection's part of a round.
const loadTime = 10 * time.Minute

// client is a kept connection.
type client struct {
	conn net.Conn
	in   *bufio.Reader
}

func connect(ctx context.Context, address string, roots *x509.CertPool) (*client, error) {
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &client{conn, bufio.NewReader(conn)}, conn.SetDeadline(time.Now().Add(loadTime))
}

// send sends a request and returns the status of the answer, whose body it skips.
func (c *client) send(p prepared) (status int, err error) {
	if _, err := c.conn.Write(p); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// median returns the middle one by rate.
func median(runs []figures) figures {
	sorted := slices.SortedFunc(slices.Values(runs), func(a, b figures) int {
		return int(a.perSecond - b.perSecond)
	})
	return sorted[len(sorted)/2]
}

// spread returns the lowest and highest rates.
func spread(runs []figures) (low, high float64) {
	low, high = runs[0].perSecond, runs[0].perSecond
	for _, r := range runs {
		low, high = min(low, r.perSecond), max(high, r.perSecond)
	}
	return low, high
}
