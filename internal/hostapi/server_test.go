package hostapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"imprint"
	"imprint/internal/dialect"
)

const (
	hv2  imprint.HostName   = "hv2.example.net"
	hv2s imprint.InstanceID = "00000000-0000-4000-8000-0000000000f2" // the hypervisor's own
	mine imprint.InstanceID = "00000000-0000-4000-8000-000000000001" // placed on hv2
	not  imprint.InstanceID = "00000000-0000-4000-8000-000000000002" // placed elsewhere
)

// world is what a server asks.
type world struct {
	machine *imprint.Instance // whom the certificate names
	dead    error             // why it is refused
	placed  map[imprint.InstanceID]*imprint.Instance
	sent    []imprint.Submission
	said    []imprint.Report
	changes chan struct{} // of the hypervisor's own record
	notices chan Notice
	sealing string  // the key in use
	from    []int64 // where streams began; each is read when its stream has ended
}

func newWorld() *world {
	spec := SpecOf(hv2)
	param := []imprint.Param{{Name: "db", Visibility: imprint.Private}, {Name: "key", Visibility: imprint.SecretOnly}, {Name: "motd", Value: "x"}}
	at := func(id imprint.InstanceID, host imprint.HostName) *imprint.Instance {
		return &imprint.Instance{ID: id, Generation: 1, Spec: imprint.Spec{Name: "web", Tenant: "default", Host: host, Params: param},
			Enrolment: imprint.Enrolment{State: imprint.Confirmed, TokenHash: "hash-canary"}}
	}
	return &world{
		machine: &imprint.Instance{ID: hv2s, Generation: 1, Spec: spec, Enrolment: imprint.Enrolment{State: imprint.Closed}},
		placed:  map[imprint.InstanceID]*imprint.Instance{mine: at(mine, hv2), not: at(not, "hv3.example.net")},
		changes: make(chan struct{}), notices: make(chan Notice),
	}
}

func (w *world) server() *Server {
	s := NewServer(Config{
		Identify: func(*x509.Certificate) (imprint.Identity, error) {
			return imprint.Identity{Tenant: w.machine.Spec.Tenant, Instance: w.machine.ID, Generation: 1}, nil
		},
		Enrolments: w, Instances: w, Params: w, Own: "server.example.net",
		Facts:   func(imprint.TenantName) (dialect.Facts, error) { return dialect.Facts{CA: "ca"}, nil },
		Sealing: func() string { return w.sealing },
		Logger:  slog.New(slog.DiscardHandler), Now: time.Now,
	})
	s.refusalTime = 0
	return s
}

func (w *world) Authenticate(context.Context, imprint.Identity) (*imprint.Instance, error) {
	if w.dead != nil {
		return nil, w.dead
	}
	return w.machine, nil
}

func (w *world) Enrol(_ context.Context, s imprint.Submission) (*imprint.Instance, error) {
	w.sent = append(w.sent, s)
	if i := w.placed[s.Instance]; i != nil && i.Spec.Host != s.Witness {
		return i, imprint.Errorf(imprint.Denied, "vouch for", "it", "placed elsewhere") // as the engine does
	}
	return w.placed[s.Instance], nil
}

func (w *world) Report(_ context.Context, r imprint.Report) error {
	w.said = append(w.said, r)
	return nil
}

func (w *world) Instance(_ context.Context, id imprint.InstanceID) (*imprint.Instance, error) {
	if i := w.placed[id]; i != nil {
		return i, nil
	}
	return nil, imprint.Errorf(imprint.NotFound, "find", string(id), "none")
}

func (w *world) Param(_ context.Context, _ imprint.InstanceID, name string) (imprint.Secret, error) {
	return imprint.NewSecret([]byte("value of " + name)), nil
}

func (w *world) Placed(ctx context.Context, _ imprint.HostName, from int64) iter.Seq2[Notice, error] {
	w.from = append(w.from, from)
	return func(yield func(Notice, error) bool) {
		for {
			select {
			case n := <-w.notices:
				if !yield(n, nil) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

func (w *world) Follow(ctx context.Context, _ imprint.InstanceID) iter.Seq[struct{}] {
	return func(yield func(struct{}) bool) {
		for {
			select {
			case <-w.changes:
				if !yield(struct{}{}) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// request is one that came with a certificate whose chain was verified.
func request(method, path, body string) *http.Request {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	leaf := &x509.Certificate{NotAfter: time.Now().Add(time.Hour)}
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}
	return r
}

func (s *Server) do(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// TestEveryRouteNeedsALiveHost walks the table.
func TestEveryRouteNeedsALiveHost(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*world, *http.Request){
		"no TLS":               func(_ *world, r *http.Request) { r.TLS = nil },
		"no certificate":       func(_ *world, r *http.Request) { r.TLS = &tls.ConnectionState{} },
		"an ended certificate": func(_ *world, r *http.Request) { r.TLS.PeerCertificates[0].NotAfter = time.Now().Add(-time.Second) },
		"a revoked one": func(w *world, _ *http.Request) {
			w.dead = imprint.Errorf(imprint.Denied, "authenticate", "it", "revoked")
		},
		"one not confirmed": func(w *world, _ *http.Request) { w.machine.Enrolment.State = imprint.Issued },
		"a machine's":       func(w *world, _ *http.Request) { w.machine.Spec.Tenant = "default" },
		"one with two names": func(w *world, _ *http.Request) {
			w.machine.Spec.DNSNames = append(w.machine.Spec.DNSNames, "hv3.example.net")
		},
		"one without a name":    func(w *world, _ *http.Request) { w.machine.Spec.DNSNames = nil },
		"another host's name":   func(w *world, _ *http.Request) { w.machine.Spec.DNSNames = []string{"hv3.example.net"} },
		"the server's own name": func(w *world, _ *http.Request) { w.machine.Spec = SpecOf("server.example.net") },
	} {
		for _, rt := range routes() {
			if rt.access != liveHost {
				t.Errorf("%s is open to %d", rt.pattern, rt.access)
			}
			method, path, _ := strings.Cut(rt.pattern, " ")
			path = strings.NewReplacer("{id}", string(mine), "{name}", "db", "{call}", "1").Replace(path)
			w := newWorld()
			r := request(method, path+"?from=0", `{}`)
			change(w, r)
			got := w.server().do(r)
			var p problem
			if err := json.Unmarshal(got.Body.Bytes(), &p); err != nil || got.Code != http.StatusForbidden ||
				got.Header().Get("Content-Type") != problemType || imprint.ParseKind(p.Kind) != imprint.Unauthorized {
				t.Errorf("%s with %s: %d %s", rt.pattern, name, got.Code, got.Body)
			}
			if len(w.sent)+len(w.said) > 0 {
				t.Errorf("%s with %s was passed on", rt.pattern, name)
			}
		}
	}
	// A row that somebody forgets to fill in is closed.
	if err := newWorld().server().authenticate(nobody, &call{Request: request("GET", Prefix+"watch", "")}); err == nil {
		t.Error("a route without an entry is open")
	}
}

// TestForeignInstances: an instance that is placed elsewhere does not exist, and
// who the witness is does not depend on what the body says.
func TestForeignInstances(t *testing.T) {
	t.Parallel()
	w := newWorld()
	s := w.server()
	for path, status := range map[string]int{
		"params/" + string(mine) + "/db":    http.StatusOK,
		"params/" + string(mine) + "/key":   http.StatusNotFound, // a secret value is not there
		"params/" + string(mine) + "/motd":  http.StatusNotFound,
		"params/" + string(mine) + "/other": http.StatusNotFound,
		"params/" + string(not) + "/db":     http.StatusNotFound,
		"params/none/db":                    http.StatusNotFound,
	} {
		got := s.do(request("GET", Prefix+path, ""))
		if got.Code != status || status == http.StatusOK && got.Body.String() != "value of db" {
			t.Errorf("%s: %d %s", path, got.Code, got.Body)
		}
	}
	w.placed[mine].Enrolment.State = imprint.Revoked
	if got := s.do(request("GET", Prefix+"params/"+string(mine)+"/db", "")); got.Code != http.StatusForbidden {
		t.Errorf("a value of a revoked instance: %d %s", got.Code, got.Body)
	}

	for path, body := range map[string]string{
		"enrol":  `{"instance":"` + string(mine) + `","channel":"made-up"}`,
		"report": `{"instance":"` + string(mine) + `","channel":"serial","kind":"made-up"}`,
	} {
		if got := s.do(request("POST", Prefix+path, body)); got.Code != http.StatusBadRequest || len(w.sent)+len(w.said) > 0 {
			t.Errorf("%s: %d %s", path, got.Code, got.Body)
		}
	}
	body := `{"instance":"` + string(not) + `","channel":"serial","kind":"ready","witness":"hv3.example.net","Witness":"hv3.example.net","serial":"1","Serial":"1","token":"t"}`
	got := s.do(request("POST", Prefix+"enrol", body))
	if strings.Contains(got.Body.String(), "instance\"") || !strings.Contains(got.Body.String(), "denied") {
		t.Errorf("enrol: %s", got.Body)
	}
	s.do(request("POST", Prefix+"report", body))
	if len(w.sent) != 1 || w.sent[0].Witness != hv2 || !w.sent[0].Token.IsZero() || len(w.said) != 1 || w.said[0].Witness != hv2 || w.said[0].Serial != "" {
		t.Errorf("passed on: %+v, %+v", w.sent, w.said)
	}
	got = s.do(request("POST", Prefix+"enrol", `{"instance":"`+string(mine)+`","channel":"serial"}`))
	if !strings.Contains(got.Body.String(), string(mine)) || strings.Contains(got.Body.String(), "hash-canary") {
		t.Errorf("enrol: %s", got.Body)
	}
}

// pipe is a reply that is read while it is written.
type pipe struct {
	header http.Header
	lines  chan string
}

func (p *pipe) Header() http.Header              { return p.header }
func (p *pipe) WriteHeader(int)                  {}
func (p *pipe) Flush()                           {}
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }
func (p *pipe) SetReadDeadline(time.Time) error  { return nil }
func (p *pipe) Write(b []byte) (int, error) {
	p.lines <- string(b)
	return len(b), nil
}

func (s *Server) stream(ctx context.Context) (lines chan string, ended chan struct{}) {
	p := &pipe{http.Header{}, make(chan string, 64)}
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		s.ServeHTTP(p, request("GET", Prefix+"watch?from=0", "").WithContext(ctx))
	}()
	return p.lines, ended
}

// next returns the next line that is no heartbeat and does not only say who tells.
func next(lines <-chan string) string {
	for line := range lines {
		if line != "\n" && !strings.HasPrefix(line, `{"run":`) {
			return line
		}
	}
	return ""
}

func TestStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.server()
		lines, ended := s.stream(t.Context())
		if first := <-lines; first != "\n" || !s.State(hv2).Connected {
			t.Errorf("begins with %q, %+v", first, s.State(hv2))
		}
		if line := <-lines; line != `{"run":"`+s.run+`"}`+"\n" {
			t.Errorf("then %q", line)
		}
		// Only what is placed here, its tenant's facts first.
		w.notices <- Notice{Revision: 1, Relist: true, Instance: &Instance{Instance: *w.placed[not]}}
		w.notices <- Notice{Revision: 1, Relist: true, Instance: &Instance{Instance: *w.placed[mine]}}
		if line := next(lines); !strings.Contains(line, `"tenant":{"name":"default"`) {
			t.Errorf("first %s", line)
		}
		if line := next(lines); !strings.Contains(line, string(mine)) || strings.Contains(line, "hash-canary") {
			t.Errorf("then %s", line)
		}
		if line := <-lines; line != "\n" { // a heartbeat: time passes only here
			t.Errorf("then %q", line)
		}

		// A call is answered by the host that was called, and by nobody else.
		type result struct {
			answer Answer
			err    error
		}
		results := make(chan result)
		ask := func() {
			a, err := s.Call(t.Context(), hv2, Call{Kind: CallLook, Instance: mine})
			results <- result{a, err}
		}
		go ask()
		var n Notice
		if err := json.Unmarshal([]byte(next(lines)), &n); err != nil || n.Call == nil {
			t.Fatal(n, err)
		}
		path := Prefix + "answers/" + n.Call.ID
		own := w.machine.Spec
		w.machine.Spec = SpecOf("hv3.example.net")
		if got := s.do(request("POST", path, `{"held":["forged"]}`)); got.Code != http.StatusNotFound {
			t.Errorf("another host's answer: %d", got.Code)
		}
		w.machine.Spec = own
		if got := s.do(request("POST", path, `{"held":["key"],"ports":[{"socket":"\u001b]0;evil\u0007"}]}`)); got.Code != http.StatusNoContent {
			t.Errorf("the answer: %d %s", got.Code, got.Body)
		}
		if r := <-results; r.err != nil || len(r.answer.Held) != 1 || r.answer.Held[0] != "key" || r.answer.Ports[0].Socket != "?]0;evil?" {
			t.Errorf("%+v", r)
		}
		if got := s.do(request("POST", path, `{}`)); got.Code != http.StatusNotFound {
			t.Errorf("a second answer: %d", got.Code)
		}
		go ask()
		next(lines)
		if r := <-results; imprint.KindOf(r.err) != imprint.Unavailable || !strings.Contains(r.err.Error(), string(hv2)) {
			t.Errorf("a host that does not answer: %v", r.err)
		}

		// A newer stream takes over, and one whose host is refused ends at once.
		newer, newerEnded := s.stream(t.Context())
		<-ended
		if line := next(lines); !strings.Contains(line, "unavailable") {
			t.Errorf("the older stream ends with %q", line)
		}
		go ask()
		next(newer)
		w.dead = imprint.Errorf(imprint.Denied, "authenticate", "it", "revoked")
		w.changes <- struct{}{}
		<-newerEnded
		if line := next(newer); !strings.Contains(line, `"kind":"unauthorized"`) || s.State(hv2).Connected {
			t.Errorf("the refused stream ends with %q", line)
		}
		if r := <-results; imprint.KindOf(r.err) != imprint.Unavailable {
			t.Errorf("a call to a host that went: %v", r.err)
		}
		if _, err := s.Call(t.Context(), hv2, Call{}); imprint.KindOf(err) != imprint.Unavailable || imprint.HintOf(err) == "" {
			t.Errorf("a call to a host that is away: %v", err)
		}

		// A stream ends with its certificate, and with the server.
		w.dead = nil
		lines, ended = s.stream(t.Context())
		if last := next(lines); !strings.Contains(last, "the certificate ended") {
			t.Errorf("a stream that outlives its certificate ends with %q", last)
		}
		<-ended
		lines, ended = s.stream(t.Context())
		<-lines
		s.Close()
		<-ended
		if got := s.do(request("GET", Prefix+"watch?from=0", "")); got.Code != http.StatusServiceUnavailable {
			t.Errorf("a stream of a server that ends: %d", got.Code)
		}
	})
}

// TestPosition: a stream goes on where it was with the same run of the server only.
func TestPosition(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.server()
		for query, want := range map[string]int64{
			"from=7&run=" + s.run: 7, "from=0&run=" + s.run: 0, "from=7&run=another": 0, "from=7&run=": 0, "from=7": 0,
		} {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				s.ServeHTTP(&pipe{http.Header{}, make(chan string, 64)}, request("GET", Prefix+"watch?"+query, "").WithContext(ctx))
			}()
			synctest.Wait()
			cancel()
			<-ended
			if got := w.from[len(w.from)-1]; got != want {
				t.Errorf("%s: begins at %d, not %d", query, got, want)
			}
		}
		if other := w.server(); other.run == s.run || other.run == "" {
			t.Errorf("two runs are called %q", s.run)
		}
	})
}

func TestHostOf(t *testing.T) {
	t.Parallel()
	spec := SpecOf(hv2)
	if host, err := HostOf(&spec); err != nil || host != hv2 || spec.Name != "hv2-example-net" {
		t.Errorf("%s is %s, %v", spec.Name, host, err)
	}
}

// FuzzBodies gives what a host sends: nothing of it is the server's fault, and
// nothing is passed on in another host's name.
func FuzzBodies(f *testing.F) {
	for _, seed := range []string{`{}`, `{"instance":"` + string(mine) + `","channel":"serial","csr":"AAAA","id":"x","seen":"2026-01-01T00:00:00Z"}`, `{"error":{"kind":"x"}}`, `[`, ``, `{"data":"!"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		w := newWorld()
		s := w.server()
		for _, path := range []string{"enrol", "report", "answers/1"} {
			r := request("POST", Prefix+path, "")
			r.Body = http.NoBody
			if len(body) > 0 {
				r = request("POST", Prefix+path, string(body))
			}
			if got := s.do(r); got.Code >= 500 {
				t.Errorf("%s answers %d %s to %q", path, got.Code, got.Body, body)
			}
		}
		for _, one := range w.sent {
			if one.Witness != hv2 {
				t.Errorf("witness %q", one.Witness)
			}
		}
	})
}
