package disk

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"strings"
)

// signature is by which something that is no partition table is known.
type signature struct {
	at    int64
	magic string
	what  string
}

// images are formats of virtual disks, whose first bytes are not the disk's.
func images() []signature {
	return []signature{
		{0, "QFI\xfb", "a qcow2 image"}, {0, "QED\x00", "a QED image"}, {0, "KDMV", "a VMDK image"}, {0, "COWD", "a VMDK image"},
		{0, "# Disk DescriptorFile", "a VMDK descriptor"}, {0, "vhdxfile", "a VHDX image"}, {0, "conectix", "a VHD image"},
		{64, "\x7f\x10\xda\xbe", "a VDI image"}, {0, "WithoutFreeSpace", "a Parallels image"}, {0, "WithouFreSpacExt", "a Parallels image"},
		{0, "\x1f\x8b\x08", "a gzip file"}, {0, "\xfd7zXZ\x00", "a xz file"}, {0, "\x28\xb5\x2f\xfd", "a zstd file"}, {0, "BZh", "a bzip2 file"},
	}
}

// volumes are what may fill a whole disk.
func volumes() []signature {
	list := []signature{
		{3, "NTFS    ", "an NTFS file system"}, {3, "EXFAT   ", "an exFAT file system"}, {0, "XFSB", "an XFS file system"},
		{0x10040, "_BHRfS_M", "a Btrfs file system"}, {1024, "\x10\x20\xf5\xf2", "an F2FS file system"}, {0, "hsqs", "a squashfs file system"},
		{32769, "CD001", "a CD image"}, {0, "LUKS\xba\xbe", "a LUKS volume"}, {4086, "SWAPSPACE2", "swap space"},
		{4096, "\xfc\x4e\x2b\xa9", "a member of a RAID"},
	}
	for at := range int64(4) {
		list = append(list, signature{at * 512, "LABELONE", "an LVM physical volume"})
	}
	return list
}

// of returns what of list head is, or "".
func of(list []signature, head []byte) string {
	for _, s := range list {
		if s.at < int64(len(head)) && bytes.HasPrefix(head[s.at:], []byte(s.magic)) {
			return s.what
		}
	}
	return ""
}

// packed fails if the disk is an image that is not raw. Such a one may be smaller
// than any disk.
func (in *reader) packed() error {
	head, err := in.bytes(0, min(in.size, 128))
	if err != nil {
		return err
	}
	if what := of(images(), head); what != "" {
		return refused("it is no raw disk but %s", what).WithHint("unpack or convert it first, for example: qemu-img convert -O raw")
	}
	return nil
}

// foreign fails if the disk has a file system or the like instead of a partition table.
func (in *reader) foreign() error {
	head, err := in.bytes(0, min(in.size, 128<<10))
	if err != nil {
		return err
	}
	what := of(volumes(), head)
	switch {
	case what != "":
	case isFAT(head):
		what = "a FAT file system"
	case isExt(head):
		what = "an ext file system"
	default:
		return nil
	}
	return refused("it has no partition table but is %s as a whole", what).WithHint("name a disk with partitions")
}

// isFAT reports whether b begins with the boot sector of a FAT file system.
func isFAT(b []byte) bool {
	le := binary.LittleEndian
	sector, per := le.Uint16(b[11:]), b[13]
	return (b[0] == 0xeb || b[0] == 0xe9) && sector >= 512 && sector <= 4096 && sector&(sector-1) == 0 && per != 0 && per&(per-1) == 0 &&
		le.Uint16(b[14:]) != 0 && (b[16] == 1 || b[16] == 2) && b[21] >= 0xf0 && b[510] == 0x55 && b[511] == 0xaa
}

// isExt reports whether b has the superblock of ext2, ext3 or ext4. Its magic is
// short: so what may not be 0 is looked at too.
func isExt(b []byte) bool {
	s, le := b[1024:], binary.LittleEndian
	return le.Uint16(s[56:]) == 0xef53 && le.Uint32(s[0:]) != 0 && le.Uint32(s[4:]) != 0 && le.Uint32(s[24:]) <= 6
}

// volume is a file system with a label.
type volume struct {
	labels []string
	ours   bool  // imprint made it
	at     int64 // where a label is that nothing secret is beside, in bytes from the file system's beginning
	length int64
}

// volume finds the labels of the file system in a partition by which guests find
// it: FAT's, in the boot sector and the root, ISO 9660's, and those of ext, XFS and
// Btrfs. There is none if there is no such file system.
func (in *reader) volume(p Partition) (volume, error) {
	var v volume
	head := make([]byte, 128<<10)
	b, err := in.bytes(p.Start, min(p.Size, int64(len(head))))
	if err != nil {
		return v, err
	}
	copy(head, b)
	add := func(label []byte) {
		label, _, _ = bytes.Cut(label, []byte{0})
		if s := strings.TrimRight(string(label), " "); s != "" {
			v.labels = append(v.labels, s)
		}
	}
	switch {
	case isFAT(head):
		v.ours, v.length = string(head[3:11]) == maker, 512
		for _, at := range []int{38, 66} { // with FAT12 and FAT16, and with FAT32
			if head[at] == 0x29 {
				add(head[at+5 : at+16])
			}
		}
		root, err := in.fatRoot(head, p)
		if err != nil {
			return v, err
		}
		for ; len(root) >= 32 && root[0] != 0; root = root[32:] {
			if root[0] != 0xe5 && root[11]&0x3f != 0x0f && root[11]&0x08 != 0 {
				add(root[:11])
			}
		}
	case bytes.HasPrefix(head[32769:], []byte("CD001")):
		v.at, v.length = 32768, min(2048, p.Size-32768)
		add(head[32768+40 : 32768+72])
	case isExt(head):
		add(head[1024+120 : 1024+136])
	case bytes.HasPrefix(head, []byte("XFSB")):
		add(head[108:120])
	case bytes.HasPrefix(head[0x10040:], []byte("_BHRfS_M")):
		add(head[0x1012b:0x1022b])
	}
	return v, nil
}

// sectorOf tells the sectors of an image with a master boot record, which counts in
// them and does not say how large they are: those at whose multiples something is
// that is known, and 512 if that tells nothing.
func sectorOf(r io.ReaderAt, size int64) int64 {
	in := &reader{r, size, 512}
	boot, err := in.bytes(0, 512)
	if err != nil || boot[510] != 0x55 || boot[511] != 0xaa {
		return 512
	}
	for _, sector := range []int64{512, 4096} {
		for e := boot[446:510]; len(e) > 0; e = e[16:] {
			if at := int64(binary.LittleEndian.Uint32(e[8:])) * sector; e[4] != 0 && at != 0 && in.known(at, extended(e[4])) {
				return sector
			}
		}
	}
	return 512
}

// known reports whether a file system or the like begins at an offset or, in an
// extended partition, a boot record.
func (in *reader) known(at int64, record bool) bool {
	b, err := in.bytes(at, min(128<<10, in.size-at))
	if err != nil {
		return false
	}
	head := make([]byte, 128<<10)
	copy(head, b)
	if record {
		return head[510] == 0x55 && head[511] == 0xaa
	}
	return isFAT(head) || isExt(head) || slices.ContainsFunc(volumes(), func(s signature) bool { return bytes.HasPrefix(head[s.at:], []byte(s.magic)) })
}

// maker is whom the boot sectors name that package media writes.
const maker = "IMPRINT "

// maxRoot is how much of a root directory is looked through for a label, in bytes.
const maxRoot = 64 << 10

// fatRoot returns the root directory of a FAT file system or, with FAT32, its first cluster.
func (in *reader) fatRoot(b []byte, p Partition) ([]byte, error) {
	le := binary.LittleEndian
	sector, reserved, fats := int64(le.Uint16(b[11:])), int64(le.Uint16(b[14:])), int64(b[16])
	at, n := reserved+fats*int64(le.Uint16(b[22:])), int64(le.Uint16(b[17:]))*32
	if le.Uint16(b[22:]) == 0 {
		at = reserved + fats*int64(le.Uint32(b[36:])) + (int64(le.Uint32(b[44:]))-2)*int64(b[13])
		n = int64(b[13]) * sector
	}
	at *= sector
	if at < 0 || at > p.Size {
		return nil, nil
	}
	return in.bytes(p.Start+at, min(n, maxRoot, p.Size-at))
}

// find returns the partitions whose name, or a label of whose file system, is
// label in any case, each with what it is called by.
func (in *reader) find(t *Table, label string) (found []Partition, volumes []volume, err error) {
	for _, p := range t.Partitions {
		if extended(p.Type) {
			continue
		}
		v, err := in.volume(p)
		if err != nil {
			return nil, nil, err
		}
		for _, name := range append([]string{p.Name}, v.labels...) {
			if strings.EqualFold(name, label) {
				found, volumes = append(found, p), append(volumes, v)
				break
			}
		}
	}
	return found, volumes, nil
}
