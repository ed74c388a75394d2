package ca

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	tlog "github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"

	"imprint"
)

// Files of a log directory, and limits on those that are read whole. The entry
// bundles and tiles are named by tessera's api/layout.
const (
	checkpointName = "checkpoint"
	treeStateName  = ".state/treeState"
	maxCheckpoint  = 4 << 10
	maxTreeState   = 4 << 10
)

// lockDir takes the lock of dir for this process.
func lockDir(dir string) (*os.File, error) {
	operand := "issuance log " + dir
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "lock", operand, "%w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, imprint.Errorf(imprint.Conflict, "lock", operand, "another process is using it").
				WithHint("stop the other server, or give this one its own data directory")
		}
		return nil, imprint.Errorf(imprint.Unavailable, "lock", operand, "%w", err)
	}
	return f, nil
}

// unwritable says that the disk of the log called name refused a write.
func unwritable(name, dir string, err error) error {
	kind := imprint.Unavailable
	if diskFull(dir) {
		kind = imprint.Exhausted
	}
	return imprint.Errorf(kind, "append to", name, "%w", err).
		WithHint("see that the log's disk is writable and has room; nothing is issued until then")
}

// diskFull reports whether there is no room in dir for an entry bundle. It is
// asked after a write failed, because tessera's errors do not keep their cause.
func diskFull(dir string) bool {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return false
	}
	return st.Bavail*uint64(st.Bsize) < maxBundle || st.Files > 0 && st.Ffree == 0
}

// logVerifier returns the verifier of a signing key from [GenerateLogKey],
// whose form is PRIVATE+KEY+name+hash+base64(algorithm, Ed25519 seed).
func logVerifier(key imprint.Secret) (note.Verifier, error) {
	bad := imprint.Errorf(imprint.Invalid, "open", "log key", "not a note signing key")
	parts := strings.SplitN(string(key.Reveal()), "+", 5)
	if len(parts) != 5 {
		return nil, bad
	}
	seed, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(seed) != 1+ed25519.SeedSize {
		return nil, bad
	}
	public := ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey)
	vkey, err := note.NewEd25519VerifierKey(parts[2], public)
	if err != nil {
		return nil, bad
	}
	return note.NewVerifier(vkey)
}

// continueTree returns the tree under the log's checkpoint. It refuses to go on
// with a log that is not the verifier's, that is damaged, or that has fewer
// entries than noted: going on would write a second history over the first. What
// the log has beyond its checkpoint nobody relies on.
func continueTree(log fs.FS, verifier note.Verifier, noted uint64) (*tree, error) {
	if _, err := fs.Stat(log, checkpointName); errors.Is(err, fs.ErrNotExist) {
		if _, err := fs.Stat(log, "tile"); errors.Is(err, fs.ErrNotExist) && noted == 0 {
			return &tree{nodes: ranges.NewEmptyRange(0)}, nil
		}
		return nil, lost("it has entries but no checkpoint")
	}
	signed, err := readCheckpoint(log, verifier)
	if err != nil {
		return nil, err
	}
	if signed.Size < noted {
		return nil, lost("its checkpoint covers %d entries, and is known to have covered %d", signed.Size, noted)
	}
	t, err := readTree(log, signed.Size, signed.Hash)
	if err != nil {
		return nil, lost("%w", err)
	}
	return t, nil
}

func lost(format string, args ...any) error {
	return imprint.Errorf(imprint.Conflict, "continue", "log", format, args...).
		WithHint("restore the whole log directory from a copy, or move it away to start a new log")
}

// readCheckpoint reads and verifies the signed checkpoint. Exactly the bytes
// that one signature of the verifier's key makes are accepted, so that no change
// of the file goes unseen.
func readCheckpoint(log fs.FS, verifier note.Verifier) (*tlog.Checkpoint, error) {
	raw, err := readLimited(log, checkpointName, maxCheckpoint)
	if err != nil {
		return nil, err
	}
	bad := func(format string, args ...any) (*tlog.Checkpoint, error) {
		return nil, imprint.Errorf(imprint.Conflict, "verify", "checkpoint", format, args...).
			WithHint("compare the verifier key with the one that the server shows")
	}
	cp, rest, n, err := tlog.ParseCheckpoint(raw, verifier.Name(), verifier)
	if err != nil {
		return bad("%w", err)
	}
	if len(rest) > 0 || len(n.UnverifiedSigs) > 0 || len(n.Sigs) != 1 {
		return bad("it has more than size, root and one signature")
	}
	if want := fmt.Sprintf("%s\n— %s %s\n", n.Text, n.Sigs[0].Name, n.Sigs[0].Base64); want != string(raw) || !canonicalBase64(n.Sigs[0].Base64) {
		return bad("it is not written as it was signed")
	}
	if want := cp.Marshal(); !bytes.Equal(want, []byte(n.Text)) {
		return bad("it is not written as it was signed")
	}
	return cp, nil
}

func canonicalBase64(s string) bool {
	_, err := base64.StdEncoding.Strict().DecodeString(s)
	return err == nil
}

// treeState is a record of the tree in the directory, signed or not yet, in the
// form in which tessera's drivers have it.
type treeState struct {
	Size uint64 `json:"size"`
	Root []byte `json:"root"`
}

func readTreeState(log fs.FS) (state treeState, err error) {
	for range 5 { // it may be written just now
		if state, err = readTreeStateOnce(log); imprint.KindOf(err) != imprint.Invalid {
			break
		}
	}
	return state, err
}

func readTreeStateOnce(log fs.FS) (treeState, error) {
	var state treeState
	raw, err := readLimited(log, treeStateName, maxTreeState)
	if err != nil {
		return state, err
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return state, imprint.Errorf(imprint.Invalid, "read", treeStateName, "%w", err)
	}
	if want, err := json.Marshal(state); err != nil || !bytes.Equal(want, raw) {
		return state, imprint.Errorf(imprint.Invalid, "read", treeStateName, "it is not as it was written")
	}
	return state, nil
}

// readLimited reads a file of the log of at most limit bytes.
func readLimited(log fs.FS, name string, limit int64) ([]byte, error) {
	f, err := log.Open(name)
	if err != nil {
		return nil, imprint.Errorf(imprint.NotFound, "read", name, "%w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "read", name, "%w", err)
	}
	if int64(len(raw)) > limit {
		return nil, imprint.Errorf(imprint.Invalid, "read", name, "more than %d bytes", limit)
	}
	return raw, nil
}
