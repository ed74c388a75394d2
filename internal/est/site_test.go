package est_test

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"imprint"
)

// site is a small imprint in memory: it implements every interface that the
// endpoint consumes, with the behaviour that the contracts promise.
type site struct {
	mu        sync.Mutex // guards all below
	cas       map[imprint.TenantName]*authority
	instances map[imprint.InstanceID]*imprint.Instance
	values    map[string]string // instance/name → private or secret value
	reports   []imprint.Report
	broken    error // what every operation fails with, if set
	order     []string
}

// authority is a tenant's CA: one self-signed root.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var oidIdentity = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1} // only here

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return &authority{parse(t, sign(t, tmpl, tmpl, key.Public(), key)), key}
}

// server returns a server certificate for names.
func (a *authority) server(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	return tls.Certificate{Certificate: [][]byte{sign(t, tmpl, a.cert, key.Public(), a.key)}, PrivateKey: key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, tmpl, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newSite(t testing.TB, tenants ...imprint.TenantName) *site {
	s := &site{
		cas: map[imprint.TenantName]*authority{}, instances: map[imprint.InstanceID]*imprint.Instance{},
		values: map[string]string{},
	}
	for _, name := range tenants {
		s.cas[name] = newAuthority(t, string(name))
	}
	return s
}

// reserve adds an instance and returns its one-time token.
func (s *site) reserve(tenant imprint.TenantName, name imprint.InstanceName, change func(*imprint.Instance)) (*imprint.Instance, string) {
	token := hex.EncodeToString([]byte(name)) + "-token"
	sum := sha256.Sum256([]byte(token))
	inst := &imprint.Instance{
		ID: imprint.NewInstanceID(), Generation: 1,
		Spec:      imprint.Spec{Name: name, Tenant: tenant, DNSNames: []string{string(name) + ".example.net"}},
		Enrolment: imprint.Enrolment{State: imprint.Reserved, TokenHash: imprint.Digest(hex.EncodeToString(sum[:]))},
	}
	if change != nil {
		change(inst)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[inst.ID] = inst
	return inst, token
}

// change edits an instance as an operator would.
func (s *site) change(id imprint.InstanceID, f func(*imprint.Instance)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.instances[id])
}

// forget deletes an instance.
func (s *site) forget(id imprint.InstanceID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.instances, id)
}

func (s *site) get(id imprint.InstanceID) imprint.Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *s.instances[id]
}

func (s *site) Enrol(_ context.Context, sub imprint.Submission) (*imprint.Instance, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(kind imprint.Kind, why string) (*imprint.Instance, error) {
		return nil, imprint.Errorf(kind, "enrol", string(sub.Instance), "%s", why)
	}
	inst := s.instances[sub.Instance]
	switch {
	case s.broken != nil:
		return nil, s.broken
	case inst == nil, sub.Tenant != inst.Spec.Tenant, sub.Profile != "" && sub.Profile != cmp.Or(inst.Spec.Policy.Profile, "machine"):
		return fail(imprint.NotFound, "no such instance")
	case sub.Channel != imprint.NetworkEST || sub.Witness != "":
		return fail(imprint.Internal, "not the endpoint's submission")
	case sub.Generation != 0 && sub.Generation != inst.Generation:
		return fail(imprint.Conflict, "stale generation")
	}
	req, err := x509.ParseCertificateRequest(sub.CSR)
	if err != nil {
		return fail(imprint.Invalid, "not a request")
	}
	e := &inst.Enrolment
	key := imprint.KeyIDOf(req.RawSubjectPublicKeyInfo)
	renewal := sub.Token.IsZero() && e.State.Enrolled() && e.Claim != nil && e.Claim.Key == key
	byHand := sub.Token.IsZero() && inst.Spec.Policy.Approval
	if imprint.DigestOf(sub.Token.Reveal()) != e.TokenHash && !renewal && !byHand {
		return fail(imprint.Unauthorized, "wrong token")
	}
	if req.CheckSignature() != nil {
		return fail(imprint.Invalid, "broken signature")
	}
	over := func(kind imprint.Kind, why string) (*imprint.Instance, error) {
		_, err := fail(kind, why)
		c := *inst
		return &c, err
	}
	switch {
	case e.State == imprint.InDispute:
		return over(imprint.Contested, "contested")
	case !e.State.Open():
		return over(imprint.Conflict, "state "+string(e.State))
	case e.Claim != nil && e.Claim.Key != key:
		e.State = imprint.InDispute
		return over(imprint.Contested, "second key")
	case e.Claim == nil:
		e.State, e.Claim = imprint.Claimed, &imprint.Claim{Key: key, NeedsApproval: inst.Spec.Policy.Approval}
	}
	if e.Claim.NeedsApproval {
		return fail(imprint.Pending, "wait for approval")
	}
	if e.Certificate == nil || renewal {
		ca, serial := s.cas[inst.Spec.Tenant], imprint.NewSerial()
		n, _ := serial.Int()
		who, err := asn1.Marshal([]string{string(inst.Spec.Tenant), string(inst.ID)})
		if err != nil {
			return nil, err
		}
		tmpl := &x509.Certificate{
			SerialNumber: n, DNSNames: inst.Spec.DNSNames,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			ExtraExtensions: []pkix.Extension{{Id: oidIdentity, Value: who}},
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, req.PublicKey, ca.key)
		if err != nil {
			return nil, err
		}
		e.Certificate = &imprint.Certificate{Serial: serial, DER: der}
		if !e.State.Enrolled() {
			e.State = imprint.Issued
		}
	}
	c := *inst
	return &c, nil
}

func (s *site) Report(_ context.Context, r imprint.Report) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	s.reports = append(s.reports, r)
	s.order = append(s.order, "report "+string(r.Kind)+" "+r.Name)
	e := &s.instances[r.Instance].Enrolment
	switch r.Kind {
	case imprint.ReportConfirmed:
		if e.Certificate.Serial != r.Serial {
			return imprint.Errorf(imprint.Conflict, "confirm", string(r.Instance), "serial %s", r.Serial)
		}
		e.State = imprint.Confirmed
	case imprint.ReportReady:
		e.State = imprint.Closed
	}
	return nil
}

func (s *site) Authenticate(_ context.Context, id imprint.Identity) (*imprint.Instance, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	inst := s.instances[id.Instance]
	if s.broken != nil {
		return nil, s.broken
	}
	if inst == nil {
		return nil, imprint.Errorf(imprint.NotFound, "authenticate", string(id.Instance), "no such instance")
	}
	if claim := inst.Enrolment.Claim; !inst.Enrolment.State.Open() && claim != nil && claim.Key == id.Key && id.Generation == inst.Generation {
		c := *inst
		return &c, imprint.Errorf(imprint.Conflict, "authenticate", string(id.Instance), "state %s", inst.Enrolment.State)
	}
	if !inst.Enrolment.State.Open() || id.Generation != inst.Generation ||
		inst.Enrolment.Certificate == nil || inst.Enrolment.Certificate.Serial != id.Serial {
		return nil, imprint.Errorf(imprint.Denied, "authenticate", string(id.Instance), "serial %s is not alive", id.Serial)
	}
	c := *inst
	return &c, nil
}

// CertifySSHHost certifies a key until the machine has had two others.
func (s *site) CertifySSHHost(ctx context.Context, id imprint.Identity, line string) (*imprint.Instance, error) {
	inst, err := s.Authenticate(ctx, id)
	if err != nil {
		return inst, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &s.instances[id.Instance].Enrolment
	line = strings.TrimSpace(line)
	switch {
	case !strings.HasPrefix(line, "ssh-ed25519 "):
		return nil, imprint.Errorf(imprint.Invalid, "certify", string(id.Instance), "not a key")
	case e.Claim.SSHHost != line && len(e.Earlier) == 2:
		return inst, imprint.Errorf(imprint.Conflict, "certify", string(id.Instance), "too many")
	case e.Claim.SSHHost != line:
		e.Earlier = append(e.Earlier, imprint.Lifespan{})
		e.Claim.SSHHost, e.Certificate.SSH = line, "certificate for "+line
	}
	c := *s.instances[id.Instance]
	return &c, nil
}

func (s *site) Lookup(_ context.Context, tenant imprint.TenantName, name imprint.InstanceName) (imprint.InstanceID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, inst := range s.instances {
		if inst.Spec.Tenant == tenant && inst.Spec.Name == name {
			return inst.ID, nil
		}
	}
	return "", imprint.Errorf(imprint.NotFound, "get", string(name), "no such instance")
}

func (s *site) Bundle(_ context.Context, tenant imprint.TenantName) ([]*x509.Certificate, error) {
	if s.broken != nil {
		return nil, s.broken
	}
	return []*x509.Certificate{s.cas[tenant].cert}, nil
}

func (s *site) CRL(_ context.Context, tenant imprint.TenantName) ([]byte, error) {
	ca := s.cas[tenant]
	return x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
	}, ca.cert, ca.key)
}

func (s *site) Identify(leaf *x509.Certificate) (imprint.Identity, error) {
	for _, ext := range leaf.Extensions {
		var who []string
		if !ext.Id.Equal(oidIdentity) {
			continue
		}
		if _, err := asn1.Unmarshal(ext.Value, &who); err != nil {
			return imprint.Identity{}, err
		}
		return imprint.Identity{
			Tenant: imprint.TenantName(who[0]), Instance: imprint.InstanceID(who[1]), Generation: 1,
			Serial: imprint.SerialOf(leaf.SerialNumber), Key: imprint.KeyIDOf(leaf.RawSubjectPublicKeyInfo),
		}, nil
	}
	return imprint.Identity{}, imprint.Errorf(imprint.Denied, "identify", "certificate", "not a machine's")
}

func (s *site) Value(_ context.Context, inst *imprint.Instance, name string) (imprint.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order = append(s.order, "value "+name)
	if v, ok := s.values[string(inst.ID)+"/"+name]; ok {
		return imprint.NewSecret([]byte(v)), nil
	}
	return imprint.Secret{}, imprint.Errorf(imprint.NotFound, "read", name, "not at hand")
}

func (s *site) Held(_ context.Context, inst *imprint.Instance) (map[string]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := map[string]bool{}
	for k := range s.values {
		if name, ok := strings.CutPrefix(k, string(inst.ID)+"/"); ok {
			held[name] = true
		}
	}
	return held, nil
}
