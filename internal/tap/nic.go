package tap

import (
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"path"
	"slices"
	"strings"

	"imprint"
)

// The addresses at which guests look for their host, the same on every
// interface. The MAC too: a guest that moves to another host, or whose
// interface is made again, finds its neighbour where it was.
var (
	MetadataIPv4 = netip.AddrFrom4([4]byte{169, 254, 169, 254})
	MetadataIPv6 = netip.MustParseAddr("fe80::a9fe:a9fe")
	HostMAC      = MAC{0x02, 0xa9, 0xfe, 0xa9, 0xfe, 0xfe}
)

// MetadataPort is the port that guests may reach if a [NIC] names no other.
const MetadataPort = 80

// Limits of a [NIC].
const (
	MaxPorts = 4
	MaxName  = 15 // letters: IFNAMSIZ less its NUL, linux/if.h
)

// Owner is the user that may open a tap: the one that the hypervisor runs as.
type Owner struct{ UID int }

// NIC is a guest's interface on the link-local network, as the host wants it.
type NIC struct {
	// Name is the interface. An adopted one may be named by a pattern, in the
	// syntax of [path.Match]; of those that match it is the one that was asked for
	// by one of Labels with [Request], or the one that libvirt made for MAC, which
	// has the same address but for its first octet, 0xFE. If two are, neither is.
	Name string
	MAC  MAC
	IPv4 netip.Addr // in 169.254.0.0/16

	// Adopt says that somebody else makes the interface, sets it up and deletes
	// it, now or later. Otherwise it is a persistent tap of imprint's.
	Adopt bool
	// Labels are the names by which an interface may be asked for as this guest's.
	Labels []string
	// Owner may open a tap that imprint makes; nil is this process's user.
	Owner *Owner
	// Ports are the TCP ports of the metadata addresses that the guest may reach;
	// none is [MetadataPort].
	Ports []uint16
}

func (n NIC) ports() []uint16 {
	if len(n.Ports) == 0 {
		return []uint16{MetadataPort}
	}
	return n.Ports
}

func (n NIC) pattern() bool { return strings.ContainsAny(n.Name, `*?[\`) }

// check fails with kind [imprint.Invalid] if n cannot be an interface.
func (n NIC) check() error {
	invalid := func(format string, args ...any) *imprint.Error {
		return imprint.Errorf(imprint.Invalid, "attach", n.Name, format, args...)
	}
	if n.pattern() {
		if _, err := path.Match(n.Name, ""); err != nil || !n.Adopt {
			return invalid("a pattern, well-formed, names interfaces to adopt, and no other")
		}
	} else if !ValidName(n.Name) {
		return invalid("not the name of an interface").
			WithHint("use 1 to %d letters, digits, dots, underscores and hyphens, with a letter first", MaxName)
	}
	if err := checkNIC(n.MAC, n.IPv4); err != nil {
		return err
	}
	if len(n.Ports) > MaxPorts || slices.Contains(n.Ports, 0) {
		return invalid("a guest may reach 1 to %d ports, each from 1 to 65535", MaxPorts)
	}
	if n.Owner != nil && n.Owner.UID < 0 {
		return invalid("user %d cannot own it", n.Owner.UID)
	}
	return nil
}

// ValidName reports whether s may be the name of a guest's interface. It is
// narrower than the kernel's rule, for the sake of paths below /proc, and of
// zones, which may be numbers.
func ValidName(s string) bool {
	if s == "" || len(s) > MaxName {
		return false
	}
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || !(c >= '0' && c <= '9') && c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}

// NameOf returns the name of the tap that imprint makes for holder: the same for
// the same holder, and 60 bits of its hash, so that no two meet on one host.
func NameOf(holder string) string {
	sum := sha256.Sum256([]byte(holder))
	return "imp" + strings.ToLower(base32.HexEncoding.EncodeToString(sum[:]))[:12]
}
