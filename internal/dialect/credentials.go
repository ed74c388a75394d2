package dialect

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"

	"imprint"
)

// credentialsDrive renders system credentials (system-credentials(7)): strings of the
// firmware, or files where systemd takes them over from an initial RAM disk, which
// it does from version 254 on. What one
// version does not know it leaves alone: system.hostname came with 254, the files
// of systemd-networkd with 256.
//
// The payload becomes a file by tmpfiles.extra, which all versions from 252 on know.
func credentialsDrive(v values, inst *imprint.Instance, _ Facts, in DriveInput) error {
	dir := SystemdNames
	if in.Form == Initrd {
		dir = "run/credentials/@initrd/"
	}
	put := func(name, data string) { v.put(dir+name, imprint.Public, data) }
	spec := &inst.Spec
	put("system.hostname", fqdn(spec))
	if len(spec.SSHKeys) > 0 {
		put("ssh.authorized_keys.root", strings.Join(spec.SSHKeys, "\n")+"\n")
	}
	if in.Form != Initrd { // the agent finds it by itself, and it is on no disk
		v.put(ImprintNames+"payload", imprint.Public, string(in.Payload))
	} else {
		put("tmpfiles.extra", "d /etc/imprint 0700 root root -\nf~ /etc/imprint/payload.json 0600 root root - "+base64.StdEncoding.EncodeToString(in.Payload)+"\n")
	}
	if spec.Network != nil {
		for i, name := range slices.Sorted(maps.Keys(spec.Network.Ethernets)) { // fw_cfg has no room for its name
			put(fmt.Sprintf("network.network.70-imprint%d", i), networkdFile(name, spec.Network.Ethernets[name]))
		}
	}
	return nil
}

// networkdFile is a file of systemd.network(5). Its values were checked when the
// spec was, and none has a line break.
func networkdFile(name string, e imprint.Ethernet) string {
	var b strings.Builder
	if e.MAC != "" {
		fmt.Fprintf(&b, "[Match]\nMACAddress=%s\n", e.MAC)
	} else {
		fmt.Fprintf(&b, "[Match]\nName=%s\n", name)
	}
	if e.MTU != 0 {
		fmt.Fprintf(&b, "[Link]\nMTUBytes=%d\n", e.MTU)
	}
	b.WriteString("[Network]\n")
	switch {
	case e.DHCP4 && e.DHCP6:
		b.WriteString("DHCP=yes\n")
	case e.DHCP4:
		b.WriteString("DHCP=ipv4\n")
	case e.DHCP6:
		b.WriteString("DHCP=ipv6\n")
	}
	for _, a := range e.Addresses {
		fmt.Fprintf(&b, "Address=%s\n", a)
	}
	for _, a := range e.Nameservers.Addresses {
		fmt.Fprintf(&b, "DNS=%s\n", a)
	}
	if len(e.Nameservers.Search) > 0 {
		fmt.Fprintf(&b, "Domains=%s\n", strings.Join(e.Nameservers.Search, " "))
	}
	for _, r := range e.Routes {
		b.WriteString("[Route]\n")
		if !isDefault(r.To) {
			fmt.Fprintf(&b, "Destination=%s\n", r.To)
		}
		fmt.Fprintf(&b, "Gateway=%s\n", r.Via)
	}
	return b.String()
}
