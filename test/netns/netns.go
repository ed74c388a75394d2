// Package netns gives tests network namespaces of their own: one for the host,
// in which the whole test process runs, and one for each guest. Nothing of what
// happens in them is seen by the machine.
package netns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"imprint/test/need"
)

// inside names the variable that tells a test that it runs in a namespace of its own.
const inside = "IMPRINT_TEST_NETNS"

// Isolate runs the calling test again, as a process in a new network namespace,
// and reports whether the caller is that process and has to go on. Otherwise the
// test is over: it has the other's outcome.
//
//	if !netns.Isolate(t) {
//		return
//	}
func Isolate(t *testing.T) bool { return IsolateWith(t, nil) }

// IsolateWith is Isolate, with a last word on how the process is started. Only
// top-level tests can be isolated.
func IsolateWith(t *testing.T, with func(*exec.Cmd)) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		SetUp(t, "lo")
		return true
	}
	need.Root(t)
	_, tun := os.Stat("/dev/net/tun")
	need.Kernel(t, tun == nil, "tun")
	// The link, so that a user who may not see the directory can start it too.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if with != nil {
		with(cmd)
	}
	out, err := cmd.CombinedOutput()
	need.Kernel(t, !errors.Is(err, syscall.EPERM), "network namespaces that this process may make (CAP_SYS_ADMIN)")
	switch {
	case err != nil:
		t.Errorf("in a namespace of its own: %v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP: "+t.Name()+" "):
		t.Skipf("in a namespace of its own:\n%s", out)
	case !strings.Contains(string(out), "--- PASS: "+t.Name()+" "):
		t.Errorf("in a namespace of its own it did not run:\n%s", out)
	case testing.Verbose():
		t.Logf("in a namespace of its own:\n%s", out)
	}
	return false
}

// Namespace is a network namespace with nothing in it but loopback.
type Namespace struct{ file *os.File }

// New makes a namespace, which goes when the test ends.
func New(t testing.TB) *Namespace {
	t.Helper()
	type made struct {
		file *os.File
		err  error
	}
	c := make(chan made)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- made{err: err}
			return
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		c <- made{file, err}
	}()
	m := <-c
	if m.err != nil {
		t.Fatalf("make a network namespace: %v", m.err)
	}
	t.Cleanup(func() { m.file.Close() })
	n := &Namespace{m.file}
	n.Do(t, func() { SetUp(t, "lo") })
	return n
}

// Do runs f on a thread in the namespace. Sockets that f opens and processes
// that it starts stay there. f may fail the test only by t.Error.
func (n *Namespace) Do(t testing.TB, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatalf("enter a network namespace: %v", err)
	}
}

// FD returns the namespace, as the kernel takes it.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Guest plugs the namespace into the host's tap, as a hypervisor does: it opens
// the tap by its name and carries frames between it and an interface of the
// namespace that has the name and the MAC given.
func (n *Namespace) Guest(t testing.TB, tap, name string, mac net.HardwareAddr) {
	t.Helper()
	host, err := OpenTap(tap)
	if err != nil {
		t.Fatalf("open tap %s: %v", tap, err)
	}
	var guest *os.File
	n.Do(t, func() {
		if guest, err = OpenTap(name); err != nil {
			return
		}
		var link netlink.Link
		if link, err = netlink.LinkByName(name); err == nil {
			err = netlink.LinkSetIP6AddrGenMode(link, 1) // none
		}
		if err == nil {
			err = netlink.LinkSetHardwareAddr(link, mac)
		}
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err == nil { // what the kernel would have chosen, but usable at once
			err = netlink.AddrAdd(link, &netlink.Addr{
				IPNet: &net.IPNet{IP: LinkLocal(mac).AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD,
			})
		}
	})
	if err != nil {
		t.Fatalf("make %s in the guest's namespace: %v", name, err)
	}
	done := make(chan struct{}, 2)
	carry := func(to, from *os.File) {
		defer func() { done <- struct{}{} }()
		frame := make([]byte, 65536)
		for {
			size, err := from.Read(frame)
			if err != nil {
				return
			}
			to.Write(frame[:size]) // an interface that is down takes nothing
		}
	}
	go carry(host, guest)
	go carry(guest, host)
	t.Cleanup(func() {
		host.Close()
		guest.Close()
		<-done
		<-done
	})
}

// LinkLocal returns the link-local address that mac becomes by RFC 4291, appendix A.
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	a := [16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}
	return netip.AddrFrom16(a)
}

// OpenTap opens the tap name, and makes it if there is none, until it is closed.
func OpenTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Sysctl sets a value below /proc/sys/net of the namespace that it is called in.
func Sysctl(path, value string) error {
	return os.WriteFile("/proc/sys/net/"+path, []byte(value), 0)
}

// SetUp sets the interface name up, in the namespace that it is called in.
func SetUp(t testing.TB, name string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		t.Errorf("set up %s: %v", name, err)
	}
}
