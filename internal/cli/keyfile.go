package cli

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"hash"
	"io"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"

	"imprint"
)

// Limits on a private key's file.
const (
	maxKeyFile    = 64 << 10 // bytes; RSA-16384 has 13 KiB
	maxIterations = 1e6      // of PBKDF2; the tools write 2048 by default, and this takes half a second
)

// readKey reads an RSA private key: OpenSSH's own format, or PEM in PKCS #1 or
// PKCS #8. passphrase is called once, if the key is encrypted. It fails with kind
// Denied if the passphrase is wrong, and Invalid if the file holds anything else.
func readKey(file string, passphrase func() (imprint.Secret, error)) (*rsa.PrivateKey, error) {
	b, err := readFile(file, maxKeyFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, noKey(file, b)
	}
	parsed, err := parseKey(block, imprint.Secret{})
	if errors.Is(err, errEncrypted) {
		word, noWord := passphrase()
		if noWord != nil {
			return nil, noWord
		}
		parsed, err = parseKey(block, word)
	}
	if err != nil {
		return nil, keyError(file, err)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, imprint.Errorf(imprint.Invalid, "read", file, "it is not an RSA key").
			WithHint("guests encrypt passwords to an ssh-rsa key and to no other: name the private key of one with --key")
	}
	return key, nil
}

// readFile reads a file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError("read", path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fileError("read", path, err)
	}
	if int64(len(b)) > limit {
		return nil, imprint.Errorf(imprint.Exhausted, "read", path, "it has more than %d bytes", limit)
	}
	return b, nil
}

// keyError says why the key in a file could not be read.
func keyError(file string, err error) error {
	switch {
	case errors.Is(err, errEncrypted), errors.Is(err, errPassphrase): // an empty one, or a wrong one
		return imprint.Errorf(imprint.Denied, "read", file, "the passphrase is wrong")
	case errors.Is(err, errCipher):
		return imprint.Errorf(imprint.Invalid, "read", file, "it is encrypted in a way that is not known here").
			WithHint("write it in another: openssl pkcs8 -topk8 -in %s -out key.pem", file)
	}
	return imprint.Errorf(imprint.Invalid, "read", file, "%w", err)
}

// noKey says what a file is instead of a private key.
func noKey(file string, b []byte) error {
	if _, _, _, _, err := ssh.ParseAuthorizedKey(b); err == nil {
		return imprint.Errorf(imprint.Invalid, "read", file, "it is a public key").
			WithHint("name the private key, %s", strings.TrimSuffix(file, ".pub"))
	}
	if bytes.HasPrefix(b, []byte("PuTTY-User-Key-File-")) {
		return imprint.Errorf(imprint.Invalid, "read", file, "it is a key of PuTTY's").
			WithHint("convert it: puttygen %s -O private-openssh -o id_rsa", file)
	}
	return imprint.Errorf(imprint.Invalid, "read", file, "there is no private key in it").WithHint("it has to be an OpenSSH or a PEM file")
}

var (
	errEncrypted  = errors.New("the key is encrypted")
	errPassphrase = errors.New("the passphrase is wrong")
	errCipher     = errors.New("its encryption is not known")
	errDamaged    = errors.New("the key is damaged")
)

// parseKey returns the key in a PEM block. It fails with errEncrypted if it needs
// a passphrase and word is empty, and with errPassphrase if word is not it.
func parseKey(block *pem.Block, word imprint.Secret) (key any, err error) {
	if block.Type == "ENCRYPTED PRIVATE KEY" { // which package ssh does not know
		if word.IsZero() {
			return nil, errEncrypted
		}
		return decryptPKCS8(block.Bytes, word)
	}
	text := pem.EncodeToMemory(block)
	if word.IsZero() {
		key, err = ssh.ParseRawPrivateKey(text)
	} else {
		key, err = ssh.ParseRawPrivateKeyWithPassphrase(text, word.Reveal())
	}
	switch {
	case errors.As(err, new(*ssh.PassphraseMissingError)):
		return nil, errEncrypted
	case errors.Is(err, x509.IncorrectPasswordError):
		return nil, errPassphrase
	}
	return key, err
}

// The structures of an encrypted PKCS #8 key (RFC 5958 section 3, RFC 8018
// appendix A).
type (
	encryptedKey struct {
		Algorithm pkix.AlgorithmIdentifier
		Data      []byte
	}
	pbes2 struct {
		KDF    pkix.AlgorithmIdentifier
		Cipher pkix.AlgorithmIdentifier
	}
	pbkdf2Params struct {
		Salt       []byte
		Iterations int
		KeyLength  int                      `asn1:"optional"`
		PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
	}
)

// What OpenSSL and OpenSSH write such keys with, besides AES-CBC.
const (
	oidPBES2  = "1.2.840.113549.1.5.13"
	oidPBKDF2 = "1.2.840.113549.1.5.12"
)

// hashOf returns the hash of an HMAC that PBKDF2 is built on; SHA-1 is what none means.
func hashOf(oid asn1.ObjectIdentifier) func() hash.Hash {
	switch oid.String() {
	case "", "1.2.840.113549.2.7":
		return sha1.New
	case "1.2.840.113549.2.9":
		return sha256.New
	case "1.2.840.113549.2.11":
		return sha512.New
	}
	return nil
}

// keyLength returns how many bytes of key an AES-CBC has; 0 if it is none.
func keyLength(oid asn1.ObjectIdentifier) int {
	switch oid.String() {
	case "2.16.840.1.101.3.4.1.2":
		return 16
	case "2.16.840.1.101.3.4.1.22":
		return 24
	case "2.16.840.1.101.3.4.1.42":
		return 32
	}
	return 0
}

// decryptPKCS8 returns the key in an encrypted PKCS #8 structure.
func decryptPKCS8(der []byte, word imprint.Secret) (any, error) {
	var outer encryptedKey
	var scheme pbes2
	var kdf pbkdf2Params
	var iv []byte
	if rest, err := asn1.Unmarshal(der, &outer); err != nil || len(rest) > 0 {
		return nil, errDamaged
	}
	if outer.Algorithm.Algorithm.String() != oidPBES2 {
		return nil, errCipher
	}
	if _, err := asn1.Unmarshal(outer.Algorithm.Parameters.FullBytes, &scheme); err != nil {
		return nil, errDamaged
	}
	size := keyLength(scheme.Cipher.Algorithm)
	if scheme.KDF.Algorithm.String() != oidPBKDF2 || size == 0 {
		return nil, errCipher
	}
	_, kdfErr := asn1.Unmarshal(scheme.KDF.Parameters.FullBytes, &kdf)
	_, ivErr := asn1.Unmarshal(scheme.Cipher.Parameters.FullBytes, &iv)
	h := hashOf(kdf.PRF.Algorithm)
	switch {
	case kdfErr != nil, ivErr != nil, len(iv) != aes.BlockSize, len(outer.Data) == 0, len(outer.Data)%aes.BlockSize != 0,
		kdf.Iterations < 1, kdf.Iterations > maxIterations:
		return nil, errDamaged
	case h == nil:
		return nil, errCipher
	}
	key, err := pbkdf2.Key(h, string(word.Reveal()), kdf.Salt, kdf.Iterations, size)
	if err != nil {
		return nil, err
	}
	aesKey, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	plain := make([]byte, len(outer.Data))
	cipher.NewCBCDecrypter(aesKey, iv).CryptBlocks(plain, outer.Data)
	pad := int(plain[len(plain)-1])
	if pad == 0 || pad > aes.BlockSize || pad > len(plain) {
		return nil, errPassphrase
	}
	parsed, err := x509.ParsePKCS8PrivateKey(plain[:len(plain)-pad])
	if err != nil { // there is no other way to tell
		return nil, errPassphrase
	}
	return parsed, nil
}
