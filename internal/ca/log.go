package ca

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
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

// How entries get from the queue into the tree. Each time costs some files and
// half a dozen syncs, however many entries there are.
const (
	logBatch           = 1024                   // entries at once
	logInterval        = 100 * time.Millisecond // what the first of a batch waits for others
	logPause           = time.Second            // after a batch of several entries, for more to come
	logRetry           = time.Second            // after the disk or the queue refused
	checkpointInterval = 100 * time.Millisecond // the least that tessera allows
	partialsInterval   = time.Minute            // between removals of superseded partial tiles
	signWait           = 10 * time.Second       // for a checkpoint that covers what is on disk
)

// lockName is the file whose lock says that a process is using the log.
const lockName = "lock"

// Queue keeps entries durably until the log has them.
type Queue interface {
	// Enqueue queues an entry.
	Enqueue(ctx context.Context, e imprint.LogEntry) error
	// Queued returns the oldest entries that wait for a log, at most limit.
	Queued(ctx context.Context, log string, limit int) ([]imprint.LogEntry, error)
	// Dequeue takes entries out, and notes that the log has size entries.
	Dequeue(ctx context.Context, log string, entries []imprint.LogEntry, size uint64) error
	// LogSize returns the size that Dequeue noted last, or 0.
	LogSize(ctx context.Context, log string) (uint64, error)
}

// LogConfig configures [OpenLog].
type LogConfig struct {
	Dir    string         // is created if it does not exist
	Key    imprint.Secret // from [GenerateLogKey]
	Queue  Queue
	Now    func() time.Time // the time written into entries
	Logger *slog.Logger
}

// Log is the issuance log of one server: a C2SP tlog-tiles log in a directory,
// written by tessera's POSIX driver. Whoever issues queues the entry in the same
// transaction that records the certificate, and calls [Log.Wake]. The tree takes
// in what is queued within about a tenth of a second, or a second when there is
// much of it, and the signed checkpoint follows; what a crash kept from the tree
// is still in the queue.
// Log is safe for concurrent use, and one process at a time uses a directory.
type Log struct {
	LogConfig
	name     string
	lock     *os.File
	append   tessera.AddFn
	shutdown func(context.Context) error
	reader   tessera.LogReader
	ctx      context.Context // of tessera's goroutines; ends with Close
	cancel   context.CancelFunc

	// integrated has the entries at the tree's end that may still be queued; it
	// belongs to run.
	integrated map[[sha256.Size]byte]struct{}

	wake    chan struct{} // has room for one: entries may be queued
	hurry   chan struct{} // has room for one: somebody waits for them
	closing chan struct{} // closed by Close
	once    sync.Once
	done    sync.WaitGroup
	err     error // of Close

	mu      sync.Mutex
	failure error         // guarded by mu; why entries are not taken in at present, or nil
	changed chan struct{} // guarded by mu; closed and replaced after each attempt
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
// missing, and returns once everything that was queued for it is covered by a
// signed checkpoint. It fails with kind [imprint.Conflict] if another process
// uses the directory, or if what is in it was signed by another key or lost
// entries.
func OpenLog(ctx context.Context, cfg LogConfig) (_ *Log, err error) {
	signer, err := note.NewSigner(string(cfg.Key.Reveal()))
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "open", "log key", "not a note signing key")
	}
	verifier, err := logVerifier(cfg.Key)
	if err != nil {
		return nil, err
	}
	operand := "issuance log " + cfg.Dir
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "open", operand, "%w", err)
	}
	l := &Log{
		LogConfig: cfg, name: signer.Name(), integrated: map[[sha256.Size]byte]struct{}{},
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), closing: make(chan struct{}), changed: make(chan struct{}),
	}
	if l.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.lock.Close()
		}
	}()
	atLeast, err := cfg.Queue.LogSize(ctx, l.name)
	if err != nil {
		return nil, wrap("open", operand, err)
	}
	size, err := checkContinues(os.DirFS(cfg.Dir), verifier, atLeast)
	if err != nil {
		return nil, wrap("open", operand, err)
	}
	if err := l.remember(size-min(size, logBatch), size); err != nil {
		return nil, wrap("open", operand, err)
	}
	if err := l.start(ctx, signer); err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "open", operand, "%w", err)
	}
	if err := l.Settle(ctx); err != nil {
		return nil, errors.Join(wrap("open", operand, err), l.end())
	}
	return l, nil
}

// start starts tessera and the goroutine that feeds it.
func (l *Log) start(ctx context.Context, signer note.Signer) (err error) {
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			l.cancel()
		}
	}()
	driver, err := posix.New(l.ctx, posix.Config{Path: l.Dir})
	if err != nil {
		return err
	}
	options := tessera.NewAppendOptions().
		WithCheckpointSigner(signer).
		WithCheckpointInterval(checkpointInterval).
		WithBatching(logBatch, logInterval).
		WithGarbageCollectionInterval(partialsInterval)
	appender, shutdown, reader, err := tessera.NewAppender(l.ctx, driver, options)
	if err != nil {
		return err
	}
	l.append, l.shutdown, l.reader = appender.Add, shutdown, reader
	l.done.Go(l.run)
	l.Wake()
	return nil
}

// Name returns the log's origin.
func (l *Log) Name() string { return l.name }

// Writable returns nil, or why entries cannot be taken in at present, of kind
// [imprint.Exhausted] if the disk is full and else [imprint.Unavailable]. Nothing
// should be issued then: the queue would grow without end.
func (l *Log) Writable() error {
	select {
	case <-l.closing:
		return imprint.Errorf(imprint.Unavailable, "append to", l.name, "the log is closed")
	default:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failure
}

// Append queues e, with the time. It fails as [Log.Writable] does, or as the queue.
func (l *Log) Append(ctx context.Context, e Entry) error {
	if err := l.Writable(); err != nil {
		return err
	}
	entry, err := l.Entry(e)
	if err != nil {
		return err
	}
	if err := l.Queue.Enqueue(ctx, *entry); err != nil {
		return wrap("append to", l.name, err)
	}
	l.Wake()
	return nil
}

// Entry returns e, with the time, in the form in which it is queued. It fails as
// [Entry.Encode] does.
func (l *Log) Entry(e Entry) (*imprint.LogEntry, error) {
	e.At = l.Now()
	data, err := e.Encode()
	if err != nil {
		return nil, err
	}
	return &imprint.LogEntry{Log: l.name, At: e.At, Serial: e.Serial, Data: data}, nil
}

// Wake says that an entry was queued.
func (l *Log) Wake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run takes in what is queued until the log is closed, and once more then.
func (l *Log) run() {
	for {
		select {
		case <-l.wake:
			n, err := l.attempt()
			pause := logPause
			switch {
			case err != nil:
				pause = logRetry
				l.Wake()
			case n <= 1 || n == logBatch: // few come, or they come faster than that
				continue
			}
			select {
			case <-time.After(pause):
			case <-l.hurry:
			case <-l.closing:
			}
		case <-l.closing:
			for n, err := l.attempt(); err == nil && n > 0; {
				n, err = l.attempt()
			}
			return
		}
	}
}

// attempt takes in a batch and notes how it went.
func (l *Log) attempt() (n int, err error) {
	n, err = l.takeIn()
	if err == nil && n == logBatch {
		l.Wake() // there may be more
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if (l.failure != nil) != (err != nil) {
		l.Logger.Error("issuance log", "log", l.name, "writable", err == nil, "error", err)
	}
	l.failure = err
	close(l.changed)
	l.changed = make(chan struct{})
	return n, err
}

// takeIn moves the oldest entries of the queue into the tree and returns how
// many they were. An entry that is in the tree already, because its last journey
// ended between tree and queue, only leaves the queue.
func (l *Log) takeIn() (n int, err error) {
	queued, err := l.Queue.Queued(l.ctx, l.name, logBatch)
	if err != nil || len(queued) == 0 {
		return 0, err
	}
	before, err := l.reader.IntegratedSize(l.ctx)
	if err != nil {
		return 0, unwritable(l.name, l.Dir, err)
	}
	var futures []tessera.IndexFuture
	for _, e := range queued {
		if !l.has(e.Data) {
			futures = append(futures, l.append(l.ctx, tessera.NewEntry(e.Data)))
		}
	}
	for _, future := range futures {
		if _, failure := future(); failure != nil {
			err = failure
		}
	}
	size, sizeErr := l.reader.IntegratedSize(l.ctx)
	if err = errors.Join(err, sizeErr); err != nil {
		if sizeErr == nil { // some may have got there all the same
			err = errors.Join(err, l.remember(before, size))
		}
		return 0, unwritable(l.name, l.Dir, err)
	}
	if err := l.Queue.Dequeue(l.ctx, l.name, queued, size); err != nil {
		return 0, errors.Join(err, l.remember(before, size))
	}
	clear(l.integrated)
	return len(queued), nil
}

// has reports whether the tree has an entry that is still queued.
func (l *Log) has(data []byte) bool {
	if len(l.integrated) == 0 {
		return false
	}
	_, there := l.integrated[sha256.Sum256(data)]
	return there
}

// remember notes which entries the tree has from index first up to size.
func (l *Log) remember(first, size uint64) error {
	for data, err := range entriesFrom(os.DirFS(l.Dir), first, size) {
		if err != nil {
			return err
		}
		l.integrated[sha256.Sum256(data)] = struct{}{}
	}
	return nil
}

// Settle returns when everything that was queued before is in the tree, under a
// signed checkpoint; a copy of the log has it then. It fails with kind
// [imprint.Exhausted] or [imprint.Unavailable] if the tree cannot be written.
func (l *Log) Settle(ctx context.Context) error {
	for {
		l.mu.Lock()
		changed, failure := l.changed, l.failure
		l.mu.Unlock()
		if failure != nil {
			return failure
		}
		waiting, err := l.Queue.Queued(ctx, l.name, 1)
		if err != nil {
			return wrap("settle", l.name, err)
		}
		if len(waiting) == 0 {
			break
		}
		l.Wake()
		select {
		case l.hurry <- struct{}{}:
		default:
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return imprint.Errorf(imprint.Unavailable, "wait for", l.name, "%w", ctx.Err())
		}
	}
	size, err := l.reader.IntegratedSize(ctx)
	if err != nil {
		return imprint.Errorf(imprint.Unavailable, "read", l.name, "%w", err)
	}
	return l.awaitCheckpoint(ctx, size)
}

// awaitCheckpoint waits until the signed checkpoint covers size entries; it lags
// behind the tree after a crash, and for a moment in normal operation.
func (l *Log) awaitCheckpoint(ctx context.Context, size uint64) error {
	ctx, cancel := context.WithTimeout(ctx, signWait)
	defer cancel()
	tick := time.NewTicker(checkpointInterval / 10)
	defer tick.Stop()
	for {
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

// Close takes in what is queued, waits for a checkpoint over it, and gives the
// directory free. What cannot be taken in stays in the queue.
func (l *Log) Close() error {
	l.once.Do(func() { l.err = l.end() })
	return l.err
}

func (l *Log) end() error {
	close(l.closing)
	l.done.Wait()
	defer l.cancel()
	err := l.failure // run has ended: nobody changes it
	if err == nil {
		err = l.Settle(l.ctx)
	}
	if shut := l.shutdown(l.ctx); err == nil && shut != nil {
		err = imprint.Errorf(imprint.Unavailable, "close", l.name, "%w", shut)
	}
	return errors.Join(err, l.lock.Close())
}
