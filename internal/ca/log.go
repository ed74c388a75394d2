package ca

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"imprint"
)

// maxBatch and maxBatchBytes bound what is written to the journal at once: all
// that arrived since the last batch. After a batch of several entries the next
// begins writeInterval later, because more will come: enrolments that were
// answered together go on together, also through the store, and share what the
// way to the disk costs. One that comes alone waits for nobody.
const (
	maxBatch      = 256
	maxBatchBytes = 1 << 20
	writeInterval = 3 * time.Millisecond
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
// written by tessera's POSIX driver behind a journal. An entry is acknowledged
// when its place in the log is fixed and it is in the journal, on the disk. The
// tree takes it in within about a tenth of a second, together with all that
// arrived meanwhile, and the signed checkpoint follows as soon again; what a
// crash kept from the tree, [OpenLog] puts into it. Log is safe for concurrent
// use, and one process at a time uses a directory.
type Log struct {
	name    string
	dir     string
	now     func() time.Time
	lock    *os.File
	journal *journal // used by run alone
	tree    *tree

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
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	verifier, err := logVerifier(cfg.Key)
	if err != nil {
		return nil, err
	}
	size, missing, err := checkContinues(os.DirFS(cfg.Dir), verifier)
	if err != nil {
		return nil, wrap("open", operand, err)
	}
	l := &Log{
		name: signer.Name(), dir: cfg.Dir, now: cfg.Now, lock: lock,
		queue: make(chan pending, maxBatch), closed: make(chan struct{}),
	}
	if l.tree, err = openTree(ctx, cfg, signer, size); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.tree.close()
		}
	}()
	if err := l.tree.recover(ctx, missing); err != nil {
		return nil, wrap("open", operand, err)
	}
	if l.journal, err = openJournal(cfg.Dir, size+uint64(len(missing))); err != nil {
		return nil, err
	}
	l.done.Go(l.run)
	return l, nil
}

// Name returns the log's origin.
func (l *Log) Name() string { return l.name }

// Append writes e, with the time, and returns its index once it is on the disk.
// Entries that arrive while others are being written share the next write. If
// ctx ends first, the entry may still be written. It fails with kind
// [imprint.Exhausted] when the disk is full or the entry too large, and
// [imprint.Unavailable] if the log is closed or cannot be written.
func (l *Log) Append(ctx context.Context, e Entry) (uint64, error) {
	e.At = l.now()
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
// of concurrent appenders share one write to the disk.
func (l *Log) run() {
	for {
		select {
		case first := <-l.queue:
			next := time.Now().Add(writeInterval)
			if l.write(first) == 1 {
				continue
			}
			select {
			case <-time.After(time.Until(next)):
			case <-l.closed:
			}
		case <-l.closed:
			for {
				select {
				case first := <-l.queue:
					l.write(first)
				default:
					return
				}
			}
		}
	}
}

// write appends first and all that waits behind it, answers each, and returns how
// many they were.
func (l *Log) write(first pending) int {
	batch, entries, size := []pending{first}, [][]byte{first.data}, len(first.data)
	for more := true; more && len(batch) < maxBatch && size < maxBatchBytes; {
		select {
		case next := <-l.queue:
			batch, entries, size = append(batch, next), append(entries, next.data), size+len(next.data)
		default:
			more = false
		}
	}
	index, err := l.writeEntries(entries, size)
	for i, p := range batch {
		p.result <- appended{index + uint64(i), err}
	}
	return len(batch)
}

// writeEntries writes entries of size bytes in total to the journal and gives
// them to the tree.
func (l *Log) writeEntries(entries [][]byte, size int) (first uint64, err error) {
	if !l.journal.fits(len(entries), size) {
		if _, err := l.tree.await(context.Background()); err != nil {
			return 0, err
		}
	}
	caughtUp, err := l.tree.caughtUp()
	if err != nil {
		return 0, err
	}
	if caughtUp {
		l.journal.rewind()
	}
	if first, err = l.journal.append(entries); err != nil {
		return 0, unwritable(l.name, l.dir, err)
	}
	l.tree.add(entries)
	return first, nil
}

// Settle returns when everything that was acknowledged before is in the tree,
// under a signed checkpoint; a copy of the log has it then. It fails with kind
// [imprint.Exhausted] or [imprint.Unavailable] if the tree cannot be written.
func (l *Log) Settle(ctx context.Context) error { return l.tree.settle(ctx) }

// Close ends appending, waits until all entries are in the tree and under a
// checkpoint, and gives the directory free. If the tree cannot be written, they
// stay in the journal.
func (l *Log) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.done.Wait()
		l.err = errors.Join(l.tree.close(), l.journal.file.Close(), l.lock.Close())
	})
	return l.err
}
