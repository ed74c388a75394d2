//go:build linux

package unpack_test

import (
	"archive/tar"
	"bytes"
	"os"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/unpack"
)

// FuzzUnpack unpacks anything as root. Whatever it is, nothing outside of the root
// changes, a refusal changes nothing inside, and nothing temporary is left.
func FuzzUnpack(f *testing.F) {
	good := pack(f, dir("./"), file("./etc/motd", "hi"), symlink("etc/l", "../usr"), link("h", "etc/motd"), file("lib/x", "1"),
		tar.Header{Typeflag: tar.TypeFifo, Name: "fifo"}, tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3},
		tar.Header{Name: "attr", Linkname: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b", "SCHILY.acl.access": "user::rw-,group::r--,other::r--"}, Format: tar.FormatPAX})
	f.Add(good)
	f.Add(gzipped(f, good))
	f.Add(compress(f, good, "zstd"))
	f.Add(compress(f, good, "xz"))
	f.Add(pack(f, symlink("a", "/etc"), file("a/passwd", "x")))
	f.Add(pack(f, file("out/secret", "x"), file("up/secret", "x"), link("h", "out/secret"), file("h", "x")))
	f.Add(pack(f, file("../outside/secret", "x"), symlink("lib/a", "../../../outside"), file("lib/a/secret", "x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		// In memory, where syncing costs nothing.
		if _, err := os.Stat("/dev/shm"); err == nil {
			t.Setenv("TMPDIR", "/dev/shm")
		}
		root, outside := newRoot(t)
		before, beside := snapshot(t, root, true), snapshot(t, outside, true)
		d, err := os.Open(root)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		sum, err := unpack.Unpack(t.Context(), d, bytes.NewReader(b), int64(len(b)), unpack.Options{Devices: true, Memory: int64(len(b)%3) << 15, Limits: unpack.Limits{Size: 1 << 20, Entries: 300}})
		after := snapshot(t, root, true)
		if got := snapshot(t, outside, true); got != beside {
			t.Errorf("outside was\n%s and is\n%s", beside, got)
		}
		if err != nil && !sum.Changed && after != before {
			t.Errorf("%v, and the root was\n%s and is\n%s", err, before, after)
		}
		if strings.Contains(after, ".imprint-") && !bytes.Contains(b, []byte(".imprint-")) && len(b) < 1<<10 {
			t.Errorf("a temporary file is left: %s", after)
		}
		if err != nil && (imprint.KindOf(err) == imprint.Internal && !sum.Changed || !strings.Contains(err.Error(), "unpack ")) {
			t.Errorf("%v", err)
		}
	})
}
