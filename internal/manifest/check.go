package manifest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/crypto/ssh"

	"imprint"
)

// Bounds that are not the root package's.
const (
	MinLifetime     = 10 * time.Minute
	MaxLifetime     = 366 * 24 * time.Hour
	MinBootWindow   = time.Minute
	MaxBootWindow   = 30 * 24 * time.Hour
	maxEthernets    = 32
	maxInterfaceLen = 15 // Linux's IFNAMSIZ less its final zero
	minMTU, maxMTU  = 68, 65535
)

// Check judges a spec whatever it was read from; absent fields are taken to get
// their defaults later. It fails with kind [imprint.Invalid] and a [Problems]
// without lines in its chain. It does not know the tenant's constraint.
func Check(s *imprint.Spec) error {
	problems := check(s, nil)
	if len(problems) == 0 {
		return nil
	}
	if len(problems) > MaxProblems {
		problems = problems[:MaxProblems]
	}
	return &imprint.Error{Kind: imprint.Invalid, Op: "check", Operand: "spec", Err: Problems(problems)}
}

// checker collects problems of one spec.
type checker struct{ problems []Problem }

func (c *checker) fault(field, format string, args ...any) {
	c.problems = append(c.problems, Problem{Field: field, Message: fmt.Sprintf(format, args...)})
}

// refuse reports err, the root package's verdict on field.
func (c *checker) refuse(field string, err error) {
	if err != nil {
		c.fault(field, "%s", verdict(err))
	}
}

// verdict returns what the root package says of a field, and its hint.
func verdict(err error) string {
	var e *imprint.Error
	switch {
	case !errors.As(err, &e):
		return err.Error()
	case e.Hint != "":
		return fmt.Sprintf("%s; %s", e.Err, e.Hint)
	}
	return e.Err.Error()
}

// check judges s together with the values of its private and secret
// parameters, where those are known.
func check(s *imprint.Spec, values map[string]imprint.Secret) []Problem {
	c := &checker{}
	c.names(s)
	c.keys("sshKeys", s.SSHKeys)
	c.users(s, values)
	c.texts(s)
	c.policy(&s.Policy)
	if s.Network != nil {
		c.network(s.Network)
	}
	c.channels(s.Channels)
	c.pipes(s.Pipes)
	c.params(s, values)
	c.installed(s)
	slices.SortStableFunc(c.problems, func(a, b Problem) int { return cmp.Compare(a.Field, b.Field) })
	return c.problems
}

func (c *checker) names(s *imprint.Spec) {
	if s.Name == "" {
		c.fault("name", "is missing")
	} else {
		c.refuse("name", imprint.CheckLabel("name", string(s.Name)))
	}
	if imprint.ValidID(string(s.Name)) {
		c.fault("name", "has the form of an identifier, with which it could be mixed up")
	}
	if s.Tenant != "" {
		c.refuse("tenant", imprint.CheckLabel("tenant", string(s.Tenant)))
	}
	if s.Host != "" {
		c.refuse("host", imprint.CheckDNSName("host", string(s.Host)))
	}
	c.count("dnsNames", len(s.DNSNames), imprint.MaxNames)
	for i, name := range s.DNSNames {
		field := fmt.Sprintf("dnsNames[%d]", i)
		c.refuse(field, imprint.CheckDNSName("name", name))
		if slices.Contains(s.DNSNames[:i], name) {
			c.fault(field, "%q is there twice", name)
		}
	}
	c.count("ips", len(s.IPs), imprint.MaxNames)
	for i, ip := range s.IPs {
		field := fmt.Sprintf("ips[%d]", i)
		switch {
		case !ip.IsValid(), ip.Zone() != "":
			c.fault(field, "is not an IP address")
		case ip.Is4In6():
			c.fault(field, "is an IPv4 address in IPv6 form; write %s", ip.Unmap())
		case ip.IsUnspecified(), ip.IsMulticast():
			c.fault(field, "%s is not the address of a machine", ip)
		case slices.Contains(s.IPs[:i], ip):
			c.fault(field, "%s is there twice", ip)
		}
	}
}

func (c *checker) count(field string, n, limit int) {
	if n > limit {
		c.fault(field, "has %d elements; %d are allowed", n, limit)
	}
}

func (c *checker) keys(list string, keys []string) {
	c.count(list, len(keys), imprint.MaxSSHKeys)
	for i, line := range keys {
		field := fmt.Sprintf("%s[%d]", list, i)
		if len(line) > imprint.MaxSSHKeyLen {
			c.fault(field, "has %d bytes; %d are allowed", len(line), imprint.MaxSSHKeyLen)
			continue
		}
		_, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(line))
		switch {
		case strings.Contains(line, "PRIVATE KEY"):
			c.fault(field, "is a private key; give the public one, the line in the .pub file")
		case err != nil:
			c.fault(field, "is not an SSH public key; it is one line of an authorized_keys or .pub file")
		case len(rest) > 0 || strings.ContainsAny(strings.TrimSpace(line), "\r\n"):
			c.fault(field, "has more than one line; give each key its own element")
		}
	}
}

func (c *checker) texts(s *imprint.Spec) {
	for field, text := range map[string]string{"userData": s.UserData, "vendorData": s.VendorData} {
		if len(text) > imprint.MaxUserData {
			c.fault(field, "has %d bytes; %d are allowed", len(text), imprint.MaxUserData)
		} else if fault := travelFault(imprint.Public, len(text), s.Channels); fault != "" {
			c.fault(field, "%s", fault)
		}
	}
	c.count("metadata", len(s.Metadata), imprint.MaxMetadata)
	for key, value := range s.Metadata {
		field := "metadata." + key
		if fault := nameFault(key); fault != "" {
			c.fault(field, "%s", fault)
		}
		if len(value) > imprint.MaxMetadataLen {
			c.fault(field, "has %d bytes; %d are allowed", len(value), imprint.MaxMetadataLen)
		}
	}
}

func (c *checker) policy(p *imprint.Policy) {
	if p.Profile != "" {
		c.refuse("enrolment.profile", imprint.CheckLabel("profile", p.Profile))
	}
	if d := time.Duration(p.Lifetime); d != 0 && (d < MinLifetime || d > MaxLifetime) {
		c.fault("enrolment.lifetime", "is %s; it lies between %s and %s", p.Lifetime, MinLifetime, imprint.Duration(MaxLifetime))
	}
	if p.Window < 0 {
		c.fault("enrolment.window", "is negative")
	}
	if d := time.Duration(p.BootWindow); d != 0 && (d < MinBootWindow || d > MaxBootWindow) {
		c.fault("enrolment.bootWindow", "is %s; it lies between %s and %s", p.BootWindow, MinBootWindow, imprint.Duration(MaxBootWindow))
	}
}

func (c *checker) channels(channels []imprint.ChannelKind) {
	for i, kind := range channels {
		field := fmt.Sprintf("channels[%d]", i)
		if _, ok := imprint.ChannelOf(kind); !ok {
			var known []string
			for _, ch := range imprint.Channels() {
				known = append(known, string(ch.Kind))
			}
			c.fault(field, "%q is not a channel; there are %s", kind, listed(known, "and"))
		}
		if slices.Contains(channels[:i], kind) {
			c.fault(field, "%q is there twice", kind)
		}
	}
}

func (c *checker) pipes(pipes []string) {
	c.count("pipes", len(pipes), imprint.MaxPipes)
	for i, name := range pipes {
		field := fmt.Sprintf("pipes[%d]", i)
		c.refuse(field, imprint.CheckLabel("pipe", name))
		switch {
		case name == imprint.DefaultPipe:
			c.fault(field, "%q is always there; list the others", name)
		case slices.Contains(pipes[:i], name):
			c.fault(field, "%q is there twice", name)
		}
	}
}

func (c *checker) params(s *imprint.Spec, values map[string]imprint.Secret) {
	c.count("params", len(s.Params), imprint.MaxParams)
	seen := map[string]bool{}
	for _, p := range s.Params {
		field := fmt.Sprintf("params.%s.%s", p.Visibility, p.Name)
		if fault := nameFault(p.Name); fault != "" {
			c.fault(field, "%s", fault)
		}
		if seen[p.Name] {
			c.fault(field, "is there twice")
		}
		seen[p.Name] = true
		size := len(p.Value)
		switch {
		case p.Visibility.Audience() == 0:
			c.fault(field, "has the visibility %q; there are public, private and secret", p.Visibility)
			continue
		case p.Visibility != imprint.Public && p.Value != "":
			c.fault(field, "has its value in the spec, where only public ones belong")
		case p.Visibility != imprint.Public:
			size = len(values[p.Name].Reveal())
		}
		if size > imprint.MaxParamLen {
			c.fault(field, "has %d bytes; %d are allowed", size, imprint.MaxParamLen)
			continue
		}
		if fault := travelFault(p.Visibility, size, s.Channels); fault != "" {
			c.fault(field, "%s", fault)
		}
	}
}

// installed judges what the machine is installed from.
func (c *checker) installed(s *imprint.Spec) {
	credentials := func(field, name string) {
		i := slices.IndexFunc(s.Params, func(p imprint.Param) bool { return p.Name == name })
		switch {
		case name == "":
		case i < 0:
			c.fault(field, "names the parameter %q, which the instance does not have", name)
		case s.Params[i].Visibility == imprint.Public:
			c.fault(field, "names the parameter %q, which is public; make it private or secret", name)
		}
	}
	if s.Image != nil {
		c.refuseAt("image", s.Image.Check())
		credentials("image.credentials", s.Image.Credentials)
	}
	c.count("personalization", len(s.Personalization), imprint.MaxPackages)
	for i, p := range s.Personalization {
		field := fmt.Sprintf("personalization[%d]", i)
		c.refuseAt(field, p.Check(field))
		credentials(field+".credentials", p.Credentials)
	}
	if s.OS != nil {
		c.refuse("os", s.OS.Check())
	}
}

// refuseAt reports err, the root package's verdict, on the field that it names.
func (c *checker) refuseAt(field string, err error) {
	if e := (*imprint.Error)(nil); errors.As(err, &e) {
		field = cmp.Or(e.Operand, field)
	}
	c.refuse(field, err)
}

// travelFault says why no channel may carry a value of visibility v and size
// bytes to the machine, or "". It asks the audience rule for each channel: in
// the clear, or sealed to the enrolled key where the machine can enrol.
func travelFault(v imprint.Visibility, size int, channels []imprint.ChannelKind) string {
	var names []string
	capacity, allowed := 0, len(channels) == 0
	for _, kind := range channels {
		ch, ok := imprint.ChannelOf(kind)
		if !ok {
			return "" // reported already
		}
		names = append(names, string(kind))
		if !imprint.MayTravel(v, ch.Readers) && !(ch.Enrols() && imprint.MayTravel(v, imprint.KeyHolder)) {
			continue
		}
		room := ch.Capacity
		if v != imprint.Public {
			room = ch.SealedCapacity()
		}
		if ch.Capacity == 0 || size <= room {
			return ""
		}
		allowed, capacity = true, max(capacity, room)
	}
	switch {
	case !allowed:
		return fmt.Sprintf("could not reach the machine: whoever can read the channel %s would see it; add virtio-serial or est", listed(names, "or"))
	case capacity > 0:
		return fmt.Sprintf("has %d bytes, and at most %d fit through %s; add the channel est", size, capacity, listed(names, "and"))
	}
	return ""
}

// nameFault judges the name of a parameter or a metadata entry, which becomes a
// file name and a protocol key in the guest.
func nameFault(name string) string {
	if name == "" || len(name) > imprint.MaxParamNameLen {
		return fmt.Sprintf("has a name of %d bytes; 1 to %d are allowed", len(name), imprint.MaxParamNameLen)
	}
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("._-", r)) {
			return fmt.Sprintf("has %q in its name; use letters, digits and, after the first, dots, hyphens and underscores", r)
		}
	}
	return ""
}

func (c *checker) network(n *imprint.Network) {
	c.count("network.ethernets", len(n.Ethernets), maxEthernets)
	macs := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(n.Ethernets)) {
		e := n.Ethernets[name]
		path := "network.ethernets." + name
		if name == "" || len(name) > maxInterfaceLen || strings.ContainsAny(name, "/: ") || strings.ContainsFunc(name, unicode.IsControl) {
			c.fault(path, "is not the name of an interface: 1 to %d characters without slash, colon and space", maxInterfaceLen)
		}
		if e.MAC != "" {
			hw, err := net.ParseMAC(e.MAC)
			switch other, dup := macs[hw.String()]; {
			case err != nil || len(hw) != 6:
				c.fault(path+".macaddress", "is %q, which is not a MAC address like 52:54:00:12:34:56", e.MAC)
			case dup:
				c.fault(path+".macaddress", "is that of %s too", other)
			}
			macs[hw.String()] = name
		}
		if e.MTU != 0 && (e.MTU < minMTU || e.MTU > maxMTU) {
			c.fault(path+".mtu", "is %d; it lies between %d and %d", e.MTU, minMTU, maxMTU)
		}
		for i, p := range e.Addresses {
			if !p.IsValid() || p.Addr().IsUnspecified() || p.Addr().IsMulticast() {
				c.fault(fmt.Sprintf("%s.addresses[%d]", path, i), "is not the address of a machine")
			}
		}
		for i, route := range e.Routes {
			c.route(fmt.Sprintf("%s.routes[%d]", path, i), route)
		}
		for i, a := range e.Nameservers.Addresses {
			if !a.IsValid() || a.IsUnspecified() {
				c.fault(fmt.Sprintf("%s.nameservers.addresses[%d]", path, i), "is not an IP address")
			}
		}
		for i, domain := range e.Nameservers.Search {
			c.refuse(fmt.Sprintf("%s.nameservers.search[%d]", path, i), imprint.CheckDNSName("domain", domain))
		}
	}
}

func (c *checker) route(path string, r imprint.Route) {
	if !r.Via.IsValid() {
		c.fault(path, "has no gateway; give it as via")
		return
	}
	if r.To == "default" {
		return
	}
	to, err := netip.ParsePrefix(r.To)
	switch {
	case err != nil:
		c.fault(path+".to", "is %q; a prefix like 198.51.100.0/24 or default belongs here", r.To)
	case to.Masked() != to:
		c.fault(path+".to", "has bits beyond its prefix length; write %s", to.Masked())
	case to.Addr().Is4() != r.Via.Is4():
		c.fault(path+".via", "is of another address family than %s", to)
	}
}
