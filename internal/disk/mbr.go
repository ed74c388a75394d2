package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	"imprint"
)

// maxLogical is how many partitions an extended one may hold.
const maxLogical = 128

// mbr is a master boot record: one sector, which a disk writes whole or not at all.
type mbr struct {
	sector, size int64
	boot         []byte
}

// extended reports whether a type of partition holds others.
func extended(kind byte) bool { return kind == 0x05 || kind == 0x0f || kind == 0x85 }

// mbr reads the table in a boot record.
func (in *reader) mbr(boot []byte) (*mbr, []Partition, error) {
	header, err := in.bytes(in.sector, in.sector)
	if err != nil {
		return nil, nil, err
	}
	if bytes.HasPrefix(header, []byte("EFI PART")) {
		return nil, nil, refused("it has a GUID partition table whose protective boot record is damaged or has been replaced").
			WithHint("keep one of them: gdisk repairs the first, and sgdisk --zap erases it")
	}
	if in.size/in.sector > 1<<32 {
		return nil, nil, refused("it has %d sectors, and a master boot record counts to %d", in.size/in.sector, int64(1)<<32).WithHint("convert it to a GUID partition table: sgdisk --mbrtogpt")
	}
	m := &mbr{in.sector, in.size, boot}
	var parts, logical []Partition
	for i := range 4 {
		p, err := m.entry(boot, i, i+1, 0)
		if err != nil {
			return nil, nil, err
		}
		if p.Type == 0 {
			continue
		}
		if p.Type == 0x42 {
			return nil, nil, refused("its partitions are those of a dynamic disk of Windows, which are not in its boot record")
		}
		parts = append(parts, p)
		if extended(p.Type) {
			if logical != nil {
				return nil, nil, refused("it has two extended partitions")
			}
			if logical, err = in.logical(m, p); err != nil {
				return nil, nil, err
			}
		}
	}
	if err := apart(parts, in.sector, in.size); err != nil {
		return nil, nil, err
	}
	return m, append(parts, logical...), nil
}

// entry reads the i-th entry of a boot record, which counts from byte base on. An
// empty one has the type 0.
func (m *mbr) entry(boot []byte, i, number int, base int64) (Partition, error) {
	e := boot[446+16*i:]
	le := binary.LittleEndian
	p := Partition{Number: number, Type: e[4], Start: base + int64(le.Uint32(e[8:]))*m.sector, Size: int64(le.Uint32(e[12:])) * m.sector}
	if p.Type == 0 {
		return Partition{}, nil
	}
	if e[0]&0x7f != 0 || p.Start == base || p.Size == 0 {
		return p, refused("the entry of its partition %d is none: flags %#x, from byte %d, %d bytes", number, e[0], p.Start, p.Size)
	}
	return p, nil
}

// logical reads the partitions in an extended one: a chain of boot records, each
// with a partition, which counts from there, and the next record, which counts from
// the first. The list is not nil.
func (in *reader) logical(m *mbr, whole Partition) ([]Partition, error) {
	parts := []Partition{}
	for at := whole.Start; ; {
		if len(parts) == maxLogical {
			return nil, refused("its extended partition has more than %d others", maxLogical)
		}
		boot, err := in.bytes(at, in.sector)
		if err != nil {
			return nil, err
		}
		if boot[510] != 0x55 || boot[511] != 0xaa {
			return nil, refused("its extended partition has no boot record at byte %d", at)
		}
		p, err := m.entry(boot, 0, 5+len(parts), at)
		if err != nil {
			return nil, err
		}
		next, err := m.entry(boot, 1, 6+len(parts), whole.Start)
		if err != nil {
			return nil, err
		}
		if p.Type != 0 {
			parts = append(parts, p)
		}
		if next.Type == 0 {
			return parts, apart(parts, whole.Start, whole.end())
		}
		if !extended(next.Type) || next.Start <= at {
			return nil, refused("the chain in its extended partition leads from byte %d to %d", at, next.Start)
		}
		at = next.Start
	}
}

// usable leaves the first MiB to boot loaders, and the last one to the backup that
// a GUID partition table will need, or to a RAID's own notes.
func (m *mbr) usable() (start, end int64) { return Align, m.size - Align }

func (m *mbr) settle() Plan { return nil }

func (m *mbr) add(p Partition) (int, Plan, error) {
	boot := slices.Clone(m.boot)
	for i := range 4 {
		e := boot[446+16*i : 462+16*i]
		if e[4] != 0 {
			continue
		}
		clear(e)
		copy(e[1:], "\xfe\xff\xff") // beyond what cylinders can tell
		e[4] = p.Type
		copy(e[5:], "\xfe\xff\xff")
		binary.LittleEndian.PutUint32(e[8:], uint32(p.Start/m.sector))
		binary.LittleEndian.PutUint32(e[12:], uint32(p.Size/m.sector))
		return i + 1, Plan{{{0, boot}}}, nil
	}
	return 0, nil, imprint.Errorf(imprint.Exhausted, "add to", "disk", "all 4 entries of its master boot record are used").
		WithHint("delete a partition, or convert it to a GUID partition table: sgdisk --mbrtogpt")
}

func (m *mbr) remove(number int) Plan {
	boot := slices.Clone(m.boot)
	clear(boot[446+16*(number-1) : 446+16*number])
	return Plan{{{0, boot}}}
}

func (m *mbr) resize(number int, size int64) Plan {
	boot := slices.Clone(m.boot)
	e := boot[446+16*(number-1):]
	copy(e[5:], "\xfe\xff\xff") // beyond what cylinders can tell
	binary.LittleEndian.PutUint32(e[12:], uint32(size/m.sector))
	return Plan{{{0, boot}}}
}

// id is the signature that Windows gives a disk, and by which Linux names its partitions.
func (m *mbr) id() string { return fmt.Sprintf("%08x", binary.LittleEndian.Uint32(m.boot[440:])) }

func (m *mbr) renew(ids map[string]string) (Plan, error) {
	to, ok := ids[m.id()]
	if !ok {
		return nil, nil
	}
	n, err := strconv.ParseUint(to, 16, 32)
	if err != nil || len(to) != 8 || n == 0 {
		return nil, imprint.Errorf(imprint.Invalid, "renew", "disk", "%q is no signature of a master boot record", to)
	}
	boot := slices.Clone(m.boot)
	binary.LittleEndian.PutUint32(boot[440:], uint32(n))
	return Plan{{{0, boot}}}, nil
}
