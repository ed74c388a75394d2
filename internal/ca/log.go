package ca

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/transparency-dev/tessera"
	"golang.org/x/mod/sumdb/note"

	"imprint"
)

// How the tree gets under a checkpoint.
const (
	syncInterval = time.Second      // between checkpoints, unless somebody waits for one
	signWait     = 10 * time.Second // for a checkpoint that covers what is in the tree
)

// lockName is the file whose lock says that a process is using the log.
const lockName = "lock"

// Queue keeps entries durably until the log has them.
type Queue interface {
	// Enqueue queues an entry.
	Enqueue(ctx context.Context, e imprint.LogEntry) error
	// Queued returns the oldest entries that wait for a log, at most limit, after
	// another one; the zero entry is before all.
	Queued(ctx context.Context, log string, after imprint.LogEntry, limit int) ([]imprint.LogEntry, error)
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
// written by tessera. Whoever issues calls [Log.Expect], queues the entry in the
// transaction that records the certificate, calls [Log.TakeIn], and gives the
// certificate out when that returns: the tree has the entry then. The queue keeps it
// until it is on the log's disk under a signed checkpoint, within about a second.
// Log is safe for concurrent use, and one process at a time uses a directory.
type Log struct {
	LogConfig
	name     string
	lock     *os.File
	append   tessera.AddFn
	shutdown func(context.Context) error
	driver   *driver
	ctx      context.Context // of all goroutines; ends with Close
	cancel   context.CancelFunc

	wake    chan struct{} // has room for one: the queue may have entries that nobody takes in
	closing chan struct{} // closed by Close
	once    sync.Once
	done    sync.WaitGroup
	err     error // of Close

	mu       sync.Mutex
	arrivals map[[sha256.Size]byte]*arrival // of all queued entries that are known
	owed     map[imprint.Serial]time.Time   // what was recorded and is not in the tree, or may have been recorded; since when
	looks    uint64                         // into the queue, that were begun
	looked   uint64                         // the last of them that saw all of it
	signed   uint64                         // entries that are under a checkpoint and out of the queue
	failures failures
	changed  chan struct{} // closed and replaced whenever one of the above changed
}

// failures are the reasons why entries are not taken in, or not signed, at present.
type failures struct{ tree, checkpoint, look, dequeue error }

func (f failures) first() error {
	for _, err := range []error{f.tree, f.checkpoint, f.look, f.dequeue} {
		if err != nil {
			return err
		}
	}
	return nil
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
		LogConfig: cfg, name: signer.Name(),
		arrivals: map[[sha256.Size]byte]*arrival{}, owed: map[imprint.Serial]time.Time{},
		wake: make(chan struct{}, 1), closing: make(chan struct{}), changed: make(chan struct{}),
	}
	if l.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.lock.Close()
		}
	}()
	noted, err := cfg.Queue.LogSize(ctx, l.name)
	if err != nil {
		return nil, wrap("open", operand, err)
	}
	t, err := continueTree(os.DirFS(cfg.Dir), verifier, noted)
	if err != nil {
		return nil, wrap("open", operand, err)
	}
	if err := l.remember(noted, t.size()); err != nil {
		return nil, wrap("open", operand, err)
	}
	if err := l.start(ctx, signer, t); err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "open", operand, "%w", err)
	}
	if err := l.Settle(ctx); err != nil {
		return nil, errors.Join(wrap("open", operand, err), l.end())
	}
	return l, nil
}

// remember notes the entries of the tree from index first up to size. A crash may
// have left them in the queue.
func (l *Log) remember(first, size uint64) error {
	index := first
	for data, err := range entriesFrom(os.DirFS(l.Dir), first, size) {
		if err != nil {
			return err
		}
		a := &arrival{done: make(chan struct{}), index: index}
		close(a.done)
		l.arrivals[sha256.Sum256(data)] = a
		index++
	}
	return nil
}

// start starts tessera and the goroutine that looks into the queue.
func (l *Log) start(ctx context.Context, signer note.Signer, t *tree) (err error) {
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			l.cancel()
		}
	}()
	if l.driver, err = newDriver(l.Dir, t); err != nil {
		return err
	}
	l.driver.covered, l.driver.failed = l.covered, func(err error) {
		l.note(func(f *failures) { f.checkpoint = unwritable(l.name, l.Dir, err) })
	}
	appender, shutdown, _, err := tessera.NewAppender(l.ctx, l.driver, tessera.NewAppendOptions().WithCheckpointSigner(signer))
	if err != nil {
		return errors.Join(err, l.driver.state.Close())
	}
	l.append, l.shutdown = appender.Add, shutdown
	l.done.Go(l.run)
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
	return l.failures.first()
}

// Append queues e, with the time, and returns when the tree has it. It fails as
// [Log.Writable] does, or as the queue.
func (l *Log) Append(ctx context.Context, e Entry) error {
	if err := l.Writable(); err != nil {
		return err
	}
	entry, err := l.Entry(e)
	if err != nil {
		return err
	}
	l.Expect(entry)
	if err := l.Queue.Enqueue(ctx, *entry); err != nil {
		l.Doubt()
		return wrap("append to", l.name, err)
	}
	return l.TakeIn(entry)
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

// Expect says that e is about to be queued. From when it is until the tree has it,
// [Log.Await] waits for it.
func (l *Log) Expect(e *imprint.LogEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owed[e.Serial] = time.Now()
}

// TakeIn puts an entry that was expected and queued into the tree. It fails like
// [Log.Writable]; the entry gets there later then.
func (l *Log) TakeIn(e *imprint.LogEntry) error {
	return l.takeInAll([]imprint.LogEntry{*e})
}

// Doubt says that an entry that was expected may have been queued, or may be yet.
func (l *Log) Doubt() { poke(l.wake) }

// Await returns when a tree has the entry of a certificate that is on record and
// was queued for the log called log. Nobody may have the certificate before. What
// another server queued for its own log, and did not take in yet, is taken into
// this one too, for that server may have ended.
func (l *Log) Await(ctx context.Context, log string, serial imprint.Serial) error {
	if log != l.name {
		return l.takeInOf(ctx, log, serial)
	}
	return l.until(ctx, func() bool {
		_, owed := l.owed[serial]
		return !owed
	})
}

// until returns when holds, which is called with the lock, is true. It wakes
// whoever can bring that about, and fails with the reason if they cannot.
func (l *Log) until(ctx context.Context, holds func() bool) error {
	for {
		l.mu.Lock()
		held, changed, failure := holds(), l.changed, l.failures.first()
		l.mu.Unlock()
		switch {
		case held:
			return nil
		case failure != nil:
			return failure
		}
		poke(l.wake)
		poke(l.driver.hurry)
		select {
		case <-changed:
		case <-ctx.Done():
			return imprint.Errorf(imprint.Unavailable, "wait for", l.name, "%w", ctx.Err())
		}
	}
}

// note changes what the lock guards, and tells whoever waits for a change.
func (l *Log) note(change func(*failures)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.failures.first()
	change(&l.failures)
	if after := l.failures.first(); (before == nil) != (after == nil) {
		l.Logger.Error("issuance log", "log", l.name, "writable", after == nil, "error", after)
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// Settle returns when everything that was queued before is in the tree, under a
// signed checkpoint; a copy of the log has it then. It fails with kind
// [imprint.Exhausted] or [imprint.Unavailable] if the tree cannot be written.
func (l *Log) Settle(ctx context.Context) error {
	l.mu.Lock()
	begun := l.looks
	l.mu.Unlock()
	if err := l.until(ctx, func() bool { return l.looked > begun }); err != nil {
		return err
	}
	return l.awaitCheckpoint(ctx)
}

// awaitCheckpoint returns when the tree, as it is now, is under a checkpoint.
func (l *Log) awaitCheckpoint(ctx context.Context) error {
	size, err := l.driver.IntegratedSize(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, signWait)
	defer cancel()
	return l.until(ctx, func() bool { return l.signed >= size })
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
	err := l.awaitCheckpoint(l.ctx)
	if err == nil {
		if err = l.shutdown(l.ctx); err != nil {
			err = imprint.Errorf(imprint.Unavailable, "close", l.name, "%w", err)
		}
	}
	l.cancel()
	return errors.Join(err, l.driver.close(), l.lock.Close())
}
