package tap_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint/internal/tap"
	"imprint/test/attack"
)

// wire is a raw socket on the guest's interface: it sends any frame and hears
// whatever arrives.
type wire struct {
	fd   int
	own  tap.NIC
	host tap.MAC // of the host's end
}

func (g *guest) wire(t *testing.T) *wire {
	t.Helper()
	w := &wire{fd: -1, own: g.nic, host: tap.HostMAC}
	g.Do(t, func() {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			t.Errorf("open a raw socket: %v", err)
			return
		}
		w.fd = fd
		index, err := indexOf("eth1")
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index})
		}
		timeout := unix.NsecToTimeval(int64(patience))
		if err == nil {
			err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
		}
		if err != nil {
			t.Errorf("bind a raw socket: %v", err)
		}
	})
	if w.fd < 0 {
		t.FailNow()
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

func (w *wire) send(t *testing.T, frame []byte) {
	t.Helper()
	if _, err := unix.Write(w.fd, frame); err != nil {
		t.Fatalf("send % x: %v", frame, err)
	}
}

// settle asks the host something that it always answers, and returns what
// arrived before that answer: everything is in order on this wire, so it is all
// that what was sent before can have brought.
func (w *wire) settle(t *testing.T) (arrived [][]byte) {
	t.Helper()
	w.send(t, attack.Frame(w.host, w.own.MAC, unix.ETH_P_ARP, attack.ARP(1, w.own.MAC, w.own.IPv4, tap.MetadataIPv4)))
	answer := attack.Frame(w.own.MAC, w.host, unix.ETH_P_ARP, attack.ARP(2, w.host, tap.MetadataIPv4, w.own.IPv4)[:18])
	buffer := make([]byte, 2048)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		n, from, err := unix.Recvfrom(w.fd, buffer, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatalf("wait for the host's answer: %v", err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		got := append([]byte{}, buffer[:n]...)
		if n >= len(answer) && string(got[:len(answer)]) == string(answer) {
			return arrived
		}
		arrived = append(arrived, got)
	}
	t.Fatal("the host does not answer ARP for the metadata address")
	return nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
