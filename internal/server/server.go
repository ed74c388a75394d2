// Package server is the control API: handlers over interfaces that it declares,
// one table of routes that says who may call each, and the listeners. It
// decides nothing about instances and stores nothing; it judges who asks,
// checks and bounds what is asked, and gives answers their form.
package server

import (
	"context"
	"log/slog"
	"net/http"
	"os/user"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"imprint"
	"imprint/api"
)

// Config is what a server works with. All dependencies are needed.
type Config struct {
	Instances     Instances
	Registry      Registry
	Decisions     Decisions
	Installations Installations
	Credentials   Credentials
	Params        Params
	Pipes         Pipes
	Hosts         Hosts
	Watcher       Watcher
	Authorities   Authorities
	RootKeys      RootKeys
	Sealing       Sealing
	Log           IssuanceLog

	// Check judges a new spec apart from its tenant.
	Check func(context.Context, *imprint.Spec) error
	// CheckParams judges parameters by the OS definition of the spec, if that is at
	// hand: those of one name, or all if it is "". values are those of private and
	// secret ones, as far as they are known.
	CheckParams func(ctx context.Context, spec *imprint.Spec, values map[string]imprint.Secret, name string) error
	// Tenant returns the tenant of that name, or an error of kind NotFound.
	Tenant func(imprint.TenantName) (imprint.Tenant, error)
	// Ready returns why the server cannot do its work, or nil.
	Ready func(context.Context) error

	// Host is where instances are placed that name no host.
	Host    imprint.HostName
	Run     string // where the sockets are that machines on this host connect to
	Version string

	// Group names the group whose members are operators on the unix socket,
	// beside root and the server's own user; "" is no group.
	Group string
	// Operators and Readers are the subject common names of the client
	// certificates that may use the TCP listener.
	Operators, Readers []string

	Metrics *prometheus.Registry
	Logger  *slog.Logger
}

// Server serves the control API and the operator's endpoints.
type Server struct {
	Config
	access   accessList
	control  http.Handler
	operator http.Handler
	openapi  []byte
	watches  chan struct{}   // one element for each watch that runs
	draining context.Context // done when streams have to end
	drain    context.CancelFunc
}

// New checks c and returns a server that does not listen yet. It fails with
// kind [imprint.Invalid] if a group does not exist.
func New(c Config) (*Server, error) {
	s := &Server{Config: c, watches: make(chan struct{}, maxWatches)}
	s.draining, s.drain = context.WithCancel(context.Background())
	group, err := groupID(c.Group)
	if err != nil {
		return nil, err
	}
	s.access = accessList{operators: c.Operators, readers: c.Readers, group: group}
	measured := newMetrics(c.Metrics)
	control, description := s.controlMux()
	if s.openapi, err = encodeOpenAPI(description); err != nil {
		return nil, err
	}
	s.control = measured.wrap(s.recovered(control))
	s.operator = s.recovered(s.operatorMux())
	return s, nil
}

// OpenAPI returns the OpenAPI 3.1 document of the control API as JSON.
func OpenAPI() ([]byte, error) {
	var s Server
	_, description := s.controlMux()
	return encodeOpenAPI(description)
}

// noGroup is no group's number.
const noGroup = -1

func groupID(name string) (int, error) {
	if name == "" {
		return noGroup, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return noGroup, imprint.Errorf(imprint.Invalid, "use", "group "+name, "there is no such group").
			WithHint("create it with: groupadd --system %s", name)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return noGroup, imprint.Errorf(imprint.Invalid, "use", "group "+name, "its number is %q", g.Gid)
	}
	return gid, nil
}

// info answers who the server and the caller are.
func (s *Server) info(ctx context.Context, _ *struct{}) (*answer[api.Info], error) {
	c := callerOf(ctx)
	return &answer[api.Info]{Body: api.Info{Version: s.Version, Host: s.Host, Run: s.Run, Caller: c.name, Role: c.role.String()}}, nil
}
