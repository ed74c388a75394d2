package disk

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"imprint"
)

// ID is the identifier of the disk, as blkid prints it (PTUUID): a UUID with a GUID
// partition table, and eight hexadecimal digits with a master boot record.
func (t *Table) ID() string { return t.layout.id() }

// PartUUID is the identifier of a partition, as fstab has it behind PARTUUID=. That
// of a master boot record is made of the disk's.
func (t *Table) PartUUID(p Partition) string {
	if t.Scheme == MBR {
		return fmt.Sprintf("%s-%02x", t.ID(), p.Number)
	}
	return FormatID(p.ID)
}

// Renew gives the disk, and with a GUID partition table its partitions, other
// identifiers: those that are keys of ids become their values, all in the form that
// [Table.ID] and [Table.PartUUID] have. After a failure the disk has the old ones or
// the new ones. It fails as [Read] and [Slot.Add] do, and with kind [imprint.Invalid]
// if a value is no identifier.
func Renew(d Device, ids map[string]string) error {
	t, _, err := open(d)
	if err != nil {
		return err
	}
	plan, err := t.layout.renew(ids)
	if err != nil {
		return err
	}
	if err := carryOut(d, t.layout.settle()); err != nil {
		return err
	}
	if err := carryOut(d, plan); err != nil {
		return err
	}
	now, _, err := open(d)
	if err != nil {
		return err
	}
	if to, ok := ids[t.ID()]; ok && now.ID() != to {
		return imprint.Errorf(imprint.Internal, "write", "disk", "its partition table does not read as it was written")
	}
	return nil
}

// FormatID is the text of an identifier that is on the disk, in lower case.
func FormatID(id [16]byte) string {
	le, be := binary.LittleEndian, binary.BigEndian
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", le.Uint32(id[0:]), le.Uint16(id[4:]), le.Uint16(id[6:]), be.Uint16(id[8:]), id[10:])
}

// parseID is the inverse of [FormatID].
func parseID(s string) (id [16]byte, err error) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(id) {
		return id, imprint.Errorf(imprint.Invalid, "renew", "disk", "%q is no UUID", s)
	}
	copy(id[:], b)
	for _, field := range [][]byte{id[0:4], id[4:6], id[6:8]} { // these are little endian on the disk
		for i, j := 0, len(field)-1; i < j; i, j = i+1, j-1 {
			field[i], field[j] = field[j], field[i]
		}
	}
	return id, nil
}
