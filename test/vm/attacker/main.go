//go:build linux

// Command attacker runs as root in a guest, on its interface to the host. As
// "attack" it sends what package attack has, round after round, knocks at the
// host's ports and asks for a neighbour's metadata. As "watch" it listens. What these
// get that they should not, they print in lines that begin with "guest: GOT". As
// "read" it does what is right, and reads its own name.
package main

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"imprint/internal/tap"
	"imprint/test/attack"
)

func main() {
	var own, neighbour tap.NIC
	flag.Var(party{&own}, "own", "MAC,ADDRESS of this guest")
	flag.Var(party{&neighbour}, "neighbour", "MAC,ADDRESS of the other one")
	id := flag.String("neighbour-id", "", "instance of the other one")
	times := flag.Int("times", 1, "how often to read")
	flag.Parse()
	var err error
	switch flag.Arg(0) {
	case "attack":
		err = (&attacker{own: own, neighbour: neighbour, id: *id}).run()
	case "watch":
		err = watch()
	case "read":
		for range *times {
			if err = get("/latest/meta-data/local-hostname", "", 0); err != nil {
				break
			}
		}
		if err == nil {
			return
		}
	default:
		err = fmt.Errorf("%q is none of attack, watch, read", flag.Arg(0))
	}
	fmt.Printf("guest: %s ended: %v\n", flag.Arg(0), err)
	os.Exit(1)
}

// party is a flag for a guest's interface.
type party struct{ nic *tap.NIC }

func (p party) String() string { return "" }

func (p party) Set(s string) (err error) {
	mac, address, _ := strings.Cut(s, ",")
	if p.nic.MAC, err = tap.ParseMAC(mac); err == nil {
		p.nic.IPv4, err = netip.ParseAddr(address)
	}
	return err
}

// device is the interface to the host.
const device = "eth0"

type attacker struct {
	own, neighbour tap.NIC
	id             string // of the neighbour
	wire           *wire
}

func (a *attacker) run() (err error) {
	if err := configure(a.own.IPv4, attack.HostIPv4, a.neighbour.IPv4); err != nil {
		return err
	}
	if a.wire, err = open(); err != nil {
		return err
	}
	for round := 1; ; round++ {
		for _, one := range attack.List(a.own, a.neighbour) {
			if err := a.send(one.Name, one.Frame); err != nil {
				return err
			}
		}
		if err := a.send("asking for the neighbour's lease", a.discover()); err != nil {
			return err
		}
		if round == 1 {
			if err := a.knock(); err != nil {
				return err
			}
		}
		if err := a.ask(); err != nil {
			return err
		}
		fmt.Println("guest: round", round)
	}
}

// send sends frames, and says what they brought.
func (a *attacker) send(name string, frames ...[]byte) error {
	got, err := a.wire.bring(a.own, frames...)
	for _, f := range got {
		fmt.Printf("guest: GOT by %s: %s\n", name, hex.EncodeToString(f))
	}
	return err
}

// knock tries the ports of the host at which services are, at each of its
// addresses, and a few above.
func (a *attacker) knock() error {
	ports := []uint16{attack.HostPort, 2379, 2380, 8443, 9090}
	for p := uint16(1); p < 1024; p++ {
		ports = append(ports, p)
	}
	for _, p := range ports {
		var frames [][]byte
		for _, to := range []netip.Addr{tap.MetadataIPv4, attack.HostIPv4} {
			if to != tap.MetadataIPv4 || p != tap.MetadataPort {
				frames = append(frames, a.toHost(to, ipTCP, attack.SYN(a.own.IPv4, to, p)))
			}
			if to != tap.MetadataIPv4 || p != dhcpServerPort {
				frames = append(frames, a.toHost(to, ipUDP, attack.UDP(a.own.IPv4, to, attack.Port, p, "x")))
			}
		}
		if err := a.send(fmt.Sprintf("knocking at port %d", p), frames...); err != nil {
			return err
		}
	}
	return nil
}

// discover is the neighbour's DHCPDISCOVER (RFC 2131 section 4.4.1), but for the
// MAC of the frame.
func (a *attacker) discover() []byte {
	message := make([]byte, 240, 244)
	copy(message, []byte{1, 1, 6, 0, 1, 2, 3, 4}) // a request over Ethernet, and its number
	copy(message[28:], a.neighbour.MAC[:])
	copy(message[236:], []byte{99, 130, 83, 99})
	message = append(message, 53, 1, 1, 255)
	nobody, everybody := netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255})
	packet := attack.IPv4(nobody, everybody, ipUDP, attack.UDP(nobody, everybody, 68, dhcpServerPort, string(message)), nil, false)
	return attack.Frame(tap.MAC{255, 255, 255, 255, 255, 255}, a.own.MAC, 0x0800, packet)
}

// What IPv4's header says of what follows it, and where DHCP is.
const (
	ipTCP          = 6
	ipUDP          = 17
	dhcpServerPort = 67
)

func (a *attacker) toHost(to netip.Addr, proto byte, payload []byte) []byte {
	return attack.Frame(tap.HostMAC, a.own.MAC, 0x0800, attack.IPv4(a.own.IPv4, to, proto, payload, nil, false))
}

// ask asks for metadata as root, and pretends to be the neighbour in every way
// that a proxy might be asked in. All of what is answered is printed.
func (a *attacker) ask() error {
	port := 700
	for _, field := range []string{"X-Forwarded-For: " + a.neighbour.IPv4.String(), "X-Instance-ID: " + a.id, "X-Real-IP: " + a.neighbour.IPv4.String(), "Host: " + a.neighbour.IPv4.String(), ""} {
		for _, path := range []string{"/latest/meta-data/local-hostname", "/latest/user-data", "/openstack/latest/meta_data.json", "/imprint/v1/param/db-password", "/imprint/v1/payload"} {
			port++
			if err := get(path, field, port); err != nil {
				return err
			}
			if err := a.send("asking for " + path); err != nil {
				return err
			}
		}
	}
	return nil
}

// get asks for path from the port given; 0 is any.
func get(path, field string, port int) error {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{Port: port}, Timeout: 20 * time.Second, Control: reuse}
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp4", address)
		},
	}}
	req, err := http.NewRequest("GET", "http://"+tap.MetadataIPv4.String()+path, nil)
	if err != nil {
		return err
	}
	if name, value, ok := strings.Cut(field, ": "); name == "Host" {
		req.Host = value
	} else if ok {
		req.Header.Set(name, value)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return err
	}
	fmt.Printf("guest: asked for %s with %q: %d %q\n", path, field, resp.StatusCode, body)
	return nil
}
