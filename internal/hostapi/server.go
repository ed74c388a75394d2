package hostapi

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"imprint"
	"imprint/internal/dialect"
)

// Enrolments decides about enrolments: an enrol.Engine.
type Enrolments interface {
	Enrol(ctx context.Context, s imprint.Submission) (*imprint.Instance, error)
	Report(ctx context.Context, r imprint.Report) error
	// Authenticate returns the instance that a verified certificate names, if that
	// certificate is alive. It fails with kind Denied, and with kind Conflict or
	// Contested if the generation that it is of has ended.
	Authenticate(ctx context.Context, who imprint.Identity) (*imprint.Instance, error)
}

// Instances reads the store.
type Instances interface {
	// Instance fails with kind NotFound if there is none.
	Instance(ctx context.Context, id imprint.InstanceID) (*imprint.Instance, error)
	// Placed tells the instances that are placed on a host and what changes after
	// the revision from; 0 asks for a list first. An error does not end it.
	Placed(ctx context.Context, host imprint.HostName, from int64) iter.Seq2[Notice, error]
	// Follow yields when an instance may have changed, until ctx ends.
	Follow(ctx context.Context, id imprint.InstanceID) iter.Seq[struct{}]
}

// Params has the private parameters' values.
type Params interface {
	// Param fails with kind NotFound if there is no value.
	Param(ctx context.Context, id imprint.InstanceID, name string) (imprint.Secret, error)
}

// Config is what a [Server] works with; all of it is needed.
type Config struct {
	// Identify returns whom a certificate names whose chain was verified.
	Identify   func(leaf *x509.Certificate) (imprint.Identity, error)
	Enrolments Enrolments
	Instances  Instances
	Params     Params
	Facts      func(imprint.TenantName) (dialect.Facts, error)
	// Sealing names the key-encryption key in use.
	Sealing func() string
	// Own is the control plane's own host name, for which nobody else speaks.
	Own    imprint.HostName
	Logger *slog.Logger
	Now    func() time.Time
}

// Server is the control plane's end.
type Server struct {
	Config
	mux *http.ServeMux
	run string // random
	// refusalTime is how long a host that is refused waits for the answer, so that
	// it cannot fill the log.
	refusalTime time.Duration

	mu       sync.Mutex
	sessions map[imprint.HostName]*session // guarded by mu; whose stream is open
	closed   bool                          // guarded by mu
}

// NewServer returns a server without sessions.
func NewServer(c Config) *Server {
	s := &Server{Config: c, mux: http.NewServeMux(), run: rand.Text(), refusalTime: time.Second, sessions: map[imprint.HostName]*session{}}
	for _, rt := range routes() {
		s.mux.HandleFunc(rt.pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(rt, w, r) })
	}
	return s
}

// access says who may use a route.
type access uint8

const (
	nobody   access = iota // a row without an entry is closed
	liveHost               // mutual TLS with a live certificate of a hypervisor
)

// route is one row of the access table.
type route struct {
	pattern string
	access  access
	serve   func(*Server, *call) error
}

// routes is the access table: what is not listed here does not exist.
func routes() []route {
	return []route{
		{"GET " + Prefix + "watch", liveHost, (*Server).watch},
		{"POST " + Prefix + "enrol", liveHost, (*Server).enrol},
		{"POST " + Prefix + "report", liveHost, (*Server).report},
		{"GET " + Prefix + "params/{id}/{name}", liveHost, (*Server).param},
		{"POST " + Prefix + "answers/{call}", liveHost, (*Server).answer},
	}
}

// call is one request on its way through a route.
type call struct {
	*http.Request
	reply    http.ResponseWriter
	host     imprint.HostName
	machine  imprint.InstanceID // the hypervisor's own
	identity imprint.Identity
	ends     time.Time // of the certificate
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

func (s *Server) serve(rt route, w http.ResponseWriter, r *http.Request) {
	c := &call{Request: r, reply: w}
	err := unauthorized(s.authenticate(rt.access, c))
	if err == nil {
		err = rt.serve(s, c)
	} else {
		select {
		case <-time.After(s.refusalTime):
		case <-r.Context().Done():
		}
	}
	if err == nil || r.Context().Err() != nil {
		return
	}
	level := slog.LevelInfo
	if imprint.KindOf(err) == imprint.Internal {
		level = slog.LevelError
	}
	s.Logger.Log(r.Context(), level, "request of a host refused", "route", rt.pattern, "host", c.host, "remote", r.RemoteAddr, "error", err)
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(statusOf(imprint.KindOf(err)))
	w.Write(encode(problemOf(err)))
}

// authenticate finds out which host sends c. It asks the store each time, so
// that a host that was revoked is refused on the connections that it has.
func (s *Server) authenticate(a access, c *call) error {
	if a != liveHost || c.TLS == nil || len(c.TLS.VerifiedChains) == 0 {
		return imprint.Errorf(imprint.Denied, "authenticate", c.RemoteAddr, "this needs the certificate of a hypervisor")
	}
	leaf := c.TLS.PeerCertificates[0]
	c.ends = leaf.NotAfter
	// TLS looked at the dates once; a kept connection can outlive them.
	if s.Now().After(leaf.NotAfter) {
		return imprint.Errorf(imprint.Denied, "authenticate", c.RemoteAddr, "the certificate has expired")
	}
	var err error
	if c.identity, err = s.Identify(leaf); err != nil {
		return err
	}
	c.machine = c.identity.Instance
	c.host, err = s.speaker(c.Context(), c.identity)
	return err
}

// unauthorized marks a refusal as one of the host itself. Denied is left for what
// a host that may speak may not do.
func unauthorized(err error) error {
	if err == nil || imprint.KindOf(err) != imprint.Denied {
		return err
	}
	return imprint.Errorf(imprint.Unauthorized, "accept", "host", "%w", err)
}

// speaker returns for which host who speaks now.
func (s *Server) speaker(ctx context.Context, who imprint.Identity) (imprint.HostName, error) {
	inst, err := s.Enrolments.Authenticate(ctx, who)
	switch imprint.KindOf(err) {
	case imprint.Conflict, imprint.Contested: // its generation is over
		err = imprint.Errorf(imprint.Denied, "authenticate", string(who.Instance), "%w", err)
	}
	if err != nil {
		return "", err
	}
	host, err := HostOf(&inst.Spec)
	switch {
	case err != nil:
		return "", err
	case !inst.Enrolment.State.Enrolled():
		return "", imprint.Errorf(imprint.Denied, "speak for", string(host), "its enrolment is %s, not confirmed", inst.Enrolment.State)
	case host == s.Own:
		return "", imprint.Errorf(imprint.Denied, "speak for", string(host), "that is the server itself")
	}
	return host, nil
}

// placed returns an instance if it is placed on c's host. To a host an instance
// that is elsewhere does not exist.
func (s *Server) placed(c *call, id imprint.InstanceID) (*imprint.Instance, error) {
	inst, err := s.Instances.Instance(c.Context(), id)
	if err == nil && inst.Spec.Host != c.host {
		s.Logger.WarnContext(c.Context(), "a host asks for an instance that is not placed on it", "host", c.host, "instance", id)
		err = imprint.Errorf(imprint.NotFound, "find", string(id), "no such instance on host %s", c.host)
	}
	if err != nil {
		return nil, err
	}
	return inst, nil
}

func read(c *call, limit int64, into any) error {
	b, err := io.ReadAll(http.MaxBytesReader(c.reply, c.Body, limit))
	if err != nil {
		return imprint.Errorf(imprint.Invalid, "read", "request", "%w", err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return imprint.Errorf(imprint.Invalid, "read", "request", "it is not what belongs here: %T", err)
	}
	return nil
}

func (s *Server) enrol(c *call) error {
	var in enrolment
	if err := read(c, maxRequest, &in); err != nil {
		return err
	}
	if _, known := imprint.ChannelOf(in.Channel); !known {
		return imprint.Errorf(imprint.Invalid, "read", "enrolment", "no such channel")
	}
	inst, err := s.Enrolments.Enrol(c.Context(), imprint.Submission{
		Instance: in.Instance, Generation: in.Generation, Channel: in.Channel, CSR: in.CSR, SSHHost: in.SSHHost, Witness: c.host,
	})
	var out outcome
	if inst != nil && inst.Spec.Host == c.host {
		out.Instance = wrap(inst)
	}
	if err != nil {
		out.Error = problemOf(err)
		if imprint.KindOf(err) == imprint.Internal {
			s.Logger.ErrorContext(c.Context(), "enrolment for a host failed", "host", c.host, "instance", in.Instance, "error", err)
		}
	}
	c.reply.Header().Set("Content-Type", "application/json")
	c.reply.Write(encode(out))
	return nil
}

func (s *Server) report(c *call) error {
	var in report
	if err := read(c, maxRequest, &in); err != nil {
		return err
	}
	// Channel and kind become labels of metrics, of which there must not be many.
	_, known := imprint.ChannelOf(in.Channel)
	known = known || in.Kind == imprint.ReportMessage && in.Channel == "" // the operator's end of a pipe
	switch {
	case len(in.ID) > maxID:
		return imprint.Errorf(imprint.Invalid, "read", "report", "an identifier of %d bytes; the limit is %d", len(in.ID), maxID)
	case !known || !in.Kind.Known():
		return imprint.Errorf(imprint.Invalid, "read", "report", "no such channel or kind")
	}
	err := s.Enrolments.Report(c.Context(), imprint.Report{
		ID: in.ID, Seen: in.Seen, Instance: in.Instance, Generation: in.Generation, Channel: in.Channel,
		Kind: in.Kind, Name: in.Name, Data: in.Data, From: in.From, NIC: in.NIC, Witness: c.host,
	})
	if err != nil {
		return err
	}
	c.reply.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) param(c *call) error {
	id, name := imprint.InstanceID(c.PathValue("id")), c.PathValue("name")
	inst, err := s.placed(c, id)
	if err != nil {
		return err
	}
	private := false
	for _, p := range inst.Spec.Params {
		private = private || p.Name == name && p.Visibility == imprint.Private
	}
	switch {
	case !private:
		return imprint.Errorf(imprint.NotFound, "read", inst.Ref(), "no private parameter %q", name)
	case !inst.Enrolment.State.Open():
		return imprint.Errorf(imprint.Denied, "read", inst.Ref(), "its enrolment is %s", inst.Enrolment.State)
	}
	value, err := s.Params.Param(c.Context(), id, name)
	if err != nil {
		return err
	}
	defer clear(value.Reveal())
	s.Logger.InfoContext(c.Context(), "a host fetched a private value", "host", c.host, "instance", id, "param", name)
	c.reply.Header().Set("Content-Type", "application/octet-stream")
	c.reply.Header().Set("Cache-Control", "no-store")
	c.reply.Write(value.Reveal())
	return nil
}

func (s *Server) answer(c *call) error {
	var in Answer
	if err := read(c, maxAnswer, &in); err != nil {
		return err
	}
	if err := in.clean(); err != nil {
		return err
	}
	s.mu.Lock()
	open := s.sessions[c.host]
	s.mu.Unlock()
	if open == nil || !open.answered(c.PathValue("call"), in) {
		return imprint.Errorf(imprint.NotFound, "answer", "call", "nobody waits for it")
	}
	c.reply.WriteHeader(http.StatusNoContent)
	return nil
}

// newCallID returns an identifier that nobody can guess.
func newCallID() string { return rand.Text() }
