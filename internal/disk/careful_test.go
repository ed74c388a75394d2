package disk_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/disk"
	"imprint/test/need"
)

// bootRecord returns an image with a partition in a master boot record.
func bootRecord(size int64, start, count uint32) []byte {
	b := make([]byte, size)
	e := b[446:]
	e[4] = 0x83
	binary.LittleEndian.PutUint32(e[8:], start)
	binary.LittleEndian.PutUint32(e[12:], count)
	copy(b[510:], "\x55\xaa")
	return b
}

// ext puts the superblock of an ext file system called label into b.
func ext(b []byte, label string) {
	s := b[1024:]
	le := binary.LittleEndian
	le.PutUint32(s[0:], 100)
	le.PutUint32(s[4:], 100)
	le.PutUint16(s[56:], 0xef53)
	copy(s[120:], label)
}

// A boot record counts in sectors of a size that it does not tell. An image whose
// partition is where 4096 bytes a sector lead has that partition there, and no room.
func TestImageOfLargeSectorsWithBootRecord(t *testing.T) {
	t.Parallel()
	data := bootRecord(64*mib, mib/4096, 63*mib/4096)
	ext(data[mib:], "root")
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if n := d.SectorSize(); n != 4096 {
		t.Errorf("sectors of %d bytes", n)
	}
	if s, err := disk.Prepare(d, config2()); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("got a partition at %d inside of another, %v", s.Start, err)
	}
}

// What is before the first partition and no zeros may be a boot loader, and stays.
func TestBootLoaderBeforePartitions(t *testing.T) {
	t.Parallel()
	data := bootRecord(64*mib, 32*mib/sector, 32*mib/sector)
	ext(data[32*mib:], "root")
	copy(data[31*mib+7:], "u-boot")
	if _, err := disk.Prepare(&memory{data: data}, config2()); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("a boot loader would be overwritten: %v", err)
	}
	clear(data[31*mib : 32*mib])
	if s, err := disk.Prepare(&memory{data: data}, config2()); err != nil || s.Start != 31*mib {
		t.Errorf("where nothing is: %v", err)
	}
}

// A partition that is called as a medium is, and that imprint did not make, stays.
func TestRemoveOnlyMedia(t *testing.T) {
	t.Parallel()
	stick := func(b []byte, label string) { // as dosfstools leave it
		copy(b, "\xeb\x3c\x90mkfs.fat\x00\x02\x04\x01\x00\x02\x00\x02\x00\x20\xf8\x02\x00")
		copy(b[38:], "\x29\x01\x02\x03\x04           FAT12   ")
		copy(b[43:], label)
		copy(b[510:], "\x55\xaa")
	}
	for name, format := range map[string]func([]byte, string){"ext": ext, "FAT": stick} {
		data := bootRecord(8*mib, mib/sector, 4*mib/sector)
		format(data[mib:], "ganeti")
		before := bytes.Clone(data)
		m := &memory{data: data}
		if _, err := disk.Find(m, "ganeti"); imprint.KindOf(err) != imprint.Conflict {
			t.Errorf("%s: found: %v", name, err)
		}
		if _, err := disk.Remove(m, "ganeti"); imprint.KindOf(err) != imprint.Conflict {
			t.Errorf("%s: removed: %v", name, err)
		}
		if !bytes.Equal(data, before) {
			t.Errorf("%s: it was changed", name)
		}
	}
}

// A partition of a GUID partition table that is called as a medium is, and holds nothing
// any more, is removed; one that holds anything is not.
func TestRemoveWhatItsMachineBlanked(t *testing.T) {
	t.Parallel()
	for _, at := range []int64{-1, 0, 1<<20 - 1} {
		m := &memory{data: image(t, layouts()["gpt"])}
		s, err := disk.Prepare(m, config2())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Add(func(io.Writer) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if at >= 0 {
			m.data[s.Start+at] = 1
		}
		before := bytes.Clone(m.data)
		switch p, err := disk.Remove(m, "config-2"); {
		case at < 0 && (err != nil || p.Number != s.Number):
			t.Errorf("a blank one: %v", err)
		case at >= 0 && (imprint.KindOf(err) != imprint.Conflict || !bytes.Equal(m.data, before)):
			t.Errorf("with something at %d: %v", at, err)
		}
	}
}

// A table that a tool changes that looks for no locks is not written over.
func TestTableChangedMeanwhile(t *testing.T) {
	t.Parallel()
	m := &memory{data: bootRecord(8*mib, mib/sector, mib/sector)}
	s, err := disk.Prepare(m, config2())
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(m.data[446+12:], 7*mib/sector)
	before := bytes.Clone(m.data)
	if err := s.Add(fill); imprint.KindOf(err) != imprint.Conflict || !bytes.Equal(m.data, before) {
		t.Errorf("got %v", err)
	}
}

// An image that a container has attached to a loop device, under a name that nobody
// else knows, is in use all the same.
func TestAttachedInContainer(t *testing.T) {
	t.Parallel()
	need.Root(t)
	unshare, losetup := need.Program(t, "unshare", "util-linux"), need.Program(t, "losetup", "mount")
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	if err := os.WriteFile(path, bootRecord(8*mib, mib/sector, mib/sector), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(unshare, "--mount", "sh", "-c", `mount --bind "$1" /mnt && "$2" --find --show /mnt/disk`, "sh", dir, losetup).Output()
	need.Kernel(t, err == nil, "loop devices")
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command(losetup, "-d", device).Run() })
	d, err := disk.Open(path)
	if imprint.KindOf(err) != imprint.Conflict || err == nil || !strings.Contains(err.Error(), "attached to "+device) {
		t.Errorf("attached to %s: %v", device, err)
	}
	if err == nil {
		d.Close()
	}
}
