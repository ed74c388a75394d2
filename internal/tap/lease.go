package tap

import (
	"crypto/sha256"
	"encoding/binary"
	"net"
	"net/netip"

	"imprint"
)

// MAC is an Ethernet address, comparable.
type MAC [6]byte

// ParseMAC reads a MAC in any form that [net.ParseMAC] knows. It fails with kind
// [imprint.Invalid] unless it is the address of one interface.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(MAC{}) {
		return MAC{}, imprint.Errorf(imprint.Invalid, "read MAC", s, "not six octets").
			WithHint("write it as 52:54:00:12:34:56")
	}
	m := MAC(hw)
	return m, m.check()
}

func (m MAC) check() error {
	if m == (MAC{}) || m[0]&1 != 0 {
		return imprint.Errorf(imprint.Invalid, "use MAC", m.String(), "not the address of one interface").
			WithHint("the first octet has to be even, and one octet not zero")
	}
	return nil
}

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText writes m as [MAC.String] does.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads m as [ParseMAC] does.
func (m *MAC) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMAC(string(b))
	return err
}

// Lease is what belongs to one holder: no other holder on the same host has
// the MAC or the address.
type Lease struct {
	Holder string // whoever records it: an instance and its generation
	MAC    MAC
	IPv4   netip.Addr // in 169.254.0.0/16
}

// Taken are the leases that live on one host. It does no I/O and is not for
// concurrent use; who records leases elsewhere builds it from the record.
type Taken struct {
	macs  map[MAC]string
	addrs map[netip.Addr]string
}

// usable is how many addresses 169.254.1.0 to 169.254.254.255 are, the range of RFC 3927 section 2.1.
const usable = 254 << 8

// Choose returns a lease for holder that no other holder has. It is a pure
// function: the same holder gets the same lease as long as nobody took a part of
// it. It fails with kind [imprint.Exhausted] if no address is left.
func (t *Taken) Choose(holder string) (Lease, error) {
	sum := sha256.Sum256([]byte(holder))
	l := Lease{Holder: holder}

	// An odd stride through a range whose size is 2·127·256 visits each address
	// once, unless it is a multiple of 127.
	start := binary.BigEndian.Uint32(sum[0:4]) % usable
	stride := binary.BigEndian.Uint32(sum[4:8])%usable | 1
	if stride%127 == 0 {
		stride += 2
	}
	for i := range uint32(usable) {
		n := 1<<8 + (uint64(start)+uint64(i)*uint64(stride))%usable
		addr := netip.AddrFrom4([4]byte{169, 254, byte(n >> 8), byte(n)})
		if owner, taken := t.addrs[addr]; !reserved(addr) && (!taken || owner == holder) {
			l.IPv4 = addr
			break
		}
	}
	if !l.IPv4.IsValid() {
		return Lease{}, imprint.Errorf(imprint.Exhausted, "choose an address for", holder, "all of 169.254.0.0/16 is taken on this host").
			WithHint("place the instance on another host")
	}

	// Locally administered (IEEE 802), and not 0xFE, which libvirt keeps for the host's end.
	copy(l.MAC[:], sum[8:14])
	l.MAC[0] = 0x02
	for owner := t.macs[l.MAC]; owner != "" && owner != holder || l.MAC == HostMAC; owner = t.macs[l.MAC] {
		tail := binary.BigEndian.Uint32(l.MAC[2:])
		binary.BigEndian.PutUint32(l.MAC[2:], tail+1)
	}
	return l, nil
}

// Take adds l. It fails with kind [imprint.Conflict] if another holder has its
// MAC or its address, and with kind [imprint.Invalid] if they can belong to nobody.
func (t *Taken) Take(l Lease) error {
	if l.Holder == "" {
		return imprint.Errorf(imprint.Invalid, "take", l.MAC.String(), "a lease needs a holder")
	}
	if err := checkNIC(l.MAC, l.IPv4); err != nil {
		return err
	}
	if owner, taken := t.macs[l.MAC]; taken && owner != l.Holder {
		return imprint.Errorf(imprint.Conflict, "take MAC", l.MAC.String(), "%s has it on this host, so %s cannot", owner, l.Holder).
			WithHint("give one of the two another MAC; a guest is told apart by its interface, and an interface by its MAC")
	}
	if owner, taken := t.addrs[l.IPv4]; taken && owner != l.Holder {
		return imprint.Errorf(imprint.Conflict, "take address", l.IPv4.String(), "%s has it on this host, so %s cannot", owner, l.Holder).
			WithHint("leave the address out, and imprint chooses a free one")
	}
	if t.macs == nil {
		t.macs, t.addrs = map[MAC]string{}, map[netip.Addr]string{}
	}
	t.macs[l.MAC], t.addrs[l.IPv4] = l.Holder, l.Holder
	return nil
}

// GiveBack removes l, when the generation that holds it has ended.
func (t *Taken) GiveBack(l Lease) {
	if t.macs[l.MAC] == l.Holder {
		delete(t.macs, l.MAC)
	}
	if t.addrs[l.IPv4] == l.Holder {
		delete(t.addrs, l.IPv4)
	}
}

// reserved reports whether addr means something to software in guests already:
// 169.254.169.0/24 and 169.254.170.0/24 are the services of public clouds, and
// 169.254.20.10 is the DNS cache of a Kubernetes node.
func reserved(addr netip.Addr) bool {
	a := addr.As4()
	return a[2] == 169 || a[2] == 170 || a == [4]byte{169, 254, 20, 10}
}

var linkLocal = netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254, 0, 0}), 16)

// checkNIC refuses a MAC and an address that can belong to no guest.
// 169.254.0.x and 169.254.255.x are let through: Ganeti's pool begins there.
func checkNIC(mac MAC, addr netip.Addr) error {
	if err := mac.check(); err != nil {
		return err
	}
	if mac == HostMAC {
		return imprint.Errorf(imprint.Invalid, "use MAC", mac.String(), "it is the host's end of every interface").
			WithHint("give the guest another MAC")
	}
	a := addr.String()
	switch {
	case !addr.Is4() || !linkLocal.Contains(addr):
		return imprint.Errorf(imprint.Invalid, "use address", a, "not in 169.254.0.0/16").
			WithHint("leave the address out, and imprint chooses one")
	case addr == MetadataIPv4, a == "169.254.0.0", a == "169.254.255.255":
		return imprint.Errorf(imprint.Invalid, "use address", a, "it cannot belong to a guest").
			WithHint("leave the address out, and imprint chooses one")
	}
	return nil
}
