package daemon_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/est"
)

// What a machine can do wrong at the check-in endpoint: each gets its status and
// one sentence, and the timeline has the reason. Nothing is issued, and the
// machine can still do it right afterwards.
func TestBadRequestsOverEST(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	base := site.checkIn(t)
	server := site.serve(t)
	bundle, err := server.Bundle(t.Context(), imprint.DefaultTenant)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	tokenOf := func(name string) string {
		token, err := server.Token(t.Context(), name, 0)
		if err != nil {
			t.Fatal(err)
		}
		return string(token.Reveal())
	}
	ask := func(client *http.Client, method, path, user, token string, body []byte) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, base+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/pkcs10")
		if user != "" {
			req.SetBasicAuth(user, token)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	stranger := httpsClient(roots, nil, nil)
	enrol := func(user, token string, body []byte) (int, string) {
		return ask(stranger, http.MethodPost, "/.well-known/est/simpleenroll", user, token, body)
	}
	request := func(key crypto.Signer, names *x509.CertificateRequest) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, names, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}

	// Another machine, whose key is the reused one.
	server.create(t, imprint.Spec{Name: "other"}, nil)
	other := newMachine(t, site.config.Run, "")
	if status, body := enrol("other", tokenOf("other"), other.csr()); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, site.config.Run, "")
	good := m.csr()
	broken := slices.Clone(good)
	broken[len(broken)-1] ^= 1
	server.create(t, imprint.Spec{Name: "web-1", DNSNames: []string{"web-1.internal"}}, nil)
	token := tokenOf("web-1")

	const fits, unknown = "does not fit the reservation", "unknown instance, wrong or spent token"
	for name, tt := range map[string]struct {
		user, token string
		body        []byte
		status      int
		says        string
		event       string // on the timeline of web-1
	}{
		"other names":       {"web-1", token, request(m.key, &x509.CertificateRequest{DNSNames: []string{"bank.internal"}}), 400, fits, "bank.internal"},
		"a weak key":        {"web-1", token, request(weak, &x509.CertificateRequest{}), 400, fits, "RSA of 2048 bits is too weak"},
		"a reused key":      {"web-1", token, other.csr(), 401, unknown, "already belongs to another machine"},
		"broken signature":  {"web-1", token, broken, 400, fits, "not by its own key"},
		"cut off":           {"web-1", token, good[:len(good)/2], 400, fits, "not a PKCS #10 request"},
		"not base64":        {"web-1", token, []byte("M!!!"), 400, "not base64", ""},
		"base64 of a text":  {"web-1", token, []byte(base64.StdEncoding.EncodeToString([]byte("hello"))), 400, "not a PKCS #10 request", ""},
		"another PEM block": {"web-1", token, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: good}), 400, "not one PEM block", ""},
		"empty":             {"web-1", token, nil, 400, "the body is empty", ""},
		"oversize":          {"web-1", token, make([]byte, est.MaxBody+1), 413, "larger than 65536 bytes", ""},
		"oversize DER":      {"web-1", token, append([]byte{0x30, 0x82, 0x7f, 0xfc}, make([]byte, 0x7ffc)...), 400, fits, "the limit is 16384"},
		"wrong token":       {"web-1", "guess", good, 401, unknown, "wrong token"},
		"unknown instance":  {"nobody", token, good, 401, unknown, ""},
		"no instance's ID":  {string(imprint.NewInstanceID()), token, good, 401, unknown, ""},
		"a strange name":    {"web-1/../x", token, good, 401, unknown, ""},
	} {
		status, body := enrol(tt.user, tt.token, tt.body)
		if status != tt.status || !strings.Contains(body, tt.says) || strings.Count(body, "\n") != 1 {
			t.Errorf("%s: %d %q; want %d and %q", name, status, body, tt.status, tt.says)
		}
		if e := server.get(t, "web-1").Enrolment; e.Claim != nil {
			t.Fatalf("%s: claimed %+v", name, e.Claim)
		}
		if tt.event != "" && !refused(t, server, "web-1", tt.event) {
			t.Errorf("%s: the timeline does not say %q", name, tt.event)
		}
	}

	if status, body := enrol("web-1", token, good); status != http.StatusOK {
		t.Fatalf("the right request: %d %s", status, body)
	}
	if m.leaf, err = x509.ParseCertificate(server.get(t, "web-1").Enrolment.Certificate.DER); err != nil {
		t.Fatal(err)
	}
	own := httpsClient(roots, m.leaf, m.key)
	if status, body := ask(own, http.MethodPost, "/.well-known/imprint/v1/ready", "", "", nil); status != http.StatusNoContent {
		t.Fatalf("ready: %d %s", status, body)
	}
	if status, _ := enrol("web-1", token, good); status != http.StatusUnauthorized || !refused(t, server, "web-1", "the token is spent") {
		t.Errorf("a spent token: %d", status)
	}
	// The next generation knows neither the token nor the certificate of this one.
	if _, err := server.Rebirth(t.Context(), "web-1"); err != nil {
		t.Fatal(err)
	}
	if status, _ := enrol("web-1", token, good); status != http.StatusUnauthorized {
		t.Errorf("the token of a former life: %d", status)
	}
	if status, body := ask(own, http.MethodGet, "/.well-known/imprint/v1/state", "", "", nil); status != http.StatusForbidden {
		t.Errorf("the certificate of a former life: %d %s", status, body)
	}
}

// refused reports whether the timeline of an instance has a refusal for a reason.
func refused(t *testing.T, s *serving, ref, reason string) bool {
	t.Helper()
	events, err := s.Timeline(t.Context(), ref, 0)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(events, func(e imprint.Event) bool {
		return e.Kind == imprint.EventRefused && strings.Contains(e.Detail["reason"], reason)
	})
}
