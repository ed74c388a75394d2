package media

import (
	"encoding/binary"
	"slices"
	"strings"
	"unicode/utf16"
)

// iso reads an ISO 9660 volume; nil if there is none.
func (in *reader) iso() (*Contents, error) {
	var primary, joliet []byte
	for s := int64(isoSystemArea); s < isoSystemArea+32 && (s+1)*isoSector <= in.size; s++ {
		d, err := in.bytes(s*isoSector, isoSector)
		if err != nil {
			return nil, err
		}
		if string(d[1:6]) != "CD001" || d[0] == 255 {
			break
		}
		switch {
		case d[0] == 1 && primary == nil:
			primary = d
		case d[0] == 2 && joliet == nil && d[88] == '%' && d[89] == '/' && strings.IndexByte("@CE", d[90]) >= 0:
			joliet = d
		}
	}
	if primary == nil {
		return nil, nil
	}
	if n := binary.LittleEndian.Uint16(primary[128:]); n != isoSector {
		return nil, damaged("its blocks have %d bytes; only %d are usual", n, isoSector)
	}
	c := &Contents{Format: "iso9660", Label: strings.TrimRight(string(primary[40:72]), " \x00"), Names: "ISO 9660"}
	if joliet != nil {
		c.Second = fromUCS2(joliet[40:72])
	}
	w := &isoWalk{in: in, visited: map[uint32]bool{}}
	if rr, err := w.speaksRockRidge(primary[156:190]); err != nil {
		return nil, err
	} else if rr {
		c.Names, w.rockRidge = "Rock Ridge", true
		return c, w.directory("", primary[156:190], 0)
	}
	if joliet != nil {
		c.Names, w.joliet = "Joliet", true
		return c, w.directory("", joliet[156:190], 0)
	}
	return c, w.directory("", primary[156:190], 0)
}

// fromUCS2 decodes big endian UCS-2, without what pads a label.
func fromUCS2(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		units = append(units, binary.BigEndian.Uint16(b))
	}
	return strings.TrimRight(string(utf16.Decode(units)), " \x00")
}

// isoWalk goes through the directories below one descriptor.
type isoWalk struct {
	in                *reader
	joliet, rockRidge bool
	skip              int // bytes before the system use entries, as SP says
	visited           map[uint32]bool
}

// extent returns what a directory record points to.
func (w *isoWalk) extent(record []byte) ([]byte, error) {
	return w.in.bytes(int64(binary.LittleEndian.Uint32(record[2:]))*isoSector, int64(binary.LittleEndian.Uint32(record[10:])))
}

// speaksRockRidge looks for SP in the root's own record.
func (w *isoWalk) speaksRockRidge(root []byte) (bool, error) {
	b, err := w.extent(root)
	if err != nil {
		return false, err
	}
	if len(b) < 34 || int(b[0]) < 34+7 || int(b[0]) > len(b) {
		return false, nil
	}
	su := b[34:b[0]]
	if string(su[:2]) != "SP" || su[4] != 0xbe || su[5] != 0xef {
		return false, nil
	}
	w.skip = int(su[6])
	return true, nil
}

// directory reads the files of the directory at record.
func (w *isoWalk) directory(path string, record []byte, depth int) error {
	lba := binary.LittleEndian.Uint32(record[2:])
	if w.visited[lba] || depth > 2*maxDepth {
		return damaged("the directory %q is inside itself", path)
	}
	w.visited[lba] = true
	b, err := w.extent(record)
	if err != nil {
		return err
	}
	if err := w.in.room(int64(len(b))); err != nil {
		return err
	}
	for at := 0; at < len(b); {
		n := int(b[at])
		if n == 0 { // the rest of a sector
			at = (at/isoSector + 1) * isoSector
			continue
		}
		if n < 34 || at+n > len(b) || 33+int(b[at+32]) > n {
			return damaged("the directory %q has a record of %d bytes", path, n)
		}
		r := b[at : at+n]
		at += n
		if len := r[32]; len == 1 && r[33] <= 1 {
			continue // itself and its parent
		}
		if err := w.entry(path, r, depth); err != nil {
			return err
		}
	}
	return nil
}

// entry reads what one record names.
func (w *isoWalk) entry(dir string, r []byte, depth int) error {
	name, err := w.name(r)
	if err != nil {
		return err
	}
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return damaged("the directory %q has a file with the name %q", dir, name)
	}
	path := dir + name
	if r[25]&2 != 0 {
		return w.directory(path+"/", r, depth+1)
	}
	if r[25]&0x80 != 0 {
		return damaged("the file %q is in several pieces, which imprint does not read", path)
	}
	if err := w.in.room(int64(binary.LittleEndian.Uint32(r[10:]))); err != nil {
		return err
	}
	b, err := w.extent(r)
	if err != nil {
		return err
	}
	return w.in.add(path, b)
}

// name is the best one that the record has.
func (w *isoWalk) name(r []byte) (string, error) {
	length := int(r[32])
	id := r[33 : 33+length]
	if w.rockRidge {
		at := 33 + length
		at += 1 - length%2
		at += w.skip
		if at <= len(r) {
			name, err := w.alternate(r[at:])
			if err != nil || name != "" {
				return name, err
			}
		}
	}
	name := string(id)
	if w.joliet {
		name = fromUCS2(id)
	}
	name, _, _ = strings.Cut(name, ";")
	return strings.TrimSuffix(name, "."), nil
}

// alternate puts the parts of Rock Ridge's name together, wherever they are
// continued.
func (w *isoWalk) alternate(su []byte) (string, error) {
	var name []byte
	for range 8 { // continuations
		var next []byte
		for len(su) >= 4 {
			n := int(su[2])
			if n < 4 || n > len(su) {
				break
			}
			e := su[:n]
			su = su[n:]
			switch {
			case string(e[:2]) == "NM" && n >= 5 && e[4]&6 == 0:
				name = slices.Concat(name, e[5:])
			case string(e[:2]) == "CE" && n >= 28:
				at := int64(binary.LittleEndian.Uint32(e[4:]))*isoSector + int64(binary.LittleEndian.Uint32(e[12:]))
				size := int64(binary.LittleEndian.Uint32(e[20:]))
				if size > isoSector {
					return "", damaged("a continuation of %d bytes", size)
				}
				var err error
				if next, err = w.in.bytes(at, size); err != nil {
					return "", err
				}
			}
		}
		if next == nil {
			break
		}
		su = next
	}
	return string(name), nil
}
