package manifest

import (
	"bytes"

	"go.yaml.in/yaml/v3"

	"imprint"
)

// Marshal writes specs as manifests from which the same instances can be
// created again, though with other identifiers, because none is given twice. The
// values of private and secret parameters are not in a spec; their place is taken
// by {prompt: true}, which asks for them on the terminal.
func Marshal(specs ...imprint.Spec) ([]byte, error) {
	var buf bytes.Buffer
	enc := yaml.NewEncoder(&buf)
	enc.SetIndent(2)
	for i := range specs {
		if err := enc.Encode(documentOf(&specs[i])); err != nil {
			return nil, imprint.Errorf(imprint.Internal, "write", "manifest", "%w", err)
		}
	}
	if err := enc.Close(); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "write", "manifest", "%w", err)
	}
	return buf.Bytes(), nil
}

// document has the fields of [fieldsOf] in their order, but for the id.
type document struct {
	Name            string            `yaml:"name"`
	Tenant          string            `yaml:"tenant,omitempty"`
	Host            string            `yaml:"host,omitempty"`
	DNSNames        []string          `yaml:"dnsNames,omitempty"`
	IPs             []string          `yaml:"ips,omitempty"`
	SSHKeys         []string          `yaml:"sshKeys,omitempty"`
	Users           []user            `yaml:"users,omitempty"`
	Network         *network          `yaml:"network,omitempty"`
	Metadata        map[string]string `yaml:"metadata,omitempty"`
	UserData        string            `yaml:"userData,omitempty"`
	VendorData      string            `yaml:"vendorData,omitempty"`
	Params          *params           `yaml:"params,omitempty"`
	Channels        []string          `yaml:"channels,omitempty"`
	Pipes           []string          `yaml:"pipes,omitempty"`
	IMDSv2Only      bool              `yaml:"imdsv2Only,omitempty"`
	Enrolment       *policy           `yaml:"enrolment,omitempty"`
	Image           *image            `yaml:"image,omitempty"`
	Personalization []pack            `yaml:"personalization,omitempty"`
	OS              string            `yaml:"os,omitempty"`
}

type image struct {
	Source      string `yaml:"source"`
	Format      string `yaml:"format,omitempty"`
	Sum         string `yaml:"sum,omitempty"`
	Sums        string `yaml:"sums,omitempty"`
	Signature   string `yaml:"signature,omitempty"`
	Key         string `yaml:"key,omitempty"`
	CA          string `yaml:"ca,omitempty"`
	Credentials string `yaml:"credentials,omitempty"`
}

type pack struct {
	Source      string `yaml:"source"`
	Sum         string `yaml:"sum,omitempty"`
	CA          string `yaml:"ca,omitempty"`
	Credentials string `yaml:"credentials,omitempty"`
	Devices     bool   `yaml:"devices,omitempty"`
}

type user struct {
	Name           string   `yaml:"name"`
	Gecos          string   `yaml:"gecos,omitempty"`
	UID            int      `yaml:"uid,omitempty"`
	Groups         []string `yaml:"groups,omitempty"`
	Shell          string   `yaml:"shell,omitempty"`
	Admin          bool     `yaml:"admin,omitempty"`
	SSHKeys        []string `yaml:"sshKeys,omitempty"`
	HashedPassword string   `yaml:"hashedPassword,omitempty"`
}

type network struct {
	Ethernets map[string]ethernet `yaml:"ethernets,omitempty"`
}

type ethernet struct {
	MAC         string       `yaml:"macaddress,omitempty"`
	Addresses   []string     `yaml:"addresses,omitempty"`
	DHCP4       bool         `yaml:"dhcp4,omitempty"`
	DHCP6       bool         `yaml:"dhcp6,omitempty"`
	MTU         int          `yaml:"mtu,omitempty"`
	Routes      []route      `yaml:"routes,omitempty"`
	Nameservers *nameservers `yaml:"nameservers,omitempty"`
}

type route struct {
	To  string `yaml:"to"`
	Via string `yaml:"via"`
}

type nameservers struct {
	Addresses []string `yaml:"addresses,omitempty"`
	Search    []string `yaml:"search,omitempty"`
}

type params struct {
	Public  map[string]string `yaml:"public,omitempty"`
	Private map[string]asked  `yaml:"private,omitempty"`
	Secret  map[string]asked  `yaml:"secret,omitempty"`
}

// asked is a value that is not in the manifest.
type asked struct {
	Prompt bool `yaml:"prompt"`
}

type policy struct {
	Profile    string `yaml:"profile,omitempty"`
	Lifetime   string `yaml:"lifetime,omitempty"`
	Approval   bool   `yaml:"approval,omitempty"`
	Window     string `yaml:"window,omitempty"`
	BootWindow string `yaml:"bootWindow,omitempty"`
}

func documentOf(s *imprint.Spec) document {
	d := document{
		Name: string(s.Name), Tenant: string(s.Tenant), Host: string(s.Host),
		DNSNames: s.DNSNames, IPs: words(s.IPs), SSHKeys: s.SSHKeys, Users: usersOf(s.Users),
		Network: networkOf(s.Network), Metadata: s.Metadata, UserData: s.UserData, VendorData: s.VendorData,
		Params: paramsOf(s.Params), Channels: texts(s.Channels), Pipes: s.Pipes, IMDSv2Only: s.IMDSv2Only, Enrolment: policyOf(s.Policy),
	}
	if s.Image != nil {
		d.Image = new(image(*s.Image))
	}
	for _, p := range s.Personalization {
		d.Personalization = append(d.Personalization, pack(p))
	}
	if s.OS != nil {
		d.OS = s.OS.String()
	}
	return d
}

func usersOf(users []imprint.User) []user {
	var out []user
	for _, u := range users {
		out = append(out, user(u))
	}
	return out
}

func networkOf(n *imprint.Network) *network {
	if n == nil {
		return nil
	}
	out := &network{Ethernets: map[string]ethernet{}}
	for name, e := range n.Ethernets {
		eth := ethernet{MAC: e.MAC, Addresses: words(e.Addresses), DHCP4: e.DHCP4, DHCP6: e.DHCP6, MTU: e.MTU}
		for _, r := range e.Routes {
			eth.Routes = append(eth.Routes, route{To: r.To, Via: r.Via.String()})
		}
		if ns := e.Nameservers; len(ns.Addresses)+len(ns.Search) > 0 {
			eth.Nameservers = &nameservers{Addresses: words(ns.Addresses), Search: ns.Search}
		}
		out.Ethernets[name] = eth
	}
	return out
}

func paramsOf(ps []imprint.Param) *params {
	if len(ps) == 0 {
		return nil
	}
	out := &params{Public: map[string]string{}, Private: map[string]asked{}, Secret: map[string]asked{}}
	for _, p := range ps {
		switch p.Visibility {
		case imprint.Public:
			out.Public[p.Name] = p.Value
		case imprint.Private:
			out.Private[p.Name] = asked{Prompt: true}
		case imprint.SecretOnly:
			out.Secret[p.Name] = asked{Prompt: true}
		}
	}
	return out
}

func policyOf(p imprint.Policy) *policy {
	if p == (imprint.Policy{}) {
		return nil
	}
	out := &policy{Profile: p.Profile, Approval: p.Approval}
	if p.Lifetime != 0 {
		out.Lifetime = p.Lifetime.String()
	}
	if p.Window != 0 {
		out.Window = p.Window.String()
	}
	if p.BootWindow != 0 {
		out.BootWindow = p.BootWindow.String()
	}
	return out
}

// words writes each value as its String method does.
func words[T interface{ String() string }](values []T) []string {
	var out []string
	for _, v := range values {
		out = append(out, v.String())
	}
	return out
}

func texts[T ~string](values []T) []string {
	var out []string
	for _, v := range values {
		out = append(out, string(v))
	}
	return out
}
