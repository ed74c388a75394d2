package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"imprint"
)

// Embedded configures a store whose etcd runs in this process.
type Embedded struct {
	// Dir is the data directory. It is made if it does not exist, mode 0700,
	// and one process uses it at a time.
	Dir string
	// Logger gets what etcd says; nil discards it.
	Logger *slog.Logger
	// StartTimeout bounds the start; 0 is 30 s, because a large store is read
	// into memory first (about 2 s for a million instances).
	StartTimeout time.Duration
	// Quota limits the database file in bytes; 0 is 8 GiB, as much as etcd advises.
	Quota int64
	// Reserve is how many bytes must be free on the disk before a write is
	// accepted; 0 is 64 MiB, one segment of etcd's log.
	Reserve int64
}

const (
	defaultStartTimeout = 30 * time.Second
	defaultQuota        = 8 << 30
	defaultReserve      = 64 << 20

	// compactAfter is for how long the past can be read and watches resumed.
	compactAfter = 10 * time.Minute
	// stopTimeout bounds the end of an etcd that met a fatal fault: its
	// goroutines may wait for each other for ever.
	stopTimeout = 2 * time.Second

	// futureStep is how often a watch looks whether what it is to tell of can be
	// read by now. It can within microseconds.
	futureStep = 50 * time.Microsecond

	tickMillis = 20
	logEntries = 2000 // that etcd keeps in its log beside its database

	// socketFile is etcd's client socket in the data directory, for etcdctl.
	socketFile = "etcd.sock"
	lockFile   = "lock"
)

// OpenEmbedded starts an etcd in this process on the files in c.Dir, which needs
// no other set-up. It listens on no network address; whoever may enter the data
// directory reaches it with etcdctl at the socket etcd.sock in there.
//
// OpenEmbedded fails with kind [imprint.Conflict] if another process uses the
// directory or a newer release wrote it, [imprint.Exhausted] if its disk is
// full, and [imprint.Unavailable] if etcd is not ready within c.StartTimeout or
// before ctx ends.
func OpenEmbedded(ctx context.Context, c Embedded) (_ *Store, err error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.StartTimeout = orDefault(c.StartTimeout, defaultStartTimeout)
	c.Quota = orDefault(c.Quota, defaultQuota)
	c.Reserve = orDefault(c.Reserve, defaultReserve)
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "open", c.Dir, "%w", err)
	}
	if err := checkVersionFile(c.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, diskFault(c.Dir, err)
	}
	dir, err := lockDir(c.Dir)
	if err != nil {
		return nil, err
	}
	e := &embedded{Embedded: c, dir: dir, failed: make(chan struct{})}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if err := e.ready(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.StartTimeout)
	defer cancel()
	if err := e.start(ctx); err != nil {
		return nil, err
	}
	// Its transactions stop at its quota like those of any client.
	send := v3rpc.NewQuotaKVServer(e.server.Server).Txn
	s := newStore(&etcd{client: e.client, send: send, local: e.read, readable: e.readable, ready: e.ready, failed: e.failed, cause: e.cause, shut: e.close}, defaultPrefix, e.failed)
	s.reclaim = e.reclaim
	if err := s.checkFormat(ctx, c.Dir); err != nil {
		return nil, err
	}
	return s, writeVersionFile(c.Dir)
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// embedded is the etcd of this process.
type embedded struct {
	Embedded
	dir    *lockedDir
	server *embed.Etcd
	client *clientv3.Client

	closing atomic.Bool // from here on etcd's complaints are no news

	failed chan struct{} // closed when fault is set
	once   sync.Once
	fault  error // why etcd stopped by itself
}

// start runs etcd and waits until it serves.
func (e *embedded) start(ctx context.Context) error {
	cfg := embed.NewConfig()
	cfg.Name = "imprint"
	cfg.Dir = filepath.Join(e.Dir, "etcd")
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(e.Logger, &e.closing, e))
	cfg.QuotaBackendBytes = e.Quota
	cfg.MaxTxnOps = maxTxnOps
	cfg.AutoCompactionMode = embed.CompactorModePeriodic
	cfg.AutoCompactionRetention = compactAfter.String()
	// The only member has no peers, so it listens for none. Its own peer URL
	// is but a name in its membership list.
	cfg.ListenPeerUrls = nil
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	// Nor does it wait for any: short ticks make it ready sooner and its leases
	// finer, and no follower needs old entries of its log, which the next start
	// would have to read.
	cfg.TickMs, cfg.ElectionMs = tickMillis, 10*tickMillis
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = logEntries, logEntries/20
	socket := url.URL{Scheme: "unix", Path: e.dir.short(socketFile)}
	cfg.ListenClientUrls = []url.URL{socket}
	cfg.AdvertiseClientUrls = []url.URL{{Scheme: "unix", Path: "/" + socketFile}}

	server, err := e.run(cfg)
	if err != nil {
		if cause := e.cause(); cause != nil {
			return cause
		}
		return diskFault(e.Dir, err)
	}
	e.server = server
	select {
	case <-server.Server.ReadyNotify():
	case <-e.failed:
		return e.cause()
	case <-ctx.Done():
		return imprint.Errorf(imprint.Unavailable, "open", e.Dir, "etcd is not ready: %w", ctx.Err())
	}
	e.client = v3client.New(server.Server)
	return e.reclaimIfFull(ctx)
}

// read answers queries from etcd's own state at one revision. Unlike a request
// over the client, a page costs only its own entries: a request makes etcd
// count the rest of the range as well, so that a walk in pages is quadratic.
func (e *embedded) read(ctx context.Context, queries []query) ([]page, error) {
	txn := e.server.Server.KV().Read(mvcc.ConcurrentReadTxMode, traceutil.TODO())
	defer txn.End()
	pages := make([]page, len(queries))
	for i, q := range queries {
		options := mvcc.RangeOptions{Rev: q.revision, FastKeysOnly: q.keysOnly}
		if q.limit > 0 {
			options.Limit = int64(q.limit) + 1 // to see whether there is more
		}
		var end []byte
		if q.end != "" {
			end = []byte(q.end)
		}
		found, err := txn.Range(ctx, []byte(q.key), end, options)
		if err != nil {
			return nil, err
		}
		pages[i] = page{revision: found.Rev, more: q.limit > 0 && len(found.KVs) > q.limit}
		for _, kv := range found.KVs {
			if len(pages[i].pairs) == q.limit && q.limit > 0 {
				break
			}
			pages[i].pairs = append(pages[i].pairs, pairOf(kv))
		}
	}
	return pages, nil
}

// readable waits until revision can be read: etcd tells watchers of it a moment
// before (watchableStoreTxnWrite.End).
func (e *embedded) readable(ctx context.Context, revision int64) error {
	for e.server.Server.KV().Rev() < revision {
		if err := sleep(ctx, futureStep); err != nil {
			return err
		}
	}
	return nil
}

// run calls embed.StartEtcd in a goroutine of its own, which ends if etcd calls
// for the end of the process.
func (e *embedded) run(cfg *embed.Config) (server *embed.Etcd, err error) {
	err = errors.New("etcd stopped")
	done := make(chan struct{})
	go func() {
		defer close(done)
		server, err = embed.StartEtcd(cfg)
	}()
	<-done
	return server, err
}

// OnWrite implements [zapcore.CheckWriteHook]: etcd logged a fault after which
// it cannot go on. It does not return, as etcd expects.
func (e *embedded) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	e.once.Do(func() {
		cause := errors.New(entry.Message)
		for _, f := range fields {
			if err, ok := f.Interface.(error); ok {
				cause = fmt.Errorf("%s: %w", entry.Message, err)
			}
		}
		e.fault = diskFault(e.Dir, cause)
		if imprint.KindOf(e.fault) == imprint.Internal {
			e.fault = imprint.Errorf(imprint.Unavailable, "write", e.Dir, "%w", cause).
				WithHint("see to that disk and start imprint again")
		}
		close(e.failed)
	})
	runtime.Goexit()
}

// cause returns why etcd stopped by itself, or nil.
func (e *embedded) cause() error {
	select {
	case <-e.failed:
		return e.fault
	default:
		return nil
	}
}

// ready refuses a write while the disk is nearly full: etcd itself cannot go on
// after a write that the disk refused.
func (e *embedded) ready() error {
	if err := e.cause(); err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(e.dir.Fd()), &fs); err != nil {
		return nil // a file system that does not tell
	}
	if free := int64(min(fs.Bavail, math.MaxInt64/uint64(fs.Bsize))) * fs.Bsize; free < e.Reserve {
		return imprint.Errorf(imprint.Exhausted, "write", e.Dir, "its disk has %d MiB left; nothing is written below %d MiB", free>>20, e.Reserve>>20).
			WithHint("make room on that disk; imprint goes on by itself")
	}
	return nil
}

// reclaimIfFull clears the alarm of an etcd that had reached its quota, if
// there is room again.
func (e *embedded) reclaimIfFull(ctx context.Context) error {
	alarms, err := e.client.AlarmList(ctx)
	if err != nil || len(alarms.Alarms) == 0 {
		return err
	}
	return e.reclaim(ctx)
}

// reclaim forgets the past, gives the space to the disk, and lets etcd write again.
func (e *embedded) reclaim(ctx context.Context) error {
	head, err := e.client.Get(ctx, "\x00", clientv3.WithSerializable())
	if err != nil {
		return err
	}
	if _, err := e.client.Compact(ctx, head.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		e.Logger.DebugContext(ctx, "etcd was compacted already", "error", err)
	}
	// The in-process client's Defragment would dereference nil (etcd 3.7.3).
	if err := e.server.Server.Backend().Defrag(); err != nil {
		return err
	}
	_, err = e.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}) // every alarm
	return err
}

func (e *embedded) close() error {
	e.closing.Store(true)
	if e.client != nil {
		e.client.Close()
	}
	if e.server != nil {
		done := make(chan struct{})
		go func() { defer close(done); e.server.Close() }()
		if e.cause() == nil {
			<-done
		} else {
			select {
			case <-done:
			case <-time.After(stopTimeout):
				return e.fault // and keep the lock: etcd's files are still open
			}
		}
	}
	return errors.Join(e.cause(), e.dir.Close())
}

// diskFault gives an error of the file system its kind and a remedy.
func diskFault(dir string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return imprint.Errorf(imprint.Exhausted, "write", dir, "%w", err).
			WithHint("make room on that disk and start imprint again")
	case errors.Is(err, fs.ErrPermission):
		return imprint.Errorf(imprint.Denied, "open", dir, "%w", err).
			WithHint("run imprint as the owner of the data directory")
	}
	return imprint.Errorf(imprint.Internal, "open", dir, "%w", err)
}
