package est

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"imprint"
)

// Tenant is what the endpoint needs to speak for one tenant.
type Tenant struct {
	Name imprint.TenantName
	// Names are the host names under which this tenant is reached. The default
	// tenant is also reached by address, which TLS sends no name for.
	Names []string
	// Certificate is shown to clients and must be valid for all Names.
	Certificate tls.Certificate
	// Trust verifies the certificates of this tenant's machines.
	Trust *x509.CertPool
}

// tenant is a checked [Tenant].
type tenant struct {
	name imprint.TenantName
	tls  *tls.Config
}

// directory finds tenants; it is never changed once made.
type directory struct {
	byTenant map[imprint.TenantName]*tenant
	byHost   map[string]*tenant
}

// newDirectory fails with kind Invalid if a name is claimed twice, is not a DNS
// name, or is not in its tenant's certificate.
func newDirectory(tenants []Tenant) (*directory, error) {
	d := &directory{byTenant: map[imprint.TenantName]*tenant{}, byHost: map[string]*tenant{}}
	for _, in := range tenants {
		if d.byTenant[in.Name] != nil {
			return nil, imprint.Errorf(imprint.Invalid, "serve", "tenant "+string(in.Name), "it is listed twice")
		}
		if len(in.Certificate.Certificate) == 0 || in.Trust == nil {
			return nil, imprint.Errorf(imprint.Invalid, "serve", "tenant "+string(in.Name), "no server certificate or no client trust")
		}
		leaf, err := x509.ParseCertificate(in.Certificate.Certificate[0])
		if err != nil {
			return nil, imprint.Errorf(imprint.Invalid, "serve", "tenant "+string(in.Name), "server certificate: %w", err)
		}
		t := &tenant{in.Name, serverConfig(in.Certificate, in.Trust)}
		d.byTenant[in.Name] = t
		for _, name := range in.Names {
			if err := imprint.CheckDNSName("check-in name", name); err != nil {
				return nil, err
			}
			if other := d.byHost[name]; other != nil && other != t {
				return nil, imprint.Errorf(imprint.Invalid, "serve", "tenant "+string(in.Name),
					"check-in name %s belongs to tenant %s", name, other.name).
					WithHint("give each tenant a check-in name of its own")
			}
			if err := leaf.VerifyHostname(name); err != nil {
				return nil, imprint.Errorf(imprint.Invalid, "serve", "tenant "+string(in.Name), "server certificate: %w", err)
			}
			d.byHost[name] = t
		}
	}
	return d, nil
}

// serverConfig is one tenant's TLS context.
func serverConfig(cert tls.Certificate, trust *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS12, // strongSwan's client speaks nothing newer
		Certificates: []tls.Certificate{cert},
		ClientCAs:    trust,
		// A certificate of another tenant, or of nobody, ends the handshake.
		ClientAuth: tls.VerifyClientCertIfGiven,
		// HTTP/1.1 only: EST clients speak nothing else, and one request at a time
		// on a connection makes the bound on connections a bound on work.
		NextProtos: []string{"http/1.1"},
		// All contexts behind one listener share ticket keys. Without tickets no
		// session, and no client identity in it, can travel between tenants.
		SessionTicketsDisabled: true,
		// A reply in one record: strongSwan gives up, now and then, when the second
		// of two has not come yet.
		DynamicRecordSizingDisabled: true,
	}
}

// TLSConfig returns the configuration for a listener: it picks the tenant's
// context by server name, from the tenants that are set at that moment.
func (s *Server) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		SessionTicketsDisabled: true,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if t := s.tenants.Load().ofServerName(hello.ServerName); t != nil {
				return t.tls, nil
			}
			// A context without certificates makes crypto/tls send the alert
			// unrecognized_name (RFC 6066 section 3).
			return &tls.Config{MinVersion: tls.VersionTLS12}, nil
		},
	}
}

// ofServerName returns the tenant that a TLS server name selects, or nil. Clients
// that connect to an address send none, or against RFC 6066 the address.
func (d *directory) ofServerName(name string) *tenant {
	if _, err := netip.ParseAddr(name); err == nil || name == "" {
		return d.byTenant[imprint.DefaultTenant]
	}
	return d.byHost[strings.ToLower(name)]
}

// ofRequest returns the tenant that r is for. A Host header of another tenant
// than the one of the handshake is misdirected (RFC 9110 section 7.4).
func (d *directory) ofRequest(r *http.Request) (*tenant, error) {
	misdirected := &refusal{http.StatusMisdirectedRequest, "this connection was made for another host name"}
	if r.TLS == nil {
		return nil, misdirected
	}
	t := d.ofServerName(r.TLS.ServerName)
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	named := d.byHost[strings.ToLower(strings.TrimSuffix(host, "."))]
	if _, known := d.byHost[strings.ToLower(r.TLS.ServerName)]; !known && named == nil {
		named = t // reached by address: any Host will do that is not another tenant's
	}
	if t == nil || named != t {
		return nil, misdirected
	}
	return t, nil
}
