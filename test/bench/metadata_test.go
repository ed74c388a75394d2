//go:build bench

package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/vishvananda/netlink"

	"imprint/test/need"
	"imprint/test/netns"
)

// metadataPages are the small GETs that are compared.
var metadataPages = [...]string{"/latest/meta-data/instance-id", "/openstack/2018-08-27/meta_data.json"}

// The load: turns of each server, how long one is, and its kept connections. Turns are short, so that whatever else the machine does meets all.
const (
	turns    = 24
	turnTime = 200 * time.Millisecond
	kept     = 32
)

// TestMetadata compares a small GET from imprint's metadata server, from a bare
// net/http handler and from Nova's own service, over loopback and over veth. Each
// server is a process of its own, Nova's as many as there are processors.
func TestMetadata(t *testing.T) {
	if !netns.Isolate(t) {
		return
	}
	startMetadata(t, "imprint")
	startMetadata(t, "bare")
	startNova(t)
	guest := veth(t)
	local := func(f func()) { f() }
	for _, path := range metadataPages {
		for _, way := range []struct {
			name, address string
			in            func(func())
		}{{"loopback", "127.0.0.1", local}, {"veth", vethHost, func(f func()) { guest.Do(t, f) }}} {
			var loads []*getLoad
			for _, peer := range []struct {
				name string
				port int
			}{{"imprint", imprintPort}, {"bare net/http", barePort}, {"Nova", novaPort}} {
				l := &getLoad{name: peer.name, line: []byte("GET " + path + " HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Cloud-Init/26.2\r\nAccept: */*\r\n\r\n")}
				way.in(func() { l.connect(t, fmt.Sprintf("%s:%d", way.address, peer.port)) })
				loads = append(loads, l)
			}
			for n := range turns + 1 {
				for _, l := range loads {
					l.turn(t, n > 0) // the first does not count
				}
			}
			if t.Failed() {
				t.FailNow()
			}
			fmt.Printf("\nGET %s over %s, %d kept connections, median of %d turns of %s, %s\n\n", path, way.name, kept, turns, turnTime, machine(t))
			printLoads(loads)
			for _, l := range loads {
				l.close()
			}
		}
	}
}

// printLoads prints the first load beside the others.
func printLoads(loads []*getLoad) {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "\trequests/s\tp50 ms\tp99 ms\timprint does\t")
	for _, l := range loads {
		share := make([]float64, turns)
		for i := range share {
			share[i] = loads[0].rates[i] / l.rates[i] // of turns next to each other
		}
		q := quantilesOf(l.took)
		fmt.Fprintf(table, "%s\t%.0f\t%.2f\t%.2f\t%.2f times\t\n", l.name, middle(l.rates), ms(q.p50), ms(q.p99), middle(share))
	}
	table.Flush()
}

func middle(list []float64) float64 { return slices.Sorted(slices.Values(list))[len(list)/2] }

// getLoad is one server's clients, which do next to nothing themselves.
type getLoad struct {
	name  string
	line  []byte
	conns []net.Conn
	ins   []*bufio.Reader

	rates []float64       // of the turns
	took  []time.Duration // every request of them
}

func (l *getLoad) connect(t *testing.T, address string) {
	for range kept {
		conn, err := net.Dial("tcp4", address)
		if err != nil {
			t.Error(err)
			return
		}
		l.conns, l.ins = append(l.conns, conn), append(l.ins, bufio.NewReader(conn))
	}
}

func (l *getLoad) close() {
	for _, conn := range l.conns {
		conn.Close()
	}
}

// turn lets every client send requests for the time of a turn.
func (l *getLoad) turn(t *testing.T, counts bool) {
	var all sync.WaitGroup
	took := make([][]time.Duration, len(l.conns))
	start := time.Now()
	for i, conn := range l.conns {
		all.Go(func() {
			for began := start; began.Sub(start) < turnTime; {
				_, err := conn.Write(l.line)
				if err == nil {
					err = discardReply(l.ins[i])
				}
				if err != nil {
					t.Errorf("%s: %v", l.name, err)
					return
				}
				now := time.Now()
				took[i] = append(took[i], now.Sub(began))
				began = now
			}
		})
	}
	all.Wait()
	if counts {
		done := slices.Concat(took...)
		l.rates = append(l.rates, float64(len(done))/time.Since(start).Seconds())
		l.took = append(l.took, done...)
	}
}

// discardReply reads a reply with status 200 and a Content-Length without allocating.
func discardReply(in *bufio.Reader) error {
	length, first := 0, true
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		const status, field = "HTTP/1.1 200 ", "Content-Length: "
		if first && !strings.HasPrefix(string(line), status) {
			return fmt.Errorf("the reply begins with %q", line)
		}
		first = false
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

// The two ends of a veth pair.
const vethHost, vethGuest = "198.51.100.1", "198.51.100.2"

// veth returns a namespace that this one reaches over a veth pair.
func veth(t *testing.T) *netns.Namespace {
	t.Helper()
	guest := netns.New(t)
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "host"}, PeerName: "guest", PeerNamespace: netlink.NsFd(guest.FD())})
	if err != nil {
		t.Fatal(err)
	}
	end := func(name, address string) {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(address).To4(), Mask: net.CIDRMask(24, 32)}})
		}
		if err != nil {
			t.Error(err)
			return
		}
		netns.SetUp(t, name)
	}
	end("host", vethHost)
	guest.Do(t, func() { end("guest", vethGuest) })
	awaitCarrier(t, "host")
	return guest
}

// startNova serves the same instance with Nova's handler, cache and WSGI server
// until the test ends.
func startNova(t *testing.T) {
	t.Helper()
	const python = "/usr/bin/python3" // the one that Debian's nova is installed for
	need.Program(t, python, "python3")
	need.File(t, "/usr/lib/python3/dist-packages/nova/api/metadata/handler.py", "python3-nova")
	program, err := os.ReadFile("../interop/testdata/nova.py")
	if err != nil {
		t.Fatal(err)
	}
	inst := metadataGuest(0)
	in, err := json.Marshal(map[string]any{
		"listen": []any{"0.0.0.0", novaPort}, "workers": runtime.NumCPU(),
		"instance": map[string]any{
			"uuid": inst.ID, "project": "default", "domain": "example.org", "hostname": inst.Spec.Name, "zone": "nova",
			"reservation": "r-00000001", "ec2": "i-00000001", "ami": "ami-00000001", "key": []string{"key-0", metadataKey},
			"meta": map[string]string{}, "userData": inst.Spec.UserData, "vendorData": "", "vifs": []any{},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, "-c", string(program), t.TempDir())
	cmd.Stdin = strings.NewReader(string(in))
	run(t, cmd)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", novaPort))
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("Nova does not answer: %v", err)
		}
	}
}
