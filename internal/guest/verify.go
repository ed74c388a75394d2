package guest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"imprint"
)

// Limits on certificates that come from outside.
const (
	maxChain    = 8        // certificates in one chain or bundle
	maxChainPEM = 64 << 10 // bytes of PEM
)

// parseChain reads the certificates in PEM text, in their order. Text between
// the blocks is skipped; a block that is not a certificate is refused.
func parseChain(b []byte) ([]*x509.Certificate, error) {
	if len(b) > maxChainPEM {
		return nil, imprint.Errorf(imprint.Invalid, "read", "certificates", "%d bytes; the limit is %d", len(b), maxChainPEM)
	}
	var chain []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, imprint.Errorf(imprint.Invalid, "read", "certificates", "a PEM block %q among them", block.Type)
		}
		if len(chain) == maxChain {
			return nil, imprint.Errorf(imprint.Invalid, "read", "certificates", "more than %d", maxChain)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, imprint.Errorf(imprint.Invalid, "read", "certificates", "%w", err)
		}
		chain = append(chain, cert)
	}
	if len(chain) == 0 {
		return nil, imprint.Errorf(imprint.Invalid, "read", "certificates", "none there")
	}
	return chain, nil
}

func encodeChain(chain []*x509.Certificate) []byte {
	var buf bytes.Buffer
	for _, cert := range chain {
		pem.Encode(&buf, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a Buffer does not fail
	}
	return buf.Bytes()
}

// trustedRoots returns the CA of the payload, the only one that is trusted.
func trustedRoots(p *imprint.Payload) (*x509.CertPool, error) {
	roots, err := parseChain([]byte(p.CA))
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "read", "the payload's CA", "%w", err)
	}
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	return pool, nil
}

// verify checks that chain is what this machine asked for: a certificate for
// its own key, signed under the payload's CA, valid now, with exactly the
// payload's names and identity. The agent trusts its channel, yet a certificate
// of another machine must not end up in use because two sockets were mixed up.
func verify(chain []*x509.Certificate, p *imprint.Payload, key *ecdsa.PrivateKey, now time.Time) error {
	leaf := chain[0]
	bad := func(format string, args ...any) error {
		return imprint.Errorf(imprint.Invalid, "check", "certificate", format, args...)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return bad("it is for another key")
	}
	roots, err := trustedRoots(p)
	if err != nil {
		return err
	}
	intermediates := x509.NewCertPool()
	for _, cert := range chain[1:] {
		intermediates.AddCert(cert)
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return bad("under the payload's CA at %s: %w", stamp(now), err)
	}
	if got, want := sorted(leaf.DNSNames), sorted(p.DNSNames); !slices.Equal(got, want) {
		return bad("it names %q, the payload %q", got, want)
	}
	if got, want := addresses(leaf.IPAddresses), payloadAddresses(p); !slices.Equal(got, want) {
		return bad("it has the addresses %q, the payload %q", got, want)
	}
	path := fmt.Sprintf("/tenant/%s/instance/%s/generation/%d", p.Tenant, p.Instance, p.Generation)
	for _, uri := range leaf.URIs {
		if uri.Scheme == "spiffe" && uri.Path == path {
			return nil
		}
	}
	return bad("it does not name spiffe://…%s", path)
}

func sorted(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return slices.Compact(names)
}

func addresses(ips []net.IP) []string {
	var s []string
	for _, ip := range ips {
		s = append(s, ip.String())
	}
	return sorted(s)
}

func payloadAddresses(p *imprint.Payload) []string {
	var s []string
	for _, ip := range p.IPs {
		s = append(s, net.IP(ip.AsSlice()).String())
	}
	return sorted(s)
}

// renewAt is two thirds into the certificate's life, moved by up to a
// twentieth of it either way: r is uniform in [0, 1). Machines that were born
// together do not renew together.
func renewAt(leaf *x509.Certificate, r float64) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	jitter := time.Duration((r - 0.5) / 10 * float64(life))
	return leaf.NotBefore.Add(life*2/3 + jitter)
}

func serialOf(leaf *x509.Certificate) imprint.Serial { return imprint.SerialOf(leaf.SerialNumber) }

// oneLine shortens what a peer said to something that fits a console line.
func oneLine(s string) string {
	const limit = 300
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return s
}
