package manifest

import (
	"net/netip"
	"net/url"
	"strings"

	"go.yaml.in/yaml/v3"

	"imprint"
)

// maxListed bounds lists whose limit is a matter of what they configure.
const maxListed = 64

// fieldsOf is the table of a manifest's fields, bound to m.
func fieldsOf(m *Manifest) []field {
	s := &m.Spec
	var userBy, vendorBy string // which field gave the data
	return []field{
		{name: "name", typ: "DNS label", doc: "The instance's name, unique within its tenant. The only field that is always needed.", read: textInto(&s.Name)},
		{name: "id", typ: "UUID", doc: "The instance's identifier, where the machine has one already, such as a server of Nova's; drawn at random if absent. It stays taken when the instance is deleted.", read: idInto(&m.ID)},
		{name: "tenant", typ: "DNS label", doc: "Who owns the instance and its names; `default` if absent.", read: textInto(&s.Tenant)},
		{name: "host", typ: "DNS name", doc: "The machine whose host role serves the instance; the server's own if absent.", read: textInto(&s.Host)},
		{name: "dnsNames", typ: "list of DNS names", doc: "Names for the certificate; they lie within the tenant's domains.",
			read: listInto(&s.DNSNames, imprint.MaxNames, parseText)},
		{name: "ips", typ: "list of IP addresses", doc: "Addresses for the certificate; they lie within the tenant's networks.",
			read: listInto(&s.IPs, imprint.MaxNames, parseAddr)},
		{name: "sshKeys", typ: "list of authorized_keys lines", doc: "Public keys that may log in to the machine, as root or as the user of the image's own.",
			read: listInto(&s.SSHKeys, imprint.MaxSSHKeys, parseText)},
		{name: "users", typ: "list of users", doc: "Accounts that the machine gets, besides those of its image; `docs/howto/users.md` says what makes them.",
			read: usersInto(&s.Users), inner: userFields(&imprint.User{})},
		{name: "network", typ: "mapping", doc: "Network configuration: a subset of netplan's version 2.",
			read: networkInto(&s.Network), inner: networkFields(&imprint.Network{})},
		{name: "metadata", typ: "mapping of names to text", doc: "Public facts for the guest's software.", read: metadataInto(&s.Metadata)},
		{name: "userData", typ: "text", doc: "User data as the guest's software expects it, for example a cloud-config.",
			read: dataInto(&s.UserData, &userBy, false)},
		{name: "userDataFile", typ: "path", doc: "Read the user data from this file, relative to the manifest.",
			read: dataInto(&s.UserData, &userBy, true)},
		{name: "vendorData", typ: "text", doc: "Vendor data, which the guest's software merges below the user data.",
			read: dataInto(&s.VendorData, &vendorBy, false)},
		{name: "vendorDataFile", typ: "path", doc: "Read the vendor data from this file, relative to the manifest.",
			read: dataInto(&s.VendorData, &vendorBy, true)},
		{name: "params", typ: "mapping", doc: "Parameters for the machine, by who may read them.",
			read: nested(paramFields(m)), inner: paramFields(m)},
		{name: "channels", typ: "list of channels", doc: "The ways between host and guest, of virtio-serial, serial, nic, neutron, est and file; virtio-serial and serial if absent.",
			read: listInto(&s.Channels, maxListed, parseText)},
		{name: "pipes", typ: "list of DNS labels", doc: "Message pipes between operator and machine, besides `default`, which is always there; at most 8.",
			read: listInto(&s.Pipes, imprint.MaxPipes, parseText)},
		{name: "imdsv2Only", typ: "true or false", doc: "Whether EC2 metadata over the link-local network needs a session token (IMDSv2). Stock software sends none unless the machine looks like one of Amazon's.",
			read: boolInto(&s.IMDSv2Only)},
		{name: "enrolment", typ: "mapping", doc: "How the machine may enrol.",
			read: nested(policyFields(&s.Policy)), inner: policyFields(&s.Policy)},
		{name: "image", typ: "mapping", doc: "The image from which the machine's disk is written.",
			read: func(r *reader, n *yaml.Node, path string) {
				s.Image = &imprint.Image{}
				r.mapping(n, path, imageFields(s.Image))
			}, inner: imageFields(&imprint.Image{})},
		{name: "personalization", typ: "list of packages", doc: "Archives with the shape of the file system, unpacked onto the installed machine's root in this order.",
			read: func(r *reader, n *yaml.Node, path string) {
				r.list(n, path, imprint.MaxPackages, func(n *yaml.Node, path string) {
					var p imprint.Package
					r.mapping(n, path, packageFields(&p))
					s.Personalization = append(s.Personalization, p)
				})
			}, inner: packageFields(&imprint.Package{})},
		{name: "os", typ: "name, or name+variant", doc: "The OS definition whose scripts complete the installation, such as `debootstrap+default`; `imprint os list` shows them.",
			read: func(r *reader, n *yaml.Node, path string) {
				text, ok := r.text(n, path)
				if !ok {
					return
				}
				os, err := imprint.ParseOS(text)
				if err != nil {
					r.problem(n, path, "%s", verdict(err))
					return
				}
				s.OS = &os
			}},
	}
}

func imageFields(m *imprint.Image) []field {
	var keyBy, caBy string // which field gave them
	return []field{
		{name: "source", typ: "URL or absolute path", doc: "Where it is: `https:`, `http:` with a sum or a signature, or a file on the host that installs.", read: sourceInto(&m.Source)},
		{name: "format", typ: "raw, qcow2 or vmdk", doc: "Its format, if it must be this one; the content tells otherwise. Compression around a raw image is recognized by the content.", read: textInto(&m.Format)},
		{name: "sum", typ: "`sha256:` or `sha512:` and digits", doc: "The sum of the file as it is fetched.", read: textInto(&m.Sum)},
		{name: "sums", typ: "URL or absolute path", doc: "A list of sums such as `SHA256SUMS`, which names the file.", read: sourceInto(&m.Sums)},
		{name: "signature", typ: "URL or absolute path", doc: "A detached OpenPGP or minisign signature of the list, or of the image if there is no list.", read: sourceInto(&m.Signature)},
		{name: "key", typ: "text", doc: "The only public key whose signature counts: OpenPGP in ASCII armour, or minisign's.", read: dataInto(&m.Key, &keyBy, false)},
		{name: "keyFile", typ: "path", doc: "Read that key from this file, relative to the manifest.", read: dataInto(&m.Key, &keyBy, true)},
		{name: "ca", typ: "text", doc: "Certificates in PEM by which an https source is checked, in the place of the system's.", read: dataInto(&m.CA, &caBy, false)},
		{name: "caFile", typ: "path", doc: "Read those certificates from this file, relative to the manifest.", read: dataInto(&m.CA, &caBy, true)},
		{name: "credentials", typ: "name of a parameter", doc: "The private or secret parameter that holds `user:password` for HTTP basic authentication.", read: textInto(&m.Credentials)},
	}
}

func packageFields(p *imprint.Package) []field {
	var caBy string
	return []field{
		{name: "source", typ: "URL or absolute path", doc: "Where the archive is: `.tar`, `.tar.gz`, `.tar.zst` or `.tar.xz`, over `https:`, over `http:` with a sum, or a file on the host that installs.", read: sourceInto(&p.Source)},
		{name: "sum", typ: "`sha256:` or `sha512:` and digits", doc: "The sum of the file as it is fetched.", read: textInto(&p.Sum)},
		{name: "ca", typ: "text", doc: "As for the image.", read: dataInto(&p.CA, &caBy, false)},
		{name: "caFile", typ: "path", doc: "As for the image.", read: dataInto(&p.CA, &caBy, true)},
		{name: "credentials", typ: "name of a parameter", doc: "As for the image.", read: textInto(&p.Credentials)},
		{name: "devices", typ: "true or false", doc: "Whether it may hold device nodes.", read: boolInto(&p.Devices)},
	}
}

// sourceInto reads a URL; an absolute path stands for that of its file.
func sourceInto(to *string) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) {
		if s, ok := r.text(n, path); ok {
			if strings.HasPrefix(s, "/") {
				s = (&url.URL{Scheme: "file", Path: s}).String()
			}
			*to = s
		}
	}
}

func idInto(to *imprint.InstanceID) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) {
		s, ok := r.text(n, path)
		if !ok {
			return
		}
		if err := imprint.CheckID(path, s); err != nil {
			r.problem(n, path, "%s", verdict(err))
			return
		}
		*to = imprint.InstanceID(s)
	}
}

func policyFields(p *imprint.Policy) []field {
	return []field{
		{name: "profile", typ: "DNS label", doc: "The certificate profile; `machine` if absent.", read: textInto(&p.Profile)},
		{name: "lifetime", typ: "duration", doc: "How long a certificate is valid; the profile's default if absent.", read: durationInto(&p.Lifetime)},
		{name: "approval", typ: "true or false", doc: "Whether an operator has to consent before the first certificate.", read: boolInto(&p.Approval)},
		{name: "window", typ: "duration", doc: "How long after the reservation the machine may claim its identity; for ever if absent.", read: durationInto(&p.Window)},
		{name: "bootWindow", typ: "duration", doc: "How long after the first read over the channels nic and neutron stock software may read user data, from 1m to 30d; the server's `bootWindow` if absent. A phone-home and an enrolled key end it sooner.", read: durationInto(&p.BootWindow)},
	}
}

func paramFields(m *Manifest) []field {
	sealed := func(v imprint.Visibility) func(*reader, *yaml.Node, string) {
		return func(r *reader, n *yaml.Node, path string) {
			r.entries(n, path, func(name string, k, n *yaml.Node) {
				path := join(path, name)
				if !r.paramAllowed(k, m, name, path) {
					return
				}
				if value, ok := r.value(n, path, name); ok {
					m.Spec.Params = append(m.Spec.Params, imprint.Param{Name: name, Visibility: v})
					if m.Values == nil {
						m.Values = map[string]imprint.Secret{}
					}
					m.Values[name] = value
				}
			})
		}
	}
	return []field{
		{name: "public", typ: "mapping of names to values", doc: "Values that any process in the guest may read; they are stored, shown and logged. Written like private ones.",
			read: func(r *reader, n *yaml.Node, path string) {
				r.entries(n, path, func(name string, k, n *yaml.Node) {
					path := join(path, name)
					if !r.paramAllowed(k, m, name, path) {
						return
					}
					if value, ok := r.value(n, path, name); ok {
						m.Spec.Params = append(m.Spec.Params, imprint.Param{Name: name, Visibility: imprint.Public, Value: string(value.Reveal())})
					}
				})
			}},
		{name: "private", typ: "mapping of names to values", doc: "Values that root in the guest may read; they are stored sealed and never shown. A value is text, or says where it is:",
			read: sealed(imprint.Private), inner: []field{{name: "NAME", inner: sourceFields(&source{})}}},
		{name: "secret", typ: "mapping of names to values", doc: "Values that only the holder of the enrolled key may read; they are never written to a disk. Written like private ones.",
			read: sealed(imprint.SecretOnly)},
	}
}

// paramAllowed bounds the number of parameters before any value is fetched and
// reports a name that another visibility has already.
func (r *reader) paramAllowed(k *yaml.Node, m *Manifest, name, path string) bool {
	if len(m.Spec.Params) == imprint.MaxParams {
		r.problem(k, path, "is one parameter too many; %d are allowed", imprint.MaxParams)
		return false
	}
	for _, p := range m.Spec.Params {
		if p.Name == name {
			r.problem(k, path, "has the name of a %s parameter", p.Visibility)
			return false
		}
	}
	return true
}

func nested(fields []field) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) { r.mapping(n, path, fields) }
}

func metadataInto(to *map[string]string) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) {
		*to = map[string]string{}
		r.entries(n, path, func(key string, _, v *yaml.Node) {
			if s, ok := r.text(v, join(path, key)); ok {
				(*to)[key] = s
			}
		})
	}
}

// dataInto reads user or vendor data, from the text itself or from a file. by
// remembers which field gave it first.
func dataInto(to, by *string, isPath bool) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) {
		s, ok := r.text(n, path)
		if !ok {
			return
		}
		if *by != "" {
			r.problem(n, path, "is given beside %s; only one of them may be", *by)
			return
		}
		*by = path
		if isPath {
			b, err := r.src.file(s, imprint.MaxUserData)
			if err != nil {
				r.problem(n, path, "%s", err)
				return
			}
			s = string(b)
		}
		*to = s
	}
}

func networkInto(to **imprint.Network) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) {
		*to = &imprint.Network{}
		r.mapping(n, path, networkFields(*to))
	}
}

func networkFields(net *imprint.Network) []field {
	return []field{
		{name: "version", typ: "2", doc: "netplan's version, for those who copy its files.", read: func(r *reader, n *yaml.Node, path string) {
			if s, ok := r.text(n, path); ok && s != "2" {
				r.problem(n, path, "is %q; only netplan's version 2 is understood", s)
			}
		}},
		{name: "ethernets", typ: "mapping of interface names", doc: "The interfaces; their names are those in the guest unless a MAC address is given.",
			read: func(r *reader, n *yaml.Node, path string) {
				net.Ethernets = map[string]imprint.Ethernet{}
				r.entries(n, path, func(name string, _, v *yaml.Node) {
					var e imprint.Ethernet
					r.mapping(v, join(path, name), ethernetFields(&e))
					net.Ethernets[name] = e
				})
			}, inner: []field{{name: "NAME", inner: ethernetFields(&imprint.Ethernet{})}}},
		unsupported("bonds"), unsupported("bridges"), unsupported("vlans"), unsupported("wifis"), unsupported("modems"),
		unsupported("tunnels"), unsupported("vrfs"), unsupported("renderer"),
	}
}

func ethernetFields(e *imprint.Ethernet) []field {
	return []field{
		{name: "macaddress", typ: "MAC address", doc: "Find the interface by this address; netplan's `match: {macaddress: …}`. The address itself is never changed.", read: textInto(&e.MAC)},
		{name: "match", typ: "mapping", doc: "The longer form of `macaddress`.", read: nested([]field{
			{name: "macaddress", typ: "MAC address", read: textInto(&e.MAC)},
			unsupported("name"), unsupported("driver"),
		})},
		{name: "addresses", typ: "list of addresses with prefix length", doc: "Static addresses.", read: listInto(&e.Addresses, maxListed, parsePrefix)},
		{name: "dhcp4", typ: "true or false", doc: "Whether to ask for an IPv4 address by DHCP.", read: boolInto(&e.DHCP4)},
		{name: "dhcp6", typ: "true or false", doc: "Whether to ask for an IPv6 address by DHCP.", read: boolInto(&e.DHCP6)},
		{name: "mtu", typ: "number", doc: "The largest packet, in bytes.", read: intInto(&e.MTU)},
		{name: "routes", typ: "list of routes", doc: "Static routes.", read: func(r *reader, n *yaml.Node, path string) {
			r.list(n, path, maxListed, func(n *yaml.Node, path string) {
				var route imprint.Route
				r.mapping(n, path, routeFields(&route))
				e.Routes = append(e.Routes, route)
			})
		}, inner: routeFields(&imprint.Route{})},
		{name: "nameservers", typ: "mapping", doc: "Resolvers.", read: nested(nameserverFields(&e.Nameservers)), inner: nameserverFields(&e.Nameservers)},
		{name: "gateway4", read: replaced("routes with to: default")},
		{name: "gateway6", read: replaced("routes with to: default")},
		unsupported("set-name"), unsupported("optional"), unsupported("accept-ra"), unsupported("dhcp4-overrides"),
		unsupported("dhcp6-overrides"), unsupported("routing-policy"), unsupported("wakeonlan"), unsupported("link-local"),
	}
}

func routeFields(route *imprint.Route) []field {
	return []field{
		{name: "to", typ: "prefix or `default`", doc: "Where the route leads.", read: textInto(&route.To)},
		{name: "via", typ: "IP address", doc: "The gateway.", read: addrInto(&route.Via)},
		unsupported("metric"), unsupported("on-link"), unsupported("table"), unsupported("scope"), unsupported("type"), unsupported("from"),
	}
}

func nameserverFields(ns *imprint.Nameservers) []field {
	return []field{
		{name: "addresses", typ: "list of IP addresses", doc: "The resolvers' addresses.", read: listInto(&ns.Addresses, maxListed, parseAddr)},
		{name: "search", typ: "list of DNS names", doc: "Domains in which short names are looked up.", read: listInto(&ns.Search, maxListed, parseText)},
	}
}

func addrInto(to *netip.Addr) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) {
		if s, ok := r.text(n, path); ok {
			a, err := parseAddr(s)
			if err != nil {
				r.problem(n, path, "%s", err)
			}
			*to = a
		}
	}
}

// unsupported is a key that netplan has and imprint has not: it is refused by
// name and does not show up as a suggestion or in the reference.
func unsupported(name string) field {
	return field{name: name, read: func(r *reader, n *yaml.Node, path string) {
		r.problem(n, path, "is netplan's, but not in the subset that imprint renders for every guest; put it into userData")
	}}
}

func replaced(by string) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) {
		r.problem(n, path, "is netplan's old form; write %s", by)
	}
}
