package est

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"imprint"
)

// access says who may use a route.
type access uint8

const (
	anyone      access = iota // public material
	token                     // HTTP Basic with the one-time token; the engine judges it
	certificate               // mutual TLS with a live certificate
)

// route is one row of the access table.
type route struct {
	patterns []string
	access   access
	serve    func(*Server, *call) error
}

const (
	estPath     = "/.well-known/est/"        // RFC 7030 section 3.2.2
	machinePath = "/.well-known/imprint/v1/" // ours
	crlPath     = "/crl/"
)

// routes is the access table: what is not listed here does not exist.
func routes() []route {
	est := func(method, op string) []string {
		return []string{method + " " + estPath + op, method + " " + estPath + "{label}/" + op}
	}
	own := func(method, op string) []string { return []string{method + " " + machinePath + op} }
	return []route{
		{est("GET", "cacerts"), anyone, (*Server).caCerts},
		{est("GET", "csrattrs"), anyone, (*Server).csrAttrs},
		{est("POST", "simpleenroll"), token, (*Server).simpleEnroll},
		{est("POST", "simplereenroll"), certificate, (*Server).simpleReenroll},
		{est("POST", "serverkeygen"), anyone, (*Server).notOffered}, // machines make their own keys
		{est("POST", "fullcmc"), anyone, (*Server).notOffered},
		{own("GET", "state"), certificate, (*Server).state},
		{own("POST", "confirm"), certificate, (*Server).confirm},
		{own("POST", "ready"), certificate, (*Server).ready},
		{own("POST", "ssh-certificate"), certificate, (*Server).sshCertificate},
		{own("POST", "medium"), certificate, (*Server).medium},
		{own("GET", "user-data"), certificate, (*Server).userData},
		{own("GET", "params"), certificate, (*Server).listParams},
		{own("GET", "params/{name}"), certificate, (*Server).param},
		{[]string{"GET " + crlPath + "{file}"}, anyone, (*Server).crl},
	}
}

// call is one request on its way through a route.
type call struct {
	*http.Request
	reply  http.ResponseWriter
	began  time.Time
	tenant *tenant
	// machine and identity are set on routes that need a certificate.
	machine  *imprint.Instance
	identity imprint.Identity
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := s.hosts(r); h != nil {
		h.ServeHTTP(w, r)
		return
	}
	began := time.Now()
	rec := &recorder{ResponseWriter: w, status: http.StatusOK}
	if wait := s.rates.take(remote(r), s.now()); wait > 0 {
		rec.Header().Set("Retry-After", seconds(wait))
		http.Error(rec, "too many requests; slow down", http.StatusTooManyRequests)
	} else {
		s.mux.ServeHTTP(rec, r)
	}
	if s.observe != nil {
		s.observe(r.Pattern, rec.status, time.Since(began))
	}
}

// serve finds out whom a request is for and who sends it, and lets rt answer.
func (s *Server) serve(rt route, w http.ResponseWriter, r *http.Request) {
	c := &call{Request: r, reply: w, began: time.Now()}
	err := func() (err error) {
		if c.tenant, err = s.tenants.Load().ofRequest(r); err != nil {
			return err
		}
		if rt.access == certificate {
			if err := s.authenticate(c); err != nil {
				return err
			}
		}
		return rt.serve(s, c)
	}()
	if err != nil {
		s.fail(rt, c, err)
	}
}

// authenticate fills in c's machine from the certificate shown in the handshake.
// Its first use proves that the machine holds both key and certificate.
func (s *Server) authenticate(c *call) error {
	ctx := c.Context()
	if c.TLS == nil || len(c.TLS.VerifiedChains) == 0 {
		return &refusal{http.StatusForbidden, "this needs the machine's certificate; connect with it"}
	}
	leaf := c.TLS.PeerCertificates[0]
	// TLS looked at the dates once; a kept connection can outlive them.
	if s.now().After(leaf.NotAfter) {
		return &refusal{http.StatusForbidden, "the certificate has expired; the machine needs a new generation"}
	}
	id, err := s.authority.Identify(leaf)
	if err != nil {
		return err
	}
	if id.Tenant != c.tenant.name {
		return imprint.Errorf(imprint.Denied, "authenticate", string(id.Instance), "certificate of tenant %s at tenant %s", id.Tenant, c.tenant.name)
	}
	inst, err := s.engine.Authenticate(ctx, id)
	if end := endOf(inst); err != nil && end != nil {
		return end
	}
	if imprint.KindOf(err) == imprint.NotFound { // deleted; not to be taken for a path that is not there
		return imprint.Errorf(imprint.Denied, "authenticate", string(id.Instance), "%w", err)
	}
	if err != nil {
		return err
	}
	if !inst.Enrolment.State.Enrolled() {
		report := imprint.Report{
			Instance: id.Instance, Generation: id.Generation, Channel: imprint.NetworkEST,
			Kind: imprint.ReportConfirmed, Serial: id.Serial,
		}
		if err := s.engine.Report(ctx, report); err != nil {
			return err
		}
		if inst, err = s.engine.Authenticate(ctx, id); err != nil {
			return err
		}
	}
	c.machine, c.identity = inst, id
	return nil
}

// refusal is an answer that this package gives itself; its text goes out as it is.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// endOf tells a machine how its enrolment ended, or returns nil if it has not,
// or if there is no inst. It is for whoever proved to have the key that claimed.
func endOf(inst *imprint.Instance) error {
	if inst == nil {
		return nil
	}
	switch inst.Enrolment.State {
	case imprint.InDispute:
		return &refusal{http.StatusConflict, "the enrolment is contested: a second key claimed this machine, and what was issued is revoked; the operator can see who"}
	case imprint.Revoked:
		return &refusal{http.StatusConflict, "the enrolment was revoked; the machine needs a new generation"}
	}
	return nil // an expired one was never claimed
}

// answers maps what the engine and its neighbours say to HTTP. Their own words
// stay inside: the timeline tells the operator what the wire does not.
var answers = [...]refusal{
	imprint.Internal:     {http.StatusInternalServerError, "internal error"},
	imprint.Invalid:      {http.StatusBadRequest, "the request does not fit the reservation; the operator can see why"},
	imprint.NotFound:     {http.StatusNotFound, "not found"},
	imprint.Exists:       {http.StatusConflict, "the enrolment does not allow this; the operator can see why"},
	imprint.Conflict:     {http.StatusConflict, "the enrolment does not allow this; the operator can see why"},
	imprint.Contested:    {http.StatusConflict, "the enrolment does not allow this; the operator can see why"},
	imprint.Denied:       {http.StatusForbidden, "not allowed; the operator can see why"},
	imprint.Unauthorized: {http.StatusUnauthorized, "unknown instance, wrong or spent token, or an enrolment that has ended; the operator can see which"},
	imprint.Pending:      {http.StatusAccepted, "an operator has to approve first; ask again later"},
	imprint.Unavailable:  {http.StatusServiceUnavailable, "not available now; ask again later"},
	imprint.Exhausted:    {http.StatusServiceUnavailable, "not available now; ask again later"},
}

// answerTo returns what the wire says about err.
func answerTo(err error) refusal {
	var own *refusal
	if errors.As(err, &own) {
		return *own
	}
	kind := imprint.KindOf(err)
	if int(kind) >= len(answers) {
		kind = imprint.Internal
	}
	return answers[kind]
}

// fail answers a request that did not succeed.
func (s *Server) fail(rt route, c *call, err error) {
	answer := answerTo(err)
	switch answer.status {
	case http.StatusUnauthorized:
		if rt.access == certificate { // a certificate that names nobody here; no password helps
			answer = answers[imprint.Denied]
			break
		}
		// Every refused token takes equally long, so that the time an answer
		// takes does not tell a wrong token from an unknown instance.
		wait(c.Context(), s.limits.RefusalTime-time.Since(c.began))
		c.reply.Header().Set("WWW-Authenticate", `Basic realm="imprint", charset="UTF-8"`)
	case http.StatusAccepted, http.StatusServiceUnavailable:
		c.reply.Header().Set("Retry-After", seconds(s.limits.RetryAfter))
	}
	level := levelOf(answer.status)
	if c.Context().Err() == nil && s.log.Enabled(c.Context(), level) {
		s.log.Log(c.Context(), level, "check-in request refused",
			"route", c.Pattern, "status", answer.status, "remote", c.RemoteAddr, "error", err)
	}
	http.Error(c.reply, answer.text, answer.status)
}

// wait returns after d or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// seconds writes d as Retry-After wants it: whole seconds, rounded up, at least 1.
func seconds(d time.Duration) string {
	return strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10)
}

// remote returns the address that r came from, or the zero address.
func remote(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// recorder remembers the status of a reply for Observe.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
