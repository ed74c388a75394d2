package repair

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Type is what a partition holds.
type Type string

// What is known. Foreign ones are only named.
const (
	Ext4  Type = "ext4" // ext2 and ext3 as well, which the same driver mounts
	XFS   Type = "xfs"
	Btrfs Type = "btrfs"
	FAT   Type = "vfat"
	NTFS  Type = "ntfs"
	Swap  Type = "swap"
)

// linux reports whether a root filesystem may be of the type.
func (t Type) linux() bool { return t == Ext4 || t == XFS || t == Btrfs }

// Volume is a filesystem or swap space, as its superblock has it.
type Volume struct {
	Number   int    // of its partition; 0 is the whole disk
	Device   string // path of its block device
	Type     Type   // "" if nothing that is known
	Foreign  string // what else it is: "a LUKS volume"
	UUID     string // as in fstab; FAT's is "1A2B-3C4D"
	Label    string
	PartUUID string // of its partition, as in fstab
	PartName string
	// Dirty says that it was not unmounted, or has errors.
	Dirty bool
	// Hibernated says that a suspended system is in the swap space, or on Windows' filesystem.
	Hibernated bool
}

// String names a volume in a message.
func (v *Volume) String() string {
	what := v.Foreign
	if v.Type != "" {
		what = string(v.Type)
	}
	if v.Label != "" {
		what = strings.TrimSpace(fmt.Sprintf("%s %q", what, v.Label))
	}
	where := "the disk as a whole"
	if v.Number != 0 {
		where = fmt.Sprintf("partition %d", v.Number)
	}
	if what == "" {
		return where
	}
	return where + " (" + what + ")"
}

// Where superblocks are, and how much of a volume tells what it is.
const (
	extAt    = 1024
	btrfsAt  = 64 << 10
	probeLen = btrfsAt + 4096
	pageSize = 4096 // of swap space made on the machines that imprint knows
)

// probe tells what a volume holds. What r has too little of is nothing; it fails
// only as r does.
func probe(r io.ReaderAt) (Volume, error) {
	b := make([]byte, probeLen)
	if n, err := r.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return Volume{}, err
	} else if n < 512 {
		return Volume{}, nil
	}
	le := binary.LittleEndian
	ext := b[extAt:]
	btrfs := b[btrfsAt:]
	swap := string(b[pageSize-10 : pageSize])
	switch {
	case bytes.HasPrefix(b, []byte("LUKS\xba\xbe")):
		return Volume{Foreign: "a LUKS volume"}, nil
	case bytes.HasPrefix(b[3:], []byte("-FVE-FS-")):
		return Volume{Foreign: "a BitLocker volume"}, nil
	case lvm(b):
		return Volume{Foreign: "an LVM physical volume"}, nil
	case bytes.HasPrefix(b[4096:], []byte("\xfc\x4e\x2b\xa9")):
		return Volume{Foreign: "a member of a RAID"}, nil
	case swap == "SWAPSPACE2" || strings.HasPrefix(swap, "S1SUSPEND") || strings.HasPrefix(swap, "S2SUSPEND") || strings.HasPrefix(swap, "ULSUSPEND"):
		return Volume{Type: Swap, UUID: uuid(b[swapUUID:]), Label: text(b[swapUUID+16 : swapUUID+32]), Hibernated: swap != "SWAPSPACE2"}, nil
	case bytes.HasPrefix(b, []byte("XFSB")):
		return Volume{Type: XFS, UUID: uuid(b[32:]), Label: text(b[108:120])}, nil
	case bytes.HasPrefix(btrfs[64:], []byte("_BHRfS_M")):
		return Volume{Type: Btrfs, UUID: uuid(btrfs[32:]), Label: text(btrfs[299 : 299+256])}, nil
	case le.Uint16(ext[56:]) == 0xef53 && le.Uint32(ext) != 0 && le.Uint32(ext[4:]) != 0 && le.Uint32(ext[24:]) <= 6:
		const clean, errs, needsRecovery = 1, 2, 4
		state, incompat := le.Uint16(ext[58:]), le.Uint32(ext[96:])
		return Volume{Type: Ext4, UUID: uuid(ext[104:]), Label: text(ext[120:136]), Dirty: state&clean == 0 || state&errs != 0 || incompat&needsRecovery != 0}, nil
	case bytes.HasPrefix(b[3:], []byte("NTFS    ")):
		return Volume{Type: NTFS, UUID: fmt.Sprintf("%016X", le.Uint64(b[72:]))}, nil
	case isFAT(b):
		at := fatSerial(b)
		return Volume{Type: FAT, UUID: fmt.Sprintf("%04X-%04X", le.Uint16(b[at+2:]), le.Uint16(b[at:])), Label: fatLabel(b[at+4 : at+15]), Dirty: b[at-2]&1 != 0}, nil
	}
	return Volume{}, nil
}

// swapUUID is where swap space has its UUID and, behind it, its label (mm/swapfile.c).
const swapUUID = 1024 + 12

func lvm(b []byte) bool {
	for i := range 4 {
		if bytes.HasPrefix(b[i*512:], []byte("LABELONE")) {
			return true
		}
	}
	return false
}

// isFAT reports whether b begins with the boot sector of a FAT filesystem.
func isFAT(b []byte) bool {
	le := binary.LittleEndian
	sector, per := le.Uint16(b[11:]), b[13]
	return (b[0] == 0xeb || b[0] == 0xe9) && sector >= 512 && sector <= 4096 && sector&(sector-1) == 0 && per != 0 && per&(per-1) == 0 &&
		le.Uint16(b[14:]) != 0 && (b[16] == 1 || b[16] == 2) && b[21] >= 0xf0 && b[510] == 0x55 && b[511] == 0xaa
}

// fatSerial is where the boot sector has the serial number: elsewhere with FAT32.
func fatSerial(b []byte) int {
	if binary.LittleEndian.Uint16(b[22:]) == 0 {
		return 67
	}
	return 39
}

func fatLabel(b []byte) string {
	if s := strings.TrimRight(text(b), " "); s != "NO NAME" {
		return s
	}
	return ""
}

// text is a label: up to the first NUL, and nothing in it that a terminal obeys.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return printable(string(b))
}

// printable replaces what is no text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfffd {
			return '?'
		}
		return r
	}, s)
}

// uuid is the text of a UUID that is not mixed-endian on the disk.
func uuid(b []byte) string {
	s := hex.EncodeToString(b[:16])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
