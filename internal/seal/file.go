package seal

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"imprint"
	"imprint/internal/durable"
)

// A key file has one line a key, the primary first:
//
//	imprint-kek-v1 <32 bytes in base64>
//
// Empty lines and lines that start with # are ignored.
const (
	filePrefix  = "imprint-kek-v1"
	maxKeyFile  = 64 << 10
	maxFileKeys = 64
)

// fileKEK is a key-encryption key that lies in a file.
type fileKEK struct {
	id  KeyID
	key [dataKeyLen]byte
}

func newFileKEK(key []byte) *fileKEK {
	k := &fileKEK{}
	copy(k.key[:], key)
	sum := sha256.Sum256(append([]byte("imprint kek id\n"), key...))
	copy(k.id[:], sum[:])
	return k
}

func (k *fileKEK) ID() KeyID { return k.id }

// The data key's wrapping authenticates the key's own ID.
func (k *fileKEK) Wrap(dataKey []byte) ([]byte, error) {
	nonce := make([]byte, nonceLen)
	rand.Read(nonce)
	return newGCM(k.key[:]).Seal(nonce, nonce, dataKey, k.id[:]), nil
}

func (k *fileKEK) Unwrap(wrapped []byte) ([]byte, error) {
	if len(wrapped) < nonceLen {
		return nil, errors.New("too short")
	}
	return newGCM(k.key[:]).Open(nil, wrapped[:nonceLen], wrapped[nonceLen:], k.id[:])
}

// File is a [Keyring] whose keys lie in a file of mode 0600.
type File struct {
	*Keyring
	path string
	// mu is held from reading or writing the file until what is in it is used, so
	// that nobody goes back to keys that were read before a change.
	mu sync.Mutex
}

// OpenFile reads the keys in path and creates the file with one fresh key if it
// does not exist. It fails with kind [imprint.Denied] if others than its owner
// may read the file, and [imprint.Invalid] if it is not a key file.
func OpenFile(path string) (*File, error) {
	keys, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = createFile(path); err == nil || errors.Is(err, fs.ErrExist) {
			keys, err = readFile(path)
		}
	}
	if err != nil {
		return nil, fileError("read", path, err)
	}
	f := &File{path: path, Keyring: &Keyring{}}
	f.use(keys)
	return f, nil
}

// Reload reads the file again.
func (f *File) Reload() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	keys, err := readFile(f.path)
	if err != nil {
		return fileError("read", f.path, err)
	}
	f.use(keys)
	return nil
}

// Open decrypts blob like [Keyring.Open]. A key that is not known is looked for
// in the file again: another process may have rotated it.
func (f *File) Open(blob []byte, context string) (imprint.Secret, error) {
	value, err := f.Keyring.Open(blob, context)
	if imprint.KindOf(err) == imprint.Unavailable && err != nil && f.Reload() == nil {
		return f.Keyring.Open(blob, context)
	}
	return value, err
}

// Rotate adds a fresh primary key and keeps the older ones for opening. The
// file is durable before the new key seals anything.
func (f *File) Rotate() (KeyID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	keys, err := readFile(f.path)
	if err == nil && len(keys) >= maxFileKeys {
		err = imprint.Errorf(imprint.Exhausted, "rotate", f.path, "it holds %d keys already", len(keys)).
			WithHint("retire the old keys first")
	}
	if err == nil {
		keys = append([]*fileKEK{freshKEK()}, keys...)
		err = durable.WriteFile(f.path, marshal(keys), 0o600)
	}
	if err != nil {
		return KeyID{}, fileError("rotate", f.path, err)
	}
	f.use(keys)
	return keys[0].id, nil
}

// Retire removes all keys but the primary. The caller has rewrapped everything
// that they sealed; what was missed can never be opened again.
func (f *File) Retire() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	keys, err := readFile(f.path)
	if err == nil {
		keys = keys[:1]
		err = durable.WriteFile(f.path, marshal(keys), 0o600)
	}
	if err != nil {
		return fileError("retire keys in", f.path, err)
	}
	f.use(keys)
	return nil
}

func (f *File) use(keys []*fileKEK) {
	older := make([]KEK, 0, len(keys))
	for _, k := range keys[1:] {
		older = append(older, k)
	}
	f.Replace(keys[0], older...)
}

func freshKEK() *fileKEK {
	key := make([]byte, dataKeyLen)
	rand.Read(key)
	return newFileKEK(key)
}

func readFile(path string) ([]*fileKEK, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, imprint.Errorf(imprint.Denied, "read", path, "mode %04o lets others read the key", info.Mode().Perm()).
			WithHint("run: chmod 600 %s", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	return parseFile(b)
}

func parseFile(b []byte) ([]*fileKEK, error) {
	if len(b) > maxKeyFile {
		return nil, fmt.Errorf("more than %d bytes", maxKeyFile)
	}
	var keys []*fileKEK
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		prefix, text, _ := strings.Cut(line, " ")
		key, err := base64.StdEncoding.DecodeString(text)
		if prefix != filePrefix || err != nil || len(key) != dataKeyLen {
			return nil, fmt.Errorf("line %d is not %q and 32 bytes in base64", n, filePrefix) // never the line itself
		}
		if len(keys) == maxFileKeys {
			return nil, fmt.Errorf("more than %d keys", maxFileKeys)
		}
		keys = append(keys, newFileKEK(key))
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, errors.New("it holds no key")
	}
	return keys, nil
}

// marshal returns the content of a key file.
func marshal(keys []*fileKEK) []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, "# imprint key-encryption keys, the one in use first. Whoever reads this file can open the store.")
	for _, k := range keys {
		fmt.Fprintln(&b, filePrefix, base64.StdEncoding.EncodeToString(k.key[:]))
	}
	return b.Bytes()
}

// createFile makes the key file, or fails with [fs.ErrExist] if another process
// was quicker.
func createFile(path string) error {
	f, err := durable.Create(path, 0o600)
	if err != nil {
		return err
	}
	defer f.Discard()
	if _, err := f.Write(marshal([]*fileKEK{freshKEK()})); err != nil {
		return err
	}
	return f.Commit()
}

func fileError(op, path string, err error) error {
	var e *imprint.Error
	if errors.As(err, &e) {
		return err
	}
	kind := imprint.Invalid
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		kind = imprint.Unavailable
	}
	return imprint.Errorf(kind, op, path, "%w", err).
		WithHint("this must be the key file that the store was sealed with; restore it from its backup")
}
