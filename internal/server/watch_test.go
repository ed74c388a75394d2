package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"imprint"
	"imprint/api"
)

// next pulls one notice of a watch.
type watching struct {
	next func() (*api.Notice, error, bool)
	stop func()
}

func watch(t *testing.T, c *api.Client, scope api.Scope, from int64) watching {
	t.Helper()
	next, stop := iter.Pull2(c.Watch(t.Context(), scope, from))
	t.Cleanup(stop)
	return watching{next, stop}
}

func (w watching) want(t *testing.T, what func(*api.Notice) bool) *api.Notice {
	t.Helper()
	n, err, ok := w.next()
	if !ok || err != nil || !what(n) {
		t.Fatalf("got %+v, %v, %v", n, err, ok)
	}
	return n
}

func instanceNamed(name string, relist bool) func(*api.Notice) bool {
	return func(n *api.Notice) bool { return n.Instance != nil && n.Instance.Ref == name && n.Relist == relist }
}

func event(kind imprint.EventKind) func(*api.Notice) bool {
	return func(n *api.Notice) bool { return n.Event != nil && n.Event.Kind == kind }
}

func TestWatch(t *testing.T) {
	t.Parallel()
	r, ctx := start(t), t.Context()
	must[*api.Created](t)(r.client.Create(ctx, imprint.Spec{Name: "web-1"}, nil, false))
	w := watch(t, r.client, api.Scope{}, 0)
	w.want(t, instanceNamed("web-1", true))
	must[*api.Created](t)(r.client.Create(ctx, imprint.Spec{Name: "web-2"}, nil, false))
	w.want(t, instanceNamed("web-2", false))
	w.want(t, event(imprint.EventReserved))
	id := must[*api.Instance](t)(r.client.Rebirth(ctx, "web-2")).ID
	w.want(t, instanceNamed("web-2", false))
	w.want(t, event(imprint.EventReborn))
	if err := r.client.Delete(ctx, "web-2"); err != nil {
		t.Fatal(err)
	}
	w.want(t, func(n *api.Notice) bool { return n.Deleted == id })
	if _, err, _ := watch(t, r.client, api.Scope{Instance: "no-such"}, 0).next(); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("an unknown instance: %v", err)
	}
	r.mu.Lock()
	r.fail = imprint.Errorf(imprint.Denied, "watch", "store", "the store says no")
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
	if _, err, _ := w.next(); imprint.KindOf(err) != imprint.Denied {
		t.Errorf("an error of the store: %v", err)
	}
}

// shortLived forwards connections to the server at socket and cuts each after it
// has passed so many lines of the answer on.
type shortLived struct {
	net.Listener
	socket string
	lines  int
	opened atomic.Int32
	conns  sync.WaitGroup
}

func (p *shortLived) run() {
	for {
		near, err := p.Accept()
		if err != nil {
			return
		}
		p.opened.Add(1)
		far, err := net.Dial("unix", p.socket)
		if err != nil {
			near.Close()
			continue
		}
		p.conns.Go(func() {
			defer far.Close()
			io.Copy(far, near)
		})
		p.conns.Go(func() {
			defer near.Close()
			defer far.Close()
			answer := bufio.NewReader(far)
			for range p.lines {
				line, err := answer.ReadBytes('\n')
				near.Write(line)
				if err != nil {
					return
				}
			}
		})
	}
}

// A watch whose connection is cut again and again, also between two notices of
// one revision and in the middle of one, sees every change once and in order.
func TestWatchResumes(t *testing.T) {
	t.Parallel()
	r, ctx := start(t), t.Context()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	// A head has 6 lines, a chunk with a notice or heartbeat 3.
	proxy := &shortLived{Listener: l, socket: r.socket, lines: 25}
	var running sync.WaitGroup
	running.Go(proxy.run)
	client := api.NewUnix(l.Addr().String())
	defer func() {
		client.Close()
		l.Close()
		running.Wait()
		proxy.conns.Wait()
	}()
	i, err := r.world.Create(ctx, "", imprint.Spec{Name: "web-1", Tenant: imprint.DefaultTenant}, nil, "test")
	if err != nil {
		t.Fatal(err)
	}
	const moves = 8
	for range moves {
		if _, err := r.world.Rebirth(ctx, i.ID, "test"); err != nil {
			t.Fatal(err)
		}
	}
	w := watch(t, client, api.Scope{}, 2) // the first change has revision 2
	defer w.stop()
	var got, want []string
	for rev := range moves + 1 {
		want = append(want, fmt.Sprint(rev+2, false, false), fmt.Sprint(rev+2, true, false))
	}
	for range want {
		notice := w.want(t, func(*api.Notice) bool { return true })
		got = append(got, fmt.Sprint(notice.Revision, notice.Event != nil, notice.Relist))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if n := proxy.opened.Load(); n < 4 {
		t.Errorf("only %d connections were used", n)
	}
}

// What the store has forgotten while the server was away is made good by a relist.
func TestWatchRelists(t *testing.T) {
	t.Parallel()
	r := start(t)
	must[*api.Created](t)(r.client.Create(t.Context(), imprint.Spec{Name: "web-1"}, nil, false))
	r.mu.Lock()
	r.compacted = 100
	r.mu.Unlock()
	watch(t, r.client, api.Scope{}, 2).want(t, instanceNamed("web-1", true))
}

// A server that stops ends its watches at once, and a new one at the same place
// takes them over.
func TestWatchOverRestart(t *testing.T) {
	t.Parallel()
	world := newWorld()
	socket := filepath.Join(t.TempDir(), "s")
	begin := func() func() {
		s, err := New(config(world, io.Discard))
		if err != nil {
			t.Fatal(err)
		}
		l, err := s.ListenUnix(socket)
		if err != nil {
			t.Fatal(err)
		}
		return serve(t, s, Listeners{Unix: l})
	}
	stop := begin()
	client := api.NewUnix(socket)
	defer client.Close()
	create := func(name imprint.InstanceName) {
		if _, err := world.Create(t.Context(), "", imprint.Spec{Name: name, Tenant: imprint.DefaultTenant}, nil, "test"); err != nil {
			t.Fatal(err)
		}
	}
	create("web-1")
	w := watch(t, client, api.Scope{}, 2)
	w.want(t, instanceNamed("web-1", false))
	w.want(t, event(imprint.EventReserved))
	stop()
	create("web-2")
	defer begin()()
	w.want(t, instanceNamed("web-2", false))
	w.want(t, event(imprint.EventReserved))
}

// The number of watches is bounded, and a place is free again after one ends.
func TestTooManyWatches(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.server.watches = make(chan struct{}, 1)
	must[*api.Created](t)(r.client.Create(t.Context(), imprint.Spec{Name: "web-1"}, nil, false))
	first := watch(t, r.client, api.Scope{}, 0)
	first.want(t, instanceNamed("web-1", true))
	if _, err, _ := watch(t, r.client, api.Scope{}, 0).next(); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("one too many: %v", err)
	}
	first.stop()
	r.server.watches <- struct{}{} // blocks until the handler has given its place back
	<-r.server.watches
	watch(t, r.client, api.Scope{}, 0).want(t, instanceNamed("web-1", true))
}

// A watch ends without an error when its context does.
func TestWatchCancelled(t *testing.T) {
	t.Parallel()
	r := start(t)
	must[*api.Created](t)(r.client.Create(t.Context(), imprint.Spec{Name: "web-1"}, nil, false))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, err := range r.client.Watch(ctx, api.Scope{}, 0) {
		if err != nil {
			t.Errorf("got %v", err)
		}
		cancel()
	}
	if _, err := r.client.List(ctx, api.Query{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a call: %v", err)
	}
}

// A server that answers something else than imprint is said to.
func TestNotImprint(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	other := &http.Server{Handler: http.NotFoundHandler()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		other.Serve(l)
	}()
	defer func() {
		other.Close()
		<-done
	}()
	client := api.NewUnix(l.Addr().String())
	defer client.Close()
	if _, err := client.Info(t.Context()); imprint.KindOf(err) != imprint.Unavailable {
		t.Errorf("got %v", err)
	}
}
