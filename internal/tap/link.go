package tap

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"imprint"
)

// alias marks the interfaces that imprint made, so that a later process knows
// which ones it may delete.
const alias = "imprint"

const tunDevice = "/dev/net/tun"

// makeTap makes a persistent tap that owner may open by name, or finds it. It is
// down when it is new.
//
// The ioctls are spelled out because package netlink sets a group as well, and
// the kernel then demands both of whoever opens the tap.
func makeTap(name string, owner *Owner) (created bool, err error) {
	uid := os.Geteuid()
	if owner != nil {
		uid = owner.UID
	}
	if found, err := netlink.LinkByName(name); err == nil {
		return false, checkTap(found, uid)
	}
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, imprint.Errorf(imprint.Unavailable, "make tap", name, "open %s: %w", tunDevice, err).
			WithHint("load the kernel module tun, and let imprint's user read and write %s", tunDevice)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return false, imprint.Errorf(imprint.Invalid, "make tap", name, "%w", err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return false, linkFault("make tap", name, err)
	}
	// Without an owner the kernel lets everybody open it who may open the device.
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, uid); err != nil {
		return false, linkFault("give the tap to its owner", name, err)
	}
	made, err := netlink.LinkByName(name)
	if err != nil {
		return false, linkFault("make tap", name, err)
	}
	if err := netlink.LinkSetHardwareAddr(made, HostMAC[:]); err != nil {
		return false, linkFault("set the MAC of", name, err)
	}
	if err := netlink.LinkSetAlias(made, alias); err != nil {
		return false, linkFault("mark", name, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil { // last: until here it goes with fd
		return false, linkFault("keep tap", name, err)
	}
	return true, nil
}

// checkTap fails with kind [imprint.Conflict] unless l is a tap that imprint made for uid.
func checkTap(l netlink.Link, uid int) error {
	name := l.Attrs().Name
	t, ok := l.(*netlink.Tuntap)
	switch {
	case !ok || t.Mode != netlink.TUNTAP_MODE_TAP || t.Attrs().Alias != alias:
		return imprint.Errorf(imprint.Conflict, "make tap", name, "an interface of that name exists that imprint did not make").
			WithHint("adopt it, or delete it: ip link delete %s", name)
	case int(t.Owner) != uid:
		return imprint.Errorf(imprint.Conflict, "make tap", name, "it exists and user %d owns it, not user %d", t.Owner, uid).
			WithHint("stop the guest and delete the tap: ip link delete %s", name)
	}
	return nil
}

// checkAdoptable fails if l cannot be a guest's interface.
func checkAdoptable(l netlink.Link, nic NIC) error {
	attrs := l.Attrs()
	conflict := func(format string, args ...any) *imprint.Error {
		return imprint.Errorf(imprint.Conflict, "use", attrs.Name, format, args...)
	}
	switch {
	case attrs.MasterIndex != 0:
		return conflict("it is a port of a bridge or bond, so others than this guest are behind it").
			WithHint("give the guest an interface of its own: in libvirt, <interface type='ethernet'>")
	case attrs.EncapType != "ether" || attrs.Flags&net.FlagLoopback != 0:
		return conflict("it is not an Ethernet interface")
	case string(attrs.HardwareAddr) == string(nic.MAC[:]):
		return conflict("the host's end has the guest's MAC, %s", nic.MAC).
			WithHint("give the host's end another one: ip link set %s address %s", attrs.Name, HostMAC)
	}
	return nil
}

// sysctls are a second wall behind the filter, on that interface only: a guest
// could use none of this without a rule that lets it.
var sysctls = [...]struct{ path, value string }{
	// Loose. Where the strict value is set for all interfaces the larger one
	// counts, and strict refuses an address that two interfaces have.
	{"ipv4/conf/*/rp_filter", "2"},
	{"ipv4/conf/*/arp_ignore", "1"},   // answer for addresses of this interface only
	{"ipv4/conf/*/arp_announce", "2"}, // and ask with one of them
	{"ipv4/conf/*/forwarding", "0"},
	{"ipv4/conf/*/route_localnet", "0"},
	{"ipv6/conf/*/disable_ipv6", "0"},
	{"ipv6/conf/*/addr_gen_mode", "1"}, // no other link-local address
	{"ipv6/conf/*/accept_ra", "0"},     // a guest is no router
	{"ipv6/conf/*/accept_redirects", "0"},
	{"ipv6/conf/*/forwarding", "0"},
}

const sysctlRoot = "/proc/sys/net"

// setSysctls writes the values that differ. It skips IPv6 where the kernel has
// none. left says that they are as they were, because a hardened service sees
// /proc/sys read-only (ProtectKernelTunables= in systemd.exec(5)).
func setSysctls(name string) (left bool, err error) {
	for _, s := range sysctls {
		if strings.HasPrefix(s.path, "ipv6/") && !hasIPv6(name) {
			continue
		}
		file := sysctlFile(s.path, name)
		old, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(old)) != s.value {
			err = os.WriteFile(file, []byte(s.value), 0)
		}
		switch {
		case errors.Is(err, unix.EROFS):
			left = true
		case err != nil:
			return left, linkFault("set", file, err)
		}
	}
	return left, nil
}

func sysctlFile(pattern, name string) string {
	return filepath.Join(sysctlRoot, strings.Replace(pattern, "*", name, 1))
}

func hasIPv6(name string) bool {
	_, err := os.Stat(sysctlFile("ipv6/conf/*", name))
	return err == nil
}

// usesIPv6 reports whether the interface may have IPv6 addresses.
func usesIPv6(name string) bool {
	off, err := os.ReadFile(sysctlFile("ipv6/conf/*/disable_ipv6", name))
	return err == nil && strings.TrimSpace(string(off)) == "0"
}

// configure gives l the addresses of the metadata service and the way to the
// guest, and sets it up. The filter has to be in force. It may be repeated.
func configure(l netlink.Link, nic NIC) (ipv6 bool, err error) {
	name := l.Attrs().Name
	ipv6 = usesIPv6(name)
	if err := netlink.LinkSetUp(l); err != nil {
		return false, linkFault("set up", name, err)
	}
	for _, a := range addresses(ipv6) {
		if err := netlink.AddrReplace(l, a); err != nil {
			return false, linkFault("give "+a.IP.String()+" to", name, err)
		}
	}
	index := l.Attrs().Index
	guest := nic.IPv4.AsSlice()
	// Permanent, so that neither the guest nor a full table can change it.
	if err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: guest, HardwareAddr: nic.MAC[:],
	}); err != nil {
		return false, linkFault("record the neighbour at", name, err)
	}
	if err := netlink.RouteReplace(&netlink.Route{
		LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: hostNet(nic.IPv4), Src: MetadataIPv4.AsSlice(),
	}); err != nil {
		return false, linkFault("route "+nic.IPv4.String()+" to", name, err)
	}
	return ipv6, nil
}

// clear takes from l what configure gave it.
func clear(l netlink.Link) error {
	neighbours, err := netlink.NeighList(l.Attrs().Index, unix.AF_INET)
	if err != nil {
		return linkFault("read the neighbours at", l.Attrs().Name, err)
	}
	for _, n := range neighbours {
		if ip, ok := netip.AddrFromSlice(n.IP.To4()); !ok || n.State != netlink.NUD_PERMANENT || !linkLocal.Contains(ip) {
			continue
		}
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return linkFault("forget the neighbour at", l.Attrs().Name, err)
		}
	}
	for _, a := range addresses(true) {
		err := netlink.AddrDel(l, a) // and with it the route
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
			return linkFault("take "+a.IP.String()+" from", l.Attrs().Name, err)
		}
	}
	return nil
}

func addresses(ipv6 bool) []*netlink.Addr {
	four := &netlink.Addr{IPNet: hostNet(MetadataIPv4), Scope: unix.RT_SCOPE_LINK} // never the source of anything else
	if !ipv6 {
		return []*netlink.Addr{four}
	}
	six := &netlink.Addr{
		IPNet: &net.IPNet{IP: MetadataIPv6.AsSlice(), Mask: net.CIDRMask(64, 128)},
		Scope: unix.RT_SCOPE_LINK, Flags: unix.IFA_F_NODAD, // usable at once; the filter lets nobody else have it
	}
	return []*netlink.Addr{four, six}
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func linkFault(op, operand string, err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return imprint.Errorf(imprint.Denied, op, operand, "%w", err).
			WithHint("give imprint CAP_NET_ADMIN in this network namespace")
	}
	return imprint.Errorf(imprint.Internal, op, operand, "%w", err)
}

func isUp(l netlink.Link) bool { return l.Attrs().Flags&net.FlagUp != 0 }
