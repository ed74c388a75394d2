package disk_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"slices"
	"testing"

	"imprint"
	"imprint/internal/disk"
	"imprint/internal/media"
)

// sparse is a disk of which only what is not zero takes memory.
type sparse struct {
	size    int64
	sectors map[int64][sector]byte
}

func (s *sparse) Size() int64       { return s.size }
func (s *sparse) SectorSize() int64 { return sector }
func (s *sparse) Sync() error       { return nil }

func (s *sparse) ReadAt(b []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(b)) > s.size {
		return 0, io.EOF
	}
	for n := 0; n < len(b); {
		from := at + int64(n)
		data := s.sectors[from/sector]
		n += copy(b[n:], data[from%sector:])
	}
	return len(b), nil
}

func (s *sparse) WriteAt(b []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(b)) > s.size {
		return 0, io.ErrShortWrite
	}
	for n := 0; n < len(b); {
		from := at + int64(n)
		data := s.sectors[from/sector]
		n += copy(data[from%sector:], b[n:])
		if s.sectors[from/sector] = data; data == [sector]byte{} {
			delete(s.sectors, from/sector)
		}
	}
	return len(b), nil
}

func (s *sparse) Zero(at, n int64) error {
	for i := range s.sectors {
		if i*sector < at+n && (i+1)*sector > at {
			from, to := max(i*sector, at), min((i+1)*sector, at+n)
			if _, err := s.WriteAt(make([]byte, to-from), from); err != nil {
				return err
			}
		}
	}
	return nil
}

const fuzzDisk = media.MinDisk

// Whatever is at a disk's beginning and end, it is refused or understood: then a
// partition can be added beside the others, and taken away again.
func FuzzRead(f *testing.F) {
	v := &media.Volume{Label: "cidata", Time: drive().Time, Files: map[string][]byte{"user-data": nil}}
	for _, table := range []media.Table{media.GPT, media.MBR, media.NoTable} {
		var b bytes.Buffer
		if err := media.FAT(&b, v, table, fuzzDisk); err != nil {
			f.Fatal(err)
		}
		head, tail := b.Bytes()[:3*sector], b.Bytes()[fuzzDisk-33*sector:]
		f.Add(head, tail, uint16(0), true)
		f.Add(head, tail, uint16(4096), true)
		f.Add(head, make([]byte, sector), uint16(9), false)
		f.Add(make([]byte, sector), tail, uint16(0), false)
	}
	extended := make([]byte, 8*sector)
	copy(extended[446:], "\x80\xfe\xff\xff\x83\xfe\xff\xff\x04\x00\x00\x00\x01\x00\x00\x00"+"\x00\xfe\xff\xff\x05\xfe\xff\xff\x05\x00\x00\x00\x40\x00\x00\x00")
	copy(extended[5*sector+446:], "\x00\xfe\xff\xff\x83\xfe\xff\xff\x01\x00\x00\x00\x01\x00\x00\x00"+"\x00\xfe\xff\xff\x05\xfe\xff\xff\x02\x00\x00\x00\x04\x00\x00\x00")
	copy(extended[7*sector+446:], "\x00\xfe\xff\xff\x83\xfe\xff\xff\x01\x00\x00\x00\x01\x00\x00\x00")
	for _, at := range []int{0, 5, 7} {
		copy(extended[at*sector+510:], "\x55\xaa")
	}
	f.Add(extended, []byte{}, uint16(4096), false)

	f.Fuzz(func(t *testing.T, head, tail []byte, grown uint16, correct bool) {
		head, tail = head[:min(len(head), 64*sector)], tail[:min(len(tail), 64*sector)]
		d := &sparse{size: fuzzDisk + int64(grown)*sector, sectors: map[int64][sector]byte{}}
		d.WriteAt(head, 0)
		d.WriteAt(tail, fuzzDisk-int64(len(tail)))
		if correct { // checksums keep most changes from being looked at
			correctSum(d, sector)
			correctSum(d, fuzzDisk-sector)
		}
		table, err := disk.Read(d, d.size, sector)
		if err != nil {
			if imprint.KindOf(err) != imprint.Invalid {
				t.Errorf("%s: %v", imprint.KindOf(err), err)
			}
			return
		}
		before := table.Partitions
		s, err := disk.Prepare(d, config2())
		if err != nil {
			if k := imprint.KindOf(err); k != imprint.Exhausted && k != imprint.Exists && k != imprint.Invalid {
				t.Errorf("%s: %v", k, err)
			}
			return
		}
		if err := s.Add(fill); err != nil {
			t.Fatal(err)
		}
		table, err = disk.Read(d, d.size, sector)
		if err != nil || len(table.Partitions) != len(before)+1 {
			t.Fatalf("%v became %v, %v", before, table, err)
		}
		if _, err := disk.Remove(d, "config-2"); err != nil {
			t.Fatal(err)
		}
		if table, err = disk.Read(d, d.size, sector); err != nil || !slices.Equal(table.Partitions, before) {
			t.Errorf("%v became %v, %v", before, table.Partitions, err)
		}
	})
}

// correctSum corrects the checksums in a header, as far as it makes sense.
func correctSum(d *sparse, at int64) {
	h := make([]byte, sector)
	if _, err := d.ReadAt(h, at); err != nil {
		return
	}
	le := binary.LittleEndian
	array, count := le.Uint64(h[72:]), le.Uint32(h[80:])
	if array < 1<<20 && count <= 1024 {
		b := make([]byte, count*128)
		if _, err := d.ReadAt(b, int64(array)*sector); err == nil {
			le.PutUint32(h[88:], crc32.ChecksumIEEE(b))
		}
	}
	clear(h[16:20])
	if n := le.Uint32(h[12:]); n >= 92 && n <= sector {
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:n]))
	}
	d.WriteAt(h, at)
}
