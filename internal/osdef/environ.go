package osdef

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"imprint"
)

// Disk is a disk of the instance as a script sees it.
type Disk struct {
	Path     string // of a block device or a file, where the script runs
	Size     int64  // in bytes
	File     bool   // Path is a file
	ReadOnly bool
}

// Input is what a script is told of an instance.
type Input struct {
	Instance *imprint.Instance
	// Values are those of the private and secret parameters.
	Values map[string]imprint.Secret
	Disks  []Disk
	// MemoryMiB and CPUs are the machine's own; 0 is not known.
	MemoryMiB, CPUs int
	Reinstall       bool   // for create
	OldName         string // for rename
	// Index is the disk of export and import.
	Index int
}

// Name of the link-local interface in Ganeti, by which scripts know it.
const communicationNIC = "ganeti:communication:"

const mib = 1 << 20

// environment returns the variables of a script: all that Ganeti sets and imprint
// knows, but for the paths of disks, which depend on where the script runs. secret are
// those whose value is not public, and files those that get the path of a file
// with the value.
func (d *Definition) environment(op Op, variant string, in *Input) (env []string, secret, files map[string]imprint.Secret, err error) {
	set := func(name, format string, args ...any) { env = append(env, name+"="+fmt.Sprintf(format, args...)) }
	set("PATH", "/sbin:/bin:/usr/sbin:/usr/bin")
	set("DEBUG_LEVEL", "0")
	set("OS_API_VERSION", "%d", APIVersion)
	set("OS_NAME", "%s", d.Name)
	set("OS_VARIANT", "%s", variant)
	if op != Verify { // which is told of parameters only
		d.describe(set, op, variant, in)
	}
	params, secret, files, err := d.values(op, in)
	return append(env, params...), secret, files, err
}

// describe sets what is known of the instance.
func (d *Definition) describe(set func(name, format string, args ...any), op Op, variant string, in *Input) {
	i := in.Instance
	set("HYPERVISOR", "kvm")
	set("INSTANCE_NAME", "%s", hostName(i))
	set("INSTANCE_OS", "%s", imprint.OS{Name: d.Name, Variant: variant})
	set("INSTANCE_UUID", "%s", i.ID)
	set("INSTANCE_CTIME", "%d", i.Created.Unix())
	set("INSTANCE_MTIME", "%d", i.Updated.Unix())
	set("INSTANCE_PRIMARY_NODE", "%s", derivedID(i, "host", 0))
	set("INSTANCE_SECONDARY_NODES", "")
	if in.Reinstall && op == Create {
		set("INSTANCE_REINSTALL", "1")
	}
	if in.MemoryMiB > 0 {
		for _, name := range []string{"memory", "minmem", "maxmem"} {
			set("INSTANCE_BE_"+name, "%d", in.MemoryMiB)
		}
	}
	if in.CPUs > 0 {
		set("INSTANCE_BE_vcpus", "%d", in.CPUs)
	}
	set("INSTANCE_HV_serial_console", "True") // imprint boot has one
	disks(set, in)
	nics(set, i)
	switch {
	case op == Rename:
		set("OLD_INSTANCE_NAME", "%s", in.OldName)
	case op == Export || op == Import:
		prefix := strings.ToUpper(string(op))
		set(prefix+"_INDEX", "%d", in.Index)
		set(prefix+"_DISK_URI", "")
	}
}

// pathVariable is the variable with the path of a disk.
func pathVariable(n int) string { return fmt.Sprintf("DISK_%d_PATH", n) }

func disks(set func(name, format string, args ...any), in *Input) {
	set("DISK_COUNT", "%d", len(in.Disks))
	for n, disk := range in.Disks {
		prefix := fmt.Sprintf("DISK_%d_", n)
		access, backend := "rw", "block"
		if disk.ReadOnly {
			access = "ro"
		}
		if disk.File {
			backend = "file:loop"
		}
		set(prefix+"ACCESS", "%s", access)
		set(prefix+"BACKEND_TYPE", "%s", backend)
		set(prefix+"SIZE", "%d", disk.Size/mib)
		set(prefix+"UUID", "%s", derivedID(in.Instance, "disk", n))
		set(prefix+"FRONTEND_TYPE", "paravirtual")
	}
}

// nics sets the interfaces of the network configuration, and the link-local one last.
func nics(set func(name, format string, args ...any), i *imprint.Instance) {
	n := 0
	one := func(mac, mode, link, ip, name string) string {
		prefix := fmt.Sprintf("NIC_%d_", n)
		set(prefix+"MAC", "%s", mac)
		set(prefix+"UUID", "%s", derivedID(i, "nic", n))
		set(prefix+"MODE", "%s", mode)
		set(prefix+"LINK", "%s", link)
		set(prefix+"NAME", "%s", name)
		set(prefix+"FRONTEND_TYPE", "paravirtual")
		if mode == "bridged" {
			set(prefix+"BRIDGE", "%s", link)
		}
		if ip != "" {
			set(prefix+"IP", "%s", ip)
		}
		n++
		return prefix
	}
	if i.Spec.Network != nil {
		for _, name := range slices.Sorted(maps.Keys(i.Spec.Network.Ethernets)) {
			e := i.Spec.Network.Ethernets[name]
			ip := ""
			if len(e.Addresses) > 0 {
				ip = e.Addresses[0].Addr().String()
			}
			prefix := one(e.MAC, "bridged", "", ip, name)
			for _, p := range e.Addresses {
				variable := "SUBNET"
				if p.Addr().Is6() {
					variable = "SUBNET6"
				}
				set(prefix+"NETWORK_"+variable, "%s", p.Masked())
			}
			for _, r := range e.Routes {
				if to, err := netip.ParsePrefix(r.To); r.To == "default" || err == nil && to.Bits() == 0 {
					variable := "GATEWAY"
					if r.Via.Is6() {
						variable = "GATEWAY6"
					}
					set(prefix+"NETWORK_"+variable, "%s", r.Via)
				}
			}
		}
	}
	if i.NIC != nil {
		one(i.NIC.MAC, "routed", "communication_rt", i.NIC.IPv4.String(), communicationNIC+hostName(i))
	}
	set("NIC_COUNT", "%d", n)
}

// values returns the parameters that the schema has: public ones, those whose value
// is not public and may be in the environment, and secret ones for files. Rename is
// told no secret.
func (d *Definition) values(op Op, in *Input) (env []string, secret, files map[string]imprint.Secret, err error) {
	secret, files = map[string]imprint.Secret{}, map[string]imprint.Secret{}
	fail := func(kind imprint.Kind, format string, args ...any) *imprint.Error {
		return imprint.Errorf(kind, "run "+string(op)+" for", in.Instance.Ref(), format, args...)
	}
	for _, p := range d.Schema.Params {
		variable, _ := variableOf(p.Name)
		n := slices.IndexFunc(in.Instance.Spec.Params, func(q imprint.Param) bool { return q.Name == p.Name })
		if n < 0 {
			if p.Default != "" {
				env = append(env, variable+"="+p.Default)
			}
			continue
		}
		given := in.Instance.Spec.Params[n]
		if given.Visibility == imprint.Public {
			env = append(env, variable+"="+given.Value)
			continue
		}
		if given.Visibility == imprint.SecretOnly && op == Rename {
			continue
		}
		value, ok := in.Values[p.Name]
		switch {
		case !ok:
			return nil, nil, nil, fail(imprint.Conflict, "its %s parameter %s is not at hand", given.Visibility, p.Name).
				WithHint("give it: imprint set %s %s", in.Instance.Ref(), p.Name)
		case given.Visibility == imprint.SecretOnly && !d.Schema.SecretsInEnvironment:
			variable += "_FILE"
			if other := d.Schema.called(variable); other != "" { // it would say which file of the host is read
				return nil, nil, nil, fail(imprint.Invalid, "its parameter %s would be the variable %s, in which the path of %s comes", other, variable, p.Name).
					WithHint("call one of them otherwise in the definition, or let it have its secrets in the environment")
			}
			files[variable] = value
		case bytes.IndexByte(value.Reveal(), 0) >= 0:
			return nil, nil, nil, fail(imprint.Invalid, "the value of %s has a zero byte, which no variable can have", p.Name)
		default:
			secret[variable] = value
		}
	}
	return env, secret, files, nil
}

// hostName is the machine's fully qualified name, or what it has of one.
func hostName(i *imprint.Instance) string {
	if len(i.Spec.DNSNames) > 0 {
		return i.Spec.DNSNames[0]
	}
	return string(i.Spec.Name)
}

// derivedID is a UUID (RFC 9562, version 8) that a part of an instance has as long
// as the instance.
func derivedID(i *imprint.Instance, what string, n int) string {
	sum := sha256.Sum256([]byte(string(i.ID) + "/" + what + "/" + strconv.Itoa(n)))
	b := sum[:16]
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
