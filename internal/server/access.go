package server

import (
	"context"
	"net/http"
	"slices"

	"imprint"
	"imprint/internal/peercred"
)

// Role says what a caller may do, and, as a column of the route table, what it
// takes to call a route. More is greater.
type Role uint8

// The roles. The zero value lets nobody in, so that a route without an entry is closed.
const (
	Nobody   Role = iota
	Anyone        // whoever reaches the listener
	Reader        // may see instances, never change them or obtain a credential
	Operator      // may do everything
)

func (r Role) String() string {
	return [...]string{"nobody", "anyone", "reader", "operator"}[r]
}

// allows reports whether a route of access r may be called by someone of role caller.
func (r Role) allows(caller Role) bool { return r != Nobody && caller >= r }

// caller is who sent a request.
type caller struct {
	name  string // for the timeline and the log: "uid 1000", "CN alice"
	role  Role
	local bool // a process on this machine, over the unix socket
}

// accessList says which role a caller has.
type accessList struct {
	operators, readers []string // common names of client certificates
	group              int      // of operators on the unix socket, or noGroup
}

// ofPeer returns the role of a process at the other end of a unix socket. own is
// the server's user.
func (a *accessList) ofPeer(p peercred.Peer, own int) Role {
	if p.UID == 0 || p.UID == own || p.In(a.group) {
		return Operator
	}
	return Anyone
}

// ofName returns the role of the holder of a client certificate that was
// verified against the client CA.
func (a *accessList) ofName(commonName string) Role {
	switch {
	case slices.Contains(a.operators, commonName):
		return Operator
	case slices.Contains(a.readers, commonName):
		return Reader
	}
	return Anyone
}

type callerKey struct{}

func withCaller(ctx context.Context, c caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf returns who sent the request of ctx.
func callerOf(ctx context.Context) caller {
	c, ok := ctx.Value(callerKey{}).(caller)
	if !ok {
		return caller{name: "unknown", role: Anyone}
	}
	return c
}

// identified returns r with its caller in the context. On a unix socket the
// connection knows it; over TLS it is the verified certificate's subject.
func (s *Server) identified(r *http.Request) *http.Request {
	if _, known := r.Context().Value(callerKey{}).(caller); known || r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return r
	}
	cn := r.TLS.VerifiedChains[0][0].Subject.CommonName
	return r.WithContext(withCaller(r.Context(), caller{name: "CN " + cn, role: s.access.ofName(cn)}))
}

// guardedMux is the only way by which handlers get onto a mux: it puts the
// check of the access table before each. It implements humago's Mux.
type guardedMux struct {
	*http.ServeMux
	server   *Server
	access   map[string]Role // by pattern, "GET /v1/info"
	patterns []string        // all that were registered, in order
}

func (s *Server) guardedMux(access map[string]Role) *guardedMux {
	return &guardedMux{ServeMux: http.NewServeMux(), server: s, access: access}
}

// HandleFunc registers h behind the access that the table has for pattern; a
// pattern without an entry is closed.
func (g *guardedMux) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	need := g.access[pattern]
	g.patterns = append(g.patterns, pattern)
	g.ServeMux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		r = g.server.identified(r)
		who := callerOf(r.Context())
		if !need.allows(who.role) {
			g.server.refuse(w, r, who, need)
			return
		}
		h(w, r)
	})
}

// ServeHTTP answers what no pattern matches in the API's own form.
func (g *guardedMux) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, pattern := g.ServeMux.Handler(r); pattern == "" {
		g.server.writeProblem(w, r, imprint.Errorf(imprint.NotFound, "find", r.Method+" "+r.URL.Path, "there is no such operation").
			WithHint("the server describes its API at /openapi.json"))
		return
	}
	g.ServeMux.ServeHTTP(w, r)
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, who caller, need Role) {
	kind := imprint.Denied
	if who.role == Anyone && who.name == "unknown" {
		kind = imprint.Unauthorized
	}
	err := imprint.Errorf(kind, "call", r.Method+" "+r.URL.Path, "%s is not allowed to", who.name)
	switch need {
	case Operator:
		err = err.WithHint("it takes an operator: root, a member of the server's group, or a listed client certificate")
	case Reader:
		err = err.WithHint("it takes a reader or an operator: root, a member of the server's group, or a listed client certificate")
	}
	s.writeProblem(w, r, err)
}
