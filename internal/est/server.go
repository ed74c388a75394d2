package est

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"imprint"
)

// Engine decides about enrolments.
type Engine interface {
	// Enrol claims, issues or renews and returns the instance with its
	// certificate. Repeating a request is harmless. It fails with kind Pending
	// while an operator has to approve; with Unauthorized if the token is wrong,
	// or missing where one is needed; with
	// Invalid for a request that can never be granted; with Contested, Conflict or
	// Denied where the enrolment's state forbids it. With Contested and Conflict it
	// returns the instance too; once a key has claimed, whoever brings no evidence
	// gets neither.
	Enrol(context.Context, imprint.Submission) (*imprint.Instance, error)
	// Report records what a machine says. It fails with kind Conflict if the
	// enrolment's state does not allow it, and with NotFound if what it is about is on
	// no record.
	Report(context.Context, imprint.Report) error
	// Authenticate returns the instance that a verified certificate names, if that
	// certificate is alive: issued to the present generation and not revoked. It
	// fails with kind Denied, or with NotFound if the instance was deleted. If the
	// certificate is for the key that claimed, and the generation is over, it fails
	// with Contested or Conflict and returns the instance too.
	Authenticate(context.Context, imprint.Identity) (*imprint.Instance, error)
	// CertifySSHHost returns the instance that a verified certificate names with
	// an SSH host certificate for the key in line, which is in authorized_keys
	// form. Repeating it is harmless. It fails with kind Invalid if the key cannot
	// be certified, with Conflict if it changes too often, and as Authenticate does.
	CertifySSHHost(ctx context.Context, who imprint.Identity, line string) (*imprint.Instance, error)
}

// Instances finds reservations.
type Instances interface {
	// Lookup fails with kind NotFound if the tenant has no instance of that name.
	Lookup(context.Context, imprint.TenantName, imprint.InstanceName) (imprint.InstanceID, error)
}

// Authority is what the certificate authority publishes.
type Authority interface {
	// Bundle returns what a tenant's machines should hold: the root first, then
	// the issuing certificates, and during a rollover the old and new ones and
	// their cross-certificates.
	Bundle(context.Context, imprint.TenantName) ([]*x509.Certificate, error)
	// CRL returns the tenant's current revocation list in DER.
	CRL(context.Context, imprint.TenantName) ([]byte, error)
	// Identify returns whom a certificate names. Its chain was verified against
	// the tenant's trust already. It fails with kind Denied if the certificate is
	// not a machine's.
	Identify(leaf *x509.Certificate) (imprint.Identity, error)
}

// Values holds the parameters that are not in the instance's record.
type Values interface {
	// Value returns a private or secret parameter. It fails with kind NotFound if
	// its value is not at hand, as a secret's is after the server was restarted.
	Value(ctx context.Context, inst *imprint.Instance, name string) (imprint.Secret, error)
	// Held returns which private and secret parameters are at hand.
	Held(ctx context.Context, inst *imprint.Instance) (map[string]bool, error)
}

// Config is what a [Server] needs; every field but Hosts, Limits, Observe and Now is required.
type Config struct {
	Engine    Engine
	Instances Instances
	Authority Authority
	Values    Values
	Tenants   []Tenant
	Logger    *slog.Logger

	// Hosts, if it is not nil, answers what comes below HostsPrefix with a
	// certificate of the tenant HostsTenant, outside the limits on rates. It
	// judges the certificate beyond its chain.
	Hosts       http.Handler
	HostsPrefix string
	HostsTenant imprint.TenantName

	// Limits are [DefaultLimits] if zero.
	Limits Limits
	// Observe is told about every request that was answered: the pattern of its
	// route ("" if none matched), the HTTP status and how long it took.
	Observe func(route string, status int, took time.Duration)
	// Now is [time.Now] if nil.
	Now func() time.Time
}

// Server answers check-in requests. It is an [http.Handler] for requests that
// came over a listener with its [Server.TLSConfig]; [Server.Serve] does both.
type Server struct {
	engine    Engine
	instances Instances
	authority Authority
	values    Values
	limits    Limits
	observe   func(route string, status int, took time.Duration)
	now       func() time.Time
	log       *slog.Logger
	hosts     func(*http.Request) http.Handler // nil for what is not the hosts'

	tenants atomic.Pointer[directory] // replaced as a whole by SetTenants
	rates   *rates
	mux     *http.ServeMux
}

// New returns a server, or an error of kind [imprint.Invalid] that names what is
// wrong with the tenants.
func New(cfg Config) (*Server, error) {
	s := &Server{
		engine: cfg.Engine, instances: cfg.Instances, authority: cfg.Authority, values: cfg.Values,
		limits: cfg.Limits, observe: cfg.Observe, now: cfg.Now, log: cfg.Logger,
		mux: http.NewServeMux(),
	}
	if s.limits == (Limits{}) {
		s.limits = DefaultLimits()
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.rates = newRates(s.limits)
	s.hosts = func(r *http.Request) http.Handler {
		if cfg.Hosts == nil || !strings.HasPrefix(r.URL.Path, cfg.HostsPrefix) || r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			return nil
		}
		if t, err := s.tenants.Load().ofRequest(r); err != nil || t.name != cfg.HostsTenant {
			return nil
		}
		return cfg.Hosts
	}
	for _, rt := range routes() {
		for _, pattern := range rt.patterns {
			s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(rt, w, r) })
		}
	}
	return s, s.SetTenants(cfg.Tenants)
}

// SetTenants replaces every tenant's names, certificate and trust for the
// handshakes that follow; connections that exist go on. On error nothing changes.
func (s *Server) SetTenants(tenants []Tenant) error {
	d, err := newDirectory(tenants)
	if err != nil {
		return err
	}
	s.tenants.Store(d)
	return nil
}
