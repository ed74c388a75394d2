package est_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"io"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/est"
)

const enrolPath = "/.well-known/est/simpleenroll"

func TestCACerts(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default", "blue"), nil)
	for _, tenant := range []imprint.TenantName{"default", "blue"} {
		for _, path := range []string{"/.well-known/est/cacerts", "/.well-known/est/machine/cacerts"} {
			certs := certificates(t, get(t, e.client(t, tenant, nil), tenant, path))
			if len(certs) != 1 || !certs[0].Equal(e.cas[tenant].cert) {
				t.Errorf("%s %s: not the tenant's root", tenant, path)
			}
		}
	}
}

func TestSimpleEnroll(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default", "blue"), nil)
	der, err := base64.StdEncoding.DecodeString(request(t, newKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	plain := base64.StdEncoding.EncodeToString(der)
	for i, test := range []struct {
		name, path, body string
		user             func(*imprint.Instance) string
	}{
		{"identifier", enrolPath, plain, func(i *imprint.Instance) string { return string(i.ID) }},
		{"name", enrolPath, plain, func(i *imprint.Instance) string { return string(i.Spec.Name) }},
		{"tenant and name", enrolPath, plain, func(i *imprint.Instance) string { return "blue/" + string(i.Spec.Name) }},
		{"label", "/.well-known/est/machine/simpleenroll", plain, nil},
		{"wrapped", enrolPath, wrap(plain, "\n"), nil},
		{"wrapped as MIME does", enrolPath, wrap(plain, "\r\n"), nil},
		{"PEM", enrolPath, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil},
		{"DER", enrolPath, string(der), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			inst, token := e.reserve("blue", imprint.InstanceName("web-"+string(rune('a'+i))), nil)
			user := string(inst.ID)
			if test.user != nil {
				user = test.user(inst)
			}
			c := e.client(t, "blue", nil)
			first := certificates(t, post(t, c, "blue", test.path, user, token, test.body))
			if len(first) != 1 {
				t.Fatalf("%d certificates; clients take exactly one", len(first))
			}
			if got := first[0].DNSNames; len(got) != 1 || got[0] != inst.Spec.DNSNames[0] {
				t.Errorf("names %q", got)
			}
			// The reply was lost: the machine asks again.
			again := certificates(t, post(t, c, "blue", test.path, user, token, test.body))
			if !again[0].Equal(first[0]) {
				t.Error("a repeated request got another certificate")
			}
		})
	}
}

func wrap(s, eol string) string {
	var b strings.Builder
	for len(s) > 64 {
		b.WriteString(s[:64] + eol)
		s = s[64:]
	}
	return b.String() + s + eol
}

func TestChunkedBody(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default"), nil)
	inst, token := e.reserve("default", "web-1", nil)
	// A reader of unknown length makes the client send chunks.
	body := io.MultiReader(strings.NewReader(request(t, newKey(t))))
	req, err := http.NewRequest("POST", url("default", enrolPath), body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/pkcs10")
	req.SetBasicAuth(string(inst.ID), token)
	certificates(t, do(t, e.client(t, "default", nil), req))
}

// TestSimpleEnrollRefused shows every way a first request is turned down, and
// that the reservation survives it.
func TestSimpleEnrollRefused(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default", "blue"), nil)
	inst, token := e.reserve("default", "web-1", nil)
	blue, blueToken := e.reserve("blue", "db-1", nil)
	good := request(t, newKey(t))
	broken, err := base64.StdEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	broken[len(broken)-1] ^= 1
	id := string(inst.ID)
	const unauthorized = http.StatusUnauthorized
	for _, test := range []struct {
		name, path, user, token, body string
		want                          int
	}{
		{"no credentials", "", "", "", good, unauthorized},
		{"no token", "", id, "", good, unauthorized},
		{"wrong token", "", id, token + "x", good, unauthorized},
		{"oversize token", "", id, strings.Repeat("x", 300), good, unauthorized},
		{"unknown instance", "", string(imprint.NewInstanceID()), token, good, unauthorized},
		{"unknown name", "", "web-2", token, good, unauthorized},
		{"not a name", "", "../web-1", token, good, unauthorized},
		{"oversize user", "", strings.Repeat("w", 300), token, good, unauthorized},
		{"another tenant's name", "", "blue/db-1", blueToken, good, unauthorized},
		{"another tenant's identifier", "", string(blue.ID), blueToken, good, unauthorized},
		{"another label", "/.well-known/est/router/simpleenroll", id, token, good, unauthorized},
		{"broken signature", "", id, token, base64.StdEncoding.EncodeToString(broken), 400},
		{"empty", "", id, token, "", 400},
		{"not base64", "", id, token, "!!!!", 400},
		{"base64 of nothing useful", "", id, token, "AAAA", 400},
		{"cut base64", "", id, token, good[:len(good)-7], 400},
		{"cut DER", "", id, token, string(broken[:40]), 400},
		{"wrong PEM", "", id, token, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 400},
		{"cut PEM", "", id, token, "-----BEGIN CERTIFICATE REQUEST-----\nMII", 400},
		{"oversize", "", id, token, strings.Repeat("A", est.MaxBody+1), http.StatusRequestEntityTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := enrolPath
			if test.path != "" {
				path = test.path
			}
			r := post(t, e.client(t, "default", nil), "default", path, test.user, test.token, test.body)
			if r.status != test.want {
				t.Errorf("status %d, want %d: %s", r.status, test.want, r.body)
			}
			challenge := r.header.Get("WWW-Authenticate")
			if (r.status == unauthorized) != strings.HasPrefix(challenge, "Basic ") {
				t.Errorf("status %d with challenge %q", r.status, challenge)
			}
			if strings.Contains(r.body, "web-1") || test.token != "" && strings.Contains(r.body, test.token) {
				t.Errorf("the answer tells too much: %q", r.body)
			}
		})
	}
	t.Run("wrong content type", func(t *testing.T) {
		req, err := http.NewRequest("POST", url("default", enrolPath), strings.NewReader(good))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(id, token)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if r := do(t, e.client(t, "default", nil), req); r.status != http.StatusUnsupportedMediaType {
			t.Errorf("status %d", r.status)
		}
	})
	t.Run("then the right one", func(t *testing.T) {
		certificates(t, post(t, e.client(t, "default", nil), "default", enrolPath, id, token, good))
	})
	if strings.Contains(e.log.String(), token) {
		t.Error("the token is in the log")
	}
}

// TestSameRefusal compares the whole answer to an unknown instance with that to
// a wrong token, to the right one for the wrong label, and to enrolments that ended.
func TestSameRefusal(t *testing.T) {
	t.Parallel()
	const floor = 60 * time.Millisecond
	e := serve(t, newSite(t, "default"), func(cfg *est.Config) { cfg.Limits.RefusalTime = floor })
	open, token := e.reserve("default", "open", nil)
	revoked, revokedToken := e.reserve("default", "revoked", func(i *imprint.Instance) { i.Enrolment.State = imprint.Revoked })
	c := e.client(t, "default", nil)
	ask := func(path, user, token string) reply {
		began := time.Now()
		r := post(t, c, "default", path, user, token, request(t, newKey(t)))
		if took := time.Since(began); took < floor {
			t.Errorf("%s refused after %v; that tells how much was looked at", user, took)
		}
		r.header.Del("Date")
		return r
	}
	unknown := ask(enrolPath, string(imprint.NewInstanceID()), token)
	for name, r := range map[string]reply{
		"wrong token": ask(enrolPath, string(open.ID), "guess"),
		"wrong label": ask("/.well-known/est/router/simpleenroll", string(open.ID), token),
		"ended":       ask(enrolPath, string(revoked.ID), revokedToken),
	} {
		if !reflect.DeepEqual(r, unknown) || r.status != http.StatusUnauthorized {
			t.Errorf("%s: %+v, unknown: %+v", name, r, unknown)
		}
	}
}

func TestPending(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default"), nil)
	inst, token := e.reserve("default", "web-1", func(i *imprint.Instance) { i.Spec.Policy.Approval = true })
	c, csr := e.client(t, "default", nil), request(t, newKey(t))
	r := post(t, c, "default", enrolPath, "web-1", token, csr)
	if r.status != http.StatusAccepted || r.header.Get("Retry-After") != "30" {
		t.Fatalf("status %d, Retry-After %q", r.status, r.header.Get("Retry-After"))
	}
	e.change(inst.ID, func(i *imprint.Instance) { i.Enrolment.Claim.NeedsApproval = false })
	certificates(t, post(t, c, "default", enrolPath, "web-1", token, csr))
}

// TestApprovedByHand: without a token, an operator's consent is all there is.
func TestApprovedByHand(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default"), nil)
	e.reserve("default", "web-1", func(i *imprint.Instance) { i.Spec.Policy.Approval = true })
	r := post(t, e.client(t, "default", nil), "default", enrolPath, "web-1", "", request(t, newKey(t)))
	if r.status != http.StatusAccepted {
		t.Errorf("status %d", r.status)
	}
}

func TestContested(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default"), nil)
	inst, cert := e.enrol(t, "default", "web-1", nil)
	_, token := e.reserve("default", "other", nil)
	e.change(inst.ID, func(i *imprint.Instance) { i.Enrolment.TokenHash = imprint.DigestOf([]byte(token)) })
	r := post(t, e.client(t, "default", nil), "default", enrolPath, "web-1", token, request(t, newKey(t)))
	if r.status != http.StatusUnauthorized || e.get(inst.ID).Enrolment.State != imprint.InDispute {
		t.Errorf("second key: status %d, now %s", r.status, e.get(inst.ID).Enrolment.State)
	}
	if r := get(t, e.client(t, "default", cert), "default", "/.well-known/imprint/v1/state"); r.status != http.StatusConflict || !strings.Contains(r.body, "contested") {
		t.Errorf("the first machine, contested: status %d, %q", r.status, r.body)
	}
}

// TestClaimantLearnsTheEnd: the key that claimed is told how the enrolment ended,
// with its certificate or its request. Others, with a right token or a wrong
// one, hear what an unknown instance hears.
func TestClaimantLearnsTheEnd(t *testing.T) {
	t.Parallel()
	for state, says := range map[imprint.State]string{imprint.Revoked: "was revoked", imprint.InDispute: "is contested"} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			e := serve(t, newSite(t, "default"), nil)
			inst, token := e.reserve("default", "web-1", nil)
			key := newKey(t)
			c := e.client(t, "default", nil)
			leaf := certificates(t, post(t, c, "default", enrolPath, "web-1", token, request(t, key)))[0]
			e.change(inst.ID, func(i *imprint.Instance) { i.Enrolment.State = state })
			with := e.client(t, "default", &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key})

			for name, r := range map[string]reply{
				"its certificate": get(t, with, "default", own+"state"),
				"its request":     post(t, c, "default", enrolPath, "web-1", token, request(t, key)),
			} {
				if r.status != http.StatusConflict || !strings.Contains(r.body, says) {
					t.Errorf("%s: status %d, %q", name, r.status, r.body)
				}
			}
			unknown := post(t, c, "default", enrolPath, string(imprint.NewInstanceID()), token, request(t, newKey(t)))
			for name, r := range map[string]reply{
				"another key, right token": post(t, c, "default", enrolPath, "web-1", token, request(t, newKey(t))),
				"another key, wrong token": post(t, c, "default", enrolPath, "web-1", "guess", request(t, newKey(t))),
				"its key, wrong token":     post(t, c, "default", enrolPath, "web-1", "guess", request(t, key)),
				"its key, another label":   post(t, c, "default", "/.well-known/est/router/simpleenroll", "web-1", token, request(t, key)),
			} {
				if r.status != http.StatusUnauthorized || r.body != unknown.body {
					t.Errorf("%s: status %d, %q", name, r.status, r.body)
				}
			}
		})
	}
}

func TestSimpleReenroll(t *testing.T) {
	t.Parallel()
	const path = "/.well-known/est/simplereenroll"
	e := serve(t, newSite(t, "default"), nil)
	inst, cert := e.enrol(t, "default", "web-1", nil)
	key := cert.PrivateKey
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := base64.StdEncoding.EncodeToString(der)

	if r := post(t, e.client(t, "default", nil), "default", path, "web-1", "x", csr); r.status != http.StatusForbidden {
		t.Errorf("without a certificate: status %d", r.status)
	}
	c := e.client(t, "default", cert)
	if r := post(t, c, "default", path, "", "", request(t, newKey(t))); r.status != http.StatusBadRequest {
		t.Errorf("for another key: status %d", r.status)
	}
	if e.get(inst.ID).Enrolment.State != imprint.Confirmed {
		t.Error("asking for another key while holding the first made the enrolment", e.get(inst.ID).Enrolment.State)
	}
	if r := post(t, c, "default", "/.well-known/est/router/simplereenroll", "", "", csr); r.status != http.StatusNotFound {
		t.Errorf("another label: status %d", r.status)
	}
	renewed := certificates(t, post(t, c, "default", path, "", "", csr))
	if len(renewed) != 1 || renewed[0].Equal(cert.Leaf) {
		t.Fatal("no new certificate")
	}
	// The old one is replaced, on kept connections as well.
	if r := post(t, c, "default", path, "", "", csr); r.status != http.StatusForbidden {
		t.Errorf("with the replaced certificate: status %d", r.status)
	}
	next := &tls.Certificate{Certificate: [][]byte{renewed[0].Raw}, PrivateKey: key}
	if r := get(t, e.client(t, "default", next), "default", "/.well-known/imprint/v1/state"); r.status != http.StatusOK {
		t.Errorf("with the new certificate: status %d", r.status)
	}
}

func TestNotOffered(t *testing.T) {
	t.Parallel()
	e := serve(t, newSite(t, "default"), nil)
	c := e.client(t, "default", nil)
	for _, op := range []string{"serverkeygen", "fullcmc"} {
		if r := post(t, c, "default", "/.well-known/est/"+op, "", "", ""); r.status != http.StatusNotImplemented {
			t.Errorf("%s: status %d", op, r.status)
		}
	}
	if r := get(t, c, "default", enrolPath); r.status != http.StatusMethodNotAllowed {
		t.Errorf("GET simpleenroll: status %d", r.status)
	}
}

func TestCSRAttrs(t *testing.T) {
	t.Parallel()
	const path = "/.well-known/est/csrattrs"
	e := serve(t, newSite(t, "default"), nil)
	_, cert := e.enrol(t, "default", "web-1", func(i *imprint.Instance) {
		i.Spec.IPs = []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}
	})
	read := func(c *http.Client) []asn1.RawValue {
		r := get(t, c, "default", path)
		if r.status != http.StatusOK || r.header.Get("Content-Type") != "application/csrattrs" {
			t.Fatalf("status %d, type %q", r.status, r.header.Get("Content-Type"))
		}
		der, err := base64.StdEncoding.DecodeString(r.body)
		if err != nil {
			t.Fatal(err)
		}
		var attrs []asn1.RawValue
		if rest, err := asn1.Unmarshal(der, &attrs); err != nil || len(rest) != 0 {
			t.Fatalf("%v, %d bytes left", err, len(rest))
		}
		return attrs
	}
	if n := len(read(e.client(t, "default", nil))); n != 2 {
		t.Errorf("%d attributes for a stranger; names are not for it", n)
	}
	attrs := read(e.client(t, "default", cert))
	if len(attrs) != 3 {
		t.Fatalf("%d attributes for the machine", len(attrs))
	}
	// A request that asks for what the attributes say has the reservation's names.
	raw := attrs[2].FullBytes
	var attr struct {
		Type   asn1.ObjectIdentifier
		Values []asn1.RawValue `asn1:"set"`
	}
	if _, err := asn1.Unmarshal(raw, &attr); err != nil || len(attr.Values) != 1 {
		t.Fatalf("%v, %d values", err, len(attr.Values))
	}
	for _, want := range [][]byte{[]byte("web-1.example.net"), {192, 0, 2, 7}, netip.MustParseAddr("2001:db8::7").AsSlice()} {
		if !bytes.Contains(attr.Values[0].FullBytes, want) {
			t.Errorf("%q is missing", want)
		}
	}
}
