package ca

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api/layout"

	"imprint/internal/durable"
)

// driver is a storage driver of tessera for a log in a directory that one process
// uses. Tessera's own POSIX driver syncs each of some four files, and its
// directory, before an entry counts as integrated. This one writes them, after
// which everybody can read the entry in the tree, and syncs what many batches
// wrote at once, at most every syncInterval. A signed checkpoint covers only what
// was synced. So whoever needs an entry to outlive a power failure keeps it until
// covered is called with a size above its index, as [Log] does in its queue: what
// is in the directory beyond its checkpoint is forgotten when it is opened again.
type driver struct {
	dir     string
	covered func(size uint64) // called when a checkpoint covers size entries
	failed  func(err error)   // called when one could not be written, which is tried again

	newCheckpoint func(ctx context.Context, size uint64, root []byte) ([]byte, error)

	batches chan struct{} // has room for one: entries are waiting
	dirty   chan struct{} // has room for one: the tree grew
	hurry   chan struct{} // has room for one: somebody waits for a checkpoint
	done    sync.WaitGroup

	writing sync.Mutex // held while the files are not those of a tree
	strays  []treeFile // guarded by writing; of a batch that failed, or is being written
	state   *os.File   // guarded by writing

	signed uint64 // size under the checkpoint; belongs to sync

	mu       sync.Mutex
	waiting  []addition
	tree     *tree               // as the files have it; changes while writing is held too
	unsynced map[string]struct{} // files written since the last sync
	kept     map[string]struct{} // files of the edge that a checkpoint covers, or the next one will
}

// addition is an entry on its way into the tree, and what is called with its index.
type addition struct {
	entry  *tessera.Entry
	landed chan<- error
}

// newDriver returns a driver that goes on with the log in dir from t, the tree under its checkpoint.
func newDriver(dir string, t *tree) (*driver, error) {
	d := &driver{
		dir: dir, tree: t, signed: t.size(),
		batches: make(chan struct{}, 1), dirty: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
		unsynced: map[string]struct{}{}, kept: map[string]struct{}{},
	}
	if err := sweep(dir, t.size()); err != nil {
		return nil, err
	}
	for _, f := range t.edge() {
		d.kept[f.name] = struct{}{}
	}
	state := filepath.Join(dir, treeStateName)
	if err := os.MkdirAll(filepath.Dir(state), 0o755); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(treeState{t.size(), t.root()})
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(state, raw, 0o644); err != nil {
		return nil, err
	}
	d.state, err = os.OpenFile(state, os.O_WRONLY, 0)
	return d, err
}

// Appender implements tessera's append lifecycle. ctx ends the driver.
func (d *driver) Appender(ctx context.Context, opts *tessera.AppendOptions) (*tessera.Appender, tessera.LogReader, error) {
	d.newCheckpoint = opts.CheckpointPublisher(d, nil)
	if _, err := os.Stat(filepath.Join(d.dir, checkpointName)); errors.Is(err, fs.ErrNotExist) {
		if err := d.publish(ctx, d.tree); err != nil {
			return nil, nil, err
		}
	}
	d.done.Go(func() { d.integrateUntil(ctx) })
	d.done.Go(func() { d.syncUntil(ctx) })
	return &tessera.Appender{Add: d.add}, d, nil
}

// add queues entry for the next batch.
func (d *driver) add(ctx context.Context, entry *tessera.Entry) tessera.IndexFuture {
	landed := make(chan error, 1)
	d.mu.Lock()
	d.waiting = append(d.waiting, addition{entry, landed})
	d.mu.Unlock()
	poke(d.batches)
	return func() (tessera.Index, error) {
		select {
		case err := <-landed:
			if err != nil {
				return tessera.Index{}, err
			}
			return tessera.Index{Index: *entry.Index()}, nil
		case <-ctx.Done():
			return tessera.Index{}, ctx.Err()
		}
	}
}

// integrateUntil makes a batch of whatever waits, again and again.
func (d *driver) integrateUntil(ctx context.Context) {
	for {
		select {
		case <-d.batches:
		case <-ctx.Done():
			return
		}
		runtime.Gosched() // those who were recorded together come together
		d.mu.Lock()
		batch := d.waiting
		d.waiting = nil
		d.mu.Unlock()
		if len(batch) == 0 {
			continue
		}
		err := d.integrate(batch)
		for _, a := range batch {
			a.landed <- err
		}
		poke(d.dirty)
	}
}

// integrate writes the files of the tree with batch in it. If that fails the tree
// is as before.
func (d *driver) integrate(batch []addition) error {
	entries := make([]*tessera.Entry, len(batch))
	for i, a := range batch {
		entries[i] = a.entry
	}
	d.writing.Lock()
	defer d.writing.Unlock()
	if err := d.repair(); err != nil {
		return err
	}
	grown, files, err := d.tree.grown(entries)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(treeState{grown.size(), grown.root()})
	if err != nil {
		return err
	}
	d.strays = files
	for _, f := range files {
		if err := d.write(f); err != nil {
			return errors.Join(err, d.repair())
		}
	}
	if _, err := d.state.WriteAt(raw, 0); err != nil { // it only ever gets longer
		return errors.Join(err, d.repair())
	}
	d.strays = nil
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tree = grown
	return nil
}

// repair undoes what a batch that failed wrote, if there is such a thing: files
// that took the place of others get their names and lengths back.
func (d *driver) repair() error {
	if d.strays == nil {
		return nil
	}
	for _, f := range d.tree.edge() {
		path := filepath.Join(d.dir, f.name)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		i := slices.IndexFunc(d.strays, func(s treeFile) bool { return s.continues == f.name })
		if i < 0 {
			return fmt.Errorf("%s is gone", f.name)
		}
		if err := os.Rename(filepath.Join(d.dir, d.strays[i].name), path); err != nil {
			return err
		}
		if err := os.Truncate(path, int64(len(f.data))); err != nil {
			return err
		}
		d.mu.Lock()
		d.unsynced[f.name] = struct{}{}
		d.mu.Unlock()
	}
	for _, f := range d.strays {
		err := os.Remove(filepath.Join(d.dir, f.name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return err
		}
	}
	d.strays = nil
	return nil
}

// write writes a file of the tree. One that continues a file which no checkpoint
// covers takes its place: it is renamed and then extended, so that a reader finds
// what the old one had under one name or the other.
func (d *driver) write(f treeFile) error {
	d.mu.Lock()
	_, kept := d.kept[f.continues]
	d.unsynced[f.name] = struct{}{}
	if f.continues != "" && !kept {
		delete(d.unsynced, f.continues)
	}
	d.mu.Unlock()
	path := filepath.Join(d.dir, f.name)
	if f.continues != "" && !kept && os.Rename(filepath.Join(d.dir, f.continues), path) == nil {
		return extend(path, f.data[f.from:], int64(f.from))
	}
	err := os.WriteFile(path, f.data, 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = os.WriteFile(path, f.data, 0o644)
		}
	}
	return err
}

func extend(path string, data []byte, from int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, from)
	return errors.Join(err, f.Close())
}

// syncUntil signs the tree whenever it grew, but not more often than every
// syncInterval unless somebody waits for it.
func (d *driver) syncUntil(ctx context.Context) {
	for {
		select {
		case <-d.dirty:
		case <-ctx.Done():
			return
		}
		if size, err := d.sync(ctx); err != nil {
			d.failed(err)
			poke(d.dirty)
		} else {
			d.covered(size)
		}
		select {
		case <-time.After(syncInterval):
		case <-d.hurry:
		case <-ctx.Done():
			return
		}
	}
}

// sync puts the tree as it is now on the disk, and then a checkpoint over it. It
// returns the size of that tree.
func (d *driver) sync(ctx context.Context) (uint64, error) {
	t, names, err := d.snapshot()
	if err != nil || t.size() == d.signed {
		return t.size(), err
	}
	err = d.syncFiles(names)
	if err == nil {
		err = d.publish(ctx, t)
	}
	if err != nil {
		d.mu.Lock()
		maps.Copy(d.unsynced, names)
		d.mu.Unlock()
		return 0, err
	}
	err = removePartial(d.dir, d.signed, t.size())
	d.signed = t.size()
	return t.size(), err
}

// snapshot returns the tree as it is and the files that have to be synced for it,
// and has its edge kept from then on.
func (d *driver) snapshot() (*tree, map[string]struct{}, error) {
	d.writing.Lock()
	defer d.writing.Unlock()
	if err := d.repair(); err != nil {
		return d.tree, nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	names := d.unsynced
	d.unsynced = map[string]struct{}{}
	clear(d.kept)
	for _, f := range d.tree.edge() {
		d.kept[f.name] = struct{}{}
	}
	return d.tree, names, nil
}

// syncFiles syncs files and the directories that they are in. A file that is not
// there any more was superseded.
func (d *driver) syncFiles(names map[string]struct{}) error {
	dirs := map[string]struct{}{}
	for name := range names {
		if err := syncFile(filepath.Join(d.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for dir := path.Dir(name); ; dir = path.Dir(dir) {
			dirs[dir] = struct{}{}
			if dir == "." {
				break
			}
		}
	}
	for dir := range dirs {
		if err := durable.SyncDir(filepath.Join(d.dir, dir)); err != nil {
			return err
		}
	}
	return nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// publish writes a signed checkpoint over t, which is on the disk.
func (d *driver) publish(ctx context.Context, t *tree) error {
	raw, err := d.newCheckpoint(ctx, t.size(), t.root())
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(d.dir, checkpointName), raw, 0o644)
}

// removePartial removes the earlier states of the bundles and tiles that became
// full while the log grew. Whoever misses one finds the full one.
func removePartial(dir string, from, to uint64) error {
	var err error
	for level := uint64(0); to>>(level*layout.TileHeight) > 0; level++ {
		shift := (level + 1) * layout.TileHeight
		for n := from >> shift; n < to>>shift; n++ {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, layout.TilePath(level, n, 0)+".p")))
			if level == 0 {
				err = errors.Join(err, os.RemoveAll(filepath.Join(dir, layout.EntriesPath(n, 0)+".p")))
			}
		}
	}
	return err
}

// sweep removes what a crash left in the log's directory: files that are no part
// of the tree of the given size, because no checkpoint came to cover them, and
// earlier states of its full tiles.
func sweep(dir string, size uint64) error {
	root := filepath.Join(dir, "tile")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		kind, place, _ := strings.Cut(filepath.ToSlash(name), "/")
		n, width, err := layout.ParseTileIndexPartial(place)
		if err != nil {
			return nil // not ours; [VerifyLog] names it
		}
		level := uint64(0)
		if kind != "entries" {
			if level, err = layout.ParseTileLevel(kind); err != nil {
				return nil
			}
		}
		nodes := size >> (level * layout.TileHeight)
		full := n < nodes/layout.TileWidth
		last := n == nodes/layout.TileWidth && width > 0 && uint64(width) <= nodes%layout.TileWidth
		if full && width == 0 || last {
			return nil
		}
		return os.Remove(path)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// close waits until the driver ended.
func (d *driver) close() error {
	d.done.Wait()
	return d.state.Close()
}

// IntegratedSize and the rest make the driver a [tessera.LogReader].
func (d *driver) IntegratedSize(context.Context) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tree.size(), nil
}

func (d *driver) NextIndex(ctx context.Context) (uint64, error) { return d.IntegratedSize(ctx) }

func (d *driver) ReadCheckpoint(context.Context) ([]byte, error) {
	return os.ReadFile(filepath.Join(d.dir, checkpointName))
}

func (d *driver) ReadTile(_ context.Context, level, n uint64, width uint8) ([]byte, error) {
	return d.read(layout.TilePath(level, n, width), layout.TilePath(level, n, 0))
}

func (d *driver) ReadEntryBundle(_ context.Context, n uint64, width uint8) ([]byte, error) {
	return d.read(layout.EntriesPath(n, width), layout.EntriesPath(n, 0))
}

// read reads a file that may have become full meanwhile.
func (d *driver) read(name, full string) ([]byte, error) {
	raw, err := os.ReadFile(filepath.Join(d.dir, name))
	if errors.Is(err, fs.ErrNotExist) && name != full {
		return os.ReadFile(filepath.Join(d.dir, full))
	}
	return raw, err
}

// poke fills a channel that has room for one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
