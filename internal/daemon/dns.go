package daemon

import (
	"fmt"
	"net/netip"
	"slices"

	"imprint"
	"imprint/internal/dhcp"
)

// nameServers reads the field dns. It refuses servers of which no guest can be
// told, or that none could reach: over the channel nic it reaches only its metadata.
func nameServers(dns []string) (servers []netip.Addr, err error) {
	for i, text := range dns {
		what := fmt.Sprintf("dns[%d]", i)
		a, err := netip.ParseAddr(text)
		switch {
		case err != nil || !a.Is4():
			return nil, imprint.Errorf(imprint.Invalid, "check", what, "%q is not an IPv4 address such as 192.0.2.53, which is all that DHCPv4 can tell", text).
				WithHint("servers by IPv6 address belong into the network of an instance's manifest")
		case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			return nil, imprint.Errorf(imprint.Invalid, "check", what, "a guest reaches no server at %s", a)
		case a.IsLinkLocalUnicast():
			return nil, imprint.Errorf(imprint.Invalid, "check", what, "%s is link-local, and over its link-local interface a guest reaches only its metadata", a).
				WithHint("name a server that guests reach over another interface")
		case slices.Contains(servers, a):
			return nil, imprint.Errorf(imprint.Invalid, "check", what, "%s is there already", a)
		}
		servers = append(servers, a)
	}
	if len(servers) > dhcp.MaxDNS {
		return nil, imprint.Errorf(imprint.Invalid, "check", "dns", "%d name servers are listed; guests are told %d at most", len(servers), dhcp.MaxDNS)
	}
	return servers, nil
}
