package metadata

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"imprint"
)

// Config is what a [Server] needs. Guest, Reporter, Inbox and Logger are required.
type Config struct {
	Guest    Guest
	Reporter Reporter
	Inbox    Inbox
	Logger   *slog.Logger

	Native Native // nil: imprint's own keys are not offered
	Pipes  Pipes  // nil: neither are pipes

	// SourcePorts says that a source port below 1024 proves the guest's root: the
	// listener's interface leads to this guest's own kernel and nowhere else.
	SourcePorts bool
	// Proxied says that requests come through a [Proxy]: what they come from proves
	// nothing, forwarding fields are expected, and only what survives Neutron's
	// agent is sent.
	Proxied bool
	// Names are further host names under which guests may ask, besides the two
	// link-local addresses.
	Names []string
	// Now is [time.Now] if nil.
	Now func() time.Time
}

// Server answers one guest. It is an [http.Handler]; [Server.Serve] runs it on
// the guest's listener with the limits that belong to it.
type Server struct {
	c       Config
	tokens  *tokens
	seen    atomic.Uint64 // generation << 32 | a bit for each dialect and class of readers that was reported
	home    atomic.Uint32 // the generation that phoned home
	reading atomic.Int32  // reads of pipes under way
	refused [2]ration     // of refusals, by whether root asked: a process cannot use up root's
	user    [2]ration     // of reads of user data, likewise
}

// New returns the server of one guest. It fails with kind Invalid if c lacks what
// is required.
func New(c Config) (*Server, error) {
	if c.Guest == nil || c.Reporter == nil || c.Inbox == nil || c.Logger == nil {
		return nil, imprint.Errorf(imprint.Invalid, "serve", "metadata", "the guest, the reporter, the inbox and the logger are required")
	}
	if c.Proxied && c.SourcePorts {
		return nil, imprint.Errorf(imprint.Invalid, "serve", "metadata", "behind a proxy a source port proves nothing")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	names := make([]string, len(c.Names))
	for i, name := range c.Names {
		names[i] = strings.TrimSuffix(name, ".")
	}
	c.Names = names
	return &Server{c: c, tokens: newTokens()}, nil
}

// family is a dialect as paths tell it apart.
type family uint8

const (
	ec2 family = iota // everything that is not one of the others, as in Nova
	openStack
	noCloud
	ganeti
	native
)

func familyOf(first string) family {
	switch first {
	case "openstack":
		return openStack
	case "nocloud":
		return noCloud
	case "ganeti":
		return ganeti
	case "imprint":
		return native
	}
	return ec2
}

// firstOf returns the first element of a relative path.
func firstOf(name string) string {
	first, _, _ := strings.Cut(name, "/")
	return first
}

// call is one request.
type call struct {
	s      *Server
	w      http.ResponseWriter
	r      *http.Request
	from   Origin
	now    time.Time
	snap   *Snapshot
	family family
	name   string // the path, clean and relative
}

// empty is what there is nothing to say in.
var empty = newPage(nil, plain)

// needsRoot is why most refusals happen.
const needsRoot = "it needs a source port below 1024"

// noRoot is why they happen behind a proxy.
const noRoot = "nobody behind Neutron is known to be root"

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := call{s: s, w: w, r: r, from: s.origin(r), now: s.c.Now(), name: clean(r.URL.Path)}
	if !s.c.Proxied {
		if why := guard(r, s.c.Names); why != "" {
			c.refuse(http.StatusForbidden, why)
			return
		}
	}
	if c.snap = s.c.Guest.Snapshot(); c.snap == nil {
		w.Header().Set("Retry-After", retryAfter)
		c.fail(http.StatusServiceUnavailable)
		return
	}
	first, rest, _ := strings.Cut(c.name, "/")
	if c.family = familyOf(first); first == "ec2" { // another name of the root, as in Nova
		if c.name = rest; familyOf(firstOf(rest)) != ec2 {
			c.fail(http.StatusNotFound)
			return
		}
	}
	c.serve()
}

// serve answers a request that is the guest's own.
func (c *call) serve() {
	switch c.family {
	case native:
		switch {
		case !c.exact():
			c.fail(http.StatusNotFound)
		case c.name == phoneHomePath:
			c.phoneHome()
		default:
			c.native()
		}
		return
	case ganeti:
		if !c.exact() { // as ganeti-metad
			c.fail(http.StatusNotFound)
			return
		}
		if c.ganeti() {
			return
		}
	case openStack:
		if passwordPath(c.name) && c.tree().find("openstack") != nil {
			c.password()
			return
		}
	case ec2:
		if c.name == tokenPath && c.tree().listing != nil && !c.s.c.Proxied {
			c.token()
			return
		}
		if !c.session() {
			return
		}
	}
	page := c.tree().find(c.name)
	switch {
	case page == nil:
		c.missing()
	case c.r.Method != http.MethodGet && c.r.Method != http.MethodHead:
		c.notAllowed("GET, HEAD")
	case c.s.c.Proxied && !survives(page):
		c.fail(http.StatusNotFound)
	case page == empty: // what is withheld looks like what there is not
		if why := c.withheld(); why != "" {
			c.report(why)
		}
		c.write(page)
	default:
		if c.unseen() || page.bootOnly && c.ration(&c.s.user) {
			c.note("")
		}
		c.write(page)
	}
}

// origin says who may have sent the request.
func (s *Server) origin(r *http.Request) Origin {
	if s.c.SourcePorts {
		if i := strings.LastIndexByte(r.RemoteAddr, ':'); i >= 0 {
			if port, err := strconv.ParseUint(r.RemoteAddr[i+1:], 10, 16); err == nil {
				return Origin{uint16(port), imprint.PortReaders(uint16(port))}
			}
		}
	}
	return Origin{0, imprint.PortReaders(0)}
}

// tree is what the request may read.
func (c *call) tree() *dir { return c.snap.tree(c.from, c.closed()) }

// closed reports whether the boot is over.
func (c *call) closed() bool {
	return imprint.Generation(c.s.home.Load()) == c.snap.inst.Generation || c.snap.closed(c.now)
}

// withheld says why what was asked for is kept from the reader; "" if it is not there.
func (c *call) withheld() string { return c.snap.withheld(c.from, c.name, c.closed()) }

// exact reports whether the path was clean as it came.
func (c *call) exact() bool { return len(c.r.URL.Path) == len(c.name)+1 }

func (c *call) write(p *page) { p.send(c.w) }

// body reads the request's body. If there is not a whole one of at most limit
// bytes, it has answered.
func (c *call) body(limit int64) (b []byte, ok bool) {
	if c.r.ContentLength > limit {
		c.tell(http.StatusBadRequest, "Request is too large.")
		return nil, false
	}
	b, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		c.tell(http.StatusBadRequest, "Request is too large.")
	case err != nil:
		c.tell(http.StatusBadRequest, "The request's body is not whole.")
	}
	return b, err == nil
}

// rootOnly reports whether the request has the one method and came from root. If
// not, it has answered.
func (c *call) rootOnly(method string) bool {
	switch {
	case c.r.Method != method:
		c.notAllowed(method)
	case !c.from.Root():
		c.refuse(http.StatusForbidden, needsRoot)
	default:
		return true
	}
	return false
}

// missing answers that there is no such thing. What there is, but not for this
// reader, is answered in the same way and reported.
func (c *call) missing() {
	if why := c.withheld(); why != "" {
		c.refuse(http.StatusNotFound, why)
		return
	}
	c.fail(http.StatusNotFound)
}

// refuse answers with a bare status and reports why.
func (c *call) refuse(status int, why string) {
	c.report(why)
	c.fail(status)
}

// report reports a refusal, unless there were too many.
func (c *call) report(why string) {
	if c.s.c.Proxied && why == needsRoot {
		why = noRoot
	}
	if c.ration(&c.s.refused) {
		c.note(why)
	}
}

// ration takes one of what this class of readers may make the server report.
func (c *call) ration(r *[2]ration) bool {
	if c.from.Root() {
		return r[1].take(c.now)
	}
	return r[0].take(c.now)
}

func (c *call) notAllowed(allow string) {
	c.w.Header().Set("Allow", allow)
	c.fail(http.StatusMethodNotAllowed)
}

// fail answers with a status and its name.
func (c *call) fail(status int) { c.tell(status, http.StatusText(status)) }

// tell answers with a status and a sentence.
func (c *call) tell(status int, text string) {
	if c.s.c.Proxied {
		status = surviving(status)
	}
	tell(c.w, status, text)
}

func tell(w http.ResponseWriter, status int, text string) {
	text += "\n"
	h := w.Header()
	h["Content-Type"], h["Content-Length"] = contentTypes[plain][:], []string{strconv.Itoa(len(text))}
	w.WriteHeader(status)
	io.WriteString(w, text) // if the client has gone, it is its loss
}

// unseen reports whether this is the generation's first read in the dialect by
// this class of readers.
func (c *call) unseen() bool {
	bit := uint64(1) << (2 * c.family)
	if c.from.Root() {
		bit <<= 1
	}
	gen := uint64(c.snap.inst.Generation) << 32
	for {
		old := c.s.seen.Load()
		seen := old
		if old&^0xffffffff != gen {
			seen = gen
		}
		if seen&bit != 0 {
			return false
		}
		if c.s.seen.CompareAndSwap(old, seen|bit) {
			return true
		}
	}
}

// note reports the request.
func (c *call) note(refused string) {
	c.s.c.Reporter.Report(context.WithoutCancel(c.r.Context()), Access{At: c.now, Origin: c.from, Name: clip(c.name, maxAccessName), Refused: clip(refused, maxReason)})
}

// clip makes what came from a guest fit to be shown: at most limit bytes of
// printable ASCII.
func clip(s string, limit int) string {
	b := []byte(s[:min(len(s), limit)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}
