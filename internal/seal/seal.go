// Package seal encrypts values before they reach the store. Every value has a
// data key of its own (AES-256-GCM); the data key is wrapped by a key-encryption
// key that never enters the store. Changing the key-encryption key therefore
// rewraps 32 bytes a value and touches no value.
//
// A sealed blob is
//
//	version     1 byte, 1
//	key ID      8 bytes, names the key-encryption key
//	wrapped     2 bytes length, then the wrapped data key
//	nonce       12 bytes
//	ciphertext  the value and a 16-byte tag; the caller's context is authenticated
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"sync"

	"imprint"
)

const (
	version    = 1
	keyIDLen   = 8
	dataKeyLen = 32
	nonceLen   = 12
	tagLen     = 16
	headerLen  = 1 + keyIDLen + 2
)

// MaxValue is the size limit of a sealed value in bytes; MaxWrapped is that of
// a wrapped data key, generous enough for RSA-8192 in a hardware module.
const (
	MaxValue   = 1 << 20
	MaxWrapped = 1 << 10
)

// KeyID names a key-encryption key: the first bytes of a hash of it.
type KeyID [keyIDLen]byte

func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// KEK is a key-encryption key: from a file here, from an identity file or a
// hardware module elsewhere. Its methods are safe for concurrent use.
type KEK interface {
	// ID names the key; it never changes.
	ID() KeyID
	// Wrap encrypts a data key of 32 bytes.
	Wrap(dataKey []byte) ([]byte, error)
	// Unwrap is the inverse of Wrap; any error means that wrapped is not this key's.
	Unwrap(wrapped []byte) ([]byte, error)
}

// Keyring seals with its primary key and opens with any key that it knows. It
// is safe for concurrent use, so that the primary can change under a running server.
type Keyring struct {
	mu      sync.RWMutex
	primary KEK           // guarded by mu
	keys    map[KeyID]KEK // guarded by mu
}

// NewKeyring returns a keyring that seals with primary and also opens with older.
func NewKeyring(primary KEK, older ...KEK) *Keyring {
	k := &Keyring{}
	k.Replace(primary, older...)
	return k
}

// Replace exchanges all keys at once.
func (k *Keyring) Replace(primary KEK, older ...KEK) {
	keys := map[KeyID]KEK{primary.ID(): primary}
	for _, o := range older {
		keys[o.ID()] = o
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.primary, k.keys = primary, keys
}

// Primary returns the ID of the key that seals now.
func (k *Keyring) Primary() KeyID {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.primary.ID()
}

// Older returns how many keys the ring has that only open.
func (k *Keyring) Older() int {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return len(k.keys) - 1
}

// Seal encrypts value. context says what and whose the value is; a blob opens
// only with the same context, so that it cannot be moved to another record.
func (k *Keyring) Seal(value imprint.Secret, context string) ([]byte, error) {
	if len(value.Reveal()) > MaxValue {
		return nil, imprint.Errorf(imprint.Exhausted, "seal", context, "%d bytes; the limit is %d", len(value.Reveal()), MaxValue)
	}
	k.mu.RLock()
	kek := k.primary
	k.mu.RUnlock()
	dataKey := make([]byte, dataKeyLen)
	rand.Read(dataKey) // never fails since Go 1.24
	blob, err := appendHeader(nil, kek, dataKey)
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "seal", context, "%w", err)
	}
	nonce := make([]byte, nonceLen)
	rand.Read(nonce)
	blob = append(blob, nonce...)
	return newGCM(dataKey).Seal(blob, nonce, value.Reveal(), []byte(context)), nil
}

// Open decrypts blob. It fails with kind [imprint.Unavailable] if blob's
// key-encryption key is not in the ring, and [imprint.Invalid] if blob was
// changed or sealed for another context.
func (k *Keyring) Open(blob []byte, context string) (imprint.Secret, error) {
	_, dataKey, rest, err := k.unwrap(blob, context)
	if err != nil {
		return imprint.Secret{}, err
	}
	value, err := newGCM(dataKey).Open(nil, rest[:nonceLen], rest[nonceLen:], []byte(context))
	if err != nil {
		return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "open", context, "the sealed value was changed or belongs elsewhere")
	}
	return imprint.NewSecret(value), nil
}

// Rewrap returns blob with its data key wrapped by the primary key; changed is
// false, and blob itself returned, if it was already.
func (k *Keyring) Rewrap(blob []byte, context string) (out []byte, changed bool, err error) {
	id, dataKey, rest, err := k.unwrap(blob, context)
	if err != nil {
		return nil, false, err
	}
	k.mu.RLock()
	kek := k.primary
	k.mu.RUnlock()
	if id == kek.ID() {
		return blob, false, nil
	}
	out, err = appendHeader(nil, kek, dataKey)
	if err != nil {
		return nil, false, imprint.Errorf(imprint.Unavailable, "rewrap", context, "%w", err)
	}
	return append(out, rest...), true, nil
}

// unwrap splits blob and returns its key's ID, its data key, and nonce and ciphertext.
func (k *Keyring) unwrap(blob []byte, context string) (id KeyID, dataKey, rest []byte, err error) {
	id, wrapped, rest, err := parse(blob)
	if err != nil {
		return id, nil, nil, imprint.Errorf(imprint.Invalid, "open", context, "%w", err)
	}
	k.mu.RLock()
	kek, ok := k.keys[id]
	k.mu.RUnlock()
	if !ok {
		return id, nil, nil, imprint.Errorf(imprint.Unavailable, "open", context, "sealed with key %s, which is not in the key file", id).
			WithHint("restore the key file that held this key; without it the value is lost")
	}
	dataKey, err = kek.Unwrap(wrapped)
	if err != nil || len(dataKey) != dataKeyLen {
		return id, nil, nil, imprint.Errorf(imprint.Invalid, "open", context, "its data key does not open with key %s", id)
	}
	return id, dataKey, rest, nil
}

func appendHeader(b []byte, kek KEK, dataKey []byte) ([]byte, error) {
	wrapped, err := kek.Wrap(dataKey)
	if err != nil {
		return nil, err
	}
	if len(wrapped) > MaxWrapped {
		return nil, errors.New("the wrapped data key is too long")
	}
	id := kek.ID()
	b = append(append(b, version), id[:]...)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(wrapped))), wrapped...), nil
}

func parse(blob []byte) (id KeyID, wrapped, rest []byte, err error) {
	if len(blob) < headerLen || blob[0] != version {
		return id, nil, nil, errors.New("not a sealed value")
	}
	copy(id[:], blob[1:])
	n := int(binary.BigEndian.Uint16(blob[1+keyIDLen:]))
	rest = blob[headerLen:]
	if n > MaxWrapped || len(rest) < n+nonceLen+tagLen || len(rest) > n+nonceLen+tagLen+MaxValue {
		return id, nil, nil, errors.New("the sealed value is cut short or too long")
	}
	return id, rest[:n], rest[n:], nil
}

// newGCM panics only if key has not 32 bytes, which its callers have checked.
func newGCM(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return gcm
}
