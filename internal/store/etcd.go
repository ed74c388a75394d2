package store

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"imprint"
)

// etcd is kv over an etcd client, in process or remote.
type etcd struct {
	client *clientv3.Client
	// send sends a transaction as etcd's server takes it; the client's own types
	// would copy it several times.
	send func(context.Context, *pb.TxnRequest) (*pb.TxnResponse, error)
	// local, if not nil, reads the state of the only member, which runs in this
	// process, so that it is up to date: all queries at one revision.
	local func(context.Context, []query) ([]page, error)
	// readable, if not nil, waits until local has a revision that a watch has told of.
	readable func(ctx context.Context, revision int64) error
	// timeout bounds one request; 0 leaves that to the server in this process.
	timeout time.Duration
	// ready, if not nil, may refuse a write before it is sent.
	ready func() error
	// failed is closed, and cause says why, when the server in this process has
	// stopped by itself; both are nil if there is none.
	failed <-chan struct{}
	cause  func() error
	// shut ends the client and what is behind it.
	shut func() error
}

func (e *etcd) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if e.timeout == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, e.timeout)
}

func (e *etcd) read(ctx context.Context, q query) (page, error) {
	if e.local != nil {
		pages, err := e.readAll(ctx, []query{q})
		if err != nil {
			return page{}, err
		}
		return pages[0], nil
	}
	ctx, cancel := e.bound(ctx)
	defer cancel()
	resp, err := e.client.Get(ctx, q.key, options(q)...)
	if err != nil {
		return page{}, e.fault(err)
	}
	return pageOf(resp), nil
}

func (e *etcd) readAll(ctx context.Context, queries []query) ([]page, error) {
	if e.local != nil {
		pages, err := await(e, func() ([]page, error) { return e.local(ctx, queries) })
		if err != nil {
			return nil, e.fault(err)
		}
		return pages, nil
	}
	gets := make([]clientv3.Op, len(queries))
	for i, q := range queries {
		gets[i] = clientv3.OpGet(q.key, options(q)...)
	}
	ctx, cancel := e.bound(ctx)
	defer cancel()
	resp, err := e.client.Txn(ctx).Then(gets...).Commit()
	if err != nil {
		return nil, e.fault(err)
	}
	return pagesOf(resp.Responses), nil
}

// await makes a request. A server in this process that stops by itself may
// leave its locks held, so such a request is not waited for.
func await[R any](e *etcd, request func() (R, error)) (resp R, err error) {
	if e.failed == nil {
		return request()
	}
	type answer struct {
		resp R
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		resp, err := request()
		done <- answer{resp, err}
	}()
	select {
	case a := <-done:
		return a.resp, a.err
	case <-e.failed:
		return resp, e.cause()
	}
}

func options(q query) []clientv3.OpOption {
	opts := make([]clientv3.OpOption, 0, 5)
	if q.end != "" {
		opts = append(opts, clientv3.WithRange(q.end))
	}
	if q.limit > 0 {
		opts = append(opts, clientv3.WithLimit(int64(q.limit)))
	}
	if q.revision > 0 {
		opts = append(opts, clientv3.WithRev(q.revision))
	}
	if q.stale {
		opts = append(opts, clientv3.WithSerializable())
	}
	if q.keysOnly {
		opts = append(opts, clientv3.WithKeysOnly())
	}
	return opts
}

func (e *etcd) commit(ctx context.Context, txns []*txn) ([]outcome, error) {
	if e.ready != nil && slices.ContainsFunc(txns, (*txn).grows) {
		if err := e.ready(); err != nil {
			return nil, err
		}
	}
	var req *pb.TxnRequest
	if len(txns) == 1 {
		req = requestOf(txns[0])
	} else {
		req = &pb.TxnRequest{Success: make([]*pb.RequestOp, len(txns))}
		for i, t := range txns {
			req.Success[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: requestOf(t)}}
		}
	}
	ctx, cancel := e.bound(ctx)
	defer cancel()
	resp, err := await(e, func() (*pb.TxnResponse, error) { return e.send(ctx, req) })
	if err != nil {
		return nil, e.fault(clientv3.ContextError(ctx, err))
	}
	if len(txns) == 1 {
		return []outcome{outcomeOf(resp, resp.Header.Revision)}, nil
	}
	outcomes := make([]outcome, len(txns))
	for i, r := range resp.Responses {
		outcomes[i] = outcomeOf(r.GetResponseTxn(), resp.Header.Revision)
	}
	return outcomes, nil
}

// requestOf returns t as etcd takes it. The parts of an operation are allocated
// together: an enrolment has a dozen operations of three parts.
func requestOf(t *txn) *pb.TxnRequest {
	req := &pb.TxnRequest{
		Compare: make([]*pb.Compare, len(t.when)),
		Success: make([]*pb.RequestOp, len(t.then)),
		Failure: make([]*pb.RequestOp, len(t.otherwise)),
	}
	for i, c := range t.when {
		whole := new(struct {
			compare pb.Compare
			target  pb.Compare_ModRevision
		})
		whole.compare.Key, whole.compare.Target, whole.compare.Result = []byte(c.key), pb.Compare_MOD, pb.Compare_EQUAL
		whole.target.ModRevision = c.modified
		whole.compare.TargetUnion = &whole.target
		req.Compare[i] = &whole.compare
	}
	for i := range t.then {
		o := &t.then[i]
		switch o.verb {
		case put:
			whole := new(struct {
				op   pb.RequestOp
				kind pb.RequestOp_RequestPut
				put  pb.PutRequest
			})
			whole.put.Key, whole.put.Value, whole.put.Lease = []byte(o.key), o.value, o.lease
			whole.kind.RequestPut = &whole.put
			whole.op.Request = &whole.kind
			req.Success[i] = &whole.op
		case remove:
			whole := new(struct {
				op     pb.RequestOp
				kind   pb.RequestOp_RequestDeleteRange
				remove pb.DeleteRangeRequest
			})
			whole.remove.Key, whole.remove.RangeEnd = []byte(o.key), []byte(o.end)
			whole.kind.RequestDeleteRange = &whole.remove
			whole.op.Request = &whole.kind
			req.Success[i] = &whole.op
		}
	}
	for i, key := range t.otherwise {
		whole := new(struct {
			op    pb.RequestOp
			kind  pb.RequestOp_RequestRange
			query pb.RangeRequest
		})
		whole.query.Key = []byte(key)
		whole.kind.RequestRange = &whole.query
		whole.op.Request = &whole.kind
		req.Failure[i] = &whole.op
	}
	return req
}

func outcomeOf(r *pb.TxnResponse, revision int64) outcome {
	out := outcome{applied: r.Succeeded, revision: revision}
	if !r.Succeeded {
		out.pages = pagesOf(r.Responses)
	}
	return out
}

func (e *etcd) watch(ctx context.Context, w watch) iter.Seq2[batch, error] {
	return func(yield func(batch, error) bool) {
		// Without a leader a watch would be silent; with this it fails.
		ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		defer cancel()
		opts := []clientv3.OpOption{clientv3.WithRange(w.end), clientv3.WithRev(w.revision)}
		if w.previous {
			opts = append(opts, clientv3.WithPrevKV())
		}
		responses := e.client.Watch(ctx, w.key, opts...)
		for {
			select {
			case resp, open := <-responses:
				err := resp.Err()
				if err == nil && !open {
					err = cmp.Or(ctx.Err(), error(rpctypes.ErrStopped))
				}
				if err != nil {
					yield(batch{}, e.fault(err))
					return
				}
				if n := len(resp.Events); e.readable != nil && n > 0 {
					_, err := await(e, func() (struct{}, error) { return struct{}{}, e.readable(ctx, resp.Events[n-1].Kv.ModRevision) })
					if err != nil {
						yield(batch{}, err)
						return
					}
				}
				for b := range batches(resp.Events) {
					if !yield(b, nil) {
						return
					}
				}
			case <-e.failed:
				yield(batch{}, e.cause())
				return
			}
		}
	}
}

// batches splits events at revisions. etcd never splits a revision between two
// responses, because this package does not ask for fragments.
func batches(events []*clientv3.Event) iter.Seq[batch] {
	return func(yield func(batch) bool) {
		for len(events) > 0 {
			b := batch{revision: events[0].Kv.ModRevision}
			n := 0
			for ; n < len(events) && events[n].Kv.ModRevision == b.revision; n++ {
				ev := events[n]
				c := change{pair: pairOf(ev.Kv), deleted: ev.Type == clientv3.EventTypeDelete}
				if ev.PrevKv != nil {
					c.previous = ev.PrevKv.Value
				}
				b.changes = append(b.changes, c)
			}
			if !yield(b) {
				return
			}
			events = events[n:]
		}
	}
}

func (e *etcd) grant(ctx context.Context, ttl time.Duration) (int64, error) {
	ctx, cancel := e.bound(ctx)
	defer cancel()
	resp, err := await(e, func() (*clientv3.LeaseGrantResponse, error) {
		return e.client.Grant(ctx, int64((ttl+time.Second-1)/time.Second))
	})
	if err != nil {
		return 0, e.fault(err)
	}
	return int64(resp.ID), nil
}

func (e *etcd) revoke(ctx context.Context, lease int64) error {
	ctx, cancel := e.bound(ctx)
	defer cancel()
	_, err := await(e, func() (*clientv3.LeaseRevokeResponse, error) {
		return e.client.Revoke(ctx, clientv3.LeaseID(lease))
	})
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return e.fault(err)
	}
	return nil
}

func (e *etcd) close() error { return e.shut() }

// pagesOf returns what the ranges of a transaction found.
func pagesOf(responses []*pb.ResponseOp) []page {
	pages := make([]page, len(responses))
	for i, r := range responses {
		pages[i] = pageOf((*clientv3.GetResponse)(r.GetResponseRange()))
	}
	return pages
}

func pageOf(r *clientv3.GetResponse) page {
	p := page{more: r.More}
	if r.Header != nil { // absent inside a transaction
		p.revision = r.Header.Revision
	}
	if len(r.Kvs) > 0 {
		p.pairs = make([]pair, len(r.Kvs))
		for i, kv := range r.Kvs {
			p.pairs[i] = pairOf(kv)
		}
	}
	return p
}

func pairOf(kv *mvccpb.KeyValue) pair {
	return pair{key: string(kv.Key), value: kv.Value, modified: kv.ModRevision}
}

// fault gives an error of etcd its kind.
func (e *etcd) fault(err error) error {
	if e.cause != nil {
		if cause := e.cause(); cause != nil {
			return cause
		}
	}
	const op, operand = "use", "etcd"
	switch {
	case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, mvcc.ErrCompacted):
		return errCompacted
	case errors.Is(err, rpctypes.ErrNoSpace):
		return imprint.Errorf(imprint.Exhausted, op, operand, "its database has reached its quota: %w", err).
			WithHint("delete instances that are no longer needed and then reclaim the space, or raise the quota")
	case errors.Is(err, syscall.ENOSPC):
		return imprint.Errorf(imprint.Exhausted, op, operand, "the disk is full: %w", err).
			WithHint("make room on the disk of the data directory")
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		return imprint.Errorf(imprint.Exhausted, op, operand, "%w", err).
			WithHint("shorten the user data, vendor data, metadata or parameters")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return imprint.Errorf(imprint.Unavailable, op, operand, "no answer in time: %w", err).
			WithHint("see whether a majority of etcd's members run; whether this was written is not known, so look before you repeat it")
	case errors.Is(err, rpctypes.ErrAuthFailed), errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrUserEmpty):
		return imprint.Errorf(imprint.Unavailable, op, operand, "the cluster does not let us in: %w", err).
			WithHint("check the user, password and client certificate for the etcd cluster")
	}
	switch code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.ResourceExhausted, codes.FailedPrecondition:
		return imprint.Errorf(imprint.Unavailable, op, operand, "%w", err)
	}
	return imprint.Errorf(imprint.Internal, op, operand, "%w", err)
}

// code returns the gRPC code of err, whichever of etcd's two forms it has.
func code(err error) codes.Code {
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		return e.Code()
	}
	return status.Code(err)
}
