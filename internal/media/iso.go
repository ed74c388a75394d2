package media

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"io"
	"slices"
	"strings"
	"time"
)

// ISO 9660 in numbers.
const (
	isoSector     = 2048
	isoSystemArea = 16 // sectors before the first descriptor
	isoLabel      = 16 // characters of a label in Joliet's descriptor; ISO 9660's has room for 32
)

// isoRules are those of Joliet and of ISO 9660 with Rock Ridge together: 64
// characters are Joliet's limit, and 128 bytes fit into a directory record
// beside the rest of Rock Ridge.
func isoRules() rules {
	return rules{format: "an ISO 9660 volume", forbidden: `*/:;?`, units: 64, bytes: 128, plane: true, windows: true}
}

// ISO writes v as an ISO 9660 volume (ECMA-119) with Rock Ridge, by which Linux
// reads names, and Joliet, by which Windows does. Files of the same content share
// their bytes. Everything belongs to root, who alone may read it where Rock Ridge
// is heard. It fails with kind [imprint.Invalid] for names that not every reader
// could show, [imprint.Exhausted] for too much, and [imprint.Unavailable] if w fails.
func ISO(w io.Writer, v *Volume) error {
	if err := checkLabel(v.Label, isoLabel); err != nil {
		return err
	}
	if err := checkTime(v.Time); err != nil {
		return err
	}
	root, err := v.tree(isoRules())
	if err != nil {
		return err
	}
	return layISO(v, root).writeTo(w)
}

// isoNode is a file or directory in one of the two trees of a volume.
type isoNode struct {
	*node
	id     []byte // its identifier in a directory record
	parent *isoNode
	kids   []*isoNode // by identifier, as the standard wants
	number int        // of a directory in the path table, from 1
	lba    uint32
	size   uint32

	extent  []byte // of a directory
	records []isoRecord
}

// isoRecord is where in a directory's extent the record of a node is.
type isoRecord struct {
	at   int
	node *isoNode
}

// isoTree is the hierarchy below one descriptor.
type isoTree struct {
	joliet bool
	dirs   []*isoNode // in the order of the path table
	more   uint32     // where the root's continued system use is; Rock Ridge only
	at     time.Time
	stamp  [7]byte // at, as records have it
}

// layISO decides where everything goes, and puts it there.
func layISO(v *Volume, root *node) *image {
	primary, joliet := newISOTree(root, false, v.Time), newISOTree(root, true, v.Time)
	next := uint32(isoSystemArea + 3) // two descriptors and the terminator
	take := func(bytes int) uint32 {
		at := next
		next += uint32((bytes + isoSector - 1) / isoSector)
		return at
	}
	var m image
	place := func(lba uint32, b []byte) { m.put(int64(lba)*isoSector, b) }

	tables := map[*isoTree][2]uint32{} // in little and big endian
	for _, t := range []*isoTree{primary, joliet} {
		size := len(t.pathTable(binary.LittleEndian))
		tables[t] = [2]uint32{take(size), take(size)}
	}
	primary.more = take(isoSector)
	for _, t := range []*isoTree{primary, joliet} {
		for _, d := range t.dirs {
			t.writeDirectory(d)
			d.size = uint32(len(d.extent))
			d.lba = take(int(d.size))
		}
	}
	placed, same := map[*node]uint32{}, map[uint64]*isoNode{} // the latter by a hash of the content
	seed := maphash.MakeSeed()
	for _, t := range []*isoTree{primary, joliet} {
		for _, d := range t.dirs {
			for _, n := range d.kids {
				if n.dir {
					continue
				}
				n.size = uint32(len(n.data))
				var ok bool
				if n.lba, ok = placed[n.node]; ok {
					continue
				}
				hash := maphash.Bytes(seed, n.data)
				if twin := same[hash]; twin != nil && bytes.Equal(twin.data, n.data) {
					n.lba = twin.lba
				} else {
					n.lba, same[hash] = take(len(n.data)), n
					place(n.lba, n.data)
				}
				placed[n.node] = n.lba
			}
		}
	}
	m.size = int64(next) * isoSector

	for _, t := range []*isoTree{primary, joliet} {
		place(tables[t][0], t.pathTable(binary.LittleEndian))
		place(tables[t][1], t.pathTable(binary.BigEndian))
		for _, d := range t.dirs {
			d.locate()
			place(d.lba, d.extent)
		}
		at := uint32(isoSystemArea)
		if t.joliet {
			at++
		}
		place(at, t.descriptor(v, next, tables[t]))
	}
	place(isoSystemArea+2, append([]byte("\xffCD001\x01"), make([]byte, isoSector-7)...))
	place(primary.more, rockRidgeExtension())
	return &m
}

func newISOTree(root *node, joliet bool, at time.Time) *isoTree {
	t := &isoTree{joliet: joliet, at: at.UTC(), stamp: isoStamp(at.UTC())}
	top := &isoNode{node: root, id: []byte{0}}
	top.parent = top
	for queue := []*isoNode{top}; len(queue) > 0; queue = queue[1:] {
		d := queue[0]
		t.dirs = append(t.dirs, d)
		d.number = len(t.dirs)
		used := map[string]bool{}
		nodes := make([]isoNode, len(d.node.kids))
		d.kids = make([]*isoNode, len(nodes))
		for i, n := range d.node.kids {
			nodes[i] = isoNode{node: n, parent: d}
			if d.kids[i] = &nodes[i]; joliet {
				nodes[i].id = ucs2(n.name)
			} else {
				nodes[i].id = isoName(n, used)
			}
		}
		slices.SortFunc(d.kids, func(a, b *isoNode) int { return bytes.Compare(a.id, b.id) })
		for _, n := range d.kids {
			if n.dir {
				queue = append(queue, n)
			}
		}
	}
	return t
}

// ucs2 is a name in Joliet: without a version, as genisoimage has it.
func ucs2(s string) []byte {
	b := make([]byte, 0, 2*len(s))
	for _, c := range s {
		b = binary.BigEndian.AppendUint16(b, uint16(c)) // isoRules has no others
	}
	return b
}

// isoName makes a name of the kind that every reader of ISO 9660 knows (level 1:
// eight characters and three), for those that know neither extension.
func isoName(n *node, used map[string]bool) []byte {
	base, ext := n.name, ""
	if i := strings.LastIndexByte(n.name, '.'); i > 0 && !n.dir {
		base, ext = n.name[:i], n.name[i+1:]
	}
	plain := func(s string, most int) string {
		s = strings.Map(func(c rune) rune {
			switch {
			case c >= 'a' && c <= 'z':
				return c - 'a' + 'A'
			case c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
				return c
			}
			return '_'
		}, s)
		return s[:min(len(s), most)]
	}
	base, ext = plain(base, 8), plain(ext, 3)
	for i := 0; ; i++ {
		name := base
		if i > 0 {
			number := fmt.Sprint(i)
			name = base[:min(len(base), 8-len(number))] + number
		}
		if !n.dir {
			name += "." + ext + ";1"
		}
		if !used[name] {
			used[name] = true
			return []byte(name)
		}
	}
}

// pathTable lists the directories (ECMA-119 section 9.4).
func (t *isoTree) pathTable(order binary.AppendByteOrder) []byte {
	var b []byte
	for _, d := range t.dirs {
		b = append(b, byte(len(d.id)), 0)
		b = order.AppendUint32(b, d.lba)
		b = order.AppendUint16(b, uint16(d.parent.number))
		b = append(b, d.id...)
		if len(d.id)%2 == 1 {
			b = append(b, 0)
		}
	}
	return b
}

// writeDirectory makes the extent of d: whole sectors, and no record in two of them.
// Where what they name is may not be known yet.
func (t *isoTree) writeDirectory(d *isoNode) {
	b := make([]byte, 0, isoSector)
	record, use := make([]byte, 0, 256), make([]byte, 0, 256) // no record is longer
	put := func(n *isoNode, id []byte, name string, root bool) {
		if !t.joliet {
			use = t.systemUse(use[:0], n, name, root)
		}
		record = t.record(record[:0], n, id, use)
		if len(b)%isoSector+len(record) > isoSector {
			b = pad(b, isoSector)
		}
		d.records = append(d.records, isoRecord{len(b), n})
		b = append(b, record...)
	}
	d.records = make([]isoRecord, 0, len(d.kids)+2)
	put(d, []byte{0}, "", d == t.dirs[0])
	put(d.parent, []byte{1}, "", false)
	for _, n := range d.kids {
		put(n, n.id, n.name, false)
	}
	d.extent = pad(b, isoSector)
}

// locate puts into the records of d, in place, where everything is.
func (d *isoNode) locate() {
	for _, r := range d.records {
		both32(d.extent[:r.at+2], r.node.lba)
		both32(d.extent[:r.at+10], r.node.size)
	}
}

// record appends a directory record (ECMA-119 section 9.1) to b, which is empty.
func (t *isoTree) record(b []byte, n *isoNode, id, systemUse []byte) []byte {
	flags := byte(0)
	if n.dir {
		flags = 2
	}
	b = append(b, 0, 0)
	b = both32(b, n.lba)
	b = both32(b, n.size)
	b = append(b, t.stamp[:]...)
	b = append(b, flags, 0, 0)
	b = both16(b, 1)
	b = append(b, byte(len(id)))
	b = append(b, id...)
	if len(id)%2 == 0 {
		b = append(b, 0)
	}
	b = append(b, systemUse...)
	b = pad(b, 2)
	b[0] = byte(len(b))
	return b
}

// isoStamp is a time in a directory record and in Rock Ridge.
func isoStamp(at time.Time) [7]byte {
	return [7]byte{byte(at.Year() - 1900), byte(at.Month()), byte(at.Day()), byte(at.Hour()), byte(at.Minute()), byte(at.Second()), 0}
}

// systemUse appends what Rock Ridge (RRIP_1991A, over SUSP 1.09) adds to a record: the
// mode of a file that root alone reads, times, and the name; and to the root's
// own record that it is spoken here.
func (t *isoTree) systemUse(b []byte, n *isoNode, name string, root bool) []byte {
	mode, links := uint32(0o100400), uint32(1)
	if n.dir {
		mode, links = 0o040500, 2
		for _, k := range n.kids {
			if k.dir {
				links++
			}
		}
	}
	if root {
		b = append(b, 'S', 'P', 7, 1, 0xbe, 0xef, 0)
	}
	b = append(b, 'P', 'X', 36, 1)
	for _, v := range [...]uint32{mode, links, 0, 0} {
		b = both32(b, v)
	}
	b = append(b, 'T', 'F', 5+3*7, 1, 0x0e) // modified, read, changed
	for range 3 {
		b = append(b, t.stamp[:]...)
	}
	if name != "" {
		b = append(b, 'N', 'M', byte(5+len(name)), 1, 0)
		b = append(b, name...)
	}
	if root {
		b = append(b, 'C', 'E', 28, 1)
		b = both32(b, t.more)
		b = both32(b, 0)
		b = both32(b, uint32(len(rockRidgeExtension())))
	}
	return b
}

// rockRidgeExtension names the extension, in words that the standard prescribes.
func rockRidgeExtension() []byte {
	const (
		id          = "RRIP_1991A"
		description = "THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS"
		source      = "PLEASE CONTACT DISC PUBLISHER FOR SPECIFICATION SOURCE.  SEE PUBLISHER IDENTIFIER IN PRIMARY VOLUME DESCRIPTOR FOR CONTACT INFORMATION."
	)
	b := []byte{'E', 'R', 8 + byte(len(id)+len(description)+len(source)), 1, byte(len(id)), byte(len(description)), byte(len(source)), 1}
	return append(b, id+description+source...)
}

// descriptor is a volume descriptor (ECMA-119 sections 8.4 and 8.5).
func (t *isoTree) descriptor(v *Volume, sectors uint32, tables [2]uint32) []byte {
	text := func(s string, n int) []byte {
		if !t.joliet {
			return []byte(s + strings.Repeat(" ", n-len(s)))
		}
		b := ucs2(s)
		for len(b) < n-1 {
			b = append(b, 0, ' ')
		}
		return append(b, make([]byte, n-len(b))...)
	}
	kind := byte(1)
	if t.joliet {
		kind = 2
	}
	b := append([]byte{kind}, "CD001\x01\x00"...)
	b = append(b, text("", 32)...)
	b = append(b, text(v.Label, 32)...)
	b = append(b, make([]byte, 8)...)
	b = both32(b, sectors)
	escape := make([]byte, 32)
	if t.joliet {
		copy(escape, "%/E") // UCS-2 level 3
	}
	b = append(b, escape...)
	b = both16(b, 1)
	b = both16(b, 1)
	b = both16(b, isoSector)
	b = both32(b, uint32(len(t.pathTable(binary.LittleEndian))))
	b = binary.LittleEndian.AppendUint32(b, tables[0])
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, tables[1])
	b = append(b, 0, 0, 0, 0)
	b = append(b, t.record(nil, t.dirs[0], []byte{0}, nil)...)
	for _, n := range []int{128, 128, 128, 128, 37, 37, 37} { // set, publisher, preparer, application, three files
		b = append(b, text("", n)...)
	}
	stamp := append([]byte(t.at.Format("20060102150405")+"00"), 0)
	none := append(bytes.Repeat([]byte("0"), 16), 0)
	b = slices.Concat(b, stamp, stamp, none, none) // made, modified; never expires
	b = append(b, 1, 0)
	return pad(b, isoSector)
}

// both32 and both16 append a number in both byte orders.
func both32(b []byte, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, v), v)
}

func both16(b []byte, v uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, v), v)
}

// pad appends zeros to a multiple of n.
func pad(b []byte, n int) []byte {
	return append(b, make([]byte, (n-len(b)%n)%n)...)
}
