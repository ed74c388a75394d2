package ca

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/note"

	"imprint"
)

// maxUnused is how many needless files a [LogReport] names.
const maxUnused = 100

// VerifyOptions says how strict [VerifyLog] is.
type VerifyOptions struct {
	// AtLeast is how many entries the log is known to have, from elsewhere. A log
	// that was cut back to an older state is whole in itself; only this shows it.
	AtLeast uint64
	// Live is set for a log in use, or of a server that crashed: entries that no
	// checkpoint covers yet are then counted instead of refused.
	Live bool
}

// LogReport is what [VerifyLog] saw.
type LogReport struct {
	Origin string
	Size   uint64 // entries under the signed checkpoint
	Root   []byte
	// Unsigned counts entries after those, which agree with the tree on disk.
	Unsigned uint64
	Last     *Entry // the last one of all; nil if there are none
	// Unused names files that are not part of the tree, up to 100: a crash leaves
	// some, and of a log in use they may be newer than the check. They were not
	// checked, and nothing depends on them.
	Unused []string
}

// CorruptError says where a log is not what was signed.
type CorruptError struct {
	Index uint64 // of the first entry that is wrong, missing or cannot be vouched for
	File  string
	Err   error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("entry %d (%s): %s", e.Index, e.File, e.Err)
}

// Unwrap returns the cause.
func (e *CorruptError) Unwrap() error { return e.Err }

func corrupt(index uint64, file, format string, args ...any) error {
	return &CorruptError{index, file, fmt.Errorf(format, args...)}
}

// VerifyLog checks the issuance log in the file tree log, usually a copy, with
// nothing but the verifier key from [GenerateLogKey]: the checkpoint's signature,
// each entry bundle and hash tile, the root, and that each entry can be read and
// describes the certificate in it. It only reads.
//
// The report is filled in as far as the check came. The error has kind
// [imprint.Conflict] if the log is not what was signed, with a [*CorruptError] in
// its chain if an entry can be named, and [imprint.Invalid] if verifierKey is not
// a key.
func VerifyLog(log fs.FS, verifierKey string, opts VerifyOptions) (*LogReport, error) {
	report := &LogReport{}
	verifier, err := note.NewVerifier(verifierKey)
	if err != nil {
		return report, imprint.Errorf(imprint.Invalid, "verify", "issuance log", "verifier key: %w", err)
	}
	if err := verify(log, verifier, opts, report); err != nil {
		return report, imprint.Errorf(imprint.Conflict, "verify", "issuance log "+verifier.Name(), "%w", err)
	}
	return report, nil
}

func verify(log fs.FS, verifier note.Verifier, opts VerifyOptions, report *LogReport) error {
	signed, err := readCheckpoint(log, verifier)
	if err != nil {
		return err
	}
	report.Origin, report.Size, report.Root = signed.Origin, signed.Size, signed.Hash
	if signed.Size < opts.AtLeast {
		return corrupt(signed.Size, checkpointName, "the log ends here; it is known to have had %d entries", opts.AtLeast)
	}
	// The tree on disk may be ahead of the checkpoint. A copy of the public part
	// alone has no tree state, and then nothing after the checkpoint counts.
	state, err := readTreeState(log)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		state = treeState{signed.Size, signed.Hash}
	case err != nil:
		return err
	case state.Size < signed.Size:
		return corrupt(state.Size, treeStateName, "the tree on disk ends here; the checkpoint covers %d entries", signed.Size)
	}

	v := &verification{log: log, size: state.Size, tiles: map[compact.NodeID][][]byte{}}
	v.tree = (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	if err := v.walk(signed.Size, signed.Hash, report); err != nil {
		return err
	}
	report.Unsigned = state.Size - signed.Size
	if err := v.walk(state.Size, state.Root, report); err != nil {
		return err
	}
	if err := v.finishTiles(); err != nil {
		return err
	}
	if report.Unused, err = v.unused(); err != nil {
		return err
	}
	if report.Unsigned > 0 && !opts.Live {
		return corrupt(signed.Size, checkpointName, "%d entries are not covered by the checkpoint: it is older than the log, or the log was in use when it was copied", report.Unsigned)
	}
	return nil
}

// verification rebuilds the tree from the entry bundles and compares every hash
// tile with the rebuilt one.
type verification struct {
	log    fs.FS
	size   uint64 // of the tree on disk
	tree   *compact.Range
	bundle [][]byte // of the entry at tree.End()
	first  uint64   // index of bundle[0]
	tiles  map[compact.NodeID][][]byte
	err    error // of the visitor
}

// walk goes on to entry size and compares the root there.
func (v *verification) walk(size uint64, root []byte, report *LogReport) error {
	for v.tree.End() < size {
		index := v.tree.End()
		name := layout.EntriesPathForLogIndex(index, v.size)
		if index%layout.EntryBundleWidth == 0 {
			bundle, err := readBundle(v.log, index/layout.EntryBundleWidth, v.size)
			if err != nil {
				return err
			}
			v.bundle, v.first = bundle, index
		}
		data := v.bundle[index-v.first]
		if err := v.tree.Append(rfc6962.DefaultHasher.HashLeaf(data), v.visit); err != nil {
			return corrupt(index, name, "%w", err)
		}
		if v.err != nil {
			return v.err
		}
		entry, err := DecodeEntry(data)
		if err != nil {
			return corrupt(index, name, "%w", err)
		}
		report.Last = entry
	}
	have := rfc6962.DefaultHasher.EmptyRoot()
	if size > 0 {
		var err error
		if have, err = v.tree.GetRootHash(nil); err != nil {
			return corrupt(0, checkpointName, "%w", err)
		}
	}
	if !bytes.Equal(have, root) {
		for _, id := range v.partialTiles() {
			if _, _, err := v.readNodes(id); err != nil {
				return err
			}
		}
		return corrupt(0, checkpointName, "entries and tiles agree with each other but not with the root hash at size %d: the log was rewritten", size)
	}
	return nil
}

// visit collects the nodes of which tiles consist, one in eight levels, and
// compares a tile when it is full.
func (v *verification) visit(id compact.NodeID, hash []byte) {
	if id.Level%layout.TileHeight != 0 || v.err != nil {
		return
	}
	tile := compact.NodeID{Level: id.Level / layout.TileHeight, Index: id.Index / layout.TileWidth}
	v.tiles[tile] = append(v.tiles[tile], hash)
	if len(v.tiles[tile]) == layout.TileWidth {
		v.err = v.compareTile(tile)
		delete(v.tiles, tile)
	}
}

// finishTiles compares the tiles that the tree does not fill.
func (v *verification) finishTiles() error {
	for _, id := range v.partialTiles() {
		if err := v.compareTile(id); err != nil {
			return err
		}
	}
	return nil
}

// partialTiles lists the tiles that are not full, lowest first.
func (v *verification) partialTiles() []compact.NodeID {
	ids := slices.Collect(maps.Keys(v.tiles))
	slices.SortFunc(ids, func(a, b compact.NodeID) int { return int(a.Level) - int(b.Level) })
	return ids
}

// compareTile compares the stored tile with the rebuilt one.
func (v *verification) compareTile(id compact.NodeID) error {
	raw, name, err := v.readNodes(id)
	if err != nil {
		return err
	}
	nodes := len(v.tiles[id])
	exact := name == layout.TilePath(uint64(id.Level), id.Index, layout.PartialTileSize(uint64(id.Level), id.Index, v.size))
	if have, want := len(raw), nodes*rfc6962.DefaultHasher.Size(); exact && have != want { // one that took its place may be growing
		return corrupt(firstUnder(id, nodes-1), name, "%d bytes; a tile of %d hashes has %d", have, nodes, want)
	}
	return nil
}

// readNodes reads a stored tile, which must begin with the nodes of the rebuilt
// one, and names the first entry under the first node that differs.
func (v *verification) readNodes(id compact.NodeID) (raw []byte, name string, err error) {
	raw, name, err = readTile(v.log, uint64(id.Level), id.Index, v.size)
	if err != nil {
		return nil, name, corrupt(firstUnder(id, 0), name, "%w", err)
	}
	for i, node := range v.tiles[id] {
		stored := raw[min(i*len(node), len(raw)):min((i+1)*len(node), len(raw))]
		if !bytes.Equal(stored, node) {
			at := firstUnder(id, i)
			return nil, name, corrupt(at, name, "it does not fit the entries in %s", layout.EntriesPathForLogIndex(at, v.size))
		}
	}
	return raw, name, nil
}

// firstUnder returns the index of the first entry under node i of a tile.
func firstUnder(tile compact.NodeID, i int) uint64 {
	return (tile.Index<<layout.TileHeight + uint64(i)) << (layout.TileHeight * tile.Level)
}
