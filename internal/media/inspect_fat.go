package media

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

// isBootSector reports whether b begins with the boot sector of a FAT file system.
func isBootSector(b []byte) bool {
	le := binary.LittleEndian
	sector, per := le.Uint16(b[11:]), b[13]
	return (b[0] == 0xeb || b[0] == 0xe9) && (sector == fatSector || sector == largeSector) && per != 0 && per&(per-1) == 0 &&
		le.Uint16(b[14:]) != 0 && (b[16] == 1 || b[16] == 2) && b[21] >= 0xf0 && b[510] == 0x55 && b[511] == 0xaa
}

// fatWalk goes through a FAT file system.
type fatWalk struct {
	in      *reader
	g       fatGeometry
	fat     []byte
	visited map[uint32]bool // first clusters of directories
	label   string
}

// fat reads a FAT file system; nil if there is none.
func (in *reader) fat() (*Contents, error) {
	if in.size < fatSector {
		return nil, nil
	}
	b, err := in.bytes(0, fatSector)
	if err != nil {
		return nil, err
	}
	if !isBootSector(b) {
		return nil, nil
	}
	le := binary.LittleEndian
	g := fatGeometry{
		sector: int64(le.Uint16(b[11:])), perCluster: uint32(b[13]), reserved: uint32(le.Uint16(b[14:])), rootEntries: uint32(le.Uint16(b[17:])),
		total: uint32(le.Uint16(b[19:])), perFAT: uint32(le.Uint16(b[22:])),
	}
	if g.total == 0 {
		g.total = le.Uint32(b[32:])
	}
	at, root := 36, uint32(0)
	if g.perFAT == 0 {
		g.perFAT, at, root = le.Uint32(b[36:]), 64, le.Uint32(b[44:])
	}
	data := int64(g.reserved) + int64(b[16])*int64(g.perFAT) + int64(g.rootSectors())
	if b[16] != 2 || int64(g.total)*g.sector > in.size || data >= int64(g.total) || int64(g.rootEntries)*fatEntry%g.sector != 0 {
		return nil, damaged("its boot sector describes a file system of %d sectors, where %d are", g.total, in.size/g.sector)
	}
	switch n := g.clusters(); {
	case n < 4085:
		g.bits = 12
	case n < 65525:
		g.bits = 16
	default:
		g.bits = 32
	}
	if (g.bits == 32) != (at == 64) {
		return nil, damaged("its boot sector is not of the FAT%d that it has room for", g.bits)
	}
	w := &fatWalk{in: in, g: g, visited: map[uint32]bool{}}
	if w.fat, err = in.bytes(int64(g.reserved)*g.sector, min(int64(g.perFAT)*g.sector, (int64(g.clusters())+2)*int64(g.bits)/8+2)); err != nil {
		return nil, err
	}
	c := &Contents{Format: fmt.Sprintf("fat%d", g.bits), Names: "FAT long names"}
	if b[at+2] == 0x29 {
		c.Second = strings.TrimRight(string(b[at+7:at+18]), " \x00")
	}
	var entries []byte
	if g.bits == 32 {
		entries, err = w.chain(root, -1)
	} else {
		entries, err = in.bytes(int64(g.reserved+2*g.perFAT)*g.sector, int64(g.rootEntries)*fatEntry)
	}
	if err != nil {
		return nil, err
	}
	err = w.directory("", entries, 0)
	c.Label = w.label
	return c, err
}

// next returns the entry of a cluster in the allocation table.
func (w *fatWalk) next(cluster uint32) uint32 {
	le := binary.LittleEndian
	switch at := int(cluster) * w.g.bits / 8; {
	case at+(w.g.bits+7)/8 > len(w.fat):
		return 0
	case w.g.bits == 32:
		return le.Uint32(w.fat[at:]) & 0x0fffffff
	case w.g.bits == 16:
		return uint32(le.Uint16(w.fat[at:]))
	case cluster%2 == 1:
		return uint32(le.Uint16(w.fat[at:]) >> 4)
	default:
		return uint32(le.Uint16(w.fat[at:]) & 0xfff)
	}
}

// chain returns the bytes of the clusters from first on: size of them, or with
// -1 all there are.
func (w *fatWalk) chain(first uint32, size int64) ([]byte, error) {
	per := int64(w.g.clusterSize())
	most := int64(w.g.clusters())
	if size >= 0 {
		most = (size + per - 1) / per
	} else {
		most = min(most, 1<<20/per+1) // a directory
	}
	var b []byte
	for cluster, n := first, int64(0); ; n++ {
		if size >= 0 && n == most {
			return b[:size], nil
		}
		if size < 0 && cluster&0x0fffffff >= 1<<uint(min(w.g.bits, 28))-8 {
			return b, nil
		}
		if n == most || cluster < 2 || cluster >= w.g.clusters()+2 {
			return nil, damaged("a chain of clusters from %d on does not end, or leads to cluster %d", first, cluster)
		}
		part, err := w.in.bytes((int64(w.g.dataStart())+(int64(cluster)-2)*int64(w.g.perCluster))*w.g.sector, per)
		if err != nil {
			return nil, err
		}
		b = append(b, part...)
		cluster = w.next(cluster)
	}
}

// directory reads the files that entries name.
func (w *fatWalk) directory(path string, entries []byte, depth int) error {
	if depth > 2*maxDepth {
		return damaged("the directory %q is too deep", path)
	}
	if err := w.in.room(int64(len(entries))); err != nil {
		return err
	}
	var long []uint16
	var sum byte
	for ; len(entries) >= fatEntry && entries[0] != 0; entries = entries[fatEntry:] {
		e := entries[:fatEntry]
		switch {
		case e[0] == 0xe5 || e[0] == '.':
			long = nil
			continue
		case e[11]&0x3f == 0x0f:
			if e[0]&0x40 != 0 {
				long, sum = nil, e[13]
			}
			var part []uint16
			for _, at := range longOffsets() {
				part = append(part, binary.LittleEndian.Uint16(e[at:]))
			}
			long = append(part, long...)
			continue
		case e[11]&0x08 != 0:
			if path == "" && w.label == "" {
				w.label = strings.TrimRight(string(e[:fatLabel]), " ")
			}
			long = nil
			continue
		}
		name := shortText(e)
		if long != nil && shortSum([fatLabel]byte(e[:fatLabel])) == sum {
			if end := slices.Index(long, 0); end >= 0 {
				long = long[:end]
			}
			name = string(utf16.Decode(long))
		}
		long = nil
		if err := w.entry(path, name, e, depth); err != nil {
			return err
		}
	}
	return nil
}

// shortText is the name of eight characters and three, in the case that Windows NT
// notes beside it.
func shortText(e []byte) string {
	base, ext := bytes.TrimRight(e[:8], " "), bytes.TrimRight(e[8:11], " ")
	if e[12]&0x08 != 0 {
		base = bytes.ToLower(base)
	}
	if e[12]&0x10 != 0 {
		ext = bytes.ToLower(ext)
	}
	if len(ext) == 0 {
		return string(base)
	}
	return string(base) + "." + string(ext)
}

// entry reads what one entry names.
func (w *fatWalk) entry(dir, name string, e []byte, depth int) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return damaged("the directory %q has a file with the name %q", dir, name)
	}
	first := uint32(binary.LittleEndian.Uint16(e[20:]))<<16 | uint32(binary.LittleEndian.Uint16(e[26:]))
	if e[11]&0x10 != 0 {
		if w.visited[first] {
			return damaged("the directory %q is inside itself", dir+name)
		}
		w.visited[first] = true
		entries, err := w.chain(first, -1)
		if err != nil {
			return err
		}
		return w.directory(dir+name+"/", entries, depth+1)
	}
	size := int64(binary.LittleEndian.Uint32(e[28:]))
	if err := w.in.room(size); err != nil {
		return err
	}
	b, err := w.chain(first, size)
	if err != nil {
		return err
	}
	return w.in.add(dir+name, b)
}
