package disk

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"imprint"
)

// Scheme is a kind of partition table.
type Scheme string

// The schemes.
const (
	MBR Scheme = "mbr"
	GPT Scheme = "gpt"
)

// Align is what partitions that are added begin and end at a multiple of, in bytes.
const Align = 1 << 20

// Table is a partition table that was understood whole.
type Table struct {
	Scheme     Scheme
	Sector     int64       // bytes of a logical sector
	Partitions []Partition // in the order of the disk
	layout     layout
}

// Partition is an entry of a table.
type Partition struct {
	Number int   // as the kernel counts: sda1 has 1
	Start  int64 // bytes
	Size   int64 // bytes
	Name   string
	ID     [16]byte // as on the disk; GPT only, like the name
	Type   byte     // MBR only; one that is added to a GPT holds Windows' basic data
}

func (p Partition) end() int64 { return p.Start + p.Size }

// layout is what differs between the schemes. All of it is pure.
type layout interface {
	// usable is where partitions may be, in bytes.
	usable() (start, end int64)
	// settle is what makes the table whole again, if a part of it is damaged or is
	// not where it belongs. The other plans go from there.
	settle() Plan
	// add enters p, and returns the number that it has then. It fails with kind
	// [imprint.Exhausted] if there is no entry left.
	add(p Partition) (int, Plan, error)
	// remove clears the entry of a partition.
	remove(number int) Plan
	// resize lets a partition have size bytes.
	resize(number int, size int64) Plan
	// id is the disk's identifier as text, and renew is what replaces those that are
	// keys of ids, the disk's and partitions', by their values.
	id() string
	renew(ids map[string]string) (Plan, error)
}

// Plan is what to write, in steps: all of one is synced before the next begins.
type Plan []Step

// Step is writes that may reach the disk in any order, or some only.
type Step []Write

// Write is bytes and where they go.
type Write struct {
	At   int64
	Data []byte
}

// Read reads the table of a disk of size bytes in sectors of sector bytes, 512 or
// 4096. It fails with kind [imprint.Invalid] unless it understands all of it, and
// with [imprint.Unavailable] if r fails.
func Read(r io.ReaderAt, size, sector int64) (*Table, error) {
	in := &reader{r, size, sector}
	if sector != 512 && sector != 4096 {
		return nil, refused("its sectors have %d bytes, where only 512 and 4096 are known", sector)
	}
	if err := in.packed(); err != nil {
		return nil, err
	}
	if size%sector != 0 || size < 2*Align {
		return nil, refused("its %d bytes are too few for partitions, or no whole sectors of %d", size, sector)
	}
	if err := in.foreign(); err != nil {
		return nil, err
	}
	boot, err := in.bytes(0, sector)
	if err != nil {
		return nil, err
	}
	if boot[510] != 0x55 || boot[511] != 0xaa {
		return nil, refused("it has no partition table").WithHint("make one first, which erases what is there: sfdisk")
	}
	t := &Table{Sector: sector, Scheme: MBR}
	for e := boot[446:510]; len(e) > 0; e = e[16:] {
		if e[4] == 0xee {
			t.Scheme = GPT
		}
	}
	if t.Scheme == GPT {
		t.layout, t.Partitions, err = in.gpt(boot)
	} else {
		t.layout, t.Partitions, err = in.mbr(boot)
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(t.Partitions, func(a, b Partition) int { return cmp.Compare(a.Start, b.Start) })
	return t, nil
}

// Place returns where a new partition of size bytes goes: at the end of the last
// gap that has room, so that the partition before it can still grow. It fails with
// kind [imprint.Exhausted].
func (t *Table) Place(size int64) (start int64, err error) {
	from, end := t.layout.usable()
	largest, at := int64(0), int64(-1)
	gap := func(to int64) {
		first, last := (from+Align-1)/Align*Align, to/Align*Align
		largest = max(largest, last-first)
		if last-first >= size {
			at = last - size
		}
	}
	for _, p := range t.Partitions {
		gap(p.Start)
		from = max(from, p.end())
	}
	gap(end)
	if at < 0 {
		return 0, imprint.Errorf(imprint.Exhausted, "add to", "disk", "a partition of %d MiB does not fit: its largest gap has %d MiB, counted from whole MiB to whole MiB", size/Align, largest/Align).
			WithHint("enlarge the disk, an image for example with truncate -s +%dM, or shrink a partition", 2*size/Align)
	}
	return at, nil
}

func refused(format string, args ...any) *imprint.Error {
	return imprint.Errorf(imprint.Invalid, "read", "disk", format, args...)
}

// reader reads a disk within its bounds.
type reader struct {
	r            io.ReaderAt
	size, sector int64
}

// bytes returns n bytes at an offset.
func (in *reader) bytes(at, n int64) ([]byte, error) {
	if at < 0 || n < 0 || n > 1<<20 || at > in.size-n {
		return nil, refused("it names %d bytes at %d and has %d", n, at, in.size)
	}
	b := make([]byte, n)
	if k, err := in.r.ReadAt(b, at); int64(k) < n && err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, imprint.Errorf(imprint.Unavailable, "read", "disk", "%w", err)
	}
	return b, nil
}

// apart fails unless the partitions are in [start, end) and do not overlap.
func apart(parts []Partition, start, end int64) error {
	sorted := slices.SortedFunc(slices.Values(parts), func(a, b Partition) int { return cmp.Compare(a.Start, b.Start) })
	for i, p := range sorted {
		if p.Start < start || p.Size <= 0 || p.end() > end {
			return refused("its partition %d is from byte %d to %d, outside of %d to %d", p.Number, p.Start, p.end(), start, end)
		}
		if i > 0 && p.Start < sorted[i-1].end() {
			return refused("its partitions %d and %d overlap", sorted[i-1].Number, p.Number)
		}
	}
	return nil
}

// String names a partition in a message.
func (p Partition) String() string {
	if p.Name != "" {
		return fmt.Sprintf("partition %d (%q)", p.Number, p.Name)
	}
	return fmt.Sprintf("partition %d", p.Number)
}
