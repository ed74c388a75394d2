package ca

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api/layout"

	"imprint"
)

var ranges = compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

// tree is the right edge of a log's tree: what has to be known to let it grow.
type tree struct {
	nodes  *compact.Range
	bundle []byte   // the last entry bundle, unless it is full
	tiles  [][]byte // the last hash tile of each level, unless it is full
}

// treeFile is a file of the tree, under its name in the log's directory. It may
// continue another one, which has the first bytes of its data.
type treeFile struct {
	name      string
	data      []byte
	continues string
	from      int // how many bytes of data the other file has
}

func (t *tree) size() uint64 { return t.nodes.End() }

func (t *tree) root() []byte {
	if t.size() == 0 {
		return rfc6962.DefaultHasher.EmptyRoot()
	}
	root, _ := t.nodes.GetRootHash(nil) // fails only for ranges that do not begin at 0
	return root
}

// grown returns the tree with entries added, and the files that are new in it.
// Each entry gets its index. t stays as it is, until it is grown again: the
// results share its memory.
func (t *tree) grown(entries []*tessera.Entry) (*tree, []treeFile, error) {
	nodes, err := ranges.NewRange(0, t.size(), slices.Clone(t.nodes.Hashes()))
	if err != nil {
		return nil, nil, err
	}
	g := &tree{nodes, t.bundle, slices.Clone(t.tiles)}
	var files []treeFile
	add := func(name string, data, before []byte, continues string) {
		if before == nil {
			continues = ""
		}
		files = append(files, treeFile{name, data, continues, len(before)})
	}
	changed := make([]bool, len(g.tiles))
	edge := slices.Clone(t.tiles) // what files have of the tiles that are being filled
	visit := func(id compact.NodeID, hash []byte) {
		if id.Level%layout.TileHeight != 0 {
			return
		}
		level := id.Level / layout.TileHeight
		if int(level) == len(g.tiles) {
			g.tiles, changed, edge = append(g.tiles, nil), append(changed, false), append(edge, nil)
		}
		tile := append(g.tiles[level], hash...)
		g.tiles[level], changed[level] = tile, true
		if len(tile) == maxTile {
			add(layout.TilePath(uint64(level), id.Index/layout.TileWidth, 0), tile, edge[level], t.tileName(int(level)))
			g.tiles[level], changed[level], edge[level] = nil, false, nil
		}
	}
	bundle := t.bundle // what a file has of the bundle that is being filled
	for _, e := range entries {
		g.bundle = append(g.bundle, e.MarshalBundleData(g.size())...)
		if err := g.nodes.Append(e.LeafHash(), visit); err != nil {
			return nil, nil, err
		}
		if n := g.size(); n%layout.EntryBundleWidth == 0 {
			add(layout.EntriesPath(n/layout.EntryBundleWidth-1, 0), g.bundle, bundle, t.bundleName())
			g.bundle, bundle = nil, nil
		}
	}
	for level, tile := range g.tiles {
		if changed[level] {
			add(g.tileName(level), tile, edge[level], t.tileName(level))
		}
	}
	if g.bundle != nil {
		add(g.bundleName(), g.bundle, bundle, t.bundleName())
	}
	return g, files, nil
}

// bundleName names the last bundle, and tileName the last tile of a level; they are not full.
func (t *tree) bundleName() string {
	n := t.size() / layout.EntryBundleWidth
	return layout.EntriesPath(n, layout.PartialTileSize(0, n, t.size()))
}

func (t *tree) tileName(level int) string {
	n := t.size() >> (level * layout.TileHeight) / layout.TileWidth
	return layout.TilePath(uint64(level), n, layout.PartialTileSize(uint64(level), n, t.size()))
}

// edge returns the files of the tree that are not full, which a larger tree continues.
func (t *tree) edge() []treeFile {
	var files []treeFile
	if t.bundle != nil {
		files = append(files, treeFile{name: t.bundleName(), data: t.bundle})
	}
	for level, tile := range t.tiles {
		if tile != nil {
			files = append(files, treeFile{name: t.tileName(level), data: tile})
		}
	}
	return files
}

// readTree reads the right edge of the tree in log at a size at which it has
// this root. It fails if the files do not have that root.
func readTree(log fs.FS, size uint64, root []byte) (*tree, error) {
	t := &tree{}
	for level := uint64(0); size>>(level*layout.TileHeight) > 0; level++ {
		n := size >> (level * layout.TileHeight) / layout.TileWidth
		width := int(layout.PartialTileSize(level, n, size)) * rfc6962.DefaultHasher.Size()
		var tile []byte
		if width > 0 {
			raw, name, err := readTile(log, level, n, size)
			if err != nil {
				return nil, err
			}
			if len(raw) < width {
				return nil, imprint.Errorf(imprint.Conflict, "read", name, "the tile ends after %d bytes", len(raw))
			}
			tile = raw[:width:width]
		}
		t.tiles = append(t.tiles, tile)
	}
	var hashes [][]byte
	for _, id := range compact.RangeNodes(0, size, nil) {
		hashes = append(hashes, t.node(id))
	}
	nodes, err := ranges.NewRange(0, size, hashes)
	if err != nil {
		return nil, err
	}
	t.nodes = nodes
	if !bytes.Equal(t.root(), root) {
		return nil, errors.New("its tiles do not have the root hash of its checkpoint")
	}
	return t, t.readBundle(log, size)
}

// node is the hash of a node of which the tree's last tiles have the leaves.
func (t *tree) node(id compact.NodeID) []byte {
	level, height := id.Level/layout.TileHeight, id.Level%layout.TileHeight
	first := id.Index << height % layout.TileWidth
	return subtree(t.tiles[level][first*32 : (first+1<<height)*32])
}

// subtree is the root over hashes, of which there is a power of two.
func subtree(hashes []byte) []byte {
	if len(hashes) == 32 {
		return hashes
	}
	half := len(hashes) / 2
	return rfc6962.DefaultHasher.HashChildren(subtree(hashes[:half]), subtree(hashes[half:]))
}

// readBundle reads the last entry bundle and compares it with the last tile.
func (t *tree) readBundle(log fs.FS, size uint64) error {
	n := size / layout.EntryBundleWidth
	if size%layout.EntryBundleWidth == 0 {
		return nil
	}
	entries, err := readBundle(log, n, size)
	if err != nil {
		return err
	}
	for i, data := range entries {
		if !bytes.Equal(rfc6962.DefaultHasher.HashLeaf(data), t.tiles[0][i*32:(i+1)*32]) {
			return corrupt(n*layout.EntryBundleWidth+uint64(i), t.bundleName(), "the entry does not have the hash in its tile")
		}
		t.bundle = append(t.bundle, tessera.NewEntry(data).MarshalBundleData(0)...)
	}
	return nil
}
