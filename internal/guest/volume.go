package guest

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"imprint"
)

// volumeHead is how many bytes from the start of a volume its label is found
// in: ISO 9660 has it in the descriptor of sector 16.
const volumeHead = 17 * 2048

// volumeLabel returns the label in the first bytes of an ISO 9660 or FAT file
// system, without trailing spaces; "" if head is of neither.
func volumeLabel(head []byte) string {
	const descriptor = 16 * 2048 // ECMA-119 section 8.4
	if len(head) >= volumeHead && string(head[descriptor:descriptor+6]) == "\x01CD001" {
		return strings.TrimRight(string(head[descriptor+40:descriptor+72]), " \x00")
	}
	if len(head) < 512 || binary.LittleEndian.Uint16(head[510:]) != 0xaa55 {
		return ""
	}
	// FAT keeps a copy of the label in its boot sector, with the type behind it.
	for _, at := range []int{43, 71} { // FAT12 and FAT16, FAT32
		if strings.HasPrefix(string(head[at+11:at+19]), "FAT") {
			return strings.TrimRight(string(head[at:at+11]), " \x00")
		}
	}
	return ""
}

func isVolumeLabel(label string) bool { return strings.EqualFold(label, VolumeLabel) }

// Limits on the kernel's list of mounts.
const (
	maxMountinfo = 1 << 20 // bytes
	maxMounts    = 4096    // lines that are looked at
)

// mount is one line of mountinfo.
type mount struct {
	device string // major:minor
	root   string // what part of the file system is mounted; "/" is all
	point  string // where
	fstype string
}

// parseMountinfo reads /proc/self/mountinfo (proc_pid_mountinfo(5)). Lines that
// are not of that form are skipped.
func parseMountinfo(b []byte) []mount {
	var mounts []mount
	for line := range strings.Lines(string(b)) {
		if len(mounts) == maxMounts {
			break
		}
		before, after, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		fields, rest := strings.Split(before, " "), strings.Split(after, " ")
		if !ok || len(fields) < 6 || len(rest) < 3 {
			continue
		}
		mounts = append(mounts, mount{device: fields[2], root: unescape(fields[3]), point: unescape(fields[4]), fstype: rest[0]})
	}
	return mounts
}

// unescape undoes the kernel's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1:i+4]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(s string) bool {
	return s[0] >= '0' && s[0] <= '3' && s[1] >= '0' && s[1] <= '7' && s[2] >= '0' && s[2] <= '7'
}

// volumeEmpty says that no volume has the label.
func volumeEmpty() error {
	return imprint.Errorf(imprint.NotFound, "find", "volume "+VolumeLabel, "the machine has none")
}

// readVolume reads the payload in the root of a volume, whatever the case of its
// name: FAT and ISO 9660 are shown in capitals or not, as the driver likes.
func readVolume(name, dir string) (*finding, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "read", dir, "%w", err)
	}
	i := slices.IndexFunc(entries, func(e os.DirEntry) bool { return strings.EqualFold(e.Name(), PayloadName) && e.Type().IsRegular() })
	if i < 0 {
		return nil, imprint.Errorf(imprint.NotFound, "read", name, "it has no %s", PayloadName)
	}
	b, err := readFile(filepath.Join(dir, entries[i].Name()), imprint.MaxPayload)
	if err != nil {
		return nil, err
	}
	return &finding{source: name, payload: b, files: filesOf(b)}, nil
}

// filesOf is by what a volume with this payload, and nothing else, is on record.
func filesOf(payload []byte) imprint.Digest {
	return imprint.DigestOfFiles(map[string][]byte{PayloadName: payload})
}
