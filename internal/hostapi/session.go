package hostapi

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"strconv"
	"sync"
	"time"

	"imprint"
	"imprint/internal/dialect"
)

// streamTimeout is how long a host may take to accept one line.
const streamTimeout = 30 * time.Second

// Limits on the calls that may wait for one host's answers. A read of a pipe waits
// until the machine writes something, so that others must have room beside them.
const (
	maxCalls = 64
	MaxReads = 32 // of maxCalls
)

// session is the stream of one host.
type session struct {
	since  time.Time
	remote string
	end    context.CancelCauseFunc
	ended  chan struct{}
	calls  chan *Call

	mu      sync.Mutex
	waiting map[string]chan Answer // guarded by mu; by the call's ID
	reads   int                    // guarded by mu; of those in waiting
}

// answered hands an answer to whoever waits for it; false if nobody does.
func (s *session) answered(id string, a Answer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiter, ok := s.waiting[id]
	delete(s.waiting, id)
	if ok {
		waiter <- a
	}
	return ok
}

var (
	errReplaced = imprint.Errorf(imprint.Unavailable, "watch", "instances", "a newer connection of this host took over")
	errStopping = imprint.Errorf(imprint.Unavailable, "watch", "instances", "the server stops")
	errEnded    = imprint.Errorf(imprint.Unavailable, "watch", "instances", "the certificate ended; connect with a new one")
)

// open makes s the session of host and ends the one before it.
func (s *Server) open(host imprint.HostName, mine *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errStopping
	}
	if before := s.sessions[host]; before != nil {
		before.end(errReplaced)
	}
	s.sessions[host] = mine
	return nil
}

func (s *Server) close(host imprint.HostName, mine *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[host] == mine {
		delete(s.sessions, host)
	}
	close(mine.ended)
}

// Close ends all streams and refuses new ones.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, one := range s.sessions {
		one.end(errStopping)
	}
}

// State is how a host is connected.
type State struct {
	Connected bool
	Since     time.Time
	Remote    string // its address
}

// State returns whether a host's stream is open here.
func (s *Server) State(host imprint.HostName) State {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.sessions[host]; one != nil {
		return State{true, one.since, one.remote}
	}
	return State{}
}

// Connected returns how many hosts' streams are open here.
func (s *Server) Connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// Call asks a host and returns what it answers. It fails with kind
// [imprint.Unavailable] if the host is not connected or does not answer in time.
func (s *Server) Call(ctx context.Context, host imprint.HostName, ask Call) (Answer, error) {
	away := func(why string) error {
		return imprint.Errorf(imprint.Unavailable, "ask", "host "+string(host), "%s", why).
			WithHint("see whether imprint host runs on %s and reaches this server", host)
	}
	s.mu.Lock()
	one := s.sessions[host]
	s.mu.Unlock()
	if one == nil {
		return Answer{}, away("it is not connected")
	}
	ask.ID = newCallID()
	answer := make(chan Answer, 1)
	one.mu.Lock()
	reads := 0
	if ask.Kind == CallRead {
		reads = 1
	}
	full := len(one.waiting) >= maxCalls || one.reads+reads > MaxReads
	if !full {
		one.waiting[ask.ID] = answer
		one.reads += reads
	}
	one.mu.Unlock()
	if full {
		return Answer{}, away("too many calls wait for its answer")
	}
	defer func() {
		one.mu.Lock()
		defer one.mu.Unlock()
		delete(one.waiting, ask.ID)
		one.reads -= reads
	}()
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	select {
	case one.calls <- &ask:
	case <-one.ended:
		return Answer{}, away("its connection broke")
	case <-ctx.Done():
		return Answer{}, away("it does not take the call")
	}
	select {
	case a := <-answer:
		return a, a.Error.err()
	case <-one.ended:
		return Answer{}, away("its connection broke before it answered")
	case <-ctx.Done():
		return Answer{}, away("it does not answer")
	}
}

// watch answers GET watch with a stream that ends when the host's certificate
// does, or its right to speak.
func (s *Server) watch(c *call) error {
	from, err := strconv.ParseInt(c.URL.Query().Get("from"), 10, 64)
	if err != nil || from < 0 {
		return imprint.Errorf(imprint.Invalid, "watch", "instances", "from is not a revision")
	}
	if c.URL.Query().Get("run") != s.run {
		from = 0 // of another past, maybe
	}
	ctx, end := context.WithCancelCause(c.Context())
	defer end(nil)
	mine := &session{
		since: s.Now(), remote: c.RemoteAddr, end: end, ended: make(chan struct{}),
		calls: make(chan *Call), waiting: map[string]chan Answer{},
	}
	if err := s.open(c.host, mine); err != nil {
		return err
	}
	s.Logger.InfoContext(ctx, "host connected", "host", c.host, "remote", c.RemoteAddr)
	var running sync.WaitGroup
	defer running.Wait()
	defer s.close(c.host, mine)
	defer end(nil)
	timer := time.AfterFunc(c.ends.Sub(s.Now()), func() { end(errEnded) })
	defer timer.Stop()
	running.Go(func() { s.guard(ctx, c, end) })
	lines := make(chan Notice)
	running.Go(func() { s.tell(ctx, c, from, lines, end) })

	out := &stream{c.reply, http.NewResponseController(c.reply)}
	out.control.SetReadDeadline(time.Time{}) // the request was read; the peer's end is noticed by the heartbeats
	c.reply.Header().Set("Content-Type", "application/x-ndjson")
	c.reply.Header().Set("Cache-Control", "no-store")
	err = s.write(ctx, out, lines, mine.calls)
	if err == nil {
		err = context.Cause(ctx)
	}
	var said *imprint.Error
	if errors.As(err, &said) {
		out.line(Notice{Error: problemOf(said)}) // nobody is left to tell if the host has gone
	}
	s.Logger.InfoContext(c.Context(), "host disconnected", "host", c.host, "because", err)
	return nil
}

// guard ends a stream when its host may no longer speak.
func (s *Server) guard(ctx context.Context, c *call, end context.CancelCauseFunc) {
	for range s.Instances.Follow(ctx, c.machine) {
		host, err := s.speaker(ctx, c.identity)
		err = unauthorized(err)
		if err == nil && host != c.host {
			err = imprint.Errorf(imprint.Unauthorized, "speak for", string(c.host), "it is host %s now", host)
		}
		if err != nil && imprint.KindOf(err) != imprint.Unavailable {
			end(err)
			return
		}
	}
}

// tell sends what concerns c's host until ctx ends. It ends the stream when the
// store cannot be read: a list that was cut short begins again in a new one, and
// the host does not take the server for being at hand meanwhile.
func (s *Server) tell(ctx context.Context, c *call, from int64, lines chan<- Notice, end context.CancelCauseFunc) {
	send := func(n Notice) bool {
		select {
		case lines <- n:
			return true
		case <-ctx.Done():
			return false
		}
	}
	told := map[imprint.TenantName]dialect.Facts{}
	for n, err := range s.Instances.Placed(ctx, c.host, from) {
		if err != nil {
			end(imprint.Errorf(imprint.Unavailable, "watch", "instances", "the server cannot read them: %w", err))
			return
		}
		if n.Instance != nil {
			if n.Instance.Spec.Host != c.host {
				continue
			}
			n.Instance = wrap(n.Instance.Unwrap())
			if tenant := n.Instance.Spec.Tenant; told[tenant].CA == "" {
				facts, err := s.Facts(tenant)
				if err != nil {
					s.Logger.ErrorContext(ctx, "a tenant's facts cannot be told", "tenant", tenant, "error", err)
				} else if told[tenant] = facts; !send(Notice{Tenant: &TenantFacts{tenant, facts}}) {
					return
				}
			}
		}
		if !send(n) {
			return
		}
	}
}

// write sends lines, calls and heartbeats until ctx ends, which is no error. With
// each heartbeat it looks whether a tenant's facts, or the key that seals, have
// changed.
func (s *Server) write(ctx context.Context, out *stream, lines <-chan Notice, calls <-chan *Call) error {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	told := map[imprint.TenantName]dialect.Facts{}
	if err := out.beat(); err != nil { // the host knows that it is heard
		return err
	}
	if err := out.line(Notice{Run: s.run}); err != nil {
		return err
	}
	sealing := ""
	tellKey := func() error {
		now := s.Sealing()
		if now == sealing {
			return nil
		}
		sealing = now
		return out.line(Notice{Sealing: now})
	}
	if err := tellKey(); err != nil {
		return err
	}
	for {
		var err error
		select {
		case n := <-lines:
			if n.Tenant != nil {
				told[n.Tenant.Name] = n.Tenant.Facts
			}
			err = out.line(n)
		case ask := <-calls:
			err = out.line(Notice{Call: ask})
		case <-beat.C:
			for tenant, before := range told {
				facts, ferr := s.Facts(tenant)
				if ferr != nil || reflect.DeepEqual(facts, before) {
					continue
				}
				told[tenant] = facts
				if err := out.line(Notice{Tenant: &TenantFacts{tenant, facts}}); err != nil {
					return err
				}
			}
			if err = tellKey(); err == nil {
				err = out.beat()
			}
		case <-ctx.Done():
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// stream is a reply that goes out line by line, each with its own deadline.
type stream struct {
	out     http.ResponseWriter
	control *http.ResponseController
}

func (s *stream) line(n Notice) error { return s.send(append(encode(n), '\n')) }
func (s *stream) beat() error         { return s.send([]byte{'\n'}) }

func (s *stream) send(line []byte) error {
	if err := s.control.SetWriteDeadline(time.Now().Add(streamTimeout)); err != nil {
		return err
	}
	if _, err := s.out.Write(line); err != nil {
		return err
	}
	return s.control.Flush()
}
