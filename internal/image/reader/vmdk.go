package reader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zlib"
)

// Limits of VMDK (VMware's "Virtual Disk Format 5.0").
const (
	sector        = 512
	maxGrain      = 2 << 20  // bytes of a grain
	maxDirectory  = 32 << 20 // bytes of a grain directory
	maxDescriptor = 64 << 10 // bytes of a descriptor
	atTheEnd      = 1<<64 - 1
)

// vmdk is a checked image of that format, in one file: monolithicSparse or
// streamOptimized.
type vmdk struct {
	r       io.ReaderAt
	file    int64 // bytes of the file
	size    int64
	grain   int64 // bytes
	entries int64 // of a grain table
	packed  bool
	zeroGTE bool // an entry 1 means zeros
	dir     []byte
}

func openVMDK(r io.ReaderAt, file int64) (*vmdk, error) {
	h := make([]byte, sector)
	if _, err := r.ReadAt(h, 0); err != nil {
		return nil, errors.Join(damaged("its header is cut off"), notEOF(err))
	}
	le := binary.LittleEndian
	descriptor := [2]uint64{le.Uint64(h[28:]), le.Uint64(h[36:])} // before the footer, which has none
	if le.Uint64(h[56:]) == atTheEnd {
		// A stream's header was written before the place of the directory was known. The
		// footer has it, before the last sector.
		if _, err := r.ReadAt(h, file-2*sector); err != nil || string(h[:4]) != "KDMV" || le.Uint64(h[56:]) == atTheEnd {
			return nil, errors.Join(damaged("its footer is missing"), notEOF(err))
		}
	}
	version, flags := le.Uint32(h[4:]), le.Uint32(h[8:])
	capacity, grain := le.Uint64(h[12:]), le.Uint64(h[20:])
	im := &vmdk{r: r, file: file, entries: int64(le.Uint32(h[44:])), packed: flags&(1<<16) != 0, zeroGTE: flags&(1<<2) != 0}
	switch {
	case version < 1 || version > 3:
		return nil, fmt.Errorf("it is VMDK of version %d; 1 to 3 are known", version)
	case flags&1 != 0 && string(h[73:77]) != "\n \r\n":
		return nil, damaged("its line ends were converted, as by a transfer in text mode")
	case flags&^uint32(1|2|4|1<<16|1<<17) != 0:
		return nil, fmt.Errorf("it has features that are not known (%#x)", flags)
	case im.packed != (le.Uint16(h[77:]) == 1) || le.Uint16(h[77:]) > 1:
		return nil, fmt.Errorf("it is compressed in a way that is not known (%d)", le.Uint16(h[77:]))
	case capacity > MaxDisk/sector:
		return nil, damaged("its disk has %d sectors; at most %d are possible", capacity, int64(MaxDisk/sector))
	case grain < 8 || grain&(grain-1) != 0 || grain > maxGrain/sector:
		return nil, damaged("its grains have %d sectors", grain)
	case im.entries < 1 || im.entries > 512:
		return nil, damaged("its grain tables have %d entries", im.entries)
	}
	im.size, im.grain = int64(capacity)*sector, int64(grain)*sector
	if err := im.descriptor(descriptor[0], descriptor[1]); err != nil {
		return nil, err
	}
	return im, im.directory(le.Uint64(h[56:]))
}

// descriptor checks the text that says what the image is a part of.
func (im *vmdk) descriptor(at, n uint64) error {
	if at == 0 || n == 0 {
		return errors.New("it has no descriptor: it is a part of an image of several files")
	}
	if n > maxDescriptor/sector || at > uint64(im.file)/sector || int64(at+n)*sector > im.file {
		return damaged("its descriptor has %d sectors at sector %d", n, at)
	}
	b := make([]byte, n*sector)
	if _, err := im.r.ReadAt(b, int64(at)*sector); err != nil {
		return err
	}
	b, _, _ = bytes.Cut(b, []byte{0})
	var kind string
	extents := 0
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		name, value, _ := strings.Cut(line, "=")
		value = strings.Trim(strings.TrimSpace(value), `"`)
		switch name = strings.TrimSpace(name); {
		case strings.EqualFold(name, "parentCID") && !strings.EqualFold(value, "ffffffff"), strings.EqualFold(name, "parentFileNameHint"):
			return errors.New("it has a parent, which an image to install from may not have")
		case strings.EqualFold(name, "createType"):
			kind = value
		case strings.HasPrefix(line, "RW "), strings.HasPrefix(line, "RDONLY "), strings.HasPrefix(line, "NOACCESS "):
			extents++
			if f := strings.Fields(line); len(f) < 4 || f[2] != "SPARSE" {
				return errors.New("it keeps its data in another file, which an image to install from may not do")
			}
		}
	}
	if kind != "monolithicSparse" && kind != "streamOptimized" || extents != 1 {
		return fmt.Errorf("it is of the type %.32q with %d files; monolithicSparse and streamOptimized with one are known", kind, extents)
	}
	return nil
}

// directory reads the grain directory, which starts at a sector.
func (im *vmdk) directory(at uint64) error {
	per := im.grain * im.entries
	n := (im.size + per - 1) / per * 4
	if n > maxDirectory || at == 0 || at > uint64(im.file)/sector || n > im.file-int64(at)*sector {
		return damaged("its directory has %d bytes at sector %d of a file of %d bytes", n, at, im.file)
	}
	im.dir = make([]byte, n)
	_, err := im.r.ReadAt(im.dir, int64(at)*sector)
	if n == 0 {
		return nil
	}
	return err
}

func (im *vmdk) Size() int64 { return im.size }
func (im *vmdk) unit() int64 { return im.grain }

func (im *vmdk) extents(yield func(extent) error) error {
	table := make([]byte, im.entries*4)
	left := im.size
	for dir := im.dir; left > 0; dir = dir[4:] {
		n := min(im.grain*im.entries, left)
		left -= n
		at := int64(binary.LittleEndian.Uint32(dir)) * sector
		if at == 0 {
			if err := yield(extent{kind: zeros, length: n}); err != nil {
				return err
			}
			continue
		}
		if at > im.file-int64(len(table)) {
			return damaged("it is cut off: a table belongs at byte %d of a file of %d", at, im.file)
		}
		if _, err := im.r.ReadAt(table, at); err != nil {
			return err
		}
		for t := table; n > 0; t = t[4:] {
			g := min(im.grain, n)
			n -= g
			if err := im.one(int64(binary.LittleEndian.Uint32(t)), g, yield); err != nil {
				return err
			}
		}
	}
	return nil
}

// one yields n bytes of a grain that begins at a sector of the file.
func (im *vmdk) one(at, n int64, yield func(extent) error) error {
	if at == 0 || at == 1 && im.zeroGTE {
		return yield(extent{kind: zeros, length: n})
	}
	at *= sector
	if !im.packed {
		if at > im.file || n > im.file-at {
			return damaged("it is cut off: %d bytes belong at byte %d of a file of %d", n, at, im.file)
		}
		return yield(extent{kind: stored, length: n, at: at})
	}
	var head [12]byte // the grain's sector of the disk, and its size here
	if at > im.file-int64(len(head)) {
		return damaged("it is cut off: a grain belongs at byte %d of a file of %d", at, im.file)
	}
	if _, err := im.r.ReadAt(head[:], at); err != nil {
		return err
	}
	at += int64(len(head))
	size := int64(binary.LittleEndian.Uint32(head[8:]))
	if size == 0 || size > 2*maxGrain || size > im.file-at {
		return damaged("a grain has %d bytes at byte %d of a file of %d", size, at, im.file)
	}
	return yield(extent{kind: packed, length: n, at: at, size: size})
}

// unpack implements [layout].
func (im *vmdk) unpack(b []byte, e extent) error {
	data := make([]byte, e.size)
	if _, err := im.r.ReadAt(data, e.at); err != nil {
		return err
	}
	in, err := zlib.NewReader(bytes.NewReader(data))
	if err == nil {
		defer in.Close()
		_, err = io.ReadFull(in, b)
	}
	if err != nil {
		return damaged("a compressed grain at byte %d is no grain: %v", e.at, err)
	}
	return nil
}
