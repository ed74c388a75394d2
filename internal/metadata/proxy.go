package metadata

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"log/slog"
	"net/http"
	"strings"

	"imprint"
	"imprint/internal/dialect"
)

// The fields by which Neutron's metadata agent says for whom it asks
// (neutron/agent/metadata/proxy_base.py).
const (
	instanceHeader  = "X-Instance-Id"
	tenantHeader    = "X-Tenant-Id"
	signatureHeader = "X-Instance-Id-Signature"
)

// minProxySecret is the fewest bytes of the secret that is shared with Neutron.
const minProxySecret = 16

// ProxiedGuests finds the servers of guests behind Neutron.
type ProxiedGuests interface {
	// Proxied returns the server, with [Config].Proxied set, of the instance that
	// Nova calls by this identifier and this project owns. It fails with kind
	// NotFound if there is none, or if the project does not own it.
	Proxied(ctx context.Context, instance, project string) (*Server, error)
}

// ProxyConfig is what a [Proxy] needs; every field is required.
type ProxyConfig struct {
	// Secret is metadata_proxy_shared_secret, at least 16 bytes. Nova takes an
	// empty one; here it would let anybody read everything.
	Secret imprint.Secret
	Guests ProxiedGuests
	Logger *slog.Logger
}

// Proxy stands where Nova's metadata service does, behind Neutron's agent. Who
// asks is said by header fields that the agent signs.
type Proxy struct{ c ProxyConfig }

// NewProxy fails with kind Invalid if the secret is too short.
func NewProxy(c ProxyConfig) (*Proxy, error) {
	if len(c.Secret.Reveal()) < minProxySecret {
		return nil, imprint.Errorf(imprint.Invalid, "serve", "metadata proxy secret", "it has %d bytes; it needs at least %d", len(c.Secret.Reveal()), minProxySecret).
			WithHint("make one with: openssl rand -hex 32")
	}
	return &Proxy{c}, nil
}

// ServeHTTP implements [http.Handler].
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if clean(r.URL.Path) == "" { // before any identification, as in Nova
		versions.send(w)
		return
	}
	instance, project, status, text := p.identify(r.Header)
	if status != 0 {
		tell(w, status, text)
		return
	}
	s, err := p.c.Guests.Proxied(r.Context(), instance, project)
	switch kind := imprint.KindOf(err); {
	case err == nil && s != nil && s.c.Proxied:
		s.ServeHTTP(w, r)
	case err != nil && kind == imprint.NotFound:
		tell(w, http.StatusNotFound, http.StatusText(http.StatusNotFound))
	case kind == imprint.Unavailable:
		tell(w, http.StatusServiceUnavailable, http.StatusText(http.StatusServiceUnavailable))
	default:
		p.c.Logger.ErrorContext(r.Context(), "a proxied guest is not found out", "error", err)
		tell(w, http.StatusInternalServerError, http.StatusText(http.StatusInternalServerError))
	}
}

// versions is the only page that needs no guest.
var versions = newPage([]byte(strings.Join(dialect.EC2Versions(), "\n")), plain)

// identify returns whom the agent asks for, or a status and a sentence. The
// signature covers the instance alone, for ever: see docs/howto/neutron.md.
func (p *Proxy) identify(h http.Header) (instance, project string, status int, text string) {
	for _, field := range []string{instanceHeader, signatureHeader, tenantHeader} {
		name := strings.Replace(field, "-Id", "-ID", 1) // as Nova and Neutron write it
		switch len(h[field]) {
		case 0:
			return "", "", http.StatusBadRequest, name + " header is missing from request."
		case 1:
		default:
			return "", "", http.StatusBadRequest, "Multiple " + name + " headers found within request."
		}
	}
	instance, project = h[instanceHeader][0], h[tenantHeader][0]
	mac := hmac.New(sha256.New, p.c.Secret.Reveal())
	mac.Write([]byte(instance))
	signature, err := hex.DecodeString(h[signatureHeader][0])
	if err != nil || !hmac.Equal(mac.Sum(nil), signature) {
		return "", "", http.StatusForbidden, "Invalid proxy request signature."
	}
	return instance, project, 0, ""
}

// ProxyTLS is a TLS configuration for a [Proxy]'s listener that admits only
// clients with a certificate of clients: Neutron's agent with nova_client_cert.
// Unlike the signature this cannot be replayed.
func ProxyTLS(own tls.Certificate, clients *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{own},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    clients,
		NextProtos:   []string{"http/1.1"},
	}
}

// surviving returns the status closest to status that Neutron's agent passes on;
// any other makes the guest see a 500 (neutron/agent/metadata/proxy_base.py).
func surviving(status int) int {
	switch status {
	case http.StatusOK, http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusConflict,
		http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return status
	case http.StatusUnauthorized:
		return http.StatusForbidden
	}
	return http.StatusBadRequest
}

// survives reports whether the agent passes a page on: it decodes replies as text.
func survives(p *page) bool { return p.media == plain || p.media == object }
