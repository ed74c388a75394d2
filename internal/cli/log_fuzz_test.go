package cli

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"imprint/internal/daemon"
)

// FuzzUnpackLog gives "log copy" a server's archive. Whatever is in it, files
// appear in the directory and beside it only the key.
func FuzzUnpackLog(f *testing.F) {
	for _, name := range []string{"checkpoint", "tile/0/000", daemon.VerifierFile, "../outside", "/abs", "a/../../b", "log.key", ""} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		w.WriteHeader(&tar.Header{Name: name, Mode: 0o666, Size: 2, Typeflag: tar.TypeReg})
		w.Write([]byte("hi"))
		w.WriteHeader(&tar.Header{Name: name + "x", Linkname: "../..", Typeflag: tar.TypeSymlink})
		w.Close()
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "in", "log")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		unpackLog(bytes.NewReader(archive), dir)
		filepath.WalkDir(parent, func(path string, d fs.DirEntry, err error) error {
			in, _ := filepath.Rel(dir, path)
			if err != nil || d.IsDir() || filepath.IsLocal(in) || path == keyFileOf(dir) {
				return err
			}
			t.Errorf("wrote %s", path)
			return nil
		})
	})
}
