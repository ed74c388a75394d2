package varstore

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"imprint"
)

// Entry is a boot entry: a loader on a partition (UEFI 2.10, sections 3.1.3 and 10.3.5).
type Entry struct {
	Title     string // what a boot menu shows
	Partition int    // number of the EFI system partition
	PartUUID  string // its identifier as in fstab: a UUID, or 01234567-01 of a master boot record
	Start     int64  // its first logical sector
	Sectors   int64
	Path      string // of the loader, such as \EFI\debian\shimx64.efi
}

// maxEntries is how many boot entries there can be: their number is of 16 bits, and
// those from 0x2000 on are the firmware's own.
const maxEntries = 0x2000

// Encode is the content of a Boot#### variable. It fails with kind [imprint.Invalid].
func (e Entry) Encode() ([]byte, error) {
	invalid := func(format string, args ...any) error {
		return imprint.Errorf(imprint.Invalid, "make", "boot entry "+e.Title, format, args...)
	}
	if e.Title == "" || !strings.HasPrefix(e.Path, `\`) || e.Partition < 1 || e.Start < 1 || e.Sectors < 1 || len(e.Path) > 1024 || len(e.Title) > 1024 {
		return nil, invalid("it needs a title, a partition with a beginning and a length, and a path from \\ on: %+v", e)
	}
	le := binary.LittleEndian
	disk := []byte{4, 1, 42, 0} // MEDIA_HARDDRIVE_DP
	disk = le.AppendUint32(disk, uint32(e.Partition))
	disk = le.AppendUint64(disk, uint64(e.Start))
	disk = le.AppendUint64(disk, uint64(e.Sectors))
	id, mbr, err := signature(e.PartUUID)
	if err != nil {
		return nil, invalid("%w", err)
	}
	disk = append(disk, id[:]...)
	if mbr {
		disk = append(disk, 1, 1)
	} else {
		disk = append(disk, 2, 2)
	}
	name := toUCS2(e.Path)
	file := append([]byte{4, 4}, 0, 0) // MEDIA_FILEPATH_DP
	le.PutUint16(file[2:], uint16(4+len(name)))
	path := slices.Concat(disk, file, name, []byte{0x7f, 0xff, 4, 0})

	b := le.AppendUint32(nil, 1) // LOAD_OPTION_ACTIVE
	b = le.AppendUint16(b, uint16(len(path)))
	return slices.Concat(b, toUCS2(e.Title), path), nil
}

// signature is a partition's identifier as a device path has it.
func signature(id string) (b [16]byte, mbr bool, err error) {
	if disk, _, ok := strings.Cut(id, "-"); ok && len(id) == 11 {
		n, err := hex.DecodeString(disk)
		if err != nil || len(n) != 4 {
			return b, true, fmt.Errorf("%q is no partition's identifier", id)
		}
		binary.LittleEndian.PutUint32(b[:], binary.BigEndian.Uint32(n))
		return b, true, nil
	}
	n, err := hex.DecodeString(strings.ReplaceAll(id, "-", ""))
	if err != nil || len(n) != 16 {
		return b, false, fmt.Errorf("%q is no partition's identifier", id)
	}
	slices.Reverse(n[0:4])
	slices.Reverse(n[4:6])
	slices.Reverse(n[6:8])
	return [16]byte(n), false, nil
}

// Boot lets the firmware start e first, by an entry that is there already or a new
// one, and returns that entry's name, such as Boot0000. What else is in the boot order
// stays behind it.
func (s *Store) Boot(e Entry) (string, error) {
	data, err := e.Encode()
	if err != nil {
		return "", err
	}
	number := -1
	for n := range maxEntries {
		now := s.Get(Global(), entryName(n))
		if now != nil && bytes.Equal(now, data) {
			number = n
			break
		}
		if now == nil && number < 0 {
			number = n
		}
		if now == nil && n > 0x100 {
			break
		}
	}
	if number < 0 {
		return "", imprint.Errorf(imprint.Exhausted, "add", "boot entry "+e.Title, "all numbers are taken")
	}
	s.Set(Global(), entryName(number), data)
	order := binary.LittleEndian.AppendUint16(nil, uint16(number))
	for old := s.Get(Global(), "BootOrder"); len(old) >= 2; old = old[2:] {
		if n := binary.LittleEndian.Uint16(old); int(n) != number {
			order = binary.LittleEndian.AppendUint16(order, n)
		}
	}
	s.Set(Global(), "BootOrder", order)
	return entryName(number), nil
}

func entryName(n int) string { return fmt.Sprintf("Boot%04X", n) }

// Entries returns the titles of the boot entries in the order in which the firmware tries them.
func (s *Store) Entries() []string {
	var titles []string
	for order := s.Get(Global(), "BootOrder"); len(order) >= 2; order = order[2:] {
		b := s.Get(Global(), entryName(int(binary.LittleEndian.Uint16(order))))
		if len(b) < 8 {
			continue
		}
		titles = append(titles, fromUCS2(b[6:]))
	}
	return titles
}
