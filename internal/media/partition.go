package media

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"unicode/utf16"
)

// Partition tables in numbers, in sectors of 512 bytes.
const (
	partitionStart = 2048 // a megabyte, as all tools align
	gptEntries     = 128  // of 128 bytes: 32 sectors
	gptArray       = 32
)

// basicData is the partition type by which Windows mounts a file system
// (EBD0A0A2-B9E5-4433-87C0-68B6B72699C7), as it is on the disk.
func basicData() [16]byte {
	return [16]byte{0xa2, 0xa0, 0xd0, 0xeb, 0xe5, 0xb9, 0x33, 0x44, 0x87, 0xc0, 0x68, 0xb6, 0xb7, 0x26, 0x99, 0xc7}
}

// layDisk lays a file system out below table.
func layDisk(v *Volume, table Table, size int64) (*image, error) {
	if table == NoTable {
		return layFAT(v, diskGeometry(size, 0, fatSector), "a FAT disk")
	}
	length := size/fatSector - partitionStart
	if table == GPT {
		length -= partitionStart // room for the second table, and whole megabytes again
	}
	g := diskGeometry(length*fatSector, partitionStart*fatSector, fatSector)
	m, err := layFAT(v, g, "a FAT partition")
	if err != nil {
		return nil, err
	}
	for i := range m.pieces {
		m.pieces[i].at += partitionStart * fatSector
	}
	m.size = size
	digest := v.digest()
	if table == MBR {
		m.put(0, bootRecord(binary.LittleEndian.Uint32(digest[4:]), mbrType(g), partitionStart, uint32(length)))
		return m, nil
	}
	m.putGPT(uint64(size/fatSector), uint64(length), v.Label, digest)
	return m, nil
}

// Place is where a partition is on a disk with others, in bytes.
type Place struct {
	Start, Size int64
	Sector      int64 // the disk's logical sectors: 512 or 4096
}

// MinPartition is how small a partition may be, in bytes. [MaxDisk] is the largest.
func (p Place) MinPartition() int64 {
	if p.Sector == largeSector {
		return 17 << 20 // as many clusters as FAT16 has
	}
	return MinDisk
}

// Check fails with kind [imprint.Invalid] if a partition cannot have that size.
func (p Place) Check() error { return checkSize("partition", p.Size, p.MinPartition()) }

// Type is that of the partition in a master boot record.
func (p Place) Type() byte { return mbrType(diskGeometry(p.Size, 0, p.Sector)) }

// Partition writes v as the file system of a partition at p. It fails as [FAT] does.
func Partition(w io.Writer, v *Volume, p Place) error {
	if err := p.Check(); err != nil {
		return err
	}
	m, err := layFAT(v, diskGeometry(p.Size, p.Start, p.Sector), "a FAT partition")
	if err != nil {
		return err
	}
	return m.writeTo(w)
}

func mbrType(g fatGeometry) byte {
	if g.bits == 32 {
		return 0x0c
	}
	return 0x0e // FAT16 by block number
}

// bootRecord is a master boot record with one partition.
func bootRecord(id uint32, kind byte, start, length uint32) []byte {
	b := make([]byte, fatSector)
	le := binary.LittleEndian
	le.PutUint32(b[440:], id)
	e := b[446:]
	copy(e[1:], "\xfe\xff\xff") // beyond what cylinders can tell
	e[4] = kind
	copy(e[5:], "\xfe\xff\xff")
	le.PutUint32(e[8:], start)
	le.PutUint32(e[12:], length)
	b[510], b[511] = 0x55, 0xaa
	return b
}

// putGPT adds both copies of a table with one partition (UEFI 2.10, section 5.3).
func (m *image) putGPT(sectors, length uint64, name string, digest []byte) {
	le := binary.LittleEndian
	protective := bootRecord(0, 0xee, 1, uint32(sectors-1))
	copy(protective[447:], "\x00\x02\x00")
	m.put(0, protective)

	array := make([]byte, gptEntries*128)
	kind := basicData()
	copy(array, kind[:])
	copy(array[16:], guid(digest[:16]))
	le.PutUint64(array[32:], partitionStart)
	le.PutUint64(array[40:], partitionStart+length-1)
	for i, u := range utf16.Encode([]rune(name)) {
		le.PutUint16(array[56+2*i:], u)
	}
	last := sectors - 1
	header := func(at, other, entries uint64) []byte {
		b := make([]byte, fatSector)
		copy(b, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
		le.PutUint64(b[24:], at)
		le.PutUint64(b[32:], other)
		le.PutUint64(b[40:], 2+gptArray)
		le.PutUint64(b[48:], last-1-gptArray)
		copy(b[56:], guid(digest[16:]))
		le.PutUint64(b[72:], entries)
		le.PutUint32(b[80:], gptEntries)
		le.PutUint32(b[84:], 128)
		le.PutUint32(b[88:], crc32.ChecksumIEEE(array))
		le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:92]))
		return b
	}
	m.put(fatSector, header(1, last, 2))
	m.put(2*fatSector, array)
	m.put(int64(last-gptArray)*fatSector, array)
	m.put(int64(last)*fatSector, header(last, 1, last-gptArray))
}

// guid makes a UUID of version 8 out of 16 bytes, as it is on a disk: the first
// three fields are little endian.
func guid(b []byte) []byte {
	g := append([]byte(nil), b...)
	g[7] = g[7]&0x0f | 0x80
	g[8] = g[8]&0x3f | 0x80
	return g
}
