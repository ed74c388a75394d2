package ca

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"iter"
	"path"
	"strconv"
	"strings"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"

	"imprint"
)

// Size limits of the log's files (C2SP tlog-tiles).
const (
	maxBundle = layout.EntryBundleWidth * (2 + maxEntry)
	maxTile   = layout.TileWidth * 32
)

// LoggedEntry is an entry with its place in the log.
type LoggedEntry struct {
	Index uint64
	Entry
}

// Entries yields the entries of the log in log from index from on, the newest in
// its tree included. It checks the entries themselves but no hashes: that is
// [VerifyLog]. It ends after the first error, of kind [imprint.NotFound] if there
// is no log and [imprint.Conflict] if it is damaged.
func Entries(log fs.FS, from uint64) iter.Seq2[LoggedEntry, error] {
	return func(yield func(LoggedEntry, error) bool) {
		state, err := readTreeState(log)
		if err != nil {
			yield(LoggedEntry{}, err)
			return
		}
		index := from
		for data, err := range entriesFrom(log, from, state.Size) {
			var entry *Entry
			if err == nil {
				if entry, err = DecodeEntry(data); err != nil {
					err = corrupt(index, layout.EntriesPathForLogIndex(index, state.Size), "%w", err)
				}
			}
			if err != nil {
				yield(LoggedEntry{}, imprint.Errorf(imprint.Conflict, "read", "issuance log", "%w", err))
				return
			}
			if !yield(LoggedEntry{index, *entry}, nil) {
				return
			}
			index++
		}
	}
}

// entriesFrom yields the bytes of the entries from index from on in a tree of the
// given size. It ends after the first error.
func entriesFrom(log fs.FS, from, size uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for index := from; index < size; {
			n := index / layout.EntryBundleWidth
			bundle, err := readBundle(log, n, size)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, data := range bundle[index-n*layout.EntryBundleWidth:] {
				if !yield(data, nil) {
					return
				}
				index++
			}
		}
	}
}

// readBundle returns the entries of bundle n in a tree of the given size.
func readBundle(log fs.FS, n, size uint64) ([][]byte, error) {
	partial := layout.PartialTileSize(0, n, size)
	first := n * layout.EntryBundleWidth
	width := int(partial)
	if partial == 0 {
		width = layout.EntryBundleWidth
	}
	raw, name, err := readGrown(log, layout.EntriesPath(n, partial), layout.EntriesPath(n, 0), maxBundle)
	if err != nil {
		return nil, corrupt(first, name, "%w", err)
	}
	entries, whole := splitBundle(raw)
	switch {
	case len(entries) < width:
		return nil, corrupt(first+uint64(len(entries)), name, "the bundle ends here")
	case name == layout.EntriesPath(n, partial) && (!whole || len(entries) > width) && exists(log, name): // one that took its place may be growing
		return nil, corrupt(first+uint64(width)-1, name, "bytes after the end of the bundle")
	}
	return entries[:width], nil
}

// exists reports whether a file still has its name, which it loses when a wider one
// takes its place. Who opened it before that reads the wider one.
func exists(log fs.FS, name string) bool {
	_, err := fs.Stat(log, name)
	return !errors.Is(err, fs.ErrNotExist)
}

// splitBundle takes a bundle apart: entries, each after its length in two bytes.
// whole is false if bytes are left that make no entry, or there are more entries
// than a bundle has.
func splitBundle(raw []byte) (entries [][]byte, whole bool) {
	for len(raw) >= 2 && len(entries) < layout.EntryBundleWidth {
		n := int(binary.BigEndian.Uint16(raw))
		if len(raw) < 2+n {
			return entries, false
		}
		entries = append(entries, raw[2:2+n])
		raw = raw[2+n:]
	}
	return entries, len(raw) == 0
}

// readTile returns the bytes of a hash tile in a tree of the given size, and the
// name of the file that they are in.
func readTile(log fs.FS, level, n, size uint64) (raw []byte, name string, err error) {
	partial := layout.PartialTileSize(level, n, size)
	return readGrown(log, layout.TilePath(level, n, partial), layout.TilePath(level, n, 0), maxTile)
}

// readGrown reads the file called name or, if the tree grew since its size was
// read, the file that took its place: a wider one beside it, or the full one.
func readGrown(log fs.FS, name, full string, limit int64) (raw []byte, found string, err error) {
	for range 5 { // it may change again meanwhile
		raw, err = readLimited(log, name, limit)
		if err == nil && name != full { // what was opened may have been renamed, and extended, while it was read
			_, err = fs.Stat(log, name)
		}
		if name == full || !errors.Is(err, fs.ErrNotExist) {
			return raw, name, err
		}
		if raw, err := readLimited(log, full, limit); !errors.Is(err, fs.ErrNotExist) {
			return raw, full, err
		}
		name = widest(log, name)
	}
	return nil, name, err
}

// widest returns the name of the widest state of a partial tile that there is, or
// name if there is none that is wider.
func widest(log fs.FS, name string) string {
	dir, base := path.Split(name)
	width, _ := strconv.Atoi(base)
	entries, _ := fs.ReadDir(log, path.Clean(dir))
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > width && n < layout.TileWidth {
			width, name = n, dir+e.Name()
		}
	}
	return name
}

// unused returns the files that are neither part of the tree nor earlier states
// of its last tiles.
func (v *verification) unused() ([]string, error) {
	var names []string
	err := fs.WalkDir(v.log, ".", func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // tessera removed a superseded file meanwhile
		}
		if err != nil {
			return err
		}
		if d.IsDir() || v.used(name) {
			return nil
		}
		names = append(names, name)
		if len(names) == maxUnused {
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "list", "issuance log", "%w", err)
	}
	return names, nil
}

func (v *verification) used(name string) bool {
	switch name {
	case checkpointName, lockName, treeStateName, ".state/treeState.lock", ".state/publish.lock",
		".state/gcState", ".state/gcState.lock", ".state/version":
		return true
	}
	rest, ok := strings.CutPrefix(name, "tile/")
	if !ok {
		return false
	}
	kind, place, _ := strings.Cut(rest, "/")
	n, width, err := layout.ParseTileIndexPartial(place)
	if err != nil {
		return false
	}
	if kind == "entries" {
		return name == layout.EntriesPath(n, width) && v.usedBundle(name, n, width)
	}
	level, err := layout.ParseTileLevel(kind)
	return err == nil && name == layout.TilePath(level, n, width) && v.usedTile(name, level, n, width)
}

// usedBundle reports whether a bundle is the tree's own, or an earlier state of it.
func (v *verification) usedBundle(name string, n uint64, width uint8) bool {
	if v.size == 0 || n > (v.size-1)/layout.EntryBundleWidth {
		return false
	}
	if width == layout.PartialTileSize(0, n, v.size) {
		return true
	}
	now, err := readBundle(v.log, n, v.size)
	if err != nil || width == 0 || int(width) > len(now) {
		return false
	}
	raw, err := readLimited(v.log, name, maxBundle)
	then, whole := splitBundle(raw)
	if err != nil || !whole || len(then) != int(width) {
		return false
	}
	for i := range then {
		if !bytes.Equal(then[i], now[i]) {
			return false
		}
	}
	return true
}

// usedTile reports whether a hash tile is the tree's own, or an earlier state of it.
func (v *verification) usedTile(name string, level, n uint64, width uint8) bool {
	nodes := v.size
	for range level {
		nodes >>= layout.TileHeight
	}
	if nodes == 0 || n > (nodes-1)/layout.TileWidth {
		return false
	}
	if width == layout.PartialTileSize(level, n, v.size) {
		return true
	}
	now, _, err := readTile(v.log, level, n, v.size)
	if err != nil || width == 0 {
		return false
	}
	then, err := readLimited(v.log, name, maxTile)
	return err == nil && len(then) == int(width)*rfc6962.DefaultHasher.Size() && bytes.HasPrefix(now, then)
}
