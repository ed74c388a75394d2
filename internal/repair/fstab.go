package repair

import (
	"bytes"
	"path"
	"slices"
	"strconv"
	"strings"

	"imprint"
)

// Limits of an fstab.
const (
	maxFstab  = 1 << 20 // bytes
	maxMounts = 32      // filesystems of one system that are mounted
)

// mount is an entry of an fstab.
type mount struct {
	spec    string // what: a device, or TAG=value
	dir     string // where, absolute and clean; "" for swap
	kind    string // its type, which may be "auto"
	options []string
}

// parseFstab reads an fstab as fstab(5) has it. Lines that are none are left out, as
// mount(8) does, and so are those whose directory is not absolute. It fails with kind
// [imprint.Exhausted] if b is too long.
func parseFstab(b []byte) ([]mount, error) {
	if len(b) > maxFstab {
		return nil, imprint.Errorf(imprint.Exhausted, "read", "/etc/fstab", "it has more than %d bytes", maxFstab)
	}
	var list []mount
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) < 3 || strings.HasPrefix(f[0], "#") {
			continue
		}
		m := mount{spec: strings.Trim(unescape(f[0]), `"`), kind: f[2]}
		if tag, value, ok := strings.Cut(m.spec, "="); ok {
			m.spec = tag + "=" + strings.Trim(value, `"`)
		}
		if dir := unescape(f[1]); path.IsAbs(dir) {
			m.dir = path.Clean(dir)
		} else if m.kind != "swap" {
			continue
		}
		if len(f) > 3 {
			m.options = strings.Split(f[3], ",")
		}
		list = append(list, m)
	}
	return list, nil
}

// unescape replaces what getmntent(3) does: \040 is a space.
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil && n != 0 {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// option returns the value of an option, or "".
func (m *mount) option(name string) string {
	for _, o := range m.options {
		if value, ok := strings.CutPrefix(o, name+"="); ok {
			return value
		}
	}
	return ""
}

// partitionOf returns the number of a partition from a device's name, such as /dev/sda2
// or /dev/nvme0n1p2, and 0 if it is none. The rest depends on the machine.
func partitionOf(device string) int {
	name, ok := strings.CutPrefix(device, "/dev/")
	disk := strings.TrimRight(name, "0123456789")
	number, err := strconv.Atoi(name[len(disk):])
	if !ok || err != nil || strings.Contains(disk, "/") {
		return 0
	}
	for _, kind := range []string{"sd", "vd", "xvd", "hd"} {
		if letter, ok := strings.CutPrefix(disk, kind); ok && len(letter) == 1 {
			return number
		}
	}
	if (strings.HasPrefix(disk, "nvme") || strings.HasPrefix(disk, "mmcblk")) && strings.HasSuffix(disk, "p") {
		return number
	}
	return 0
}

// find returns the volume that spec means, or nil. A name such as /dev/sda2, which
// the next machine gives to the disk or not, means the partition with that number.
func (m *mount) find(volumes []Volume) *Volume {
	tag, value, ok := strings.Cut(m.spec, "=")
	if dir, name := path.Split(m.spec); !ok || strings.HasPrefix(m.spec, "/") {
		tags := map[string]string{"/dev/disk/by-uuid/": "UUID", "/dev/disk/by-label/": "LABEL", "/dev/disk/by-partuuid/": "PARTUUID", "/dev/disk/by-partlabel/": "PARTLABEL"}
		tag, value = tags[dir], name
	}
	number := partitionOf(m.spec)
	i := slices.IndexFunc(volumes, func(v Volume) bool {
		switch tag {
		case "UUID":
			return value != "" && strings.EqualFold(v.UUID, value)
		case "LABEL":
			return value != "" && v.Label == value
		case "PARTUUID":
			return value != "" && strings.EqualFold(v.PartUUID, value)
		case "PARTLABEL":
			return value != "" && v.PartName == value
		}
		return number > 0 && v.Number == number
	})
	if i < 0 {
		return nil
	}
	return &volumes[i]
}

// depth is how many directories a path has, by which what is mounted inside of
// something else comes later.
func depth(dir string) int {
	if dir == "/" {
		return 0
	}
	return strings.Count(dir, "/")
}

// system reports whether a directory belongs to the system, so that who repairs or
// personalizes it needs what is mounted there. Data disks are left alone.
func system(dir string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(dir, "/"), "/")
	return slices.Contains([]string{"boot", "efi", "usr", "var", "etc", "opt", "srv", "home", "root", "lib", "bin", "sbin"}, first)
}
