package media

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"strings"

	"imprint"
)

// Contents is what [Inspect] found.
type Contents struct {
	// Format is iso9660, fat12, fat16, fat32, cpio, smbios or directory.
	Format string
	// Table divides the medium; [NoTable] if the file system is all of it.
	Table Table
	// Partitions is how many the table has; 0 without one.
	Partitions int
	// Start is where the file system or archive begins, in bytes.
	Start int64
	// Label is the label that guests find, and Second the one that is kept beside
	// it: Joliet's on ISO 9660, the boot sector's on FAT.
	Label, Second string
	// Names says whose names the files have: "Rock Ridge", "Joliet", "FAT long names",
	// "cpio", "OEM strings", "system information", "files", or "ISO 9660" where only its
	// short ones are there.
	Names string
	// Files are the contents by path.
	Files map[string][]byte
}

// reader reads a part of a medium within limits.
type reader struct {
	r     io.ReaderAt
	size  int64
	left  int64 // bytes of content that may still be read
	files map[string][]byte
	seen  int // files and directories
}

// Inspect reads the medium of size bytes in r, whoever wrote it: the first
// partition with a file system that it knows, if there are partitions. It fails
// with kind [imprint.Invalid] if there is none or it is damaged, with
// [imprint.Exhausted] if there is more than [MaxFiles] or [MaxContent], and with
// [imprint.Unavailable] if r fails.
func Inspect(r io.ReaderAt, size int64) (*Contents, error) {
	parts, table, err := partitions(r, size)
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		if c, err := p.inspect(r, table, len(parts)); err != nil || c != nil {
			return c, err
		}
	}
	return nil, damaged("it holds neither ISO 9660 nor FAT nor a cpio archive nor firmware strings")
}

// InspectLabelled is like [Inspect], for the file system that is called label, in
// any case. What else is on the medium may be damaged. It fails with kind
// [imprint.NotFound] if there is none.
func InspectLabelled(r io.ReaderAt, size int64, label string) (*Contents, error) {
	parts, table, err := partitions(r, size)
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		c, err := p.inspect(r, table, len(parts))
		if imprint.KindOf(err) == imprint.Unavailable {
			return nil, err
		}
		if err == nil && c != nil && strings.EqualFold(c.Label, label) {
			return c, nil
		}
	}
	return nil, imprint.Errorf(imprint.NotFound, "inspect", "medium", "it has no file system called %s that can be read", label)
}

// inspect reads what is in a partition, of which table has so many; nil if it is nothing
// that is known.
func (p part) inspect(r io.ReaderAt, table Table, count int) (*Contents, error) {
	in := &reader{r: io.NewSectionReader(r, p.start, p.length), size: p.length, left: MaxContent, files: map[string][]byte{}}
	for _, try := range []func() (*Contents, error){in.iso, in.fat, in.smbios, in.cpio} {
		c, err := try()
		if c != nil {
			c.Table, c.Files = table, in.files
			c.Start += p.start
			if table != NoTable {
				c.Partitions = count
			}
		}
		if err != nil || c != nil {
			return c, err
		}
	}
	return nil, nil
}

// InspectDir reads a medium that is a directory, such as that of the carrier fw-cfg.
// It fails as [Inspect] does, also for what is neither a file nor a directory.
func InspectDir(dir fs.FS) (*Contents, error) {
	in := &reader{left: MaxContent, files: map[string][]byte{}}
	err := fs.WalkDir(dir, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return cmp.Or(err, in.room(0))
		}
		if !d.Type().IsRegular() {
			return damaged("%q is neither a file nor a directory", path)
		}
		f, err := dir.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, in.left+1))
		if err != nil {
			return err
		}
		return cmp.Or(in.room(int64(len(b))), in.add(path, b))
	})
	if err != nil {
		if _, ours := err.(*imprint.Error); !ours {
			err = imprint.Errorf(imprint.Unavailable, "inspect", "medium", "%w", err)
		}
		return nil, err
	}
	return &Contents{Format: "directory", Table: NoTable, Names: "files", Files: in.files}, nil
}

// Digest is of what was put on the medium, as it is on record: of all files, but in a
// directory that [FWCfg] made without those that only attach it. Of what [Stub] made it
// is another than the record's, since that is encrypted.
func (c *Contents) Digest() imprint.Digest {
	files := c.Files
	if c.Format == "directory" && files[QEMUConfig] != nil && files[libvirtXML] != nil {
		files = maps.Clone(files)
		delete(files, QEMUConfig)
		delete(files, libvirtXML)
	}
	return imprint.DigestOfFiles(files)
}

func damaged(format string, args ...any) error {
	return imprint.Errorf(imprint.Invalid, "inspect", "medium", format, args...)
}

// bytes returns n bytes at an offset.
func (in *reader) bytes(at, n int64) ([]byte, error) {
	if at < 0 || n < 0 || n > MaxContent || at > in.size-n {
		return nil, damaged("it names %d bytes at %d and has %d", n, at, in.size)
	}
	b := make([]byte, n)
	if _, err := in.r.ReadAt(b, at); err != nil && !errors.Is(err, io.EOF) {
		return nil, imprint.Errorf(imprint.Unavailable, "inspect", "medium", "%w", err)
	}
	return b, nil
}

// room takes n bytes and one file off what may be read.
func (in *reader) room(n int64) error {
	if in.seen++; in.seen > MaxFiles {
		return imprint.Errorf(imprint.Exhausted, "inspect", "medium", "it has more than %d files and directories", MaxFiles)
	}
	if in.left -= n; n < 0 || in.left < 0 {
		return imprint.Errorf(imprint.Exhausted, "inspect", "medium", "its files have more than %d bytes", MaxContent)
	}
	return nil
}

// add keeps a file.
func (in *reader) add(path string, data []byte) error {
	if _, twice := in.files[path]; twice {
		return damaged("it has the file %q twice", path)
	}
	in.files[path] = data
	return nil
}

// part is a partition, or a whole medium, in bytes.
type part struct{ start, length int64 }

// partitions returns where file systems may be.
func partitions(r io.ReaderAt, size int64) ([]part, Table, error) {
	in := &reader{r: r, size: size}
	whole := []part{{0, size}}
	if size < 2*fatSector {
		return whole, NoTable, nil
	}
	b, err := in.bytes(0, 2*fatSector)
	if err != nil {
		return nil, "", err
	}
	le := binary.LittleEndian
	if b[510] != 0x55 || b[511] != 0xaa || isBootSector(b) {
		return whole, NoTable, nil
	}
	if b[450] == 0xee {
		header, sector := b[fatSector:], int64(fatSector)
		if in.size > 2*largeSector && !bytes.HasPrefix(header, []byte("EFI PART")) {
			if header, err = in.bytes(largeSector, fatSector); err != nil {
				return nil, "", err
			}
			sector = largeSector
		}
		return in.gpt(header, sector)
	}
	var parts []part
	for at := 446; at < 510; at += 16 {
		start, length := int64(le.Uint32(b[at+8:]))*fatSector, int64(le.Uint32(b[at+12:]))*fatSector
		if b[at+4] == 0 || length == 0 {
			continue
		}
		if start == 0 || start > size-length {
			return nil, "", damaged("a partition of %d bytes at %d reaches beyond its end at %d", length, start, size)
		}
		parts = append(parts, part{start, length})
	}
	if len(parts) == 0 {
		return whole, NoTable, nil // such as an ISO that starts on a BIOS
	}
	return parts, MBR, nil
}

// gpt returns the partitions of a table, in sectors of sector bytes, whose header is given.
func (in *reader) gpt(header []byte, sector int64) ([]part, Table, error) {
	le := binary.LittleEndian
	sum := append([]byte(nil), header[:92]...)
	copy(sum[16:20], "\x00\x00\x00\x00")
	count, size := int64(le.Uint32(header[80:])), int64(le.Uint32(header[84:]))
	if !bytes.HasPrefix(header, []byte("EFI PART")) || le.Uint32(header[12:]) != 92 || le.Uint32(header[16:]) != crc32.ChecksumIEEE(sum) {
		return nil, "", damaged("the header of its GUID partition table is wrong")
	}
	at := le.Uint64(header[72:])
	if count < 1 || count > 1024 || size < 128 || size > 4096 || at > uint64(in.size/sector) {
		return nil, "", damaged("its GUID partition table has %d entries of %d bytes", count, size)
	}
	array, err := in.bytes(int64(at)*sector, count*size)
	if err != nil {
		return nil, "", err
	}
	if crc32.ChecksumIEEE(array) != le.Uint32(header[88:]) {
		return nil, "", damaged("the entries of its GUID partition table are wrong")
	}
	var parts []part
	for e := array; len(e) >= int(size); e = e[size:] {
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		if first == 0 || last < first || last >= uint64(in.size/sector) {
			return nil, "", damaged("a partition from sector %d to %d reaches beyond its end", first, last)
		}
		parts = append(parts, part{int64(first) * sector, int64(last-first+1) * sector})
	}
	return parts, GPT, nil
}
