package daemon

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"imprint"
	"imprint/internal/ca"
)

// Lifetimes of what the authorities make for the server itself.
const (
	endpointLifetime = 7 * 24 * time.Hour
	crlLifetime      = 24 * time.Hour
	crlRefresh       = time.Hour // a list is made anew this often even if nothing changed
	clockSkew        = time.Hour // backdating, for peers whose clock is behind
)

// revocations is where the store keeps what was revoked.
type revocations interface {
	Revocations(ctx context.Context, tenant imprint.TenantName) ([]imprint.Revocation, error)
}

// sealer opens and seals what only this server may read.
type sealer interface {
	Seal(value imprint.Secret, context string) ([]byte, error)
	Open(blob []byte, context string) (imprint.Secret, error)
	Rewrap(blob []byte, context string) (out []byte, changed bool, err error)
	// Reload looks whether another server changed the keys.
	Reload() error
}

// custody finds the keys that sign for a tenant.
type custody interface {
	// Keys returns the signers of doc's tenant, making them if it has none; what
	// it keeps sealed goes into doc. It fails with kind Unavailable if they are
	// elsewhere and cannot be reached.
	Keys(ctx context.Context, doc *caDocument) (ca.Keys, error)
}

// caDocument is what the store keeps of one tenant's authority. Keys are
// sealed; Root is nil once the root key was taken offline, and the others are
// nil if a signer process holds them.
type caDocument struct {
	Tenant   imprint.TenantName `json:"tenant"`
	Material ca.Material        `json:"material"`
	Root     []byte             `json:"rootKey,omitempty"`
	Issuing  []byte             `json:"issuingKey,omitempty"`
	SSH      []byte             `json:"sshKey,omitempty"`
}

// tenantsDocument lists the tenants that ever had an authority: their keys are
// sealed in the store also while the configuration does not name them.
const tenantsDocument = "ca"

func (d *caDocument) name() string { return tenantsDocument + "/" + string(d.Tenant) }

// sealContext says whose key a sealed blob is.
func (d *caDocument) sealContext(key string) string { return d.name() + "/" + key }

// authorities are the certificate authorities of all tenants.
type authorities struct {
	docs    documents
	revoked revocations
	keys    sealer
	roots   map[imprint.TenantName]imprint.Secret // brought along for this start, PEM
	custody custody
	log     ca.Appender
	logger  *slog.Logger
	now     func() time.Time

	mu       sync.RWMutex
	byTenant map[imprint.TenantName]*authority // guarded by mu
}

// authority is one tenant's, with the revocation list it signed last.
type authority struct {
	*ca.Authority
	doc *caDocument

	crlMu  sync.Mutex
	crl    []byte               // guarded by crlMu
	listed []imprint.Revocation // guarded by crlMu; what crl says
	made   time.Time            // guarded by crlMu
	number uint64               // guarded by crlMu
}

// open loads or creates the authority of every profile. Two servers that start
// on an empty cluster at once agree, because the document is written only once.
func (a *authorities) open(ctx context.Context, profiles []ca.Profile) error {
	for _, p := range profiles {
		if err := a.openTenant(ctx, p); err != nil {
			return imprint.Errorf(imprint.KindOf(err), "open", "CA of tenant "+string(p.Tenant.Name), "%w", err)
		}
	}
	return nil
}

func (a *authorities) openTenant(ctx context.Context, p ca.Profile) error {
	err := editDocument(ctx, a.docs, tenantsDocument, func(names *[]imprint.TenantName) (bool, error) {
		if slices.Contains(*names, p.Tenant.Name) {
			return false, nil
		}
		*names = append(*names, p.Tenant.Name)
		return true, nil
	})
	if err != nil {
		return err
	}
	for {
		doc, revision, err := a.document(ctx, p.Tenant.Name)
		switch {
		case imprint.KindOf(err) == imprint.NotFound:
			doc = &caDocument{Tenant: p.Tenant.Name}
			err = a.create(ctx, doc, p)
		case err == nil && !sameScope(doc.Material.Profile, p):
			a.logger.InfoContext(ctx, "certifying the issuing CA anew: the tenant's names changed", "tenant", p.Tenant.Name)
			err = a.reissue(ctx, doc, p, a.roots[p.Tenant.Name])
		case err == nil:
			doc.Material.CRL = p.CRL // goes into leaves only, so it needs no new CA
			return a.use(ctx, doc)
		}
		if err != nil {
			return err
		}
		// Written, by us or by another server: read what stands there now.
		err = writeDocument(ctx, a.docs, doc.name(), doc, revision)
		if err != nil && imprint.KindOf(err) != imprint.Conflict {
			return err
		}
	}
}

// document reads what the store has of a tenant's authority.
func (a *authorities) document(ctx context.Context, name imprint.TenantName) (*caDocument, int64, error) {
	doc := &caDocument{Tenant: name}
	revision, err := readDocument(ctx, a.docs, doc.name(), doc)
	return doc, revision, err
}

// reload opens a tenant's authority again after its document changed.
func (a *authorities) reload(ctx context.Context, name imprint.TenantName) error {
	doc, _, err := a.document(ctx, name)
	if err != nil {
		return err
	}
	return a.use(ctx, doc)
}

// create makes a new authority in doc.
func (a *authorities) create(ctx context.Context, doc *caDocument, p ca.Profile) error {
	keys, err := a.custody.Keys(ctx, doc)
	if err != nil {
		return err
	}
	rootKey, err := ca.GenerateKey()
	if err != nil {
		return err
	}
	root, err := ca.ParseKey(rootKey)
	if err != nil {
		return err
	}
	if doc.Root, err = a.keys.Seal(rootKey, doc.sealContext("root")); err != nil {
		return err
	}
	doc.Material, err = ca.Create(p, ca.CreateKeys{Root: root, Issuing: keys.Issuing.Public(), SSH: keys.SSH.Public()}, a.now())
	return err
}

// reissue certifies doc's issuing key for p under the root key, which is rootKey,
// PKCS #8 in PEM, or, if that is empty, the one in the store.
func (a *authorities) reissue(ctx context.Context, doc *caDocument, p ca.Profile, rootKey imprint.Secret) error {
	if rootKey.IsZero() {
		if doc.Root == nil {
			return imprint.Errorf(imprint.Denied, "certify", "issuing CA", "the tenant's names in the configuration changed, and the root key is offline").
				WithHint("restore the names, or bring the key once: imprint serve --root-key %s=FILE", doc.Tenant)
		}
		var err error
		if rootKey, err = a.keys.Open(doc.Root, doc.sealContext("root")); err != nil {
			return err
		}
	} else {
		block, _ := pem.Decode(rootKey.Reveal())
		if block == nil || block.Type != "PRIVATE KEY" {
			return imprint.Errorf(imprint.Invalid, "reissue", "CA of tenant "+string(doc.Tenant), "the root key is not PKCS #8 in PEM").
				WithHint("bring the file that imprint ca export-root wrote")
		}
		rootKey = imprint.NewSecret(block.Bytes)
	}
	root, err := ca.ParseKey(rootKey)
	if err != nil {
		return err
	}
	keys, err := a.custody.Keys(ctx, doc)
	if err != nil {
		return err
	}
	doc.Material, err = ca.Reissue(doc.Material, p, root, keys.Issuing.Public(), a.now())
	return err
}

func (a *authorities) use(ctx context.Context, doc *caDocument) error {
	if err := a.checkClock(ctx, doc); err != nil {
		return err
	}
	keys, err := a.custody.Keys(ctx, doc)
	if err != nil {
		return err
	}
	opened, err := ca.Open(doc.Material, keys, a.log)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byTenant == nil {
		a.byTenant = map[imprint.TenantName]*authority{}
	}
	a.byTenant[doc.Tenant] = &authority{Authority: opened, doc: doc}
	return nil
}

// checkClock refuses to work outside the root's life: the clock is wrong then,
// and reservations would expire and revocations be dropped by it. A clock that
// is only outside the issuing CA's life may be right.
func (a *authorities) checkClock(ctx context.Context, doc *caDocument) error {
	now := a.now()
	root, err := x509.ParseCertificate(doc.Material.Root)
	if err != nil {
		return imprint.Errorf(imprint.Internal, "read", "root of tenant "+string(doc.Tenant), "%w", err)
	}
	if now.Before(root.NotBefore) || now.After(root.NotAfter) {
		return imprint.Errorf(imprint.Unavailable, "use", "root of tenant "+string(doc.Tenant), "the clock says %s, and the root is valid from %s to %s",
			now.UTC().Format(time.DateTime), root.NotBefore.Format(time.DateTime), root.NotAfter.Format(time.DateTime)).
			WithHint("set this machine's clock; nothing was changed")
	}
	if len(doc.Material.Issuing) == 0 {
		return nil // ca.Open says so
	}
	issuing, err := x509.ParseCertificate(doc.Material.Issuing[0])
	if err != nil {
		return imprint.Errorf(imprint.Internal, "read", "issuing CA of tenant "+string(doc.Tenant), "%w", err)
	}
	if now.Before(issuing.NotBefore) || now.After(issuing.NotAfter) {
		a.logger.ErrorContext(ctx, "the issuing CA is not valid now: set the clock, or run imprint ca reissue", "tenant", doc.Tenant,
			"notBefore", issuing.NotBefore, "notAfter", issuing.NotAfter)
	}
	return nil
}

// sameScope reports whether a CA for have may issue all that want asks for.
func sameScope(have, want ca.Profile) bool {
	scope := func(p ca.Profile) any {
		return [...]any{p.Tenant.Name, append([]string{}, p.Tenant.Domains...), p.Tenant.Networks, p.Tenant.CheckIn, p.TrustDomain}
	}
	if !reflect.DeepEqual(scope(have), scope(want)) {
		return false
	}
	for _, e := range want.Endpoints {
		if !slices.Contains(have.Endpoints, e) {
			return false
		}
	}
	return true
}

func (a *authorities) tenant(name imprint.TenantName) (*authority, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if t := a.byTenant[name]; t != nil {
		return t, nil
	}
	return nil, imprint.Errorf(imprint.NotFound, "find", "tenant "+string(name), "it is not in the server's configuration").
		WithHint("add it under tenants and restart the server")
}

// Issue signs a grant for its tenant.
func (a *authorities) Issue(_ context.Context, g imprint.Grant) (*imprint.Certificate, *imprint.LogEntry, error) {
	t, err := a.tenant(g.Tenant)
	if err != nil {
		return nil, nil, err
	}
	return t.Issue(g)
}

// endpoint makes a key and certificate with which the check-in endpoint serves
// tenant. The key lives in memory only.
func (a *authorities) endpoint(ctx context.Context, name imprint.TenantName) (tls.Certificate, error) {
	t, err := a.tenant(name)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, imprint.Errorf(imprint.Internal, "generate", "endpoint key", "%w", err)
	}
	now := a.now()
	der, err := t.IssueEndpoint(ctx, ca.Endpoint{
		PublicKey: crypto.PublicKey(&key.PublicKey), Serial: imprint.NewSerial(),
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(endpointLifetime),
	})
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, imprint.Errorf(imprint.Internal, "parse", "endpoint certificate", "%w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der, t.Issuing()}, PrivateKey: key, Leaf: leaf}, nil
}

// CRL returns the tenant's revocation list in DER; it is made anew when
// something was revoked since, and now and then.
func (a *authorities) CRL(ctx context.Context, name imprint.TenantName) ([]byte, error) {
	t, err := a.tenant(name)
	if err != nil {
		return nil, err
	}
	revoked, err := a.revoked.Revocations(ctx, name)
	if err != nil {
		return nil, err
	}
	t.crlMu.Lock()
	defer t.crlMu.Unlock()
	now := a.now()
	if t.crl != nil && now.Sub(t.made) < crlRefresh && reflect.DeepEqual(revoked, t.listed) {
		return t.crl, nil
	}
	// Milliseconds grow across restarts and servers without a counter to store.
	number := max(uint64(now.UnixMilli()), t.number+1)
	der, err := t.Authority.CRL(ca.CRLRequest{
		Number: number, ThisUpdate: now.Add(-clockSkew), NextUpdate: now.Add(crlLifetime), Revocations: revoked,
	})
	if err != nil {
		return nil, err
	}
	t.crl, t.listed, t.made, t.number = der, revoked, now, number
	return der, nil
}

// Bundle returns the root and all accepted issuing CAs, root first.
func (a *authorities) Bundle(_ context.Context, name imprint.TenantName) ([]*x509.Certificate, error) {
	t, err := a.tenant(name)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, der := range t.Authority.Bundle() {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, imprint.Errorf(imprint.Internal, "parse", "CA of tenant "+string(name), "%w", err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

// Identify returns whom leaf names; its URI says which tenant's authority checks it.
func (a *authorities) Identify(leaf *x509.Certificate) (imprint.Identity, error) {
	for _, uri := range leaf.URIs {
		_, who, err := ca.ParseURI(uri.String())
		if err != nil {
			continue
		}
		t, err := a.tenant(who.Tenant)
		if err != nil {
			break
		}
		return t.Authority.Identify(leaf, a.now())
	}
	return imprint.Identity{}, imprint.Errorf(imprint.Unauthorized, "identify", "certificate", "it names no machine of this server")
}

// rewrap gives every sealed key to the present key-encryption key.
func (a *authorities) rewrap(ctx context.Context) error {
	var tenants []imprint.TenantName
	if _, err := readDocument(ctx, a.docs, tenantsDocument, &tenants); err != nil {
		return err
	}
	for _, name := range tenants {
		err := a.change(ctx, name, a.rewrapDocument)
		if err != nil && imprint.KindOf(err) != imprint.NotFound { // no authority yet
			return err
		}
	}
	return nil
}

func (a *authorities) rewrapDocument(doc *caDocument) error {
	for key, blob := range map[string]*[]byte{"root": &doc.Root, "issuing": &doc.Issuing, "ssh": &doc.SSH} {
		if *blob == nil {
			continue
		}
		out, _, err := a.keys.Rewrap(*blob, doc.sealContext(key))
		if err != nil {
			return err
		}
		*blob = out
	}
	return nil
}

// change rewrites a tenant's document and goes on with it if the tenant is served.
// Kind: NotFound if there is no document.
func (a *authorities) change(ctx context.Context, name imprint.TenantName, edit func(*caDocument) error) error {
	doc := &caDocument{Tenant: name}
	err := editDocument(ctx, a.docs, doc.name(), func(doc *caDocument) (bool, error) {
		if doc.Tenant == "" {
			return false, imprint.Errorf(imprint.NotFound, "find", "CA of tenant "+string(name), "there is none")
		}
		return true, edit(doc)
	})
	if _, unknown := a.tenant(name); err != nil || unknown != nil {
		return err
	}
	return a.reload(ctx, name)
}
