package daemon

import (
	"context"
	"crypto"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/coreos/go-systemd/v22/daemon"

	"imprint"
	"imprint/internal/ca"
	"imprint/internal/durable"
	"imprint/internal/signer"
)

// maxSignerKeys is how many keys a signer's directory may hold.
const maxSignerKeys = 64

// SignConfig configures [Sign].
type SignConfig struct {
	Dir    string // holds one file of mode 0600 for each key
	Socket string
	Group  string // whose members may connect; "" is none
	Make   int    // have at least this many keys
	Logger *slog.Logger
}

// Sign runs the process that holds the issuing keys until ctx ends.
func Sign(ctx context.Context, c SignConfig) error {
	if err := keepOutOfCoreFiles(); err != nil {
		return err
	}
	gid, err := groupID(c.Group)
	if err != nil {
		return err
	}
	keys, err := signerKeys(c.Dir, c.Make)
	if err != nil {
		return err
	}
	l, err := signer.Listen(c.Socket, gid)
	if err != nil {
		return err
	}
	c.Logger.InfoContext(ctx, "signing", "socket", c.Socket, "keys", len(keys))
	daemon.SdNotify(false, daemon.SdNotifyReady)
	return signer.Serve(ctx, l, signer.Config{Keys: keys, GID: gid, Logger: c.Logger})
}

func groupID(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, imprint.Errorf(imprint.Invalid, "use", "group "+name, "there is no such group").
			WithHint("create it with: groupadd --system %s", name)
	}
	return strconv.Atoi(g.Gid)
}

// signerKeys reads the keys in dir and makes more until there are atLeast.
func signerKeys(dir string, atLeast int) ([]crypto.Signer, error) {
	if atLeast > maxSignerKeys {
		return nil, imprint.Errorf(imprint.Invalid, "make", "keys", "%d of them; a signer holds at most %d", atLeast, maxSignerKeys)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, imprint.Errorf(imprint.Denied, "make", dir, "%w", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.pem"))
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "read", dir, "%w", err)
	}
	var keys []crypto.Signer
	for _, file := range files {
		key, err := readSignerKey(file)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	for len(keys) < atLeast {
		key, err := makeSignerKey(dir)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func readSignerKey(file string) (crypto.Signer, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "read", file, "%w", err)
	}
	if err := checkKeyMode(file, info); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "read", file, "%w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, imprint.Errorf(imprint.Invalid, "read", file, "it is not a key in PEM")
	}
	key, err := ca.ParseKey(imprint.NewSecret(block.Bytes))
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "read", file, "%w", err)
	}
	return key, nil
}

// checkKeyMode refuses a key file that others than its owner can use.
func checkKeyMode(file string, info fs.FileInfo) error {
	if info.Mode().Perm()&0o077 != 0 {
		return imprint.Errorf(imprint.Denied, "read", file, "mode %04o lets others read the key", info.Mode().Perm()).
			WithHint("run: chmod 600 %s", file)
	}
	return nil
}

// makeSignerKey writes a fresh key durably before it is used.
func makeSignerKey(dir string) (crypto.Signer, error) {
	secret, err := ca.GenerateKey()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "key-"+rand.Text()+".pem")
	if err := durable.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret.Reveal()}), 0o600); err != nil {
		kind := imprint.Exhausted
		if errors.Is(err, fs.ErrPermission) {
			kind = imprint.Denied
		}
		return nil, imprint.Errorf(kind, "write", dir, "%w", err)
	}
	return ca.ParseKey(secret)
}
