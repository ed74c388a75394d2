package ca

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"imprint"
)

// How the log batches. An appender waits for at most the batch being written
// and then for its own; batchWait only lets the entries of one batch, which are
// handed over within microseconds, arrive together.
const (
	maxBatch           = 256 // entries; one entry bundle
	batchWait          = 200 * time.Microsecond
	checkpointInterval = 100 * time.Millisecond // the least that tessera allows
	partialsInterval   = time.Minute            // between removals of superseded partial tiles
	signWait           = 10 * time.Second       // for a checkpoint that covers what is on disk
)

// lockName is the file whose lock says that a process is using the log.
const lockName = "lock"

// LogConfig configures [OpenLog].
type LogConfig struct {
	Dir    string           // is created if it does not exist
	Key    imprint.Secret   // from [GenerateLogKey]
	Now    func() time.Time // the time written into entries
	Logger *slog.Logger
}

// Log is the issuance log of one server: a C2SP tlog-tiles log in a directory,
// written by tessera's POSIX driver. An entry is acknowledged when the tree that
// contains it is on disk and synced; the signed checkpoint follows within about
// a tenth of a second. Log is safe for concurrent use, and one process at a time
// uses a directory.
type Log struct {
	name     string
	dir      string
	now      func() time.Time
	logger   *slog.Logger
	lock     *os.File
	add      tessera.AddFn
	shutdown func(context.Context) error
	reader   tessera.LogReader
	cancel   context.CancelFunc

	queue  chan pending
	closed chan struct{} // closed by Close: no more appends
	once   sync.Once
	done   sync.WaitGroup
	err    error // of Close
}

// pending is an entry that waits to be written, and where its result goes.
type pending struct {
	data   []byte
	result chan<- appended // has room for the result
}

type appended struct {
	index uint64
	err   error
}

// GenerateLogKey returns a new Ed25519 key for the log of server, and the
// verifier key that [VerifyLog] takes; both are in the form of
// [golang.org/x/mod/sumdb/note]. The log's name, its origin, is "imprint/" and
// the server's name.
func GenerateLogKey(server imprint.HostName) (key imprint.Secret, verifier string, err error) {
	if err := imprint.CheckDNSName("server name", string(server)); err != nil {
		return imprint.Secret{}, "", err
	}
	skey, vkey, err := note.GenerateKey(rand.Reader, "imprint/"+string(server))
	if err != nil {
		return imprint.Secret{}, "", imprint.Errorf(imprint.Internal, "generate", "log key", "%w", err)
	}
	return imprint.NewSecret([]byte(skey)), vkey, nil
}

// OpenLog opens the log in cfg.Dir, or starts one if the directory is empty or
// missing, and returns once everything in it is covered by a signed checkpoint.
// It fails with kind [imprint.Conflict] if another process uses the directory,
// or if what is in it was signed by another key or lost entries.
func OpenLog(ctx context.Context, cfg LogConfig) (_ *Log, err error) {
	signer, err := note.NewSigner(string(cfg.Key.Reveal()))
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "open", "log key", "not a note signing key")
	}
	operand := "issuance log " + cfg.Dir
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "open", operand, "%w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // tessera's goroutines live until Close
	defer func() {
		if err != nil {
			cancel()
			lock.Close()
		}
	}()
	verifier, err := logVerifier(cfg.Key)
	if err != nil {
		return nil, err
	}
	if err := checkContinues(os.DirFS(cfg.Dir), verifier); err != nil {
		return nil, wrap("open", operand, err)
	}
	driver, err := posix.New(ctx, posix.Config{Path: cfg.Dir})
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "open", operand, "%w", err)
	}
	options := tessera.NewAppendOptions().
		WithCheckpointSigner(signer).
		WithCheckpointInterval(checkpointInterval).
		WithBatching(maxBatch, batchWait).
		WithGarbageCollectionInterval(partialsInterval)
	appender, shutdown, reader, err := tessera.NewAppender(ctx, driver, options)
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "open", operand, "%w", err)
	}
	l := &Log{
		name: signer.Name(), dir: cfg.Dir, now: cfg.Now, logger: cfg.Logger, lock: lock,
		add: appender.Add, shutdown: shutdown, reader: reader, cancel: cancel,
		queue: make(chan pending, maxBatch), closed: make(chan struct{}),
	}
	if err := l.awaitCheckpoint(ctx); err != nil {
		return nil, wrap("open", operand, err)
	}
	l.done.Add(1)
	go l.run(ctx)
	return l, nil
}

// Name returns the log's origin.
func (l *Log) Name() string { return l.name }

// Append writes e, with the time, and returns its index once the tree that
// contains it is on disk and synced. Entries that arrive while a batch is being
// written share the next one. If ctx ends first, the entry may still be written.
// It fails with kind [imprint.Exhausted] when the disk is full or the entry too
// large, and [imprint.Unavailable] if the log is closed or cannot be written.
func (l *Log) Append(ctx context.Context, e Entry) (uint64, error) {
	e.At = l.now().UTC()
	data, err := e.Encode()
	if err != nil {
		return 0, err
	}
	result := make(chan appended, 1)
	select {
	case l.queue <- pending{data, result}:
	case <-l.closed:
		return 0, imprint.Errorf(imprint.Unavailable, "append to", l.name, "the log is closed")
	case <-ctx.Done():
		return 0, imprint.Errorf(imprint.Unavailable, "append to", l.name, "%w", ctx.Err())
	}
	select {
	case r := <-result:
		return r.index, r.err
	case <-l.closed:
		// run drains the queue before it ends, unless this entry came too late.
		l.done.Wait()
		select {
		case r := <-result:
			return r.index, r.err
		default:
			return 0, imprint.Errorf(imprint.Unavailable, "append to", l.name, "the log is closed")
		}
	case <-ctx.Done():
		return 0, imprint.Errorf(imprint.Unavailable, "append to", l.name, "%w", ctx.Err())
	}
}

// run writes batches until the log is closed: group commit, so that any number
// of concurrent appenders share the syncs of one batch.
func (l *Log) run(ctx context.Context) {
	defer l.done.Done()
	for {
		select {
		case first := <-l.queue:
			l.write(ctx, first)
		case <-l.closed:
			for {
				select {
				case first := <-l.queue:
					l.write(ctx, first)
				default:
					return
				}
			}
		}
	}
}

// write appends first and all that waits behind it, and answers each.
func (l *Log) write(ctx context.Context, first pending) {
	batch := []pending{first}
	for len(batch) < maxBatch {
		select {
		case next := <-l.queue:
			batch = append(batch, next)
			continue
		default:
		}
		break
	}
	futures := make([]tessera.IndexFuture, len(batch))
	for i, p := range batch {
		futures[i] = l.add(ctx, tessera.NewEntry(p.data))
	}
	for i, future := range futures {
		index, err := future()
		if err != nil {
			kind := imprint.Unavailable
			if diskFull(l.dir) {
				kind = imprint.Exhausted
			}
			l.logger.Error("issuance log cannot be written", "log", l.name, "error", err)
			err = imprint.Errorf(kind, "append to", l.name, "%w", err).
				WithHint("see that the log's disk is writable and has room; nothing is issued until then")
		}
		batch[i].result <- appended{index.Index, err}
	}
}

// awaitCheckpoint waits until the signed checkpoint covers the tree on disk; it
// lags behind after a crash, and for a moment in normal operation.
func (l *Log) awaitCheckpoint(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, signWait)
	defer cancel()
	tick := time.NewTicker(checkpointInterval / 10)
	defer tick.Stop()
	for {
		size, err := l.reader.IntegratedSize(ctx)
		if err != nil {
			return imprint.Errorf(imprint.Unavailable, "read", l.name, "%w", err)
		}
		signed, err := l.reader.ReadCheckpoint(ctx)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return imprint.Errorf(imprint.Unavailable, "read", l.name, "%w", err)
		}
		if err == nil && checkpointSize(signed) >= size {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return imprint.Errorf(imprint.Unavailable, "sign", l.name, "no checkpoint covers the %d entries on disk", size).
				WithHint("see that the log's disk is writable and has room")
		}
	}
}

// Close ends appending, waits for what was being appended and for a checkpoint
// that covers it, and gives the directory free.
func (l *Log) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.done.Wait()
		ctx := context.Background()
		l.err = l.awaitCheckpoint(ctx)
		if err := l.shutdown(ctx); l.err == nil && err != nil {
			l.err = imprint.Errorf(imprint.Unavailable, "close", l.name, "%w", err)
		}
		l.cancel()
		l.lock.Close()
	})
	return l.err
}
