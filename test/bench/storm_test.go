//go:build bench

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"imprint/test/netns"
)

// bootReads is how many GETs a booting guest sends, at least.
const bootReads = 45

// stormTime is within what all guests of a storm start.
const stormTime = 10 * time.Second

// TestBootStorm lets many guests boot at once, each on an address of its own and
// asking what cloud-init asks, every request over a new connection, as it does.
func TestBootStorm(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	process, ask := startMetadata(t, "storm")
	var all sync.WaitGroup
	boots, errs := make([][]time.Duration, guests), make([]error, guests)
	self := &os.Process{Pid: os.Getpid()}
	began, cpu, own := time.Now(), cpuTime(t, process), cpuTime(t, self)
	for i := range guests {
		all.Go(func() {
			time.Sleep(stormTime * time.Duration(i) / guests)
			boots[i], errs[i] = boot(t.Context(), guestAddress(i))
		})
	}
	all.Wait()
	elapsed := time.Since(began)
	cpu, own = cpuTime(t, process)-cpu, cpuTime(t, self)-own
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	var took []time.Duration
	for _, b := range boots {
		took = append(took, b...)
	}
	q, idle := quantilesOf(took), ask()
	fmt.Printf("\nboot storm: %d guests, %d requests of each, in %.1f s, no failure, %s\n\n", guests, len(boots[0]), elapsed.Seconds(), machine(t))
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "requests/s\tp50 ms\tp99 ms\tmax ms\tserver CPU µs\tguests' CPU µs\tidle guest: heap and stacks KiB\tresident KiB\tits own data KiB\t")
	fmt.Fprintf(table, "%.0f\t%.2f\t%.2f\t%.2f\t%.0f\t%.0f\t%.1f\t%.1f\t%.1f\t\n", float64(len(took))/elapsed.Seconds(), ms(q.p50), ms(q.p99), ms(q.max),
		us(cpu)/float64(len(took)), us(own)/float64(len(took)), kib(idle.Heap), kib(idle.Resident), kib(idle.Data))
	table.Flush()
}

func kib(n int) float64 { return float64(n) / 1024 }

// boot does what cloud-init does in a machine that takes itself for one of
// OpenStack's, phones home, and returns how long each request took, from the
// dialling to the last byte.
func boot(ctx context.Context, address string) (took []time.Duration, err error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	ask := func(method, path, form string) string {
		if err != nil {
			return ""
		}
		var reply []byte
		began := time.Now()
		reply, err = exchange(ctx, client, method, "http://"+address+path, form)
		took = append(took, time.Since(began))
		return string(reply)
	}
	for _, path := range []string{"/openstack", "/openstack", "/openstack/2018-08-27/"} {
		ask("GET", path, "")
	}
	for _, file := range []string{"meta_data.json", "user_data", "vendor_data.json", "vendor_data2.json", "network_data.json"} {
		ask("GET", "/openstack/2018-08-27/"+file, "")
	}
	var crawl func(dir string)
	crawl = func(dir string) {
		for _, entry := range strings.Fields(ask("GET", dir, "")) {
			switch number, _, key := strings.Cut(entry, "="); {
			case key:
				ask("GET", dir+number+"/openssh-key", "")
			case strings.HasSuffix(entry, "/"):
				crawl(dir + entry)
			default:
				ask("GET", dir+entry, "")
			}
		}
	}
	crawl("/latest/meta-data/")
	for len(took) < bootReads && err == nil { // what its modules and other software look up again
		ask("GET", "/latest/meta-data/instance-id", "")
	}
	ask("POST", "/imprint/v1/phone-home", "instance_id=i-1&hostname=web")
	return took, err
}

// exchange sends one request. Every status but 2xx is an error, and 404 for vendor
// data, which an instance need not have, is none.
func exchange(ctx context.Context, client *http.Client, method, url, form string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(form))
	if err != nil {
		return nil, err
	}
	req.Host = "169.254.169.254"
	req.Header.Set("User-Agent", "Cloud-Init/26.2")
	if form != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 && !(resp.StatusCode == http.StatusNotFound && strings.Contains(url, "/vendor_data")) {
		return nil, fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	return io.ReadAll(resp.Body)
}
