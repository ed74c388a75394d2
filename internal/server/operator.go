package server

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"imprint"
	"imprint/api"
)

// readyTimeout bounds the question whether the server can do its work.
const readyTimeout = 5 * time.Second

func (s *Server) healthy(context.Context, *struct{}) (*document, error) {
	return &document{"text/plain", []byte("ok\n")}, nil
}

func (s *Server) ready(ctx context.Context, _ *struct{}) (*document, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		e := imprint.Errorf(imprint.Unavailable, "serve", string(s.Host), "%w", err)
		e.Hint = imprint.HintOf(err)
		return nil, e
	}
	return &document{"text/plain", []byte("ready\n")}, nil
}

// operatorMux is what the operator listener serves: nothing that needs an
// identity, for monitoring systems that have none.
func (s *Server) operatorMux() *guardedMux {
	plain := func(f func(context.Context, *struct{}) (*document, error)) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			d, err := f(r.Context(), nil)
			if err != nil {
				s.writeProblem(w, r, err)
				return
			}
			w.Header().Set("Content-Type", d.ContentType)
			w.Write(d.Body)
		}
	}
	metrics := promhttp.HandlerFor(s.Metrics, promhttp.HandlerOpts{Registry: s.Metrics})
	table := []struct {
		pattern string
		access  Role
		handler func(http.ResponseWriter, *http.Request)
	}{
		{"GET /metrics", Anyone, metrics.ServeHTTP},
		{"GET /healthz", Anyone, plain(s.healthy)},
		{"GET /readyz", Anyone, plain(s.ready)},
	}
	access := map[string]Role{}
	for _, r := range table {
		access[r.pattern] = r.access
	}
	mux := s.guardedMux(access)
	for _, r := range table {
		mux.HandleFunc(r.pattern, r.handler)
	}
	return mux
}

// writeProblem answers with err outside of huma.
func (s *Server) writeProblem(w http.ResponseWriter, r *http.Request, err error) {
	p := s.problemOf(r.Context(), err)
	w.Header().Set("Content-Type", api.ProblemType)
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p) // nobody is left to tell if the client has gone
}

// recovered answers a panic as an internal error; the stack goes into the log only.
func (s *Server) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch v := recover(); v {
			case nil:
			case http.ErrAbortHandler:
				panic(v) // net/http cuts the connection without a word
			default:
				s.Logger.LogAttrs(r.Context(), slog.LevelError, "handler panicked",
					slog.String("path", r.URL.Path), slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
				s.writeProblem(w, r, fmt.Errorf("panic: %v", v))
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// metrics are the control API's own.
type metrics struct {
	requests *prometheus.CounterVec
	duration prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "imprint_api_requests_total", Help: "Requests to the control API by operation and status.",
		}, []string{"operation", "status"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "imprint_api_request_seconds", Help: "Duration of requests to the control API but streams.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10},
		}),
	}
	r.MustRegister(m.requests, m.duration)
	return m
}

// wrap counts what next answers.
func (m *metrics) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		rec := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			// r.Pattern is what the mux matched: a bounded set of names.
			m.requests.WithLabelValues(r.Pattern, strconv.Itoa(rec.status)).Inc()
			if !rec.streamed {
				m.duration.Observe(time.Since(began).Seconds())
			}
		}()
		next.ServeHTTP(rec, r)
	})
}

// statusRecorder remembers the status of an answer and whether it was flushed
// in pieces.
type statusRecorder struct {
	http.ResponseWriter
	status   int
	streamed bool
}

func (r *statusRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// FlushError is what [http.ResponseController] calls.
func (r *statusRecorder) FlushError() error {
	r.streamed = true
	return http.NewResponseController(r.ResponseWriter).Flush()
}

// Unwrap gives [http.ResponseController] the rest.
func (r *statusRecorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
