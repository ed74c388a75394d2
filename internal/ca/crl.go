package ca

import (
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"slices"
	"time"

	"imprint"
)

// CRLRequest says what a revocation list contains.
type CRLRequest struct {
	Number      uint64 // greater than that of any earlier list
	ThisUpdate  time.Time
	NextUpdate  time.Time // the next list comes before this
	Revocations []imprint.Revocation
}

// CRL signs a revocation list (RFC 5280 section 5) with the issuing key and
// returns it in DER. A certificate is left out once it has been on a list after
// its end, which section 3.3 asks for, provided that lists come in time: its end
// lies more than NextUpdate − ThisUpdate before ThisUpdate.
//
// The list covers what the present issuing key signed. After a change of keys,
// an authority opened on the earlier issuing CA and its key signs the list for
// the certificates from before. It fails with kind [imprint.Invalid] if a serial,
// reason or time cannot be in a list.
func (a *Authority) CRL(r CRLRequest) ([]byte, error) {
	bad := func(format string, args ...any) ([]byte, error) {
		return nil, imprint.Errorf(imprint.Invalid, "sign", "revocation list", format, args...)
	}
	if !r.ThisUpdate.Before(r.NextUpdate) {
		return bad("next update %s is not after %s", stamp(r.NextUpdate), stamp(r.ThisUpdate))
	}
	listed := r.ThisUpdate.Add(-r.NextUpdate.Sub(r.ThisUpdate))
	earliest := make(map[imprint.Serial]imprint.Revocation, len(r.Revocations))
	for _, rev := range r.Revocations {
		if rev.NotAfter.Before(listed) {
			continue
		}
		if have, ok := earliest[rev.Serial]; !ok || rev.At.Before(have.At) {
			earliest[rev.Serial] = rev
		}
	}
	entries := make([]x509.RevocationListEntry, 0, len(earliest))
	for _, rev := range earliest {
		serial, ok := rev.Serial.Int()
		if !ok {
			return bad("serial %q", rev.Serial)
		}
		// 7 is not used; 8 takes back a hold and belongs in delta lists (section 5.3.1).
		if rev.Reason < 0 || rev.Reason > 10 || rev.Reason == 7 || rev.Reason == 8 {
			return bad("serial %s: reason %d", rev.Serial, rev.Reason)
		}
		entries = append(entries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: rev.At.UTC(), ReasonCode: rev.Reason})
	}
	slices.SortFunc(entries, func(x, y x509.RevocationListEntry) int { return x.SerialNumber.Cmp(y.SerialNumber) })
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		RevokedCertificateEntries: entries,
		Number:                    new(big.Int).SetUint64(r.Number),
		ThisUpdate:                r.ThisUpdate.UTC(),
		NextUpdate:                r.NextUpdate.UTC(),
	}, a.issuing[0], a.key)
	if err != nil {
		return nil, wrap("sign", "revocation list", err)
	}
	return der, nil
}
