package store

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"imprint"
)

// MaxDocumentName is the limit of a document's name in bytes.
const MaxDocumentName = 256

// Document returns the bytes that were stored under name and their revision.
// It fails with kind [imprint.NotFound] if there are none.
func (s *Store) Document(ctx context.Context, name string) (data []byte, revision int64, err error) {
	p, err := s.kv.read(ctx, query{key: s.keys.document(name)})
	if err != nil {
		return nil, 0, during(err, "read", name)
	}
	found := p.first()
	if found == nil {
		return nil, 0, imprint.Errorf(imprint.NotFound, "read", name, "there is no such document")
	}
	return bytes.Clone(found.value), found.modified, nil
}

// PutDocument stores data under name if the document is still at revision (0:
// if there is none). It fails with kind [imprint.Conflict] if not, with
// [imprint.Invalid] if the name is empty or longer than [MaxDocumentName], and
// with [imprint.Exhausted] if data is larger than [MaxDocument].
func (s *Store) PutDocument(ctx context.Context, name string, data []byte, revision int64) error {
	if name == "" || len(name) > MaxDocumentName {
		return imprint.Errorf(imprint.Invalid, "write", "document", "its name has %d bytes; 1 to %d are allowed", len(name), MaxDocumentName)
	}
	if len(data) > MaxDocument {
		return imprint.Errorf(imprint.Exhausted, "write", name, "it has %d bytes; the limit is %d", len(data), MaxDocument)
	}
	key := s.keys.document(name)
	out, err := s.committer.commit(ctx, txn{
		when: []compare{{key, revision}},
		then: []op{{verb: put, key: key, value: data}},
	})
	if err != nil {
		return during(err, "write", name)
	}
	if !out.applied {
		return imprint.Errorf(imprint.Conflict, "write", name, "it was changed by somebody else meanwhile")
	}
	return nil
}

// Revocations returns the revocation list of a tenant in the order of serials.
func (s *Store) Revocations(ctx context.Context, tenant imprint.TenantName) ([]imprint.Revocation, error) {
	var list []imprint.Revocation
	err := s.eachRevocation(ctx, tenant, func(_ *pair, r *imprint.Revocation) error {
		list = append(list, *r)
		return nil
	})
	return list, err
}

// DropRevocations forgets the tenant's revocations of certificates that ended
// before the given time, and returns how many. A list that relying parties
// still fetch should name them once more (RFC 5280 section 3.3), so give a time
// that is one list's validity in the past.
func (s *Store) DropRevocations(ctx context.Context, tenant imprint.TenantName, before time.Time) (int, error) {
	n := 0
	err := s.eachRevocation(ctx, tenant, func(p *pair, r *imprint.Revocation) error {
		if !r.NotAfter.Before(before) {
			return nil
		}
		out, err := s.committer.commit(ctx, txn{
			when: []compare{{p.key, p.modified}},
			then: []op{{verb: remove, key: p.key}},
		})
		if err == nil && out.applied {
			n++
		}
		return err
	})
	return n, err
}

// revocationPage is how many revocations one read fetches.
const revocationPage = 1000

func (s *Store) eachRevocation(ctx context.Context, tenant imprint.TenantName, visit func(*pair, *imprint.Revocation) error) error {
	operand := "revocations of " + string(tenant)
	prefix := s.keys.revocations(tenant)
	for from := prefix; ; {
		p, err := s.kv.read(ctx, query{key: from, end: after(prefix), limit: revocationPage})
		if err != nil {
			return during(err, "read", operand)
		}
		for i := range p.pairs {
			var r imprint.Revocation
			if err := json.Unmarshal(p.pairs[i].value, &r); err != nil {
				return imprint.Errorf(imprint.Internal, "decode", p.pairs[i].key, "%w", err)
			}
			if err := visit(&p.pairs[i], &r); err != nil {
				return during(err, "read", operand)
			}
		}
		if !p.more {
			return nil
		}
		from = p.pairs[len(p.pairs)-1].key + "\x00"
	}
}
