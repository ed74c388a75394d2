package ca

import (
	"time"

	"imprint"
)

// maxCommonName is ub-common-name (RFC 5280 appendix A.1).
const maxCommonName = 64

// machineLeaf checks g and returns the certificate to sign for it.
func (a *Authority) machineLeaf(g *imprint.Grant) (*leaf, error) {
	bad := func(format string, args ...any) (*leaf, error) {
		return nil, imprint.Errorf(imprint.Invalid, "issue", "certificate for "+string(g.Name), format, args...)
	}
	m := &a.material
	if g.Tenant != m.Tenant.Name {
		return bad("it is for tenant %s; this CA belongs to tenant %s", g.Tenant, m.Tenant.Name)
	}
	if g.Profile != "" && g.Profile != defaultProfile {
		return nil, imprint.Errorf(imprint.Invalid, "issue", "certificate for "+string(g.Name), "unknown profile %q", g.Profile).
			WithHint("the only profile is %q", defaultProfile)
	}
	if err := imprint.CheckLabel("instance name", string(g.Name)); err != nil {
		return nil, err
	}
	if !imprint.ValidID(string(g.Instance)) {
		return bad("instance %q is not an identifier", g.Instance)
	}
	serial, ok := g.Serial.Int()
	if !ok || imprint.SerialOf(serial) != g.Serial || serial.BitLen() > 159 {
		return bad("serial %q is not a positive number of at most 159 bits in lower-case hexadecimal", g.Serial)
	}
	if err := m.checkMachineNames(g); err != nil {
		return nil, err
	}
	pub, err := ParsePublicKey(g.PublicKey)
	if err != nil {
		return nil, err
	}
	skid, err := keyIdentifier(g.PublicKey)
	if err != nil {
		return nil, err
	}
	enrolment, err := Enrolment{g.Tier, g.Generation, g.Channel}.Encode()
	if err != nil {
		return nil, err
	}
	notBefore, notAfter, err := a.clamp(g.NotBefore, g.NotAfter)
	if err != nil {
		return nil, err
	}
	return &leaf{
		serial: serial, commonName: commonName(g), notBefore: notBefore, notAfter: notAfter,
		publicKey: pub, spki: g.PublicKey, keyID: skid,
		dnsNames: g.DNSNames, ips: g.IPs, uri: URI(m.TrustDomain, g.Tenant, g.Instance, g.Generation),
		extension: enrolment,
	}, nil
}

// commonName is the first DNS name if it fits, else the instance's name. It is
// for people: verifiers look at the subject alternative names.
func commonName(g *imprint.Grant) string {
	if len(g.DNSNames) > 0 && len(g.DNSNames[0]) <= maxCommonName {
		return g.DNSNames[0]
	}
	return string(g.Name)
}

// clamp cuts a validity to the issuing CA's. A validity wholly outside it means
// that the clock of whoever decided is wrong, as after a start in 1970.
func (a *Authority) clamp(notBefore, notAfter time.Time) (time.Time, time.Time, error) {
	ca := a.issuing[0]
	notBefore, notAfter = notBefore.UTC().Truncate(time.Second), notAfter.UTC().Truncate(time.Second)
	refuse := func(kind imprint.Kind, hint, format string, args ...any) (time.Time, time.Time, error) {
		return time.Time{}, time.Time{}, imprint.Errorf(kind, "issue", "certificate", format, args...).WithHint("%s", hint)
	}
	switch {
	case !notBefore.Before(notAfter):
		return refuse(imprint.Invalid, "check the certificate lifetime", "valid from %s to %s is no time at all", stamp(notBefore), stamp(notAfter))
	case !notAfter.After(ca.NotBefore):
		return refuse(imprint.Conflict, "set the server's clock", "valid until %s, before the CA's own start at %s", stamp(notAfter), stamp(ca.NotBefore))
	case !notBefore.Before(ca.NotAfter):
		return refuse(imprint.Conflict, "set the server's clock, or reissue the issuing CA with the root key", "valid from %s, after the CA's own end at %s", stamp(notBefore), stamp(ca.NotAfter))
	}
	if notBefore.Before(ca.NotBefore) {
		notBefore = ca.NotBefore
	}
	if notAfter.After(ca.NotAfter) {
		notAfter = ca.NotAfter
	}
	return notBefore, notAfter, nil
}
