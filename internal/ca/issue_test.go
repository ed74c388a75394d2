package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"imprint"
)

// verifyChain checks a leaf as a machine that trusts the root alone does.
func verifyChain(a *Authority, leaf *x509.Certificate, usage x509.ExtKeyUsage, name string) error {
	roots, mids := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.root)
	for _, c := range a.issuing {
		mids.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: mids, CurrentTime: clock, DNSName: name, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	return err
}

func TestIssue(t *testing.T) {
	t.Parallel()
	c := newTestCA(t, testProfile())
	g := testGrant(t)
	out, err := issue(c.Authority, g)
	if err != nil {
		t.Fatal(err)
	}
	leaf := parse(t, out.DER)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if err := verifyChain(c.Authority, leaf, usage, "www.acme.example"); err != nil {
			t.Error(err)
		}
	}
	if !bytes.Equal(leaf.RawSubjectPublicKeyInfo, g.PublicKey) {
		t.Error("the leaf has another key")
	}
	who, err := c.Identify(leaf, clock)
	if err != nil {
		t.Fatal(err)
	}
	if who.Instance != g.Instance || who.Generation != g.Generation || who.Tier != g.Tier || who.Serial != g.Serial || who.Tenant != g.Tenant {
		t.Errorf("identity %+v", who)
	}
	again, err := issue(c.Authority, g)
	if err != nil || !bytes.Equal(again.DER, out.DER) || again.SSH != out.SSH {
		t.Errorf("the same grant gave another certificate (%v)", err)
	}
}

// What a leaf and its SSH twin contain, field by field.
func TestIssueContents(t *testing.T) {
	t.Parallel()
	c := newTestCA(t, testProfile())
	g := testGrant(t)
	out, err := issue(c.Authority, g)
	if err != nil {
		t.Fatal(err)
	}
	leaf := parse(t, out.DER)
	if got := leaf.URIs[0].String(); got != "spiffe://imprint.example/tenant/acme/instance/"+string(g.Instance)+"/generation/3" {
		t.Error(got)
	}
	if leaf.Subject.CommonName != "web-1.acme.example" || imprint.SerialOf(leaf.SerialNumber) != g.Serial {
		t.Error(leaf.Subject, leaf.SerialNumber)
	}
	if !leaf.NotBefore.Equal(g.NotBefore) || !leaf.NotAfter.Equal(g.NotAfter) || !out.NotAfter.Equal(g.NotAfter) {
		t.Error(leaf.NotBefore, leaf.NotAfter)
	}
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature || leaf.IsCA || !leaf.BasicConstraintsValid {
		t.Error(leaf.KeyUsage, leaf.IsCA)
	}
	if !slices.Equal(leaf.CRLDistributionPoints, []string{c.material.CRL}) || !bytes.Equal(leaf.AuthorityKeyId, c.issuing[0].SubjectKeyId) || len(leaf.SubjectKeyId) != 20 {
		t.Error(leaf.CRLDistributionPoints, leaf.AuthorityKeyId, leaf.SubjectKeyId)
	}
	if id, err := keyIdentifier(c.issuing[0].RawSubjectPublicKeyInfo); err != nil || !bytes.Equal(id, c.issuing[0].SubjectKeyId) {
		t.Errorf("key identifier %x, by crypto/x509 %x, %v", id, c.issuing[0].SubjectKeyId, err)
	}
	if e, err := enrolmentOf(leaf); err != nil || e != (Enrolment{g.Tier, g.Generation, g.Channel}) {
		t.Error(e, err)
	}

	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(out.SSH))
	if err != nil {
		t.Fatal(err)
	}
	authority, _, _, _, err := ssh.ParseAuthorizedKey([]byte(c.SSHKey()))
	if err != nil {
		t.Fatal(err)
	}
	checker := ssh.CertChecker{
		IsHostAuthority: func(k ssh.PublicKey, _ string) bool { return bytes.Equal(k.Marshal(), authority.Marshal()) },
		Clock:           func() time.Time { return clock },
	}
	for _, host := range []string{"web-1:22", "web-1.acme.example:22"} {
		if err := checker.CheckHostKey(host, nil, key); err != nil {
			t.Error(err)
		}
	}
	if err := checker.CheckHostKey("web-2:22", nil, key); err == nil {
		t.Error("the SSH certificate is good for another host")
	}

	if len(c.log.entries) != 1 {
		t.Fatal(len(c.log.entries))
	}
	e := c.log.entries[0]
	data, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeEntry(data); err != nil || !bytes.Equal(e.DER, out.DER) || e.SSH != out.SSH || e.Name != g.Name {
		t.Error(err)
	}
}

func TestIssueIsDeterministic(t *testing.T) {
	t.Parallel()
	c := newTestCA(t, testProfile())
	other, err := Open(c.material, c.keys, discard{}) // a second server
	if err != nil {
		t.Fatal(err)
	}
	g := testGrant(t)
	one, err := issue(c.Authority, g)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []*Authority{c.Authority, other} {
		two, err := issue(a, g)
		if err != nil || !bytes.Equal(one.DER, two.DER) || one.SSH != two.SSH {
			t.Errorf("other bytes (%v)", err)
		}
	}
	_, err = Open(c.material, Keys{Issuing: random{c.keys.Issuing}, SSH: c.keys.SSH}, discard{})
	if imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("a signer that is not deterministic: %v", err)
	}
}

// random signs with fresh randomness.
type random struct{ crypto.Signer }

func (r random) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return r.Signer.Sign(rand.Reader, digest, opts)
}

func TestGuestKeys(t *testing.T) {
	t.Parallel()
	c := newTestCA(t, testProfile())
	ec := func(curve elliptic.Curve) crypto.PublicKey {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key.Public()
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// A modulus of the right length will do for a public key.
	rsaKey := func(bits, e int) crypto.PublicKey {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		return &rsa.PublicKey{N: n.Add(n, big.NewInt(12345)), E: e}
	}
	for name, test := range map[string]struct {
		key  crypto.PublicKey
		good bool
	}{
		"P-256":          {ec(elliptic.P256()), true},
		"P-384":          {ec(elliptic.P384()), true},
		"Ed25519":        {ed, true},
		"RSA 3072":       {rsaKey(3072, 65537), true},
		"RSA 4096":       {rsaKey(4096, 65537), true},
		"RSA 2048":       {rsaKey(2048, 65537), false},
		"RSA 16384":      {rsaKey(16384, 65537), false},
		"RSA exponent 3": {rsaKey(3072, 3), false},
		"P-521":          {ec(elliptic.P521()), false},
		"P-224":          {ec(elliptic.P224()), false},
	} {
		g := testGrant(t)
		g.PublicKey = marshalSPKI(t, test.key)
		out, err := issue(c.Authority, g)
		if test.good {
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			leaf := parse(t, out.DER)
			if err := verifyChain(c.Authority, leaf, x509.ExtKeyUsageClientAuth, ""); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if who, err := c.Identify(leaf, clock); err != nil || who.Key != imprint.KeyIDOf(g.PublicKey) {
				t.Errorf("%s: %v %v", name, who, err)
			}
		} else if imprint.KindOf(err) != imprint.Invalid || imprint.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIssueRefuses(t *testing.T) {
	t.Parallel()
	c := newTestCA(t, testProfile())
	for name, test := range map[string]struct {
		change func(*imprint.Grant)
		kind   imprint.Kind
	}{
		"another tenant":       {func(g *imprint.Grant) { g.Tenant = "other" }, imprint.Invalid},
		"profile":              {func(g *imprint.Grant) { g.Profile = "router" }, imprint.Invalid},
		"name":                 {func(g *imprint.Grant) { g.Name = "Web 1" }, imprint.Invalid},
		"instance":             {func(g *imprint.Grant) { g.Instance = "../1" }, imprint.Invalid},
		"no serial":            {func(g *imprint.Grant) { g.Serial = "" }, imprint.Invalid},
		"serial 0":             {func(g *imprint.Grant) { g.Serial = "0" }, imprint.Invalid},
		"serial not canonical": {func(g *imprint.Grant) { g.Serial = "0a" }, imprint.Invalid},
		"serial of 21 bytes":   {func(g *imprint.Grant) { g.Serial = imprint.Serial("f" + strings.Repeat("0", 39)) }, imprint.Invalid},
		"generation 0":         {func(g *imprint.Grant) { g.Generation = 0 }, imprint.Invalid},
		"tier 4":               {func(g *imprint.Grant) { g.Tier = 4 }, imprint.Invalid},
		"channel":              {func(g *imprint.Grant) { g.Channel = "" }, imprint.Invalid},
		"outside the domains":  {func(g *imprint.Grant) { g.DNSNames = []string{"web-1.acme.example.org"} }, imprint.Denied},
		"suffix of a label":    {func(g *imprint.Grant) { g.DNSNames = []string{"web-1acme.example"} }, imprint.Denied},
		"wildcard":             {func(g *imprint.Grant) { g.DNSNames = []string{"*.acme.example"} }, imprint.Invalid},
		"endpoint's name":      {func(g *imprint.Grant) { g.DNSNames = []string{"checkin.acme.example"} }, imprint.Denied},
		"loopback name":        {func(g *imprint.Grant) { g.DNSNames = []string{"localhost"} }, imprint.Denied},
		"too many names":       {func(g *imprint.Grant) { g.DNSNames = make([]string, imprint.MaxNames+1) }, imprint.Invalid},
		"outside the networks": {func(g *imprint.Grant) { g.IPs = []netip.Addr{netip.MustParseAddr("10.2.0.1")} }, imprint.Denied},
		"loopback":             {func(g *imprint.Grant) { g.IPs = []netip.Addr{netip.MustParseAddr("127.0.0.1")} }, imprint.Denied},
		"mapped address":       {func(g *imprint.Grant) { g.IPs = []netip.Addr{netip.MustParseAddr("::ffff:10.1.0.1")} }, imprint.Invalid},
		"zone":                 {func(g *imprint.Grant) { g.IPs = []netip.Addr{netip.MustParseAddr("fd00:1::1%eth0")} }, imprint.Invalid},
		"no key":               {func(g *imprint.Grant) { g.PublicKey = nil }, imprint.Invalid},
		"bytes after the key":  {func(g *imprint.Grant) { g.PublicKey = append(g.PublicKey, 0) }, imprint.Invalid},
		"SSH key with options": {func(g *imprint.Grant) { g.SSHHost = `command="sh" ` + testSSHHost }, imprint.Invalid},
		"two SSH keys":         {func(g *imprint.Grant) { g.SSHHost = testSSHHost + "\n" + testSSHHost }, imprint.Invalid},
		"no SSH key":           {func(g *imprint.Grant) { g.SSHHost = "ssh-ed25519 AAAA" }, imprint.Invalid},
		"clock in 1970": {func(g *imprint.Grant) {
			g.NotBefore, g.NotAfter = time.Unix(0, 0), time.Unix(0, 0).Add(7*24*time.Hour)
		}, imprint.Conflict},
		"clock in 2100": {func(g *imprint.Grant) {
			g.NotBefore = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
			g.NotAfter = g.NotBefore.Add(7 * 24 * time.Hour)
		}, imprint.Conflict},
		"no time at all": {func(g *imprint.Grant) { g.NotAfter = g.NotBefore }, imprint.Invalid},
	} {
		g := testGrant(t)
		test.change(&g)
		if _, err := issue(c.Authority, g); imprint.KindOf(err) != test.kind {
			t.Errorf("%s: %v (%v)", name, err, imprint.KindOf(err))
		}
	}
	if len(c.log.entries) != 0 {
		t.Errorf("%d refused grants are in the log", len(c.log.entries))
	}
}

// A certificate is not given out if it could not be logged.
func TestIssueNeedsTheLog(t *testing.T) {
	t.Parallel()
	c := newTestCA(t, testProfile())
	l := newTestLog(t)
	c.Authority.log = l
	l.close(t)
	if out, err := issue(c.Authority, testGrant(t)); imprint.KindOf(err) != imprint.Unavailable || out.DER != nil {
		t.Errorf("%v, %d bytes", err, len(out.DER))
	}
	if _, err := Open(c.material, c.keys, nil); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("without a log: %v", err)
	}
}

func TestIssueClampsToTheCA(t *testing.T) {
	t.Parallel()
	c := newTestCA(t, testProfile())
	g := testGrant(t)
	g.NotBefore, g.NotAfter = c.Expires().Add(-time.Hour), c.Expires().Add(time.Hour)
	out, err := issue(c.Authority, g)
	if err != nil || !out.NotAfter.Equal(c.Expires()) || !parse(t, out.DER).NotAfter.Equal(c.Expires()) {
		t.Error(out.NotAfter, err)
	}
}

// The constraints are real: verifiers that trust only the root refuse what this
// CA signs outside them, although the extension is not critical.
func TestNameConstraintsHold(t *testing.T) {
	t.Parallel()
	c := newTestCA(t, testProfile())
	if c.issuing[0].PermittedDNSDomainsCritical {
		t.Error("strongSwan 5.9 refuses a CA with critical constraints")
	}
	uri := func(s string) []*url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	for name, test := range map[string]struct {
		leaf x509.Certificate
		good bool
	}{
		"inside":       {x509.Certificate{DNSNames: []string{"x.acme.example"}, IPAddresses: []net.IP{net.IPv4(10, 1, 0, 1).To4()}}, true},
		"DNS":          {x509.Certificate{DNSNames: []string{"bank.example"}}, false},
		"IPv4":         {x509.Certificate{IPAddresses: []net.IP{net.IPv4(10, 2, 0, 1).To4()}}, false},
		"IPv6":         {x509.Certificate{IPAddresses: []net.IP{net.ParseIP("2001:db8::1")}}, false},
		"trust domain": {x509.Certificate{URIs: uri("spiffe://other.example/tenant/acme")}, false},
	} {
		leaf := test.leaf
		leaf.SerialNumber, leaf.NotBefore, leaf.NotAfter = big.NewInt(1), clock.Add(-time.Hour), clock.Add(time.Hour)
		leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		der, err := x509.CreateCertificate(rand.Reader, &leaf, c.issuing[0], newKey(t).Public(), c.keys.Issuing)
		if err != nil {
			t.Fatal(err)
		}
		signed := parse(t, der)
		err = verifyChain(c.Authority, signed, x509.ExtKeyUsageClientAuth, "")
		var invalid x509.CertificateInvalidError
		if test.good && err != nil || !test.good && !(errors.As(err, &invalid) && invalid.Reason == x509.CANotAuthorizedForThisName) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := c.Identify(signed, clock); !test.good && !errors.As(err, &invalid) {
			t.Errorf("%s: identified: %v", name, err)
		}
	}
}

func BenchmarkIssue(b *testing.B) {
	c := newTestCA(b, testProfile())
	c.Authority.log = discard{}
	for _, bench := range []struct{ name, ssh string }{{"TLS", ""}, {"TLS and SSH", testSSHHost}} {
		b.Run(bench.name, func(b *testing.B) {
			g := testGrant(b)
			g.SSHHost = bench.ssh
			b.ReportAllocs()
			for b.Loop() {
				if _, err := issue(c.Authority, g); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
