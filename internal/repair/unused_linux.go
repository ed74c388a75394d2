package repair

import (
	"cmp"
	"encoding/binary"
	"os"
	"slices"
	"unsafe"

	"imprint"
)

// maxExtents is how many parts of a filesystem are looked at.
const maxExtents = 16 << 20

// unused returns what a mounted filesystem does not use, as parts of its device.
func (v *Volume) unused(f *os.File) ([]extent, error) {
	if v.Type == Btrfs {
		return v.unusedBtrfs(f)
	}
	return v.unusedByMap(f)
}

// unusedByMap asks the kernel what each part of the device is for, which it tells of
// ext4 and XFS (FS_IOC_GETFSMAP of linux/fsmap.h).
func (v *Volume) unusedByMap(f *os.File) ([]extent, error) {
	const (
		getFSMap = 0xc0c0583b
		headLen  = 64 // struct fsmap_head up to fmh_keys
		entryLen = 64 // struct fsmap
		count    = 4096
		special  = 1 << 4 // FMR_OF_SPECIAL_OWNER
		last     = 1 << 5 // FMR_OF_LAST
		ownFree  = 1      // FMR_OWN_FREE
	)
	ne := binary.NativeEndian
	b := make([]byte, headLen+(2+count)*entryLen)
	ne.PutUint32(b[8:], count)
	low, high := b[headLen:headLen+entryLen], b[headLen+entryLen:headLen+2*entryLen]
	for i := range 32 { // device, flags, place, owner and offset: up to the highest
		high[i] = 0xff
	}
	var free []extent
	for {
		if err := ioctl(f, getFSMap, unsafe.Pointer(&b[0])); err != nil {
			return nil, imprint.Errorf(imprint.Unavailable, "map", v.String(), "%w", err)
		}
		n := int(ne.Uint32(b[12:]))
		if n == 0 {
			return free, nil
		}
		var e []byte
		for i := range n {
			e = b[headLen+(2+i)*entryLen:][:entryLen]
			flags := ne.Uint32(e[4:])
			if flags&special != 0 && ne.Uint64(e[16:]) == ownFree {
				free = append(free, extent{int64(ne.Uint64(e[8:])), int64(ne.Uint64(e[32:]))})
			}
			if flags&last != 0 {
				return free, nil
			}
		}
		if len(free) > maxExtents {
			return nil, tooMany(v)
		}
		copy(low, e) // go on behind the last
	}
}

func tooMany(v *Volume) error {
	return imprint.Errorf(imprint.Exhausted, "map", v.String(), "it has more than %d parts", maxExtents)
}

// What of Btrfs's trees is looked at (linux/btrfs_tree.h).
const (
	btrfsExtentTree, btrfsChunkTree               = 2, 3
	btrfsExtent, btrfsMetadata, btrfsChunk uint32 = 168, 169, 228
	btrfsReserved                                 = 1 << 20 // bytes at the beginning that it leaves alone
	btrfsMirror                                   = 64 << 10
)

// unusedBtrfs is what is in no chunk, and what is in a chunk and in no extent.
func (v *Volume) unusedBtrfs(f *os.File) ([]extent, error) {
	size, err := deviceSize(v.Device)
	if err != nil {
		return nil, unreadable(v.Device, err)
	}
	le := binary.LittleEndian
	var nodes int64 // bytes of a node of a tree
	{
		d, err := os.Open(v.Device)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		b := make([]byte, 4096)
		if _, err := d.ReadAt(b, btrfsAt); err != nil {
			return nil, unreadable(v.Device, err)
		}
		if le.Uint64(b[136:]) != 1 {
			return nil, imprint.Errorf(imprint.Invalid, "map", v.String(), "it is on several devices")
		}
		nodes, size = int64(le.Uint32(b[148:])), min(size, int64(le.Uint64(b[112:])))
	}
	type chunk struct {
		extent         // where it is by the addresses of the trees
		copies []int64 // where it is on the device
	}
	var chunks []chunk
	err = v.search(f, btrfsChunkTree, btrfsChunk, btrfsChunk, func(_ uint32, _, offset int64, item []byte) error {
		const head, stripe = 48, 32
		if len(item) < head {
			return nil
		}
		c := chunk{extent: extent{offset, int64(le.Uint64(item))}}
		for s := item[head:]; len(s) >= stripe; s = s[stripe:] {
			c.copies = append(c.copies, int64(le.Uint64(s[8:])))
		}
		const striped = 1<<3 | 1<<6 | 1<<7 | 1<<8 // RAID 0, 10, 5 and 6
		if le.Uint64(item[24:])&striped != 0 {
			return imprint.Errorf(imprint.Invalid, "map", v.String(), "it is striped")
		}
		chunks = append(chunks, c)
		return nil
	})
	if err != nil {
		return nil, err
	}
	var used []extent
	err = v.search(f, btrfsExtentTree, btrfsExtent, btrfsMetadata, func(kind uint32, id, offset int64, _ []byte) error {
		switch kind {
		case btrfsExtent:
			used = append(used, extent{id, offset})
		case btrfsMetadata:
			used = append(used, extent{id, nodes})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	taken := []extent{{0, btrfsReserved}, {64 << 20, btrfsMirror}, {256 << 30, btrfsMirror}} // the superblock and its copies
	slices.SortFunc(used, func(a, b extent) int { return cmp.Compare(a.at, b.at) })
	for _, c := range chunks {
		from, _ := slices.BinarySearchFunc(used, c.at, func(e extent, at int64) int { return cmp.Compare(e.at, at) })
		for _, e := range used[from:] {
			if e.at >= c.at+c.length {
				break
			}
			for _, at := range c.copies {
				taken = append(taken, extent{at + e.at - c.at, e.length})
			}
		}
	}
	return gaps(taken, size), nil
}

// gaps is what of size bytes no extent takes.
func gaps(taken []extent, size int64) []extent {
	slices.SortFunc(taken, func(a, b extent) int { return cmp.Compare(a.at, b.at) })
	var free []extent
	at := int64(0)
	for _, e := range append(taken, extent{size, 0}) {
		if to := min(e.at, size); to > at {
			free = append(free, extent{at, to - at})
		}
		at = max(at, e.at+e.length)
	}
	return free
}

// search calls found for the items of a tree whose kinds are in a range
// (BTRFS_IOC_TREE_SEARCH_V2 of linux/btrfs.h).
func (v *Volume) search(f *os.File, tree uint64, from, to uint32, found func(kind uint32, id, offset int64, item []byte) error) error {
	const (
		treeSearch = 0xc0709411
		keyLen     = 104
		headLen    = 32
	)
	ne := binary.NativeEndian
	b := make([]byte, keyLen+8+(1<<20))
	ne.PutUint64(b[0:], tree)
	ne.PutUint64(b[16:], 1<<64-1) // max_objectid
	ne.PutUint64(b[32:], 1<<64-1) // max_offset
	ne.PutUint64(b[48:], 1<<64-1) // max_transid
	ne.PutUint32(b[56:], from)    // min_type, which counts only where min_objectid is
	ne.PutUint32(b[60:], 255)     // max_type
	for seen := 0; seen < maxExtents; {
		ne.PutUint32(b[64:], 1<<20) // nr_items
		ne.PutUint64(b[keyLen:], uint64(len(b)-keyLen-8))
		if err := ioctl(f, treeSearch, unsafe.Pointer(&b[0])); err != nil {
			return imprint.Errorf(imprint.Unavailable, "map", v.String(), "%w", err)
		}
		n := int(ne.Uint32(b[64:]))
		if n == 0 {
			return nil
		}
		rest := b[keyLen+8:]
		var id, offset uint64
		var kind uint32
		for range n {
			if len(rest) < headLen {
				return imprint.Errorf(imprint.Internal, "map", v.String(), "an item is cut off")
			}
			id, offset, kind = ne.Uint64(rest[8:]), ne.Uint64(rest[16:]), ne.Uint32(rest[24:])
			length := int(ne.Uint32(rest[28:]))
			if length > len(rest)-headLen {
				return imprint.Errorf(imprint.Internal, "map", v.String(), "an item is cut off")
			}
			if kind >= from && kind <= to {
				if err := found(kind, int64(id), int64(offset), rest[headLen:headLen+length]); err != nil {
					return err
				}
			}
			rest = rest[headLen+length:]
		}
		seen += n
		// Go on behind the last key.
		switch {
		case offset < 1<<64-1:
			offset++
		case kind < 255:
			offset, kind = 0, kind+1
		default:
			offset, kind, id = 0, 0, id+1
		}
		ne.PutUint64(b[8:], id)
		ne.PutUint64(b[24:], offset)
		ne.PutUint32(b[56:], kind)
	}
	return tooMany(v)
}
