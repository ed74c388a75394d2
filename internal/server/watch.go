package server

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"imprint"
	"imprint/api"
)

// maxWatches bounds the watches that run at once.
const maxWatches = 256

// streamTimeout is how long a client may take to accept one piece of a stream.
const streamTimeout = 30 * time.Second

// stream is an answer that goes out piece by piece, each with its own deadline.
type stream struct {
	out     http.ResponseWriter
	control *http.ResponseController
}

func newStream(hc huma.Context) *stream {
	out := hc.BodyWriter().(http.ResponseWriter) // humago's context hands the writer out as it is
	return &stream{out, http.NewResponseController(out)}
}

func (s *stream) Write(p []byte) (int, error) {
	if err := s.control.SetWriteDeadline(time.Now().Add(streamTimeout)); err != nil {
		return 0, err
	}
	return s.out.Write(p)
}

// line writes p and a newline, and sends them off.
func (s *stream) line(p []byte) error {
	if _, err := s.Write(append(p, '\n')); err != nil {
		return err
	}
	return s.control.Flush()
}

type watchInput struct {
	Tenant   string `query:"tenant" maxLength:"63"`
	Host     string `query:"host" maxLength:"253"`
	Instance string `query:"instance" maxLength:"128" doc:"An ID or a name."`
	From     int64  `query:"from" minimum:"0" doc:"Begin with the changes of this revision; 0 begins with all instances there are."`
}

func (s *Server) watch(ctx context.Context, in *watchInput) (*huma.StreamResponse, error) {
	scope := Scope{Tenant: imprint.TenantName(in.Tenant), Host: imprint.HostName(in.Host)}
	if in.Instance != "" {
		i, err := s.find(ctx, in.Instance)
		if err != nil {
			return nil, err
		}
		scope.Instance = i.ID
	}
	select {
	case s.watches <- struct{}{}:
	default:
		return nil, imprint.Errorf(imprint.Exhausted, "watch", "instances", "%d watches run already", maxWatches).
			WithHint("end some of them")
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		defer func() { <-s.watches }()
		hc.SetHeader("Content-Type", "application/x-ndjson")
		hc.SetHeader("Cache-Control", "no-store")
		s.follow(hc.Context(), newStream(hc), scope, in.From)
	}}, nil
}

// follow writes notices until the client goes, the server drains or the store
// fails. The store is read in a goroutine of its own, because a heartbeat is due
// when it has nothing to say; follow waits for it.
func (s *Server) follow(ctx context.Context, out *stream, scope Scope, from int64) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.draining, cancel)
	defer stop()
	lines := make(chan api.Notice)
	go func() {
		defer close(lines)
		for n, err := range s.Watcher.Watch(ctx, scope, from) {
			wire := s.wire(ctx, n, err)
			select {
			case lines <- wire:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	defer func() {
		cancel()
		for range lines { // until the goroutine has ended
		}
	}()
	heartbeat := time.NewTicker(api.Heartbeat)
	defer heartbeat.Stop()
	if out.line(nil) != nil { // the headers and a first heartbeat: the client knows that it is heard
		return
	}
	for {
		var line []byte
		select {
		case n, ok := <-lines:
			if !ok {
				return
			}
			line = encodeLine(n)
		case <-heartbeat.C:
		}
		if out.line(line) != nil {
			return
		}
	}
}

// wire returns n, or the error that ends the watch, as it goes out.
func (s *Server) wire(ctx context.Context, n Notice, err error) api.Notice {
	if err != nil {
		if ctx.Err() != nil {
			// The server drains: a client may come again.
			err = imprint.Errorf(imprint.Unavailable, "watch", "instances", "the server stops")
		}
		return api.Notice{Error: s.problemOf(ctx, err)}
	}
	out := api.Notice{Revision: n.Revision, Relist: n.Relist, Deleted: n.Deleted, Event: n.Event}
	if n.Instance != nil {
		i := api.FromInstance(n.Instance)
		out.Instance = &i
	}
	return out
}

// encodeLine returns n without its newline.
func encodeLine(n api.Notice) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.Encode(n) // of plain data into memory: cannot fail
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
}
