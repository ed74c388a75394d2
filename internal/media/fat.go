package media

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"strings"
	"time"
	"unicode/utf16"

	"imprint"
)

// FAT in numbers.
const (
	fatSector = 512
	// largeSector is that of disks on which a file system in smaller ones is not mounted.
	largeSector = 4096
	fatEntry    = 32 // bytes of a directory entry
	fatLabel    = 11
	// FloppySize is that of a 3.5 inch disk: emulated drives go by it.
	FloppySize = 1440 << 10
	// MinDisk and MaxDisk bound the size of a disk with FAT, and of a partition.
	MinDisk = 16 << 20
	MaxDisk = 2 << 30
	// fat32Size is from where on a disk has FAT32; what is smaller has FAT16.
	fat32Size = 64 << 20
)

// fatRules are those of FAT's long names.
func fatRules() rules {
	return rules{format: "a FAT volume", forbidden: `"*/:<>?|`, units: 255, bytes: 255, windows: true}
}

// Table is how a disk is divided.
type Table string

// The tables. Windows mounts no file system on a fixed disk that has none.
const (
	NoTable Table = "none" // the file system is the whole disk
	MBR     Table = "mbr"
	GPT     Table = "gpt"
)

// fatGeometry is where the parts of a file system are, in sectors.
type fatGeometry struct {
	sector               int64 // bytes
	bits                 int   // of a FAT entry: 12, 16 or 32
	total, hidden        uint32
	perCluster, reserved uint32
	rootEntries          uint32 // 0 with FAT32, whose root is a chain of clusters
	perFAT               uint32
	track, heads         uint16
	media, drive         byte
}

func floppyGeometry() fatGeometry {
	return fatGeometry{sector: fatSector, bits: 12, total: FloppySize / fatSector, perCluster: 1, reserved: 1, rootEntries: 224, perFAT: 9, track: 18, heads: 2, media: 0xf0}
}

// diskGeometry is that of a partition of size bytes that begins start bytes from the
// beginning of a disk with sectors of sector bytes.
func diskGeometry(size, start, sector int64) fatGeometry {
	g := fatGeometry{sector: sector, bits: 16, total: uint32(size / sector), perCluster: 4, reserved: 4, rootEntries: 512, track: 63, heads: 255, media: 0xf8, drive: 0x80}
	if hidden := start / sector; hidden <= math.MaxUint32 { // beyond that nobody could be told
		g.hidden = uint32(hidden)
	}
	switch { // the count of clusters is what says which FAT it is: 4085 to 65524 are FAT16's
	case sector == largeSector:
		g.perCluster, g.reserved = 1, 1
		if size > 256<<20 {
			g.bits = 32
		}
	case size >= 260<<20:
		g.bits, g.perCluster = 32, 8
	case size >= fat32Size:
		g.bits, g.perCluster = 32, 1
	case size > 32<<20:
		g.perCluster = 8
	}
	if g.bits == 32 {
		g.reserved, g.rootEntries = 32, 0
	}
	for need := uint32(0); need != g.perFAT || need == 0; {
		g.perFAT = max(need, 1)
		need = ((g.clusters()+2)*uint32(g.bits)/8 + uint32(sector) - 1) / uint32(sector)
		if need <= g.perFAT {
			break
		}
	}
	return g
}

func (g fatGeometry) rootSectors() uint32 { return g.rootEntries * fatEntry / uint32(g.sector) }
func (g fatGeometry) dataStart() uint32   { return g.reserved + 2*g.perFAT + g.rootSectors() }
func (g fatGeometry) clusters() uint32    { return (g.total - g.dataStart()) / g.perCluster }
func (g fatGeometry) clusterSize() int    { return int(g.perCluster) * int(g.sector) }

// Floppy writes v as a floppy disk of 1.44 MB. It fails as [ISO] does.
func Floppy(w io.Writer, v *Volume) error {
	m, err := layFAT(v, floppyGeometry(), "a floppy disk")
	if err != nil {
		return err
	}
	return m.writeTo(w)
}

// FAT writes v as a disk of size bytes, from [MinDisk] to [MaxDisk] and whole
// megabytes, with the file system below table or, with [NoTable], without one.
// A size of 0 is the smallest that holds v. It fails as [ISO] does.
func FAT(w io.Writer, v *Volume, table Table, size int64) error {
	if table != NoTable && table != MBR && table != GPT {
		return imprint.Errorf(imprint.Invalid, "write", "partition table "+string(table), "it is none of none, mbr and gpt")
	}
	if size == 0 {
		for size = MinDisk; size < MaxDisk; size *= 2 {
			_, err := layDisk(v, table, size)
			if err == nil || imprint.KindOf(err) != imprint.Exhausted {
				break
			}
		}
	}
	if err := checkSize("disk", size, MinDisk); err != nil {
		return err
	}
	m, err := layDisk(v, table, size)
	if err != nil {
		return err
	}
	return m.writeTo(w)
}

func checkSize(what string, size, least int64) error {
	if size < least || size > MaxDisk || size%(1<<20) != 0 {
		return imprint.Errorf(imprint.Invalid, "write", fmt.Sprintf("%s of %d bytes", what, size), "its size may be %d to %d MiB, and whole ones", least>>20, MaxDisk>>20)
	}
	return nil
}

// fatNode is a file or directory with the clusters that it has.
type fatNode struct {
	*node
	kids    []*fatNode
	short   [fatLabel]byte
	long    bool // the name needs entries of its own
	cluster uint32
	count   uint32
}

// fatVolume is a file system in the making.
type fatVolume struct {
	g     fatGeometry
	v     *Volume
	id    uint32
	label string
	next  uint32 // free cluster
	fat   []uint32
	m     image
}

// layFAT decides where everything goes in a file system, and puts it there.
func layFAT(v *Volume, g fatGeometry, format string) (*image, error) {
	if err := checkLabel(v.Label, fatLabel); err != nil {
		return nil, err
	}
	if err := checkTime(v.Time); err != nil {
		return nil, err
	}
	top, err := v.tree(fatRules())
	if err != nil {
		return nil, err
	}
	f := &fatVolume{g: g, v: v, id: v.serial(), label: strings.ToUpper(v.Label), next: 2}
	f.m.size = int64(g.total) * g.sector
	root := newFATNode(top)
	if entries := f.entries(root, true); g.rootEntries != 0 && entries > int(g.rootEntries) {
		return nil, imprint.Errorf(imprint.Exhausted, "write", format, "its root needs %d entries and has %d: %d too many", entries, g.rootEntries, entries-int(g.rootEntries))
	}
	if need := f.allocate(root, true); need > int64(g.clusters()) {
		return nil, tooLarge(format, need*int64(g.clusterSize()), int64(g.clusters())*int64(g.clusterSize()))
	}
	f.fat = make([]uint32, f.next)
	f.fat[0], f.fat[1] = 0x0fffff00|uint32(g.media), 0x0fffffff
	f.place(root, root, true)
	f.placeFATs()
	f.placeBoot()
	return &f.m, nil
}

// serial is a number that differs between volumes, as far as 32 bits can.
func (v *Volume) serial() uint32 {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli)) // processors have it
	v.hash(h)
	return h.Sum32()
}

// digest is of all that v holds: identifiers that have to be unique are taken from it.
func (v *Volume) digest() []byte {
	h := sha256.New()
	v.hash(h)
	return h.Sum(nil)
}

func (v *Volume) hash(h io.Writer) {
	fmt.Fprintf(h, "%q %d\n", v.Label, v.Time.Unix())
	for _, path := range sortedPaths(v.Files) {
		fmt.Fprintf(h, "%q %d\n", path, len(v.Files[path]))
		h.Write(v.Files[path])
	}
}

func newFATNode(n *node) *fatNode {
	out := &fatNode{node: n}
	used := map[[fatLabel]byte]bool{}
	for _, k := range n.kids {
		kid := newFATNode(k)
		kid.short, kid.long = shortName(k.name, used)
		used[kid.short] = true
		out.kids = append(out.kids, kid)
	}
	return out
}

// shortName returns the name of eight characters and three by which n is known
// to what knows no others, and whether it takes a long one to tell the whole name.
func shortName(name string, used map[[fatLabel]byte]bool) (short [fatLabel]byte, long bool) {
	base, ext := name, ""
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		base, ext = name[:i], name[i+1:]
	}
	plain := func(s string, most int) string {
		s = strings.Map(func(c rune) rune {
			switch {
			case c >= 'a' && c <= 'z':
				return c - 'a' + 'A'
			case c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.ContainsRune("!#$%&'()-@^_`{}~", c):
				return c
			case c == ' ', c == '.':
				return -1
			}
			return '_'
		}, s)
		return s[:min(len(s), most)]
	}
	b, e := plain(base, 8), plain(ext, 3)
	set := func(base string) {
		copy(short[:], "           ")
		copy(short[:8], base)
		copy(short[8:], e)
	}
	set(b)
	whole := strings.TrimSuffix(b+"."+e, ".")
	if whole == name && !used[short] {
		return short, false
	}
	for i := 1; whole != strings.ToUpper(name) || used[short]; i++ {
		tail := fmt.Sprintf("~%d", i)
		set(b[:min(len(b), 8-len(tail))] + tail)
		if !used[short] {
			break
		}
	}
	return short, true
}

// entries counts the directory entries of d.
func (f *fatVolume) entries(d *fatNode, root bool) int {
	n := 2 // . and ..
	if root {
		n = 1 // the label
	}
	for _, k := range d.kids {
		n++
		if k.long {
			n += (units(k.name) + 12) / 13
		}
	}
	return n
}

// allocate gives d and everything below it clusters, one after the other, and
// returns how many are in use then.
func (f *fatVolume) allocate(d *fatNode, root bool) int64 {
	take := func(n *fatNode, bytes int) {
		n.count = uint32((bytes + f.g.clusterSize() - 1) / f.g.clusterSize())
		if n.count > 0 {
			n.cluster = f.next
			f.next += n.count
		}
	}
	if !root || f.g.rootEntries == 0 {
		take(d, f.entries(d, root)*fatEntry)
	}
	for _, k := range d.kids {
		if k.dir {
			f.allocate(k, false)
		} else {
			take(k, len(k.data))
		}
	}
	return int64(f.next) - 2
}

// place puts d and what is below it where it belongs.
func (f *fatVolume) place(d, parent *fatNode, root bool) {
	f.chain(d)
	var b []byte
	if root {
		b = f.entry(b, [fatLabel]byte([]byte(fmt.Sprintf("%-11s", f.label))), 0x08, 0, 0)
	} else {
		b = f.entry(b, [fatLabel]byte([]byte(".          ")), 0x10, d.cluster, 0)
		up := parent.cluster
		if parent.short == [fatLabel]byte{} { // the root is 0, wherever it is
			up = 0
		}
		b = f.entry(b, [fatLabel]byte([]byte("..         ")), 0x10, up, 0)
	}
	for _, k := range d.kids {
		if k.long {
			b = append(b, longEntries(k.name, k.short)...)
		}
		if k.dir {
			b = f.entry(b, k.short, 0x10, k.cluster, 0)
			f.place(k, d, false)
			continue
		}
		b = f.entry(b, k.short, 0x20, k.cluster, uint32(len(k.data)))
		f.chain(k)
		f.m.put(f.offset(k.cluster), k.data)
	}
	at := f.offset(d.cluster)
	if root && f.g.rootEntries != 0 {
		at = int64(f.g.reserved+2*f.g.perFAT) * f.g.sector
	}
	f.m.put(at, b)
}

func (f *fatVolume) offset(cluster uint32) int64 {
	return (int64(f.g.dataStart()) + (int64(cluster)-2)*int64(f.g.perCluster)) * f.g.sector
}

// chain links the clusters of n.
func (f *fatVolume) chain(n *fatNode) {
	for i := range n.count {
		f.fat[n.cluster+i] = n.cluster + i + 1
		if i == n.count-1 {
			f.fat[n.cluster+i] = 0x0fffffff
		}
	}
}

// entry appends a directory entry.
func (f *fatVolume) entry(b []byte, name [fatLabel]byte, attributes byte, cluster, size uint32) []byte {
	date, clock := fatTime(f.v.Time)
	b = append(b, name[:]...)
	b = append(b, attributes, 0, 0)
	for _, v := range []uint16{clock, date, date, uint16(cluster >> 16), clock, date, uint16(cluster)} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return binary.LittleEndian.AppendUint32(b, size)
}

// fatTime is a time to two seconds.
func fatTime(t time.Time) (date, clock uint16) {
	t = t.UTC()
	return uint16((t.Year()-1980)<<9 | int(t.Month())<<5 | t.Day()), uint16(t.Hour()<<11 | t.Minute()<<5 | t.Second()/2)
}

// longEntries are the entries that hold a long name, the last part first.
func longEntries(name string, short [fatLabel]byte) []byte {
	const per = 13
	sum := shortSum(short)
	units := utf16.Encode([]rune(name))
	parts := (len(units) + per - 1) / per
	if len(units)%per != 0 {
		units = append(units, 0)
		for len(units) < parts*per {
			units = append(units, 0xffff)
		}
	}
	var b []byte
	for i := parts; i > 0; i-- {
		e := make([]byte, fatEntry)
		e[0], e[11], e[13] = byte(i), 0x0f, sum
		if i == parts {
			e[0] |= 0x40
		}
		for n, at := range longOffsets() {
			binary.LittleEndian.PutUint16(e[at:], units[(i-1)*per+n])
		}
		b = append(b, e...)
	}
	return b
}

// longOffsets is where the 13 code units of a long name are in an entry.
func longOffsets() []int { return []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} }

// shortSum binds the entries of a long name to the short one.
func shortSum(short [fatLabel]byte) (sum byte) {
	for _, c := range short {
		sum = sum<<7 | sum>>1
		sum += c
	}
	return sum
}

// placeFATs writes both copies of the allocation table.
func (f *fatVolume) placeFATs() {
	var b []byte
	switch f.g.bits {
	case 12:
		for i := 0; i < len(f.fat); i += 2 {
			lo, hi := f.fat[i]&0xfff, uint32(0)
			if i+1 < len(f.fat) {
				hi = f.fat[i+1] & 0xfff
			}
			b = append(b, byte(lo), byte(lo>>8|hi<<4), byte(hi>>4))
		}
	case 16:
		for _, v := range f.fat {
			b = binary.LittleEndian.AppendUint16(b, uint16(v))
		}
	case 32:
		for _, v := range f.fat {
			b = binary.LittleEndian.AppendUint32(b, v&0x0fffffff)
		}
	}
	for i := range uint32(2) {
		f.m.put(int64(f.g.reserved+i*f.g.perFAT)*f.g.sector, b)
	}
}

// placeBoot writes the boot sector and, with FAT32, what goes with it.
func (f *fatVolume) placeBoot() {
	g := f.g
	b := make([]byte, fatSector) // the rest of a larger one is zero
	le := binary.LittleEndian
	copy(b, "\xeb\x3c\x90IMPRINT ")
	le.PutUint16(b[11:], uint16(g.sector))
	b[13] = byte(g.perCluster)
	le.PutUint16(b[14:], uint16(g.reserved))
	b[16] = 2
	le.PutUint16(b[17:], uint16(g.rootEntries))
	if g.total < 1<<16 && g.bits != 32 {
		le.PutUint16(b[19:], uint16(g.total))
	} else {
		le.PutUint32(b[32:], g.total)
	}
	b[21] = g.media
	le.PutUint16(b[24:], g.track)
	le.PutUint16(b[26:], g.heads)
	le.PutUint32(b[28:], g.hidden)
	at := 36
	if g.bits == 32 {
		b[1] = 0x58
		le.PutUint32(b[36:], g.perFAT)
		le.PutUint32(b[44:], 2) // the root's cluster
		le.PutUint16(b[48:], 1) // sector of the summary
		le.PutUint16(b[50:], 6) // sector of the copy of this one
		at = 64
	} else {
		le.PutUint16(b[22:], uint16(g.perFAT))
	}
	b[at], b[at+2] = g.drive, 0x29
	le.PutUint32(b[at+3:], f.id)
	copy(b[at+7:], fmt.Sprintf("%-11s%-8s", f.label, fmt.Sprintf("FAT%d", g.bits)))
	b[510], b[511] = 0x55, 0xaa
	f.m.put(0, b)
	if g.bits != 32 {
		return
	}
	info := make([]byte, fatSector)
	copy(info, "RRaA")
	copy(info[484:], "rrAa")
	le.PutUint32(info[488:], g.clusters()+2-f.next)
	le.PutUint32(info[492:], f.next)
	info[510], info[511] = 0x55, 0xaa
	f.m.put(g.sector, info)
	f.m.put(6*g.sector, b)
	f.m.put(7*g.sector, info)
}
