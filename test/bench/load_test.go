//go:build bench

package bench

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// prepared is one request, complete but for being sent.
type prepared struct {
	url    string
	header http.Header
	body   []byte
}

// figures is what one run of the load showed.
type figures struct {
	perSecond float64
	p50, p99  time.Duration
	cpu       time.Duration // of the server, for one request
}

func (f figures) String() string {
	return fmt.Sprintf("%7.0f/s   p50 %6.2f ms   p99 %6.2f ms   server CPU %5.2f ms", f.perSecond, ms(f.p50), ms(f.p99), ms(f.cpu))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// load sends every request once, from clients that each keep one TLS
// connection to server and wait for each answer. Connections are made, and
// warmed by a GET of warm, before the clock starts.
func load(t testing.TB, clients int, server *os.Process, roots *x509.CertPool, warm string, want int, requests []prepared) figures {
	t.Helper()
	var next atomic.Int64
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	took := make([]time.Duration, len(requests))
	for range clients {
		ready.Add(1)
		done.Go(func() {
			client := httpsClient(roots)
			defer client.CloseIdleConnections()
			if _, err := send(client, "GET", prepared{url: warm}); err != nil {
				t.Errorf("warm up: %v", err)
			}
			ready.Done()
			<-start
			for {
				i := next.Add(1) - 1
				if i >= int64(len(requests)) {
					return
				}
				began := time.Now()
				status, err := send(client, "POST", requests[i])
				took[i] = time.Since(began)
				if err != nil || status != want {
					t.Errorf("request %d: status %d, %v", i, status, err)
					return
				}
			}
		})
	}
	ready.Wait()
	began, cpu := time.Now(), cpuTime(t, server)
	close(start)
	done.Wait()
	elapsed := time.Since(began)
	cpu = cpuTime(t, server) - cpu
	if t.Failed() {
		t.FailNow()
	}
	slices.Sort(took)
	return figures{
		perSecond: float64(len(requests)) / elapsed.Seconds(),
		p50:       took[len(took)/2],
		p99:       took[len(took)*99/100],
		cpu:       cpu / time.Duration(len(requests)),
	}
}

func send(client *http.Client, method string, p prepared) (int, error) {
	req, err := http.NewRequest(method, p.url, bytes.NewReader(p.body))
	if err != nil {
		return 0, err
	}
	if p.header != nil {
		req.Header = p.header
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
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
