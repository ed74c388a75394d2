package ca

import (
	"crypto/x509"
	"strconv"
	"strings"
	"time"

	"imprint"
)

// maxURI is the length limit of a SPIFFE ID in bytes (SPIFFE-ID section 2.3).
const maxURI = 2048

// URI returns the name of one generation of a machine in its certificates.
func URI(trustDomain string, tenant imprint.TenantName, id imprint.InstanceID, gen imprint.Generation) string {
	return "spiffe://" + trustDomain + "/tenant/" + string(tenant) + "/instance/" + string(id) +
		"/generation/" + strconv.FormatUint(uint64(gen), 10)
}

// ParseURI reads what [URI] writes. It fills in tenant, instance and generation
// of the identity and fails with kind [imprint.Invalid].
func ParseURI(uri string) (trustDomain string, who imprint.Identity, err error) {
	bad := func(why string) (string, imprint.Identity, error) {
		return "", imprint.Identity{}, imprint.Errorf(imprint.Invalid, "parse", "identity URI", "%s", why)
	}
	if len(uri) > maxURI {
		return bad("too long")
	}
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	if !ok {
		return bad("not a SPIFFE ID")
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 7 || parts[1] != "tenant" || parts[3] != "instance" || parts[5] != "generation" {
		return bad("not of the form spiffe://domain/tenant/name/instance/id/generation/number")
	}
	gen, err := strconv.ParseUint(parts[6], 10, 32)
	if err != nil || gen == 0 {
		return bad("generation is not a number from 1")
	}
	if err := imprint.CheckDNSName("trust domain", parts[0]); err != nil {
		return "", imprint.Identity{}, err
	}
	if err := imprint.CheckLabel("tenant name", parts[2]); err != nil {
		return "", imprint.Identity{}, err
	}
	if !imprint.ValidID(parts[4]) {
		return bad("instance is not an identifier")
	}
	who = imprint.Identity{
		Tenant:     imprint.TenantName(parts[2]),
		Instance:   imprint.InstanceID(parts[4]),
		Generation: imprint.Generation(gen),
	}
	if URI(parts[0], who.Tenant, who.Instance, who.Generation) != uri { // "007" is not a second name for 7
		return bad("not canonical")
	}
	return parts[0], who, nil
}

// Identify returns whom leaf names, after checking that one of the tenant's
// issuing CAs signed it for client authentication, that it is valid at now, and
// that its URI and its extension agree. It does not know what was revoked. It
// fails with kind [imprint.Unauthorized].
func (a *Authority) Identify(leaf *x509.Certificate, now time.Time) (imprint.Identity, error) {
	refuse := func(format string, args ...any) (imprint.Identity, error) {
		return imprint.Identity{}, imprint.Errorf(imprint.Unauthorized, "identify", "certificate "+string(imprint.SerialOf(leaf.SerialNumber)), format, args...)
	}
	// The issuing CAs were checked against the root by Open, so that one
	// signature is left to verify. crypto/x509 applies the name constraints of
	// roots as well.
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:       a.issuers,
		CurrentTime: now,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return refuse("%w", err)
	}
	if leaf.IsCA || len(leaf.URIs) != 1 {
		return refuse("not a machine's certificate")
	}
	domain, who, err := ParseURI(leaf.URIs[0].String())
	if err != nil {
		return refuse("%w", err)
	}
	if domain != a.material.TrustDomain || who.Tenant != a.material.Tenant.Name {
		return refuse("it names tenant %s of %s; this is tenant %s of %s", who.Tenant, domain, a.material.Tenant.Name, a.material.TrustDomain)
	}
	enrolment, err := enrolmentOf(leaf)
	if err != nil {
		return refuse("%w", err)
	}
	if enrolment.Generation != who.Generation {
		return refuse("generation %d in its URI, %d in its extension", who.Generation, enrolment.Generation)
	}
	who.Tier = enrolment.Tier
	who.Serial = imprint.SerialOf(leaf.SerialNumber)
	who.Key = imprint.KeyIDOf(leaf.RawSubjectPublicKeyInfo)
	return who, nil
}

// enrolmentOf finds and reads the enrolment extension of a leaf.
func enrolmentOf(leaf *x509.Certificate) (Enrolment, error) {
	for _, ext := range leaf.Extensions {
		if ext.Id.Equal(OIDEnrolment()) {
			return DecodeEnrolment(ext.Value)
		}
	}
	return Enrolment{}, imprint.Errorf(imprint.Invalid, "decode", "enrolment extension", "there is none")
}
