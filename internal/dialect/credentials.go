package dialect

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"

	"imprint"
)

// credentialsDrive renders system credentials (systemd.system-credentials(7)) for the
// firmware, for systemd-stub, or as files where systemd takes them over from an
// initial RAM disk, which it does from version 254 on. What one version does not know
// it leaves alone:
//
//	252  sysctl.extra, which sets the name whatever the image calls itself; root's SSH
//	     keys; sysusers.extra, which makes the users; tmpfiles.extra, which makes their
//	     homes, and a file of the payload that came by an initial RAM disk
//	254  system.hostname, for an image without a name
//	256  the passwords of users, by a drop-in: systemd-sysusers.service is given none but
//	     root's; the files of systemd-networkd; the unit that runs the agent
func credentialsDrive(v values, inst *imprint.Instance, _ Facts, in DriveInput) error {
	dir := map[Form]string{Initrd: "run/credentials/@initrd/", Firmware: SystemdNames, FWCfg: SystemdNames}[in.Form]
	put := func(name, data string) { v.put(dir+name, imprint.Public, data) }
	spec := &inst.Spec
	put("system.hostname", kernelName(spec))
	put("sysctl.extra", "kernel.hostname="+kernelName(spec)+"\n")
	if len(spec.SSHKeys) > 0 {
		put("ssh.authorized_keys.root", strings.Join(spec.SSHKeys, "\n")+"\n")
	}
	accounts, files := sysusers(spec.Users)
	if accounts != "" {
		put("sysusers.extra", accounts)
	}
	for i := range spec.Users {
		u := &spec.Users[i]
		if p := hashOf(spec, u, in.Readers); p.Value != "" && systemdTakesHash(in.Form) {
			v.put(dir+"passwd.hashed-password."+u.Name, p.Visibility, p.Value)
			put("systemd.unit-dropin.systemd-sysusers.service", "[Service]\nImportCredential=passwd.hashed-password.*\n")
		}
	}
	if in.Form == Initrd || in.Form == Stub {
		files += "d /etc/imprint 0700 root root -\n" + makePayload + base64.StdEncoding.EncodeToString(in.Payload) + "\n"
	} else { // the agent finds it by itself, and it is on no disk
		v.put(ImprintNames+"payload", imprint.Public, string(in.Payload))
	}
	if files != "" {
		put("tmpfiles.extra", files)
	}
	if in.Form != FWCfg { // which has no room for these names
		put("systemd.extra-unit."+agentUnit, agentUnitFile)
		put("systemd.unit-dropin.multi-user.target", "[Unit]\nWants=imprint-agent.service "+agentUnit+"\n")
	}
	if spec.Network != nil {
		for i, name := range slices.Sorted(maps.Keys(spec.Network.Ethernets)) { // nor for interfaces' names
			put(fmt.Sprintf("network.network.70-imprint%d", i), networkdFile(name, spec.Network.Ethernets[name]))
		}
	}
	return nil
}

// systemdTakesHash reports whether a user's password can be a credential: fw_cfg has no
// room for the name, and what came by systemd-stub no generator reads, so that nothing
// would make the drop-in.
func systemdTakesHash(f Form) bool { return f == Firmware || f == Initrd }

// maxKernelName is how long Linux lets a machine's name be (__NEW_UTS_LEN).
const maxKernelName = 64

// kernelName is the name that the kernel gets: with its domain, if there is room.
func kernelName(spec *imprint.Spec) string {
	if name := fqdn(spec); len(name) <= maxKernelName {
		return name
	}
	return string(spec.Name)
}

// agentUnit runs the agent in an image that has it without the unit of its package,
// which is run as well if it is there. It has another name, for it would take
// that one's place.
const (
	agentUnit     = "imprint-enrol.service"
	agentUnitFile = `[Unit]
Description=Machine identity from imprint
ConditionFileIsExecutable=/usr/sbin/imprint-agent
ConditionPathExists=!/usr/lib/systemd/system/imprint-agent.service
ConditionPathExists=!/etc/systemd/system/imprint-agent.service

[Service]
Type=notify
ExecStart=/usr/sbin/imprint-agent run --console
TimeoutStartSec=infinity
Restart=on-failure
RestartSec=30s
RestartPreventExitStatus=2
RuntimeDirectory=imprint
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
LimitCORE=0
UMask=0077
`
)

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

// makePayload is the line by which systemd-tmpfiles makes the payload's file, up to
// what is in that.
const makePayload = "f~ /etc/imprint/payload.json 0600 root root - "

// PayloadIn returns the payload that file, the content of one on a medium, has for
// systemd-tmpfiles, or file itself.
func PayloadIn(file []byte) []byte {
	for line := range bytes.Lines(file) {
		if encoded, ok := bytes.CutPrefix(line, []byte(makePayload)); ok {
			if b, err := base64.StdEncoding.AppendDecode(nil, bytes.TrimSpace(encoded)); err == nil {
				return b
			}
		}
	}
	return file
}
