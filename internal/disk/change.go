package disk

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"syscall"
	"unicode/utf16"

	"imprint"
)

// Device is a disk that can be changed: a [File], or a test's.
type Device interface {
	io.ReaderAt
	io.WriterAt
	// Size is in bytes, and SectorSize is that of a logical sector.
	Size() int64
	SectorSize() int64
	// Zero makes n bytes at an offset read as zeros.
	Zero(at, n int64) error
	// Sync returns when everything that was written would survive a power failure.
	Sync() error
}

// Slot is where a partition will be: checked, and not yet written.
type Slot struct {
	Partition
	Scheme Scheme
	d      Device
	table  *Table
	plan   Plan
}

// Prepare finds a place for a partition on d and changes nothing. What p has of
// Number and Start does not count. It fails as [Read] and [Table.Place] do, with kind
// [imprint.Exhausted] if the table is full or what is left is used all the same, and
// with [imprint.Exists] if a partition has that name already, or its file system has it
// as a label.
func Prepare(d Device, p Partition) (*Slot, error) {
	if n := len(utf16.Encode([]rune(p.Name))); p.Name == "" || n > maxName || p.Size <= 0 || p.Size%Align != 0 {
		return nil, imprint.Errorf(imprint.Invalid, "add", "partition "+p.Name, "its name has %d characters, from 1 to %d are possible, and its size is %d, where whole MiB are", n, maxName, p.Size)
	}
	t, in, err := open(d)
	if err != nil {
		return nil, err
	}
	found, _, err := in.find(t, p.Name)
	if err != nil {
		return nil, err
	}
	if len(found) > 0 {
		return nil, imprint.Errorf(imprint.Exists, "add to", "disk", "its %s is called %s already", found[0], p.Name).
			WithHint("remove that first: imprint media remove-partition DISK --label %s", p.Name)
	}
	s := &Slot{Partition: p, Scheme: t.Scheme, d: d, table: t}
	if s.Start, err = t.Place(p.Size); err != nil {
		return nil, err
	}
	if len(t.Partitions) > 0 && s.Start < t.Partitions[0].Start {
		if err := in.unused(s.Start, s.Size); err != nil {
			return nil, err
		}
	}
	s.Number, s.plan, err = t.layout.add(s.Partition)
	return s, err
}

// unused fails unless there are only zeros where a partition is to be. Before the
// first partition is where boards have boot loaders that no table tells about.
func (in *reader) unused(at, n int64) error {
	for end := at + n; at < end; at += Align {
		b, err := in.bytes(at, Align)
		if err != nil {
			return err
		}
		if !IsZero(b) {
			return imprint.Errorf(imprint.Exhausted, "add to", "disk", "a partition of %d MiB fits only before the first one, and something is there already, such as a boot loader", n/Align).
				WithHint("leave room behind its partitions")
		}
	}
	return nil
}

// Add makes the partition: it repairs the table if a copy of it is damaged or not
// where it belongs, lets fill write the content, which is zeros otherwise, and enters
// the partition once that is on the disk. After a failure the table is as it was, or
// as it is to be. It fails with kind [imprint.Unavailable] if the disk does, with
// [imprint.Exhausted] if an image's file system is full, with [imprint.Internal] if the
// disk does not read as it was written, with [imprint.Conflict] if the table is not that
// which [Prepare] found any more, and as fill does.
func (s *Slot) Add(fill func(io.Writer) error) error {
	// Not every tool looks whether an image is locked.
	if now, _, err := open(s.d); err != nil {
		return err
	} else if !reflect.DeepEqual(now, s.table) {
		return changedMeanwhile("add to")
	}
	if err := carryOut(s.d, s.table.layout.settle()); err != nil {
		return err
	}
	if err := s.write(fill); err != nil {
		s.d.Zero(s.Start, s.Size) // nothing secret stays behind, as far as the disk still can
		return err
	}
	if err := carryOut(s.d, s.plan); err != nil {
		return err
	}
	return verify(s.d, s.Partition, true)
}

func changedMeanwhile(op string) error {
	return imprint.Errorf(imprint.Conflict, op, "disk", "its partition table was changed meanwhile").WithHint("start again when nobody else changes it")
}

// write writes the content, while no table names it.
func (s *Slot) write(fill func(io.Writer) error) error {
	if err := s.d.Zero(s.Start, s.Size); err != nil {
		return failed(err)
	}
	if err := fill(&content{OffsetWriter: io.NewOffsetWriter(s.d, s.Start), size: s.Size}); err != nil {
		return err
	}
	if err := s.d.Sync(); err != nil {
		return failed(err)
	}
	return nil
}

// Find returns the partition called label, which [Remove] would take away: what it holds
// is of imprint's making, or nothing any more. It fails as [Read] does, with kind [imprint.NotFound] if no partition is called so, and with
// [imprint.Conflict] if several are, or imprint did not make what it holds.
func Find(d Device, label string) (Partition, error) {
	t, in, err := open(d)
	if err != nil {
		return Partition{}, err
	}
	p, _, err := in.called(t, label)
	return p, err
}

// Remove takes the partition called label away: its content is zeroed and read back,
// its entry cleared. If it is interrupted it can be called again, until nothing of
// either is left. It fails as [Find] and as [Slot.Add] do, and with kind
// [imprint.Conflict] for a logical partition.
func Remove(d Device, label string) (Partition, error) {
	t, in, err := open(d)
	if err != nil {
		return Partition{}, err
	}
	p, v, err := in.called(t, label)
	if err != nil {
		return Partition{}, err
	}
	if t.Scheme == MBR && p.Number > 4 {
		return Partition{}, imprint.Errorf(imprint.Conflict, "remove from", "disk", "its %s is inside an extended one", p)
	}
	if err := carryOut(d, t.layout.settle()); err != nil {
		return p, err
	}
	// Where the label is goes last, so that whoever is interrupted finds the
	// partition again.
	keep := p.Start + v.at
	if err := zero(d, extent{p.Start, v.at}, extent{keep + v.length, p.end() - keep - v.length}); err != nil {
		return p, err
	}
	if err := carryOut(d, t.layout.remove(p.Number)); err != nil {
		return p, err
	}
	if err := zero(d, extent{keep, v.length}); err != nil {
		return p, err
	}
	if err := blank(d, extent{p.Start, p.Size}); err != nil {
		return p, err
	}
	return p, verify(d, p, false)
}

// called returns the only partition that is called label.
func (in *reader) called(t *Table, label string) (Partition, volume, error) {
	found, volumes, err := in.find(t, label)
	switch {
	case err != nil:
		return Partition{}, volume{}, err
	case len(found) == 0:
		return Partition{}, volume{}, imprint.Errorf(imprint.NotFound, "remove from", "disk", "none of its %d partitions is called %s", len(t.Partitions), label)
	case len(found) > 1:
		return Partition{}, volume{}, imprint.Errorf(imprint.Conflict, "remove from", "disk", "its %s and %s are both called %s", found[0], found[1], label)
	case volumes[0].ours:
		return found[0], volumes[0], nil
	}
	// What its machine has overwritten has its name in the table still.
	empty, err := Blank(in.r, found[0])
	if err == nil && !empty {
		err = imprint.Errorf(imprint.Conflict, "remove from", "disk", "its %s is called %s, but imprint did not make what it holds", found[0], label).
			WithHint("if nobody needs it, delete it by hand: sfdisk --delete")
	}
	return found[0], volume{}, err
}

// open reads the table of d.
func open(d Device) (*Table, *reader, error) {
	t, err := Read(d, d.Size(), d.SectorSize())
	return t, &reader{d, d.Size(), d.SectorSize()}, err
}

// extent is bytes of a disk.
type extent struct{ at, length int64 }

// zero lets extents read as zeros, safely.
func zero(d Device, extents ...extent) error {
	for _, e := range extents {
		if err := d.Zero(e.at, e.length); err != nil {
			return failed(err)
		}
	}
	if err := d.Sync(); err != nil {
		return failed(err)
	}
	return nil
}

// blank fails unless an extent reads as zeros.
func blank(d Device, e extent) error {
	empty, err := Blank(d, Partition{Start: e.at, Size: e.length})
	if err == nil && !empty {
		err = imprint.Errorf(imprint.Internal, "remove from", "disk", "the partition is gone, and what it held reads back other than zeros")
	}
	return err
}

// Blank reports whether all of a partition reads as zeros. It fails with kind
// [imprint.Unavailable] if the disk does.
func Blank(d io.ReaderAt, p Partition) (bool, error) {
	b := make([]byte, 1<<20)
	for at := p.Start; at < p.end(); at += int64(len(b)) {
		b = b[:min(int64(len(b)), p.end()-at)]
		if _, err := d.ReadAt(b, at); err != nil {
			return false, failed(err)
		}
		if !IsZero(b) {
			return false, nil
		}
	}
	return true, nil
}

// carryOut writes a plan.
func carryOut(d Device, plan Plan) error {
	for _, step := range plan {
		for _, w := range step {
			if _, err := d.WriteAt(w.Data, w.At); err != nil {
				return failed(err)
			}
		}
		if err := d.Sync(); err != nil {
			return failed(err)
		}
	}
	return nil
}

// verify reads the table again, in which p has to be or not to be.
func verify(d Device, p Partition, there bool) error {
	t, _, err := open(d)
	if err != nil {
		return err
	}
	has := slices.ContainsFunc(t.Partitions, func(q Partition) bool {
		return q.Number == p.Number && q.Start == p.Start && q.Size == p.Size
	})
	if has != there {
		return imprint.Errorf(imprint.Internal, "write", "disk", "its partition table does not read as it was written")
	}
	return nil
}

func failed(err error) error {
	kind := imprint.Unavailable
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		kind = imprint.Exhausted // an image with holes
	}
	return imprint.Errorf(kind, "write", "disk", "%w", err)
}

// content is a partition that is zeroed, to be written like a new file.
type content struct {
	*io.OffsetWriter
	size int64
}

// Truncate fails unless size is the partition's.
func (c *content) Truncate(size int64) error {
	if size != c.size {
		return fmt.Errorf("%d bytes for a partition of %d", size, c.size)
	}
	return nil
}
