package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
)

// The root key is needed to make and to reissue an issuing CA, and for nothing else.
func TestReissue(t *testing.T) {
	t.Parallel()
	c := newTestCA(t, testProfile())
	before, err := issue(c.Authority, testGrant(t))
	if err != nil {
		t.Fatal(err)
	}

	p := c.material.Profile
	p.Tenant.Domains = append(p.Tenant.Domains, "acme.test")
	changed := c.material
	changed.Profile = p
	if _, err := Open(changed, c.keys, c.log); imprint.KindOf(err) != imprint.Conflict || imprint.HintOf(err) == "" {
		t.Errorf("domains changed, not reissued: %v", err)
	}
	if _, err := Reissue(c.material, p, newKey(t), c.keys.Issuing.Public(), clock); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("another root key: %v", err)
	}
	if _, err := Reissue(c.material, p, c.root, c.keys.Issuing.Public(), time.Unix(0, 0)); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("clock in 1970: %v", err)
	}

	later := clock.Add(24 * time.Hour)
	key := newKey(t)
	next, err := Reissue(c.material, p, c.root, key.Public(), later)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Open(next, Keys{Issuing: key, SSH: c.keys.SSH}, c.log)
	if err != nil {
		t.Fatal(err)
	}
	g := testGrant(t)
	g.DNSNames = []string{"web-1.acme.test"}
	after, err := issue(a, g)
	if err != nil {
		t.Fatal(err)
	}
	for what, out := range map[string]imprint.Certificate{"before": before, "after": after} {
		leaf := parse(t, out.DER)
		if err := verifyChain(a, leaf, x509.ExtKeyUsageServerAuth, ""); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := a.Identify(leaf, clock); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	next.Issuing = next.Issuing[:1] // the rollover is over
	if a, err = Open(next, Keys{Issuing: key, SSH: c.keys.SSH}, c.log); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Identify(parse(t, before.DER), clock); imprint.KindOf(err) != imprint.Unauthorized {
		t.Errorf("an issuing CA that was cut off: %v", err)
	}
}

func TestMaterialSurvivesJSON(t *testing.T) {
	t.Parallel()
	c := newTestCA(t, testProfile())
	data, err := json.Marshal(c.material)
	if err != nil {
		t.Fatal(err)
	}
	var m Material
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(m, c.keys, c.log); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	c, other := newTestCA(t, testProfile()), newTestCA(t, testProfile())
	free := *c.issuing[0] // of constraints
	free.PermittedDNSDomains, free.PermittedURIDomains, free.PermittedIPRanges, free.ExtraExtensions = nil, nil, nil, nil
	unconstrained, err := x509.CreateCertificate(rand.Reader, &free, c.Authority.root, free.PublicKey, c.root)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*Material, *Keys)
		kind   imprint.Kind
	}{
		"another issuing key":    {func(_ *Material, k *Keys) { k.Issuing = newKey(t) }, imprint.Conflict},
		"another SSH key":        {func(_ *Material, k *Keys) { k.SSH = newKey(t) }, imprint.Conflict},
		"another root":           {func(m *Material, _ *Keys) { m.Root = other.material.Root }, imprint.Invalid},
		"another issuing CA":     {func(m *Material, _ *Keys) { m.Issuing = other.material.Issuing }, imprint.Invalid},
		"a leaf as issuing CA":   {func(m *Material, _ *Keys) { m.Issuing = [][]byte{m.Root} }, imprint.Invalid},
		"an unconstrained CA":    {func(m *Material, _ *Keys) { m.Issuing = [][]byte{m.Issuing[0], unconstrained} }, imprint.Invalid},
		"no issuing CA":          {func(m *Material, _ *Keys) { m.Issuing = nil }, imprint.Invalid},
		"not a certificate":      {func(m *Material, _ *Keys) { m.Root = []byte("x") }, imprint.Invalid},
		"an endpoint more":       {func(m *Material, _ *Keys) { m.Endpoints = append(slices.Clone(m.Endpoints), "new.example") }, imprint.Conflict},
		"another trust domain":   {func(m *Material, _ *Keys) { m.TrustDomain = "other.example" }, imprint.Conflict},
		"bad CRL address":        {func(m *Material, _ *Keys) { m.CRL = "file:///etc/passwd" }, imprint.Invalid},
		"tenant without domains": {func(m *Material, _ *Keys) { m.Tenant.Domains = nil }, imprint.Invalid},
	} {
		m, keys := c.material, c.keys
		test.change(&m, &keys)
		if _, err := Open(m, keys, c.log); imprint.KindOf(err) != test.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIdentifyRefuses(t *testing.T) {
	t.Parallel()
	c, other := newTestCA(t, testProfile()), newTestCA(t, testProfile())
	good, err := issue(c.Authority, testGrant(t))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := issue(other.Authority, testGrant(t))
	if err != nil {
		t.Fatal(err)
	}
	endpoint, err := c.IssueEndpoint(t.Context(), testEndpoint(t))
	if err != nil {
		t.Fatal(err)
	}
	// What machineLeaf would never make.
	g := testGrant(t)
	disagree, err := c.machineLeaf(&g)
	if err != nil {
		t.Fatal(err)
	}
	if disagree.extension, err = (Enrolment{imprint.TierHost, 4, imprint.File}).Encode(); err != nil {
		t.Fatal(err)
	}
	g.Serial = imprint.NewSerial()
	tenant, err := c.machineLeaf(&g)
	if err != nil {
		t.Fatal(err)
	}
	bare := *tenant
	bare.extension = pkix.Extension{}
	tenant.uri = "spiffe://imprint.example/tenant/other/instance/" + string(g.Instance) + "/generation/3"
	sign := func(leaf *leaf) []byte {
		der, err := c.sign(leaf)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	for name, test := range map[string]struct {
		der []byte
		now time.Time
	}{
		"another CA of the same tenant name": {foreign.DER, clock},
		"too late":                           {good.DER, clock.Add(8 * 24 * time.Hour)},
		"too early":                          {good.DER, clock.Add(-2 * time.Hour)},
		"the endpoint's":                     {endpoint, clock},
		"the issuing CA's":                   {c.Issuing(), clock},
		"URI and extension disagree":         {sign(disagree), clock},
		"another tenant's URI":               {sign(tenant), clock},
		"no extension":                       {sign(&bare), clock},
	} {
		if who, err := c.Identify(parse(t, test.der), test.now); imprint.KindOf(err) != imprint.Unauthorized || who != (imprint.Identity{}) {
			t.Errorf("%s: %v, %v", name, who, err)
		}
	}
}

func testEndpoint(t testing.TB) Endpoint {
	return Endpoint{PublicKey: newKey(t).Public(), Serial: imprint.NewSerial(), NotBefore: clock.Add(-time.Hour), NotAfter: clock.Add(24 * time.Hour)}
}

func TestIssueEndpoint(t *testing.T) {
	t.Parallel()
	c := newTestCA(t, testProfile())
	der, err := c.IssueEndpoint(t.Context(), testEndpoint(t))
	if err != nil {
		t.Fatal(err)
	}
	leaf := parse(t, der)
	for _, name := range []string{"checkin.acme.example", "imprint.infra.example", "localhost", "192.0.2.7", "127.0.0.1", "::1"} {
		if err := verifyChain(c.Authority, leaf, x509.ExtKeyUsageServerAuth, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := verifyChain(c.Authority, leaf, x509.ExtKeyUsageClientAuth, ""); err == nil {
		t.Error("it is good for clients too")
	}
	data, err := c.log.entries[0].Encode()
	if err != nil {
		t.Fatal(err)
	}
	if e, err := DecodeEntry(data); err != nil || e.Kind != EntryEndpoint {
		t.Error(e, err)
	}
}

func TestCRL(t *testing.T) {
	t.Parallel()
	c := newTestCA(t, testProfile())
	day := 24 * time.Hour
	revoked := []imprint.Revocation{
		{Serial: "ff", At: clock.Add(-time.Hour), NotAfter: clock.Add(day), Reason: 1},
		{Serial: "2", At: clock.Add(-time.Hour), NotAfter: clock.Add(-time.Hour), Reason: 4}, // just ended: once more
		{Serial: "3", At: clock.Add(-9 * day), NotAfter: clock.Add(-2 * day), Reason: 4},     // was on a list after its end
		{Serial: "ff", At: clock, NotAfter: clock.Add(day), Reason: 0},                       // twice
	}
	der, err := c.CRL(CRLRequest{Number: 7, ThisUpdate: clock, NextUpdate: clock.Add(day), Revocations: revoked})
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := list.CheckSignatureFrom(c.issuing[0]); err != nil {
		t.Error(err)
	}
	if list.Number.Cmp(big.NewInt(7)) != 0 || !list.NextUpdate.Equal(clock.Add(day)) {
		t.Error(list.Number, list.NextUpdate)
	}
	var serials []imprint.Serial
	for _, e := range list.RevokedCertificateEntries {
		serials = append(serials, imprint.SerialOf(e.SerialNumber))
	}
	if !slices.Equal(serials, []imprint.Serial{"2", "ff"}) || list.RevokedCertificateEntries[1].ReasonCode != 1 {
		t.Error(serials, list.RevokedCertificateEntries)
	}
	for name, r := range map[string]CRLRequest{
		"reason":       {ThisUpdate: clock, NextUpdate: clock.Add(day), Revocations: []imprint.Revocation{{Serial: "1", NotAfter: clock, Reason: 7}}},
		"serial":       {ThisUpdate: clock, NextUpdate: clock.Add(day), Revocations: []imprint.Revocation{{Serial: "x", NotAfter: clock}}},
		"no next list": {ThisUpdate: clock, NextUpdate: clock},
	} {
		if _, err := c.CRL(r); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseKey(t *testing.T) {
	t.Parallel()
	if _, err := ParseKey(imprint.NewSecret([]byte("x"))); imprint.KindOf(err) != imprint.Invalid {
		t.Error(err)
	}
	var _ crypto.Signer = newKey(t)
}

func TestParseSSHHost(t *testing.T) {
	t.Parallel()
	public := func(key crypto.PublicKey) string {
		line, err := sshPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return line
	}
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := newTestCA(t, testProfile())
	out, err := issue(c.Authority, testGrant(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		line string
		good bool
	}{
		"Ed25519":        {testSSHHost, true},
		"ECDSA":          {public(newKey(t).Public()), true},
		"with a newline": {testSSHHost + "\n", true},
		"RSA 2048":       {public(weak.Public()), false},
		"a certificate":  {out.SSH, false},
		"too long":       {testSSHHost + strings.Repeat(" x", imprint.MaxSSHKeyLen), false},
		"empty":          {"", false},
	} {
		_, err := ParseSSHHost(test.line)
		if test.good && err != nil || !test.good && imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func BenchmarkIdentify(b *testing.B) {
	c := newTestCA(b, testProfile())
	out, err := issue(c.Authority, testGrant(b))
	if err != nil {
		b.Fatal(err)
	}
	leaf := parse(b, out.DER)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Identify(leaf, clock); err != nil {
			b.Fatal(err)
		}
	}
}
