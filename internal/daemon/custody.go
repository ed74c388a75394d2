package daemon

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"slices"

	"golang.org/x/crypto/ssh"

	"imprint"
	"imprint/internal/ca"
	"imprint/internal/signer"
)

// sealedCustody keeps the issuing keys sealed in the store and signs in this process.
type sealedCustody struct{ keys sealer }

func (c sealedCustody) Keys(_ context.Context, doc *caDocument) (ca.Keys, error) {
	issuing, err := c.key(&doc.Issuing, doc.sealContext("issuing"))
	if err != nil {
		return ca.Keys{}, err
	}
	ssh, err := c.key(&doc.SSH, doc.sealContext("ssh"))
	if err != nil {
		return ca.Keys{}, err
	}
	return ca.Keys{Issuing: issuing, SSH: ssh}, nil
}

// key opens the key in blob, or makes one and seals it there.
func (c sealedCustody) key(blob *[]byte, context string) (crypto.Signer, error) {
	var key imprint.Secret
	var err error
	if *blob == nil {
		if key, err = ca.GenerateKey(); err != nil {
			return nil, err
		}
		*blob, err = c.keys.Seal(key, context)
	} else {
		key, err = c.keys.Open(*blob, context)
	}
	if err != nil {
		return nil, err
	}
	return ca.ParseKey(key)
}

// signerCustody uses the keys of an "imprint sign" process.
type signerCustody struct {
	client  *signer.Client
	docs    documents
	tenants []imprint.Tenant
}

func (c *signerCustody) Keys(ctx context.Context, doc *caDocument) (ca.Keys, error) {
	if len(doc.Material.Issuing) > 0 {
		return c.existing(&doc.Material)
	}
	// A new tenant gets the first two keys that no other tenant uses.
	taken := map[imprint.KeyID]bool{}
	for _, t := range c.tenants {
		other := caDocument{Tenant: t.Name}
		_, err := readDocument(ctx, c.docs, other.name(), &other)
		if imprint.KindOf(err) == imprint.NotFound {
			continue
		}
		if err != nil {
			return ca.Keys{}, err
		}
		keys, err := c.existing(&other.Material)
		if err != nil {
			return ca.Keys{}, err
		}
		for _, k := range []crypto.Signer{keys.Issuing, keys.SSH} {
			taken[k.(*signer.Key).ID()] = true
		}
	}
	held, err := c.client.Keys(ctx)
	if err != nil {
		return ca.Keys{}, err
	}
	held = slices.DeleteFunc(held, func(k *signer.Key) bool { return taken[k.ID()] })
	if len(held) < 2 {
		return ca.Keys{}, imprint.Errorf(imprint.Exhausted, "use", "signer", "tenant %s needs two keys, and the signer has %d that nobody uses", doc.Tenant, len(held)).
			WithHint("restart it with: imprint sign --make %d", 2*len(c.tenants))
	}
	return ca.Keys{Issuing: held[0], SSH: held[1]}, nil
}

// existing returns the signer's keys for an authority that was made before.
func (c *signerCustody) existing(m *ca.Material) (ca.Keys, error) {
	issuing, err := issuingKey(m)
	if err != nil {
		return ca.Keys{}, err
	}
	ssh, err := sshKey(m)
	if err != nil {
		return ca.Keys{}, err
	}
	var keys ca.Keys
	if keys.Issuing, err = c.client.Key(issuing); err != nil {
		return ca.Keys{}, err
	}
	keys.SSH, err = c.client.Key(ssh)
	return keys, err
}

func issuingKey(m *ca.Material) (*ecdsa.PublicKey, error) {
	cert, err := x509.ParseCertificate(m.Issuing[0])
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "read", "issuing CA", "%w", err)
	}
	return ecdsaKey(cert.PublicKey)
}

func sshKey(m *ca.Material) (*ecdsa.PublicKey, error) {
	pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(m.SSH))
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "read", "SSH CA", "%w", err)
	}
	key, ok := pub.(ssh.CryptoPublicKey)
	if !ok {
		return nil, imprint.Errorf(imprint.Internal, "read", "SSH CA", "its key is a %s", pub.Type())
	}
	return ecdsaKey(key.CryptoPublicKey())
}

func ecdsaKey(pub crypto.PublicKey) (*ecdsa.PublicKey, error) {
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return nil, imprint.Errorf(imprint.Internal, "read", "CA key", "it is a %T, not ECDSA", pub)
	}
	return key, nil
}
