package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"imprint"
	"imprint/internal/durable"
)

// versionFile holds the format version beside the embedded etcd's files, so
// that a newer data directory is refused before anything in it is touched.
const versionFile = "version"

// checkFormat reads the format version in the cluster, or writes it into an
// empty one. It fails with kind [imprint.Conflict] if it is newer.
func (s *Store) checkFormat(ctx context.Context, operand string) error {
	p, err := s.kv.read(ctx, query{key: s.keys.format()})
	if err != nil {
		return during(err, "open", operand)
	}
	if found := p.first(); found != nil {
		return checkVersion(operand, string(found.value))
	}
	// Two first servers write the same, so it does not matter who wins.
	_, err = s.committer.commit(ctx, txn{
		when: []compare{{s.keys.format(), 0}},
		then: []op{{verb: put, key: s.keys.format(), value: strconv.AppendInt(nil, formatVersion, 10)}},
	})
	if err != nil {
		return during(err, "open", operand)
	}
	return nil
}

// checkVersionFile fails with kind [imprint.Conflict] if dir is of a newer version.
func checkVersionFile(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, versionFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return imprint.Errorf(imprint.Internal, "open", dir, "%w", err)
	}
	return checkVersion(dir, string(b))
}

func checkVersion(operand, text string) error {
	v, err := strconv.Atoi(strings.TrimSpace(text))
	switch {
	case err != nil || v < 1:
		return imprint.Errorf(imprint.Conflict, "open", operand, "%.20q is not a store's format version", text).
			WithHint("check that this is imprint's own store")
	case v > formatVersion:
		return imprint.Errorf(imprint.Conflict, "open", operand, "its format is version %d; this program knows versions up to %d", v, formatVersion).
			WithHint("install the release of imprint that wrote it, or a later one")
	}
	return nil
}

// writeVersionFile marks dir as ours; it replaces the file in one step.
func writeVersionFile(dir string) error {
	if err := durable.WriteFile(filepath.Join(dir, versionFile), []byte(strconv.Itoa(formatVersion)+"\n"), 0o600); err != nil {
		return diskFault(dir, err)
	}
	return nil
}
