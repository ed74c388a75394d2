package reader

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// Limits of qcow2, as QEMU has them (block/qcow2.h).
const (
	minClusterBits = 9
	maxClusterBits = 21
	maxL1          = 32 << 20 // bytes of the active L1 table
	maxRefTable    = 8 << 20  // bytes of the reference count table
	maxExtensions  = 64       // header extensions
)

// Bits of a qcow2's header and tables (QEMU's docs/interop/qcow2.rst).
const (
	incompatDirty    = 1 << 0 // reference counts may be wrong, which does not matter for reading
	incompatCorrupt  = 1 << 1
	incompatExternal = 1 << 2
	incompatPacking  = 1 << 3
	incompatSub      = 1 << 4 // L2 entries with subclusters

	offsetMask  = 0x00fffffffffffe00
	l1Reserved  = 0x7f000000000001ff
	l2Reserved  = 0x3f000000000001fe
	flagCopied  = 1 << 63
	flagPacked  = 1 << 62
	flagZeros   = 1 << 0
	subclusters = 32
)

// qcow2 is a checked image of that format.
type qcow2 struct {
	r       io.ReaderAt
	file    int64 // bytes of the file
	size    int64
	bits    uint // of a cluster's size
	version uint32
	zstd    bool
	sub     bool
	l1      []byte

	decoders sync.Pool
}

// openQcow2 checks the header and the L1 table of an image. One that needs another
// file, or a key, is refused.
func openQcow2(r io.ReaderAt, file int64) (*qcow2, error) {
	h := make([]byte, 112)
	if n, err := r.ReadAt(h[:min(file, int64(len(h)))], 0); n < 72 {
		return nil, errors.Join(damaged("its header is cut off"), notEOF(err))
	}
	be := binary.BigEndian
	im := &qcow2{r: r, file: file, version: be.Uint32(h[4:]), bits: uint(min(be.Uint32(h[20:]), 64)), size: int64(be.Uint64(h[24:]))}
	headerLen := uint32(72)
	var incompatible uint64
	if im.version >= 3 {
		incompatible, headerLen = be.Uint64(h[72:]), be.Uint32(h[100:])
	}
	im.sub = incompatible&incompatSub != 0
	switch {
	case im.version != 2 && im.version != 3:
		return nil, fmt.Errorf("it is qcow2 of version %d; 2 and 3 are known", im.version)
	case im.version == 3 && (headerLen < 104 || headerLen%8 != 0 || headerLen > 4096):
		return nil, damaged("its header has %d bytes", headerLen)
	case be.Uint64(h[8:]) != 0 || be.Uint32(h[16:]) != 0:
		return nil, errors.New("it has a backing file, which an image to install from may not have")
	case be.Uint32(h[32:]) != 0:
		return nil, errors.New("it is encrypted")
	case incompatible&incompatExternal != 0:
		return nil, errors.New("it has an external data file, which an image to install from may not have")
	case incompatible&incompatCorrupt != 0:
		return nil, errors.New("it is marked as corrupt")
	case incompatible&^uint64(incompatDirty|incompatPacking|incompatSub) != 0:
		return nil, fmt.Errorf("it has features that are not known, of which it says that nobody may read it without (%#x)", incompatible)
	case im.bits < minClusterBits || im.bits > maxClusterBits || im.sub && im.bits < 14:
		return nil, damaged("its clusters have 2^%d bytes", im.bits)
	case im.size < 0 || im.size > MaxDisk:
		return nil, damaged("its disk has %d bytes; at most %d are possible", uint64(im.size), int64(MaxDisk))
	case im.version == 3 && be.Uint32(h[96:]) > 6:
		return nil, damaged("its reference counts have 2^%d bits", be.Uint32(h[96:]))
	}
	if err := im.packing(h, headerLen, incompatible); err != nil {
		return nil, err
	}
	if err := im.extensions(int64(headerLen)); err != nil {
		return nil, err
	}
	table, tables := int64(be.Uint64(h[48:])), int64(be.Uint32(h[56:]))
	if n := tables << im.bits; table <= 0 || n <= 0 || n > maxRefTable || table%im.cluster() != 0 || table > file || n > file-table {
		return nil, damaged("its reference count table has %d clusters at byte %d", tables, table)
	}
	return im, im.tables(int64(be.Uint64(h[40:])), int64(be.Uint32(h[36:])), extent{at: table, size: tables << im.bits})
}

func (im *qcow2) packing(h []byte, headerLen uint32, incompatible uint64) error {
	var how byte
	if headerLen > 104 {
		how = h[104]
	}
	im.zstd = how == 1
	if how > 1 || (how != 0) != (incompatible&incompatPacking != 0) {
		return fmt.Errorf("its clusters are compressed in a way that is not known (%d)", how)
	}
	return nil
}

// extensions looks through the header's extensions for those that need another file
// or a key.
func (im *qcow2) extensions(at int64) error {
	for range maxExtensions {
		var b [8]byte
		if at > im.cluster()-8 {
			return nil
		}
		if _, err := im.r.ReadAt(b[:], at); err != nil {
			return errors.Join(damaged("its header is cut off"), notEOF(err))
		}
		kind, n := binary.BigEndian.Uint32(b[:]), int64(binary.BigEndian.Uint32(b[4:]))
		switch {
		case kind == 0:
			return nil
		case kind == 0x44415441:
			return errors.New("it names an external data file, which an image to install from may not have")
		case kind == 0x0537be77:
			return errors.New("it is encrypted")
		case n > im.cluster()-at-8:
			return damaged("an extension of its header has %d bytes", n)
		}
		at += 8 + (n+7)/8*8
	}
	return damaged("its header has more than %d extensions", maxExtensions)
}

// tables reads the L1 table and checks that it and the L2 tables are where tables
// can be, each in a place of its own.
func (im *qcow2) tables(at, n int64, refs extent) error {
	need := (im.size + im.perL2() - 1) / im.perL2()
	size := n * 8
	switch {
	case n < need:
		return damaged("its first table has %d entries, where its size takes %d", n, need)
	case size > maxL1:
		return damaged("its first table has %d bytes; %d are possible", size, maxL1)
	case n == 0:
		return nil
	case at <= 0 || at%im.cluster() != 0 || at > im.file || size > im.file-at:
		return damaged("its first table has %d bytes at byte %d of a file of %d", size, at, im.file)
	}
	im.l1 = make([]byte, need*8)
	if _, err := im.r.ReadAt(im.l1, at); err != nil {
		return err
	}
	used := []extent{{at: 0, size: im.cluster()}, {at: at, size: size}, refs}
	for i := range need {
		e := binary.BigEndian.Uint64(im.l1[i*8:])
		l2 := int64(e & offsetMask)
		switch {
		case e == 0:
			continue
		case e&l1Reserved != 0 || l2 == 0 || l2%im.cluster() != 0 || l2 > im.file-im.cluster():
			return damaged("entry %d of its first table is %#x", i, e)
		}
		used = append(used, extent{at: l2, size: im.cluster()})
	}
	slices.SortFunc(used, func(a, b extent) int { return cmp.Compare(a.at, b.at) })
	for i, e := range used[1:] {
		if e.at < used[i].at+used[i].size {
			return damaged("two of its tables overlap at byte %d", e.at)
		}
	}
	return nil
}

func (im *qcow2) Size() int64    { return im.size }
func (im *qcow2) unit() int64    { return im.cluster() }
func (im *qcow2) cluster() int64 { return 1 << im.bits }

// entry is the size of an entry of an L2 table, in bytes.
func (im *qcow2) entry() int64 {
	if im.sub {
		return 16
	}
	return 8
}

// perL2 is how many bytes of the disk an L2 table is for.
func (im *qcow2) perL2() int64 { return im.cluster() / im.entry() << im.bits }

func (im *qcow2) extents(yield func(extent) error) error {
	table := make([]byte, im.cluster())
	for at, i := int64(0), 0; at < im.size; at, i = at+im.perL2(), i+1 {
		left := min(im.perL2(), im.size-at)
		l2 := int64(binary.BigEndian.Uint64(im.l1[i*8:]) & offsetMask)
		if l2 == 0 {
			if err := yield(extent{kind: zeros, length: left}); err != nil {
				return err
			}
			continue
		}
		if _, err := im.r.ReadAt(table, l2); err != nil {
			return err
		}
		for t := table; left > 0; t = t[im.entry():] {
			n := min(im.cluster(), left)
			if err := im.l2entry(t[:im.entry()], n, yield); err != nil {
				return err
			}
			left -= n
		}
	}
	return nil
}

// l2entry yields the n bytes that an entry of an L2 table is for.
func (im *qcow2) l2entry(b []byte, n int64, yield func(extent) error) error {
	e := binary.BigEndian.Uint64(b)
	var subs uint64
	if im.sub {
		subs = binary.BigEndian.Uint64(b[8:])
	}
	if e&flagPacked != 0 {
		if e&flagCopied != 0 || subs != 0 {
			return damaged("an entry %#x of a second table is of a compressed cluster, and of another", e)
		}
		return im.compressed(e, n, yield)
	}
	at := int64(e & offsetMask)
	zero := e&flagZeros != 0
	switch {
	case e&l2Reserved != 0 || at%im.cluster() != 0 || zero && (im.version < 3 || im.sub):
		return damaged("an entry of a second table is %#x", e)
	case im.sub:
		return im.parts(at, n, subs, yield)
	case zero || at == 0:
		return yield(extent{kind: zeros, length: n})
	}
	return im.store(at, n, yield)
}

// store yields n bytes that are in the file.
func (im *qcow2) store(at, n int64, yield func(extent) error) error {
	if at > im.file || n > im.file-at {
		return damaged("it is cut off: %d bytes belong at byte %d of a file of %d", n, at, im.file)
	}
	return yield(extent{kind: stored, length: n, at: at})
}

// parts yields n bytes of a cluster whose subclusters are allocated one by one.
func (im *qcow2) parts(at, n int64, subs uint64, yield func(extent) error) error {
	size := im.cluster() / subclusters
	for i := 0; n > 0; i++ {
		allocated, zero := subs>>i&1 != 0, subs>>(32+i)&1 != 0
		part := min(size, n)
		var err error
		switch {
		case allocated && (zero || at == 0):
			return damaged("a cluster of its has the subclusters %#x", subs)
		case allocated:
			err = im.store(at+int64(i)*size, part, yield)
		default:
			err = yield(extent{kind: zeros, length: part})
		}
		if err != nil {
			return err
		}
		n -= part
	}
	return nil
}

func (im *qcow2) compressed(e uint64, n int64, yield func(extent) error) error {
	shift := 62 - (im.bits - 8)
	at := int64(e & (1<<shift - 1))
	size := (int64(e&(flagPacked-1)>>shift)+1)*512 - at&511
	if at == 0 || at >= im.file {
		return damaged("it is cut off: a compressed cluster is at byte %d of a file of %d", at, im.file)
	}
	// The last sector need not be whole.
	return yield(extent{kind: packed, length: n, at: at, size: min(size, im.file-at)})
}

// unpack implements [layout]. What a cluster holds beyond len(b), which is so at the
// end of the disk, does not count.
func (im *qcow2) unpack(b []byte, e extent) error {
	data := make([]byte, e.size)
	if _, err := im.r.ReadAt(data, e.at); err != nil {
		return err
	}
	d, err := im.decoder(bytes.NewReader(data))
	if err != nil {
		return err
	}
	defer im.decoders.Put(d)
	if _, err := io.ReadFull(d, b); err != nil {
		return damaged("a compressed cluster at byte %d is no cluster: %v", e.at, err)
	}
	return nil
}

// decoder returns a decoder of one cluster, an old one if there is any: making them
// takes longer than what they do.
func (im *qcow2) decoder(r io.Reader) (io.Reader, error) {
	switch d := im.decoders.Get().(type) {
	case *zstd.Decoder:
		return d, d.Reset(r)
	case flate.Resetter:
		return d.(io.Reader), d.Reset(r, nil)
	}
	if im.zstd {
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	}
	return flate.NewReader(r), nil
}

// notEOF returns err unless it says that the file is at its end.
func notEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
