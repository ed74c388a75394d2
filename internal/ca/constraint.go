package ca

import (
	"crypto/x509"
	"net"
	"net/netip"
	"slices"
	"strings"

	"imprint"
)

// maxConstraints bounds the domains, and separately the networks and endpoints,
// of one authority: every verifier walks them for every certificate.
const maxConstraints = 64

// checkNames refuses domains, networks and endpoints that cannot be constraints.
func (p *Profile) checkNames() error {
	for what, n := range map[string]int{
		"domains": len(p.Tenant.Domains), "networks": len(p.Tenant.Networks), "endpoints": len(p.Endpoints),
	} {
		if n > maxConstraints {
			return imprint.Errorf(imprint.Invalid, "check", what, "%d; at most %d are allowed", n, maxConstraints)
		}
	}
	if len(p.Tenant.Domains) == 0 {
		return imprint.Errorf(imprint.Invalid, "check", "domains", "tenant %s has none", p.Tenant.Name).
			WithHint("name the DNS domain in which the tenant's machines live")
	}
	for _, d := range p.Tenant.Domains {
		if err := imprint.CheckDNSName("domain", d); err != nil {
			return err
		}
	}
	for _, n := range p.Tenant.Networks {
		if !n.IsValid() || n != n.Masked() || n.Addr().Is4In6() {
			return imprint.Errorf(imprint.Invalid, "check", "network", "%q is not an address range", n).
				WithHint("write it with the host bits zero, such as 10.1.0.0/16")
		}
	}
	for _, e := range p.endpoints() {
		if _, err := netip.ParseAddr(e); err == nil {
			continue
		}
		if err := imprint.CheckDNSName("endpoint", e); err != nil {
			return err
		}
	}
	return nil
}

// constrain writes p as name constraints (RFC 5280 section 4.2.1.10) into an
// issuing CA. Since the loopback names are always permitted, there is always a
// permitted subtree for DNS, IPv4 and IPv6, and so nothing else of these types.
//
// The extension is not critical, against that section: strongSwan 5.9 and others
// that cannot read it would refuse the whole CA (docs/decisions/0009).
func (p *Profile) constrain(template *x509.Certificate) {
	template.PermittedDNSDomains = slices.Clone(p.Tenant.Domains)
	template.PermittedURIDomains = []string{p.TrustDomain}
	for _, n := range p.Tenant.Networks {
		template.PermittedIPRanges = append(template.PermittedIPRanges, ipNet(n))
	}
	for _, e := range p.Endpoints {
		if addr, err := netip.ParseAddr(e); err == nil {
			template.PermittedIPRanges = append(template.PermittedIPRanges, ipNet(netip.PrefixFrom(addr, addr.BitLen())))
		} else if !withinDomains(e, p.Tenant.Domains) {
			template.PermittedDNSDomains = append(template.PermittedDNSDomains, e)
		}
	}
}

// matches refuses a profile that is not the one that issuing was made for:
// what was signed under it would be refused by every verifier.
func (p *Profile) matches(issuing *x509.Certificate) error {
	var want x509.Certificate
	p.constrain(&want)
	same := slices.Equal(p.Endpoints, p.endpoints()) &&
		slices.Equal(want.PermittedDNSDomains, issuing.PermittedDNSDomains) &&
		slices.Equal(want.PermittedURIDomains, issuing.PermittedURIDomains) &&
		slices.EqualFunc(want.PermittedIPRanges, issuing.PermittedIPRanges, func(a, b *net.IPNet) bool { return a.String() == b.String() })
	if !same {
		return imprint.Errorf(imprint.Conflict, "open", "CA of tenant "+string(p.Tenant.Name), "domains, networks, endpoints or trust domain have changed since its issuing CA was made").
			WithHint("reissue the tenant's issuing CA with its root key")
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// withinDomains reports whether name is one of domains or below one.
func withinDomains(name string, domains []string) bool {
	return slices.ContainsFunc(domains, func(d string) bool {
		return name == d || strings.HasSuffix(name, "."+d)
	})
}

// checkMachineNames refuses names that a machine of this tenant may not have.
// The enrolment checked them against the reservation; that they are outside the
// constraint here means that material and configuration have parted.
func (p *Profile) checkMachineNames(g *imprint.Grant) error {
	if len(g.DNSNames) > imprint.MaxNames || len(g.IPs) > imprint.MaxNames {
		return imprint.Errorf(imprint.Invalid, "issue", "names", "%d DNS names and %d addresses; at most %d of each are allowed",
			len(g.DNSNames), len(g.IPs), imprint.MaxNames)
	}
	for _, name := range g.DNSNames {
		if err := imprint.CheckDNSName("DNS name", name); err != nil {
			return err
		}
		if !withinDomains(name, p.Tenant.Domains) {
			return outside(name, p.Tenant.Name)
		}
		if slices.Contains(p.Endpoints, name) {
			return reserved(name)
		}
	}
	for _, addr := range g.IPs {
		if !addr.IsValid() || addr.Zone() != "" || addr.Is4In6() {
			return imprint.Errorf(imprint.Invalid, "issue", "address", "%q cannot be in a certificate", addr)
		}
		if !slices.ContainsFunc(p.Tenant.Networks, func(n netip.Prefix) bool { return n.Contains(addr) }) {
			return outside(addr.String(), p.Tenant.Name)
		}
		if slices.Contains(p.Endpoints, addr.String()) {
			return reserved(addr.String())
		}
	}
	return nil
}

func outside(name string, tenant imprint.TenantName) error {
	return imprint.Errorf(imprint.Denied, "issue", name, "outside the names that tenant %s may certify", tenant).
		WithHint("add its domain or network to the tenant and reissue the tenant's issuing CA")
}

func reserved(name string) error {
	return imprint.Errorf(imprint.Denied, "issue", name, "belongs to the check-in endpoint").
		WithHint("give the machine another name: with this one it could pose as the server")
}
