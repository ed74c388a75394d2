package disk

import (
	"fmt"
	"reflect"
	"slices"

	"imprint"
)

// Growth is a partition and the size that it can have: checked, and not yet written.
type Growth struct {
	Partition       // as it is
	To        int64 // bytes; the same as Size if there is no room behind it
	d         Device
	table     *Table
}

// Room returns partition number and the size that it can have, up to the one behind it
// or the end. It fails with kind [imprint.NotFound] if there is no such partition, and
// with [imprint.Conflict] if it holds others or is inside of one that does.
func (t *Table) Room(number int) (p Partition, to int64, err error) {
	i := slices.IndexFunc(t.Partitions, func(p Partition) bool { return p.Number == number })
	if i < 0 {
		return p, 0, imprint.Errorf(imprint.NotFound, "grow", fmt.Sprintf("partition %d", number), "the disk has none with that number")
	}
	p = t.Partitions[i]
	if t.Scheme == MBR && (number > 4 || extended(p.Type)) {
		return p, 0, imprint.Errorf(imprint.Conflict, "grow", p.String(), "it is an extended partition, or inside of one").
			WithHint("grow it by hand: growpart, or parted resizepart")
	}
	_, end := t.layout.usable()
	for _, q := range t.Partitions {
		if q.Start >= p.end() {
			end = min(end, q.Start)
		}
	}
	return p, max(p.Size, end/Align*Align-p.Start), nil
}

// PrepareGrowth finds out how large partition number of d can become, and changes
// nothing. It fails as [Read] and [Table.Room] do.
func PrepareGrowth(d Device, number int) (*Growth, error) {
	t, _, err := open(d)
	if err != nil {
		return nil, err
	}
	p, to, err := t.Room(number)
	if err != nil {
		return nil, err
	}
	return &Growth{Partition: p, To: to, d: d, table: t}, nil
}

// Grow enlarges the partition: it repairs the table if a copy of it is damaged or not
// where it belongs, and changes the entry. After a failure the table is as it was, or
// as it is to be. It fails with kind [imprint.Unavailable] if the disk does, and with
// [imprint.Conflict] if the table is not that which [PrepareGrowth] found any more.
func (g *Growth) Grow() error {
	if now, _, err := open(g.d); err != nil {
		return err
	} else if !reflect.DeepEqual(now, g.table) {
		return changedMeanwhile("grow")
	}
	if err := carryOut(g.d, g.table.layout.settle()); err != nil {
		return err
	}
	if g.To == g.Size {
		return nil
	}
	if err := carryOut(g.d, g.table.layout.resize(g.Number, g.To)); err != nil {
		return err
	}
	to := g.Partition
	to.Size = g.To
	return verify(g.d, to, true)
}
