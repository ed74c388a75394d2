package metadata

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"

	"imprint"
)

// tokens issues and checks the session tokens of IMDSv2. A token says itself when
// it ends and is signed with a key of this listener, so that any number of
// sessions takes no memory, and a token of one guest is worth nothing to another.
// Sessions end with the listener and with the generation; clients then get a new
// token, as they do after six hours.
type tokens struct{ key [32]byte }

// A token has the end of the session in Unix seconds (8 bytes), the generation
// (4), and as many bytes of the signature as make 56 characters, EC2's length.
const (
	tokenClaims = 12
	tokenLen    = 40
)

func newTokens() *tokens {
	t := &tokens{}
	rand.Read(t.key[:]) // never fails since Go 1.24
	return t
}

func (t *tokens) issue(gen imprint.Generation, ends time.Time) string {
	b := make([]byte, tokenClaims, tokenClaims+sha256.Size)
	binary.BigEndian.PutUint64(b, uint64(ends.Unix()))
	binary.BigEndian.PutUint32(b[8:], uint32(gen))
	b = t.sign(b, b)
	return base64.URLEncoding.EncodeToString(b[:tokenLen])
}

func (t *tokens) valid(s string, gen imprint.Generation, now time.Time) bool {
	if len(s) != base64.URLEncoding.EncodedLen(tokenLen) {
		return false
	}
	b, err := base64.URLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != tokenLen {
		return false
	}
	if !hmac.Equal(t.sign(nil, b[:tokenClaims])[:tokenLen-tokenClaims], b[tokenClaims:]) {
		return false
	}
	return imprint.Generation(binary.BigEndian.Uint32(b[8:])) == gen && now.Unix() < int64(binary.BigEndian.Uint64(b))
}

// sign appends the signature of claims to dst.
func (t *tokens) sign(dst, claims []byte) []byte {
	mac := hmac.New(sha256.New, t.key[:])
	mac.Write(claims)
	return mac.Sum(dst)
}
