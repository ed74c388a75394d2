package daemon

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"imprint"
	"imprint/internal/ca"
)

// VerifierFile is the first file of a copy of the issuance log: the key that
// verifies it. It is not part of the log's tree.
const VerifierFile = "verifier.key"

// checkpointFile is what a log's tree is judged by; it goes first, so that all
// that it covers is in the copy. stateFile says how far the tree goes; that of
// the server may be ahead, so a copy has one made from its checkpoint.
const (
	checkpointFile = "checkpoint"
	stateFile      = ".state/treeState"
)

// issuanceLog gives copies of the log in dir.
type issuanceLog struct {
	log           *ca.Log
	dir, verifier string
}

// WriteTar writes the log's files, with all that was issued before, while the
// log goes on.
func (l issuanceLog) WriteTar(ctx context.Context, w io.Writer) error {
	if err := l.log.Settle(ctx); err != nil {
		return err
	}
	out := tar.NewWriter(w)
	err := writeEntry(out, VerifierFile, []byte(l.verifier+"\n"))
	if err == nil {
		err = l.copyCheckpoint(out)
	}
	if err == nil {
		err = l.copyTree(ctx, out)
	}
	if err := errors.Join(err, out.Close()); err != nil {
		return imprint.Errorf(imprint.Unavailable, "copy", "issuance log", "%w", err)
	}
	return nil
}

// copyCheckpoint copies the checkpoint: origin, size and root hash in base64 on a
// line each, and signatures (C2SP tlog-checkpoint).
func (l issuanceLog) copyCheckpoint(out *tar.Writer) error {
	b, err := os.ReadFile(filepath.Join(l.dir, checkpointFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was issued yet
	}
	if err != nil {
		return err
	}
	if err := writeEntry(out, checkpointFile, b); err != nil {
		return err
	}
	lines := strings.SplitN(string(b), "\n", 4)
	if len(lines) < 4 {
		return nil // whoever verifies the copy says so
	}
	return writeEntry(out, stateFile, fmt.Appendf(nil, `{"size":%s,"root":"%s"}`, lines[1], lines[2]))
}

func (l issuanceLog) copyTree(ctx context.Context, out *tar.Writer) error {
	return filepath.WalkDir(filepath.Join(l.dir, "tile"), func(path string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			return nil // a partial tile that was completed meanwhile
		case err != nil:
			return err
		case !d.Type().IsRegular():
			return nil
		}
		name, err := filepath.Rel(l.dir, path)
		if err != nil {
			return err
		}
		return l.copyFile(out, filepath.ToSlash(name))
	})
}

// copyFile copies one file, which is small: a tile has at most 256 entries.
func (l issuanceLog) copyFile(out *tar.Writer, name string) error {
	b, err := os.ReadFile(filepath.Join(l.dir, filepath.FromSlash(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return writeEntry(out, name, b)
}

func writeEntry(out *tar.Writer, name string, content []byte) error {
	if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := out.Write(content)
	return err
}
