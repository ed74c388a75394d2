package disk

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"strings"
	"unicode/utf16"

	"imprint"
)

// A GUID partition table in numbers (UEFI 2.10, section 5.3).
const (
	gptHeader  = 92
	gptEntry   = 128
	maxEntries = 1024 // tools make 128
	maxName    = 36   // UTF-16 code units
)

// basicData is the partition type by which Windows mounts a file system
// (EBD0A0A2-B9E5-4433-87C0-68B6B72699C7), as it is on the disk.
func basicData() []byte {
	return []byte{0xa2, 0xa0, 0xd0, 0xeb, 0xe5, 0xb9, 0x33, 0x44, 0x87, 0xc0, 0x68, 0xb6, 0xb7, 0x26, 0x99, 0xc7}
}

// NewID makes the identifier of a partition: a UUID of version 4, as it is on the disk,
// where the first three fields are little endian.
func NewID() (id [16]byte) {
	rand.Read(id[:]) // never fails
	id[7] = id[7]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// gpt is a GUID partition table. It is on the disk twice: readers take the primary
// copy at its beginning and, only if a checksum of that is wrong, the backup at its end.
type gpt struct {
	sector  int64
	last    uint64 // the disk's last sector
	boot    []byte // the protective boot record
	header  []byte // the first 92 bytes, of the copy that was taken
	entries []byte
	at      [2]uint64 // where each copy's entries are, in sectors
	taken   int       // which copy that was
	stale   [2]bool   // which copies are not on the disk as they belong there
}

// The copies.
const (
	primary = 0
	backup  = 1
)

// copyOf is one copy as it is on a disk.
type copyOf struct {
	header                          []byte // nil if it is none
	entries                         []byte // nil unless their checksum is right
	alternate, first, usable, array uint64 // sectors; usable is the last that may be used
}

func (c copyOf) whole() bool { return c.entries != nil }

// gpt reads the table behind a protective boot record.
func (in *reader) gpt(boot []byte) (*gpt, []Partition, error) {
	for e := boot[446:510]; len(e) > 0; e = e[16:] {
		switch start := binary.LittleEndian.Uint32(e[8:]); {
		case e[4] == 0xee && start != 1:
			return nil, nil, refused("its protective boot record begins at sector %d, not 1", start)
		case e[4] != 0xee && e[4] != 0:
			return nil, nil, refused("it has a boot record with partitions and a GUID partition table: a hybrid, of which two readers see different things").
				WithHint("keep one of them: sgdisk --mbrtogpt or --gpttombr")
		}
	}
	g := &gpt{sector: in.sector, last: uint64(in.size/in.sector) - 1, boot: boot}
	first, err := in.copy(1)
	if err != nil {
		return nil, nil, err
	}
	second, err := in.copy(g.last)
	if err != nil {
		return nil, nil, err
	}
	taken, end := first, first.alternate // end is where the disk ended when the copy was written
	if !first.whole() {
		g.taken, taken, end = backup, second, g.last
	}
	switch {
	case !taken.whole() && first.header != nil && first.alternate < g.last:
		return nil, nil, refused("its GUID partition table is damaged, and the backup is not at its end").WithHint("repair it first: gdisk")
	case !taken.whole():
		return nil, nil, refused("both copies of its GUID partition table are damaged").WithHint("repair it first: gdisk")
	case end > g.last:
		return nil, nil, refused("its GUID partition table is of a disk of %d bytes, and it has %d: its end is missing", (end+1)*uint64(in.sector), in.size)
	}
	g.header, g.entries = taken.header, taken.entries
	span := g.span()
	if g.last < 2*span+4 {
		return nil, nil, refused("it is too small for both copies of its GUID partition table")
	}

	g.at[primary] = 2
	if first.header != nil {
		g.at[primary] = first.array
	} else if err := in.vacant(g, 2, taken.first != 2+span); err != nil {
		return nil, nil, err
	}
	g.at[backup] = g.last - span
	if end == g.last && second.whole() {
		g.at[backup] = second.array
	}
	usable := taken.usable
	if end != g.last {
		usable = g.at[backup] - 1
	}
	if g.at[primary] < 2 || g.at[primary]+span > taken.first || g.at[primary] > g.last || taken.first > usable {
		return nil, nil, refused("its GUID partition table names the sectors %d to %d for partitions, and its entries are at %d", taken.first, usable, g.at[primary])
	}
	if usable >= g.at[backup] || g.at[backup]+span > g.last {
		return nil, nil, refused("its GUID partition table lets partitions use the sectors up to %d, and the table's backup is from %d on", usable, g.at[backup]).
			WithHint("correct it first: sgdisk --resize-table, or sfdisk --dump and sfdisk again with a lower last-lba")
	}
	binary.LittleEndian.PutUint64(g.header[48:], usable)
	parts, err := g.parts()
	if err != nil {
		return nil, nil, err
	}
	return g, parts, in.settled(g, end)
}

// copy reads the copy whose header is at a sector. A damaged one is left empty; it
// fails for one that is whole and not understood.
func (in *reader) copy(at uint64) (copyOf, error) {
	var c copyOf
	b, err := in.bytes(int64(at)*in.sector, in.sector)
	if err != nil {
		return c, err
	}
	le := binary.LittleEndian
	length := le.Uint32(b[12:])
	if !bytes.HasPrefix(b, []byte("EFI PART")) || length < gptHeader || int64(length) > in.sector {
		return c, nil
	}
	sum := slices.Clone(b[:length])
	clear(sum[16:20])
	if le.Uint32(b[16:]) != crc32.ChecksumIEEE(sum) {
		return c, nil
	}
	count, size := le.Uint32(b[80:]), le.Uint32(b[84:])
	if le.Uint32(b[8:]) != 0x10000 || length != gptHeader || size != gptEntry || count < 1 || count > maxEntries {
		return c, refused("its GUID partition table has version %x, a header of %d bytes and %d entries of %d; only version 10000 with %d and at most %d of %d is known",
			le.Uint32(b[8:]), length, count, size, gptHeader, maxEntries, gptEntry)
	}
	if le.Uint64(b[24:]) != at {
		return c, nil // a copy of a copy
	}
	c.header = b[:gptHeader]
	c.alternate, c.first, c.usable, c.array = le.Uint64(b[32:]), le.Uint64(b[40:]), le.Uint64(b[48:]), le.Uint64(b[72:])
	if c.array > uint64(in.size/in.sector) {
		return c, nil
	}
	entries, err := in.bytes(int64(c.array)*in.sector, int64(count)*gptEntry)
	if imprint.KindOf(err) == imprint.Unavailable {
		return c, err
	}
	if err == nil && crc32.ChecksumIEEE(entries) == le.Uint32(b[88:]) {
		c.entries = entries
	}
	return c, nil
}

// span is how many sectors the entries take.
func (g *gpt) span() uint64 { return uint64((int64(len(g.entries)) + g.sector - 1) / g.sector) }

// vacant fails if the primary entries, whose place a damaged header does not tell
// any more, may be elsewhere, and what is at their usual place something else: such
// as a boot loader on boards whose firmware looks for it there.
func (in *reader) vacant(g *gpt, at uint64, elsewhere bool) error {
	b, err := in.bytes(int64(at)*in.sector, int64(len(g.entries)))
	if err != nil {
		return err
	}
	if elsewhere && !bytes.Equal(b, g.entries) && !IsZero(b) {
		return refused("the primary header of its GUID partition table is damaged, and what is at the place of its entries is something else").WithHint("repair it first: gdisk")
	}
	return nil
}

// settled notes which copies are on the disk as they belong there. If the backup
// has to move from sector end to the disk's, it fails unless there is nothing but
// zeros, what an interrupted move wrote, and the backup that moves.
func (in *reader) settled(g *gpt, end uint64) error {
	for i, step := range g.render(g.entries) {
		for _, w := range step {
			b, err := in.bytes(w.At, int64(len(w.Data)))
			if err != nil {
				return err
			}
			if bytes.Equal(b, w.Data) {
				continue
			}
			g.stale[i] = true
			if i == primary || end == g.last {
				continue
			}
			for at := range int64(len(b)) {
				sector := uint64((w.At + at) / in.sector)
				if b[at] != 0 && b[at] != w.Data[at] && (sector > end || sector+g.span() < end) {
					return refused("the backup of its GUID partition table is not at its end, and something else is there").
						WithHint("if nothing needs that, move the backup first: sgdisk --move-second-header")
				}
			}
		}
	}
	return nil
}

// IsZero reports whether all of b is zero.
func IsZero(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }

// parts returns the partitions that the entries name.
func (g *gpt) parts() ([]Partition, error) {
	var parts []Partition
	le := binary.LittleEndian
	for i := 0; i < len(g.entries); i += gptEntry {
		e := g.entries[i : i+gptEntry]
		if IsZero(e[:16]) {
			continue
		}
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if first > last || last > g.last {
			return nil, refused("its partition %d is from sector %d to %d", i/gptEntry+1, first, last)
		}
		var name []uint16
		for n := e[56:]; len(n) > 0; n = n[2:] {
			name = append(name, le.Uint16(n))
		}
		parts = append(parts, Partition{
			Number: i/gptEntry + 1,
			Start:  int64(first) * g.sector, Size: int64(last-first+1) * g.sector,
			Name: strings.TrimRight(string(utf16.Decode(name)), "\x00"), ID: [16]byte(e[16:32]),
		})
	}
	start, end := g.usable()
	return parts, apart(parts, start, end)
}

func (g *gpt) usable() (start, end int64) {
	le := binary.LittleEndian
	return int64(le.Uint64(g.header[40:])) * g.sector, int64(le.Uint64(g.header[48:])+1) * g.sector
}

// render lays out both copies of a table with entries.
func (g *gpt) render(entries []byte) [2]Step {
	le := binary.LittleEndian
	var steps [2]Step
	place := [2]uint64{1, g.last}
	for i := range steps {
		b := make([]byte, g.sector)
		copy(b, g.header)
		le.PutUint64(b[24:], place[i])
		le.PutUint64(b[32:], place[1-i])
		le.PutUint64(b[72:], g.at[i])
		le.PutUint32(b[88:], crc32.ChecksumIEEE(entries))
		le.PutUint32(b[16:], 0)
		le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:gptHeader]))
		steps[i] = Step{{int64(g.at[i]) * g.sector, entries}, {int64(place[i]) * g.sector, b}}
	}
	return steps
}

// settle writes the copy that readers do not take first: until that is whole, they
// have the other.
func (g *gpt) settle() Plan {
	var plan Plan
	steps := g.render(g.entries)
	for _, i := range []int{1 - g.taken, g.taken} {
		if g.stale[i] {
			plan = append(plan, steps[i])
		}
	}
	if boot := g.protective(); boot != nil {
		plan = append(plan, Step{{0, boot}})
	}
	return plan
}

// protective returns the boot record with the size that the disk has now, and nil
// if it has that already.
func (g *gpt) protective() []byte {
	boot := slices.Clone(g.boot)
	size := uint32(min(g.last, 1<<32-1))
	for at := 446; at < 510; at += 16 {
		if was := binary.LittleEndian.Uint32(boot[at+12:]); boot[at+4] == 0xee && was != 1<<32-1 {
			binary.LittleEndian.PutUint32(boot[at+12:], size)
		}
	}
	if bytes.Equal(boot, g.boot) {
		return nil
	}
	return boot
}

// change goes from one array of entries to another. Both copies are whole before:
// while the backup is written readers have the primary, and then the other way round.
func (g *gpt) change(entries []byte) Plan {
	steps := g.render(entries)
	return Plan{steps[backup], steps[primary]}
}

func (g *gpt) add(p Partition) (int, Plan, error) {
	entries := slices.Clone(g.entries)
	for i := 0; i < len(entries); i += gptEntry {
		e := entries[i : i+gptEntry]
		if !IsZero(e[:16]) {
			continue
		}
		clear(e)
		le := binary.LittleEndian
		copy(e, basicData())
		copy(e[16:], p.ID[:])
		le.PutUint64(e[32:], uint64(p.Start/g.sector))
		le.PutUint64(e[40:], uint64(p.end()/g.sector-1))
		for n, u := range utf16.Encode([]rune(p.Name)) {
			le.PutUint16(e[56+2*n:], u)
		}
		return i/gptEntry + 1, g.change(entries), nil
	}
	return 0, nil, imprint.Errorf(imprint.Exhausted, "add to", "disk", "all %d entries of its GUID partition table are used", len(entries)/gptEntry)
}

func (g *gpt) remove(number int) Plan {
	entries := slices.Clone(g.entries)
	clear(entries[(number-1)*gptEntry : number*gptEntry])
	return g.change(entries)
}

func (g *gpt) resize(number int, size int64) Plan {
	entries := slices.Clone(g.entries)
	e := entries[(number-1)*gptEntry:]
	binary.LittleEndian.PutUint64(e[40:], binary.LittleEndian.Uint64(e[32:])+uint64(size/g.sector)-1)
	return g.change(entries)
}

func (g *gpt) id() string { return FormatID([16]byte(g.header[56:72])) }

func (g *gpt) renew(ids map[string]string) (Plan, error) {
	renewed := *g
	renewed.header = slices.Clone(g.header)
	entries := slices.Clone(g.entries)
	places := [][]byte{renewed.header[56:72]}
	for i := 0; i < len(entries); i += gptEntry {
		if !IsZero(entries[i : i+16]) {
			places = append(places, entries[i+16:i+32])
		}
	}
	for _, place := range places {
		to, ok := ids[FormatID([16]byte(place))]
		if !ok {
			continue
		}
		id, err := parseID(to)
		if err != nil {
			return nil, err
		}
		copy(place, id[:])
	}
	return renewed.change(entries), nil
}
