package ca

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"imprint"
)

// How entries get from the journal into the tree. Each time costs some files and
// half a dozen syncs, however many entries there are.
const (
	treeBatch          = 1024                   // entries at once
	treeInterval       = 100 * time.Millisecond // what the first of a batch waits for others
	treeRetry          = time.Second            // after the disk refused
	checkpointInterval = 100 * time.Millisecond // the least that tessera allows
	partialsInterval   = time.Minute            // between removals of superseded partial tiles
	signWait           = 10 * time.Second       // for a checkpoint that covers what is on disk
)

// tree takes the entries of the journal into the Merkle tree, in the order in
// which they are there.
type tree struct {
	name     string
	dir      string
	logger   *slog.Logger
	append   tessera.AddFn
	shutdown func(context.Context) error
	reader   tessera.LogReader
	ctx      context.Context // of tessera's goroutines; ends with close
	cancel   context.CancelFunc

	wake    chan struct{} // has room for one: entries wait
	closing chan struct{}
	done    sync.WaitGroup

	mu      sync.Mutex // guards the rest
	changed *sync.Cond // waiting became shorter, or failure changed
	waiting [][]byte   // entries that are not in the tree
	size    uint64     // of the tree: the index of waiting[0]
	failure error      // why it cannot be written at present, or nil
}

// openTree opens the tree in cfg.Dir, which has size entries, or makes it.
func openTree(ctx context.Context, cfg LogConfig, signer note.Signer, size uint64) (*tree, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	refuse := func(err error) (*tree, error) {
		cancel()
		return nil, imprint.Errorf(imprint.Unavailable, "open", "issuance log "+cfg.Dir, "%w", err)
	}
	driver, err := posix.New(ctx, posix.Config{Path: cfg.Dir})
	if err != nil {
		return refuse(err)
	}
	options := tessera.NewAppendOptions().
		WithCheckpointSigner(signer).
		WithCheckpointInterval(checkpointInterval).
		WithBatching(treeBatch, treeInterval).
		WithGarbageCollectionInterval(partialsInterval)
	appender, shutdown, reader, err := tessera.NewAppender(ctx, driver, options)
	if err != nil {
		return refuse(err)
	}
	t := &tree{
		name: signer.Name(), dir: cfg.Dir, logger: cfg.Logger,
		append: appender.Add, shutdown: shutdown, reader: reader, ctx: ctx, cancel: cancel,
		wake: make(chan struct{}, 1), closing: make(chan struct{}), size: size,
	}
	t.changed = sync.NewCond(&t.mu)
	t.done.Go(t.run)
	return t, nil
}

// recover takes in entries that were acknowledged before a crash, and waits
// until everything is under a checkpoint.
func (t *tree) recover(ctx context.Context, entries [][]byte) error {
	t.add(entries)
	return t.settle(ctx)
}

// settle returns when all that was added before is in the tree, under a signed
// checkpoint.
func (t *tree) settle(ctx context.Context) error {
	size, err := t.await(ctx)
	if err != nil {
		return err
	}
	return t.awaitCheckpoint(ctx, size)
}

// add gives the tree the entries that follow in the journal.
func (t *tree) add(entries [][]byte) {
	t.mu.Lock()
	t.waiting = append(t.waiting, entries...)
	t.mu.Unlock()
	t.signal()
}

func (t *tree) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// await returns when all that was added before is in the tree, and the size that
// the tree has then at least.
func (t *tree) await(ctx context.Context) (size uint64, err error) {
	stop := context.AfterFunc(ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.changed.Broadcast()
	})
	defer stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	size = t.size + uint64(len(t.waiting))
	for t.size < size && t.failure == nil {
		if ctx.Err() != nil {
			return 0, imprint.Errorf(imprint.Unavailable, "wait for", t.name, "%w", ctx.Err())
		}
		t.changed.Wait()
	}
	return size, t.failure
}

// caughtUp reports whether all entries are in the tree. It fails while the tree
// cannot be written: nothing is issued then.
func (t *tree) caughtUp() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.waiting) == 0, t.failure
}

// run takes entries in until the tree is closed, and those that wait then.
func (t *tree) run() {
	for {
		select {
		case <-t.wake:
			if t.takeIn() {
				continue
			}
			select {
			case <-time.After(treeRetry):
			case <-t.closing:
			}
			t.signal()
		case <-t.closing:
			if caughtUp, err := t.caughtUp(); caughtUp || err != nil {
				return
			}
			t.takeIn()
		}
	}
}

// takeIn takes in a batch of what waits and reports whether the disk let it.
func (t *tree) takeIn() bool {
	t.mu.Lock()
	entries, first, failed := t.waiting[:min(len(t.waiting), treeBatch)], t.size, t.failure != nil
	t.mu.Unlock()
	var taken int
	var err error
	if failed { // in the middle, so that some may be in the tree
		taken, err = t.takenBefore(first, len(entries))
	}
	if err == nil {
		var n int
		n, err = t.integrate(first+uint64(taken), entries[taken:])
		taken += n
	}
	if err != nil {
		err = unwritable(t.name, t.dir, err)
	}
	if failed != (err != nil) {
		t.logger.Error("issuance log", "log", t.name, "writable", err == nil, "error", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting = t.waiting[taken:]; len(t.waiting) > 0 {
		t.signal()
	} else {
		t.waiting = nil
	}
	t.size, t.failure = first+uint64(taken), err
	t.changed.Broadcast()
	return err == nil
}

// takenBefore returns how many of n entries from index first on are in the tree.
func (t *tree) takenBefore(first uint64, n int) (int, error) {
	size, err := t.reader.IntegratedSize(t.ctx)
	if err == nil && (size < first || size-first > uint64(n)) {
		err = fmt.Errorf("the tree has %d entries; %d to %d were expected", size, first, first+uint64(n))
	}
	if err != nil {
		return 0, err
	}
	return int(size - first), nil
}

// integrate adds entries to the tree and returns how many are in it, on the disk.
//
// They must keep their order, for their indices are known. Tessera keeps that of
// entries in one of its batches, but may exchange batches that are ready at the
// same time. So here is one at a time: it is added in much less than the time
// after which tessera would start another, or is cut off.
func (t *tree) integrate(first uint64, entries [][]byte) (n int, err error) {
	began := time.Now()
	var futures []tessera.IndexFuture
	for _, e := range entries {
		if time.Since(began) > treeInterval/2 {
			break
		}
		futures = append(futures, t.append(t.ctx, tessera.NewEntry(e)))
	}
	for i, future := range futures {
		index, failure := future()
		if want := first + uint64(i); failure == nil && index.Index != want {
			failure = fmt.Errorf("entry %d became entry %d", want, index.Index)
		}
		if failure != nil {
			err = failure
		} else if err == nil {
			n++
		}
	}
	return n, err
}

// awaitCheckpoint waits until the signed checkpoint covers size entries; it lags
// behind the tree after a crash, and for a moment in normal operation.
func (t *tree) awaitCheckpoint(ctx context.Context, size uint64) error {
	ctx, cancel := context.WithTimeout(ctx, signWait)
	defer cancel()
	tick := time.NewTicker(checkpointInterval / 10)
	defer tick.Stop()
	for {
		signed, err := t.reader.ReadCheckpoint(ctx)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return imprint.Errorf(imprint.Unavailable, "read", t.name, "%w", err)
		}
		if err == nil && checkpointSize(signed) >= size {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return imprint.Errorf(imprint.Unavailable, "sign", t.name, "no checkpoint covers the %d entries on disk", size).
				WithHint("see that the log's disk is writable and has room")
		}
	}
}

// close takes in what waits, waits for a checkpoint over it and ends tessera.
func (t *tree) close() error {
	close(t.closing)
	t.done.Wait()
	defer t.cancel()
	err := t.settle(t.ctx)
	if shut := t.shutdown(t.ctx); err == nil && shut != nil {
		err = imprint.Errorf(imprint.Unavailable, "close", t.name, "%w", shut)
	}
	return err
}
