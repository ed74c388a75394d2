package imprint

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Limits on a spec.
const (
	MaxNames        = 32       // DNS names, and separately IP addresses, in one certificate
	MaxSSHKeys      = 32       // keys
	MaxSSHKeyLen    = 8 << 10  // bytes of one authorized_keys line
	MaxUsers        = 32       // users
	MaxUsersLen     = 8 << 10  // bytes of all users, with their hashes; so that they fit a serial frame
	MaxMetadata     = 128      // entries
	MaxMetadataLen  = 4 << 10  // bytes of one value
	MaxUserData     = 64 << 10 // bytes of user data, and separately of vendor data
	MaxParams       = 128      // parameters
	MaxParamLen     = 64 << 10 // bytes of one parameter's value
	MaxParamNameLen = 128      // bytes of one parameter's name
	MaxPipes        = 8        // pipes, besides the default one
	MaxMessage      = 8 << 10  // bytes of one message in a pipe; so that it fits a serial frame both ways
)

// DefaultPipe is the pipe that every instance has.
const DefaultPipe = "default"

// Tenant owns instances and names.
type Tenant struct {
	Name TenantName `json:"name"`
	// Domains are the DNS suffixes and Networks the address ranges that the
	// tenant's certificates may name; the issuing CA is constrained to them.
	Domains  []string       `json:"domains"`
	Networks []netip.Prefix `json:"networks,omitempty"`
	// CheckIn is the host name under which the check-in endpoint serves this tenant.
	CheckIn string `json:"checkIn,omitempty"`
}

// Instance is one machine.
type Instance struct {
	ID         InstanceID `json:"id"`
	Spec       Spec       `json:"spec"`
	Generation Generation `json:"generation"`
	Enrolment  Enrolment  `json:"enrolment"`
	// NIC is the instance's interface on its host's link-local network, once the
	// host has chosen it.
	NIC *NIC `json:"nic,omitempty"`
	// Media are those that the server gave out, of all generations, oldest first;
	// MediaForgotten counts those that it no longer remembers and that nobody
	// reported to be taken away.
	Media          []Medium `json:"media,omitempty"`
	MediaForgotten int      `json:"mediaForgotten,omitempty"`
	// Installation is the latest that was reported of one; nil is none.
	Installation *Installation `json:"installation,omitempty"`
	// InstallSetup is what the machine has for its next installation only, until that
	// succeeded; nil is nothing.
	InstallSetup *InstallSetup `json:"installSetup,omitempty"`
	Created      time.Time     `json:"created"`
	Updated      time.Time     `json:"updated"`
	// Events counts the events ever recorded for this instance.
	Events uint64 `json:"events"`
	// Reported is the ID of the last [Report] that went on record, of those that
	// have one: the same report sent again is known by it.
	Reported string `json:"reported,omitempty"`
	// Revision is the store's revision of this record, for compare-and-swap; it
	// is not part of the record itself.
	Revision int64 `json:"-"`
}

// Clone returns a copy that shares no memory with i.
func (i *Instance) Clone() *Instance {
	c := *i
	s, e := &c.Spec, &c.Enrolment
	s.DNSNames, s.IPs, s.SSHKeys = slices.Clone(s.DNSNames), slices.Clone(s.IPs), slices.Clone(s.SSHKeys)
	s.Params, s.Channels, s.Metadata, s.Pipes = slices.Clone(s.Params), slices.Clone(s.Channels), maps.Clone(s.Metadata), slices.Clone(s.Pipes)
	s.Users = cloneUsers(s.Users)
	if s.Network != nil {
		s.Network = &Network{maps.Clone(s.Network.Ethernets)}
		for name, n := range s.Network.Ethernets {
			n.Addresses, n.Routes = slices.Clone(n.Addresses), slices.Clone(n.Routes)
			n.Nameservers.Addresses, n.Nameservers.Search = slices.Clone(n.Nameservers.Addresses), slices.Clone(n.Nameservers.Search)
			s.Network.Ethernets[name] = n
		}
	}
	if s.Image != nil {
		s.Image = new(*s.Image)
	}
	s.Personalization = slices.Clone(s.Personalization)
	if s.OS != nil {
		s.OS = new(*s.OS)
	}
	if c.NIC != nil {
		c.NIC = new(*c.NIC)
	}
	if c.Installation != nil {
		c.Installation = new(*c.Installation)
	}
	if c.InstallSetup != nil {
		c.InstallSetup = c.InstallSetup.clone()
	}
	if e.Delivery != nil {
		e.Delivery = new(*e.Delivery)
	}
	if e.Claim != nil {
		e.Claim = new(*e.Claim)
		e.Claim.PublicKey = slices.Clone(e.Claim.PublicKey)
	}
	if e.Certificate != nil {
		e.Certificate = new(*e.Certificate)
		e.Certificate.DER = slices.Clone(e.Certificate.DER)
	}
	e.Earlier, e.Password = slices.Clone(e.Earlier), slices.Clone(e.Password)
	c.Media = slices.Clone(c.Media)
	return &c
}

// Ref names the instance for people: "name", or "tenant/name" outside the default tenant.
func (i *Instance) Ref() string {
	if i.Spec.Tenant == DefaultTenant {
		return string(i.Spec.Name)
	}
	return string(i.Spec.Tenant) + "/" + string(i.Spec.Name)
}

// Spec is what the operator declares about an instance.
type Spec struct {
	Name       InstanceName      `json:"name"`
	Tenant     TenantName        `json:"tenant"`
	Host       HostName          `json:"host,omitempty"`
	DNSNames   []string          `json:"dnsNames,omitempty"`
	IPs        []netip.Addr      `json:"ips,omitempty"`
	SSHKeys    []string          `json:"sshKeys,omitempty"`
	Users      []User            `json:"users,omitempty"`
	Network    *Network          `json:"network,omitempty"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	UserData   string            `json:"userData,omitempty"`
	VendorData string            `json:"vendorData,omitempty"`
	Params     []Param           `json:"params,omitempty"`
	Channels   []ChannelKind     `json:"channels,omitempty"`
	// Pipes are the message pipes between operator and guest that the instance has
	// besides [DefaultPipe].
	Pipes  []string `json:"pipes,omitempty"`
	Policy Policy   `json:"policy"`
	// IMDSv2Only refuses EC2 metadata to requests without a session token. Stock
	// software sends none unless the machine looks like one of Amazon's.
	IMDSv2Only bool `json:"imdsv2Only,omitempty"`
	// Image is what the disk is written from, Personalization what is then unpacked
	// onto it, in this order, and OS the definition whose scripts run after that.
	Image           *Image    `json:"image,omitempty"`
	Personalization []Package `json:"personalization,omitempty"`
	OS              *OS       `json:"os,omitempty"`
}

// NIC is an interface on the link-local network of a host. No other instance of
// the host has its address or its MAC.
type NIC struct {
	Host HostName   `json:"host"` // that chose it
	MAC  string     `json:"mac"`  // as net.HardwareAddr writes it
	IPv4 netip.Addr `json:"ipv4"` // in 169.254.0.0/16
}

// Param is a named value. Only a public one carries its value here; private
// values are kept sealed beside the record and secret ones in memory only.
type Param struct {
	Name       string     `json:"name"`
	Visibility Visibility `json:"visibility"`
	Value      string     `json:"value,omitempty"` // public only
}

// Policy says how an instance may enrol.
type Policy struct {
	// Profile names the certificate profile; "" is "machine".
	Profile string `json:"profile,omitempty"`
	// Lifetime of a certificate; 0 is the profile's default.
	Lifetime Duration `json:"lifetime,omitempty"`
	// Approval asks for an operator's consent before the first certificate.
	Approval bool `json:"approval,omitempty"`
	// Window is how long after its reservation a generation may be claimed; 0 is no limit.
	Window Duration `json:"window,omitempty"`
	// BootWindow is how long after the first read over a link-local network user
	// data is served to stock software; 0 is the server's default. A phone-home and
	// an enrolled key end it sooner.
	BootWindow Duration `json:"bootWindow,omitempty"`
}

// Network is the subset of netplan's version 2 that imprint renders for every
// guest: ethernets with addresses, routes, name servers and DHCP.
type Network struct {
	Ethernets map[string]Ethernet `json:"ethernets,omitempty"`
}

// Ethernet configures one interface, found by MAC address if given, else by its name.
type Ethernet struct {
	MAC         string         `json:"macaddress,omitempty"`
	Addresses   []netip.Prefix `json:"addresses,omitempty"`
	DHCP4       bool           `json:"dhcp4,omitempty"`
	DHCP6       bool           `json:"dhcp6,omitempty"`
	MTU         int            `json:"mtu,omitempty"`
	Routes      []Route        `json:"routes,omitempty"`
	Nameservers Nameservers    `json:"nameservers,omitzero"`
}

// Route is one static route; To is a prefix or "default".
type Route struct {
	To  string     `json:"to"`
	Via netip.Addr `json:"via"`
}

// Nameservers lists resolvers and search domains.
type Nameservers struct {
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Search    []string     `json:"search,omitempty"`
}
