package media

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"io/fs"
	"math"
	"strings"
	"time"

	"imprint"
)

// stubDir is where systemd-stub looks for credentials, in the file system that the
// kernel was loaded from (systemd-stub(7)), and stubSuffix what their names end with.
const (
	stubDir    = "loader/credentials/"
	stubSuffix = ".cred"
)

// maxCredentials is how many bytes systemd takes of all credentials together
// (CREDENTIALS_TOTAL_SIZE_MAX of src/shared/creds-util.h).
const maxCredentials = 1 << 20

// nullKey is what a credential of systemd's begins with that is encrypted with the
// key of nobody (CRED_AES256_GCM_BY_NULL of src/shared/creds-util.h).
const nullKey = "\x05\x84\x69\xda\xf6\xf5\x43\x24\x80\x05\x49\xda\x0f\x8e\xa2\xfb"

// Stub returns the files of a directory whose content goes into an EFI system
// partition, so that systemd-stub hands v's files to systemd as credentials. systemd
// takes such only in its encrypted form, so they are in it, with a key that
// everybody knows: that hides nothing. A machine with both a TPM and Secure Boot refuses
// it. The label plays no part. It fails as [ISO] does.
func Stub(v *Volume, _ string) (map[string][]byte, error) {
	if err := checkTime(v.Time); err != nil {
		return nil, err
	}
	if len(v.Files) == 0 {
		return nil, imprint.Errorf(imprint.Exhausted, "write", "credentials", "there are none")
	}
	files, size := map[string][]byte{}, int64(0)
	for _, name := range sortedPaths(v.Files) {
		if !fs.ValidPath(name) || name == "." || strings.HasPrefix(name, ".") {
			return nil, refuse(name, "it is no name of a credential")
		}
		// The partition is FAT, and 255 is what systemd allows without the suffix.
		r := rules{format: "an EFI system partition", forbidden: `/"*:<>?|`, units: 255 - len(stubSuffix), bytes: 255 - len(stubSuffix)}
		if err := r.check(name, name); err != nil {
			return nil, err
		}
		size += int64(len(v.Files[name]))
		files[stubDir+name+stubSuffix] = encrypted(name, v.Files[name], v.Time)
	}
	if size > maxCredentials {
		return nil, tooLarge("credentials", size, maxCredentials)
	}
	return files, nil
}

// encrypted returns a credential as systemd-creds(1) writes it with the null key, in
// base64 (struct encrypted_credential_header of src/shared/creds-util.c).
func encrypted(name string, data []byte, at time.Time) []byte {
	key := sha256.Sum256(nil)
	block, err := aes.NewCipher(key[:])
	if err != nil { // of this size it never fails
		return nil
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil
	}
	le := binary.LittleEndian
	header := []byte(nullKey)
	for _, n := range []int{len(key), 1, gcm.NonceSize(), gcm.Overhead()} { // a stream has blocks of one byte
		header = le.AppendUint32(header, uint32(n))
	}
	// Drawn by lot it would hide no more, and no two media be equal.
	nonce := sha256.Sum256([]byte(name + "\x00" + string(data)))
	header = padded(append(header, nonce[:gcm.NonceSize()]...))

	plain := le.AppendUint64(nil, uint64(at.UnixMicro()))
	plain = le.AppendUint64(plain, math.MaxUint64) // never too late
	plain = le.AppendUint32(plain, uint32(len(name)))
	plain = append(padded(append(plain, name...)), data...)
	sealed := gcm.Seal(header, nonce[:gcm.NonceSize()], plain, header)
	return append(base64.StdEncoding.AppendEncode(nil, sealed), '\n')
}

// padded returns b with zeros up to a multiple of eight bytes.
func padded(b []byte) []byte { return append(b, make([]byte, -len(b)&7)...) }
