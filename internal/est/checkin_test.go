package est_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/est"
)

const own = "/.well-known/imprint/v1/"

// TestAccess walks the table: whatever asks for a certificate is closed to
// those without one, for every method and path there is.
func TestAccess(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default"), nil)
	c := e.client(t, "default", nil)
	fill := strings.NewReplacer("{label}", "machine", "{name}", "x", "{file}", "default.crl")
	closed := 0
	for _, route := range est.Routes() {
		method, path, _ := strings.Cut(fill.Replace(route.Pattern), " ")
		req, err := http.NewRequest(method, url("default", path), nil)
		if err != nil {
			t.Fatal(err)
		}
		r := do(t, c, req)
		if (r.status == http.StatusForbidden) != route.NeedsCertificate {
			t.Errorf("%s without a certificate: status %d", route.Pattern, r.status)
		}
		if route.NeedsCertificate {
			closed++
		}
		if strings.HasPrefix(path, own) && !route.NeedsCertificate {
			t.Errorf("%s is open", route.Pattern)
		}
	}
	if closed != 10 {
		t.Errorf("%d patterns need a certificate", closed)
	}
}

// TestFirstUseConfirms: whichever request comes first over mutual TLS proves
// that the machine has its key and its certificate.
func TestFirstUseConfirms(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default"), nil)
	inst, cert := e.enrol(t, "default", "web-1", nil)
	if s := e.get(inst.ID).Enrolment.State; s != imprint.Issued {
		t.Fatalf("state %s after the first certificate", s)
	}
	c := e.client(t, "default", cert)
	for range 2 { // once confirmed it is not reported again
		r := get(t, c, "default", own+"state")
		var got struct {
			State      imprint.State
			Waiting    bool
			Generation imprint.Generation
		}
		if err := json.Unmarshal([]byte(r.body), &got); err != nil || got.State != imprint.Confirmed || got.Generation != 1 {
			t.Fatalf("%q: %v", r.body, err)
		}
	}
	want := []imprint.Report{{
		Instance: inst.ID, Generation: 1, Channel: imprint.NetworkEST, Kind: imprint.ReportConfirmed,
		Serial: imprint.SerialOf(cert.Leaf.SerialNumber),
	}}
	if !reflect.DeepEqual(e.reports, want) {
		t.Errorf("reports %+v", e.reports)
	}
}

func TestConfirmAndReady(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default"), nil)
	inst, cert := e.enrol(t, "default", "web-1", nil)
	c := e.client(t, "default", cert)
	for _, step := range []struct {
		path string
		want imprint.State
	}{{"confirm", imprint.Confirmed}, {"confirm", imprint.Confirmed}, {"ready", imprint.Closed}, {"ready", imprint.Closed}} {
		if r := post(t, c, "default", own+step.path, "", "", ""); r.status != http.StatusNoContent {
			t.Errorf("%s: status %d", step.path, r.status)
		}
		if s := e.get(inst.ID).Enrolment.State; s != step.want {
			t.Errorf("after %s: %s", step.path, s)
		}
	}
}

// TestSSHCertificate: an enrolled machine posts its host key, as ssh-keygen wrote
// it, and gets the certificate; again, if the reply was lost.
func TestSSHCertificate(t *testing.T) {
	t.Parallel()
	const path = own + "ssh-certificate"
	e := serve(t, newSite(t, "default"), nil)
	inst, cert := e.enrol(t, "default", "web-1", nil)
	c := e.client(t, "default", cert)
	for range 2 {
		r := post(t, c, "default", path, "", "", "ssh-ed25519 AAAA1 root@web-1\n")
		if r.status != http.StatusOK || r.body != "certificate for ssh-ed25519 AAAA1 root@web-1\n" {
			t.Fatalf("status %d, %q", r.status, r.body)
		}
	}
	for _, tt := range []struct {
		name, body string
		status     int
		says       string
	}{
		{"not a key", "-----BEGIN OPENSSH PRIVATE KEY-----", http.StatusBadRequest, "ssh_host_*_key.pub"},
		{"empty", "", http.StatusBadRequest, "ssh_host_*_key.pub"},
		{"too large", strings.Repeat("x", imprint.MaxSSHKeyLen+1), http.StatusRequestEntityTooLarge, "larger than 8192"},
		{"another", "ssh-ed25519 AAAA2", http.StatusOK, "AAAA2"},
		{"one too many", "ssh-ed25519 AAAA3", http.StatusConflict, "too often"},
	} {
		if r := post(t, c, "default", path, "", "", tt.body); r.status != tt.status || !strings.Contains(r.body, tt.says) {
			t.Errorf("%s: status %d, %q", tt.name, r.status, r.body)
		}
	}
	e.change(inst.ID, func(i *imprint.Instance) { i.Enrolment.State = imprint.Revoked })
	if r := post(t, c, "default", path, "", "", "ssh-ed25519 AAAA2"); r.status != http.StatusConflict || !strings.Contains(r.body, "was revoked") {
		t.Errorf("revoked: status %d, %q", r.status, r.body)
	}
}

func TestParams(t *testing.T) {
	t.Parallel()
	const private, secret = "private-canary", "secret-canary"
	e := serve(t, newSite(t, "default"), nil)
	inst, cert := e.enrol(t, "default", "web-1", func(i *imprint.Instance) {
		i.Spec.Params = []imprint.Param{
			{Name: "motd", Visibility: imprint.Public, Value: "hello"},
			{Name: "db", Visibility: imprint.Private},
			{Name: "luks", Visibility: imprint.SecretOnly},
			{Name: "lost", Visibility: imprint.SecretOnly},
			{Name: "odd", Visibility: "unheard-of"},
		}
	})
	e.mu.Lock()
	e.values[string(inst.ID)+"/db"] = private
	e.values[string(inst.ID)+"/luks"] = secret
	e.mu.Unlock()
	c := e.client(t, "default", cert)

	r := get(t, c, "default", own+"params")
	const list = `[{"name":"motd","visibility":"public","available":true},` +
		`{"name":"db","visibility":"private","available":true},` +
		`{"name":"luks","visibility":"secret","available":true},` +
		`{"name":"lost","visibility":"secret","available":false},` +
		`{"name":"odd","visibility":"unheard-of","available":false}]` + "\n"
	if r.body != list {
		t.Errorf("list %s", r.body)
	}
	for _, test := range []struct {
		name   string
		status int
		body   string
	}{
		{"motd", 200, "hello"}, {"db", 200, private}, {"luks", 200, secret},
		{"lost", 404, "not found\n"}, {"none", 404, "not found\n"},
		{"odd", 403, "not allowed; the operator can see why\n"},
	} {
		r := get(t, c, "default", own+"params/"+test.name)
		if r.status != test.status || r.body != test.body {
			t.Errorf("%s: status %d, %q", test.name, r.status, r.body)
		}
		if r.status == 200 && r.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s may be cached", test.name)
		}
	}
	if r := get(t, c, "default", own+"user-data"); r.status != 404 {
		t.Errorf("no user data: %d %q", r.status, r.body)
	}
	e.mu.Lock()
	order := strings.Join(e.order, ", ")
	e.mu.Unlock()
	if order != "report confirmed , value db, report read db, value luks, report read luks, value lost" {
		t.Errorf("what happened: %s", order)
	}
	if log := e.log.String(); strings.Contains(log, private) || strings.Contains(log, secret) {
		t.Error("a value is in the log")
	}
}

// TestUserData: the holder of the certificate reads it, and nobody else.
func TestUserData(t *testing.T) {
	t.Parallel()
	s := newSite(t, "default")
	e := serve(t, s, nil)
	_, cert := e.enrol(t, "default", "web-1", func(i *imprint.Instance) { i.Spec.UserData = "#cloud-config\n" })
	if r := get(t, e.client(t, "default", cert), "default", own+"user-data"); r.status != 200 || r.body != "#cloud-config\n" || r.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %q", r.status, r.body)
	}
	if n := len(e.reports); n == 0 || e.reports[n-1].Kind != imprint.ReportServed || e.reports[n-1].Name != "user-data" || !strings.HasPrefix(e.reports[n-1].From, "whoever holds certificate ") {
		t.Errorf("reports %+v", e.reports)
	}
	n := len(e.reports)
	if r := get(t, e.client(t, "default", nil), "default", own+"user-data"); r.status/100 != 4 || strings.Contains(r.body, "cloud") || len(e.reports) != n {
		t.Errorf("without a certificate: %d %q, %d reports", r.status, r.body, len(e.reports)-n)
	}
}

// TestMedium: the holder of the certificate says what became of its medium, and the
// report has its serial.
func TestMedium(t *testing.T) {
	t.Parallel()
	s := newSite(t, "default")
	e := serve(t, s, nil)
	inst, cert := e.enrol(t, "default", "web-1", nil)
	c := e.client(t, "default", cert)
	digest := imprint.DigestOf([]byte("x"))
	const path = own + "medium"
	good := `{"digest":"` + string(digest) + `","state":"taken-away","detail":"overwritten with zeros"}`
	if r := post(t, c, "default", path, "", "", good); r.status != http.StatusNoContent || r.body != "" {
		t.Fatalf("status %d, %q", r.status, r.body)
	}
	want := imprint.Report{
		Instance: inst.ID, Generation: 1, Channel: imprint.NetworkEST, Kind: imprint.ReportMedium,
		Serial: imprint.SerialOf(cert.Leaf.SerialNumber), From: "whoever holds certificate " + string(imprint.SerialOf(cert.Leaf.SerialNumber)),
		Medium: &imprint.MediumEnd{Digest: digest, State: imprint.MediumTaken, Detail: "overwritten with zeros"},
	}
	if got := e.reports[len(e.reports)-1]; !reflect.DeepEqual(got, want) {
		t.Errorf("reported %+v", got)
	}
	n := len(e.reports)
	for name, body := range map[string]string{
		"nothing": "", "not JSON": "taken", "another state": strings.Replace(good, "taken-away", "out", 1), "a field more": good[:len(good)-1] + `,"x":1}`,
	} {
		if r := post(t, c, "default", path, "", "", body); r.status != http.StatusBadRequest || !strings.Contains(r.body, "not-taken-away") {
			t.Errorf("%s: status %d, %q", name, r.status, r.body)
		}
	}
	if r := post(t, c, "default", path, "", "", strings.Repeat(" ", 8<<10)); r.status != http.StatusRequestEntityTooLarge {
		t.Errorf("too large: status %d", r.status)
	}
	if r := post(t, e.client(t, "default", nil), "default", path, "", "", good); r.status != http.StatusForbidden || len(e.reports) != n {
		t.Errorf("without a certificate: status %d, %d reports", r.status, len(e.reports)-n)
	}
	e.change(inst.ID, func(i *imprint.Instance) { i.Enrolment.Certificate.Serial = "1" })
	if r := post(t, c, "default", path, "", "", good); r.status != http.StatusForbidden || len(e.reports) != n {
		t.Errorf("with a certificate that was replaced: status %d, %d reports", r.status, len(e.reports)-n)
	}
}

// TestUnreportedReadIsRefused: a value whose reading cannot be put on record stays here.
func TestUnreportedReadIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t, "default")
	e := serve(t, s, func(cfg *est.Config) { cfg.Engine = deafAfterConfirm{s} })
	inst, cert := e.enrol(t, "default", "web-1", func(i *imprint.Instance) {
		i.Spec.Params = []imprint.Param{{Name: "db", Visibility: imprint.Private}}
	})
	e.mu.Lock()
	e.values[string(inst.ID)+"/db"] = "canary"
	e.mu.Unlock()
	r := get(t, e.client(t, "default", cert), "default", own+"params/db")
	if r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") == "" || strings.Contains(r.body, "canary") {
		t.Errorf("status %d, %q", r.status, r.body)
	}
}

// deafAfterConfirm is an engine whose store goes away once a machine is confirmed.
type deafAfterConfirm struct{ *site }

func (d deafAfterConfirm) Report(ctx context.Context, r imprint.Report) error {
	if r.Kind == imprint.ReportConfirmed {
		return d.site.Report(ctx, r)
	}
	return imprint.Errorf(imprint.Unavailable, "report", string(r.Instance), "no quorum")
}

// elsewhere identifies every machine as one of another tenant.
type elsewhere struct{ est.Authority }

func (e elsewhere) Identify(leaf *x509.Certificate) (imprint.Identity, error) {
	id, err := e.Authority.Identify(leaf)
	id.Tenant = "blue"
	return id, err
}

func TestStaleCertificates(t *testing.T) {
	t.Parallel()
	later := time.Now().Add(2 * time.Hour) // leaves live for one
	for name, test := range map[string]struct {
		change func(*imprint.Instance)
		config func(*est.Config)
	}{
		"next life":    {change: func(i *imprint.Instance) { i.Generation = 2 }},
		"replaced":     {change: func(i *imprint.Instance) { i.Enrolment.Certificate.Serial = "1" }},
		"moved tenant": {config: func(cfg *est.Config) { cfg.Authority = elsewhere{cfg.Authority} }},
		"expired":      {config: func(cfg *est.Config) { cfg.Now = func() time.Time { return later } }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := serve(t, newSite(t, "default"), test.config)
			inst, cert := e.enrol(t, "default", "web-1", nil)
			if test.change != nil {
				e.change(inst.ID, test.change)
			}
			r := get(t, e.client(t, "default", cert), "default", own+"state")
			if r.status != http.StatusForbidden || r.header.Get("WWW-Authenticate") != "" {
				t.Errorf("status %d, challenge %q", r.status, r.header.Get("WWW-Authenticate"))
			}
			if n := len(e.reports); n != 0 {
				t.Errorf("%d reports", n)
			}
		})
	}
}

func TestDeletedInstance(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default"), nil)
	inst, cert := e.enrol(t, "default", "web-1", nil)
	e.forget(inst.ID)
	if r := get(t, e.client(t, "default", cert), "default", own+"state"); r.status != http.StatusForbidden {
		t.Errorf("status %d", r.status)
	}
}

func TestCRL(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default", "blue"), nil)
	c := e.client(t, "default", nil)
	r := get(t, c, "default", "/crl/blue.crl")
	crl, err := x509.ParseRevocationList([]byte(r.body))
	if err != nil || r.header.Get("Content-Type") != "application/pkix-crl" {
		t.Fatalf("%v, type %q", err, r.header.Get("Content-Type"))
	}
	if err := crl.CheckSignatureFrom(e.cas["blue"].cert); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"/crl/red.crl", "/crl/blue", "/crl/"} {
		if r := get(t, c, "default", path); r.status != http.StatusNotFound {
			t.Errorf("%s: status %d", path, r.status)
		}
	}
}

// TestKinds: every kind of error has its status, known or not, and what is
// internal stays inside.
func TestKinds(t *testing.T) {
	t.Parallel()
	want := map[imprint.Kind]int{
		imprint.Internal: 500, imprint.Invalid: 400, imprint.NotFound: 404, imprint.Exists: 409,
		imprint.Conflict: 409, imprint.Denied: 403, imprint.Unauthorized: 401, imprint.Pending: 202,
		imprint.Unavailable: 503, imprint.Exhausted: 503, imprint.Contested: 409,
	}
	for kind := imprint.Kind(0); !strings.HasPrefix(kind.String(), "kind("); kind++ {
		if got := est.AnswerTo(imprint.Errorf(kind, "do", "it", "why")); got != want[kind] {
			t.Errorf("%s: status %d, want %d", kind, got, want[kind])
		}
	}
	if got := est.AnswerTo(imprint.Errorf(200, "do", "it", "why")); got != 500 {
		t.Errorf("a kind from the future: status %d", got)
	}
	s := newSite(t, "default")
	e := serve(t, s, nil)
	s.mu.Lock()
	s.broken = imprint.Errorf(imprint.Internal, "read", "/var/lib/imprint", "disk on fire")
	s.mu.Unlock()
	r := get(t, e.client(t, "default", nil), "default", "/.well-known/est/cacerts")
	if r.status != 500 || r.body != "internal error\n" {
		t.Errorf("status %d, %q", r.status, r.body)
	}
	if !strings.Contains(e.log.String(), "disk on fire") {
		t.Error("the operator's log does not say why")
	}
}
