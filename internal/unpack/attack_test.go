//go:build linux

package unpack_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/unpack"
	"imprint/test/need"
)

// A directory that turns into a link out of the root and back, again and again while
// packages are unpacked, lets none of their files out: with many tries some are
// unpacked, and some meet the link between the two passes.
func TestNothingFollowsALink(t *testing.T) {
	root, outside := newRoot(t)
	dir, link := filepath.Join(root, "usr/lib/modules"), filepath.Join(root, "swap")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	beside := snapshot(t, outside, false)
	b := pack(t, file("usr/lib/modules/secret", "in"))
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
		}
	}()
	whole, caught := 0, 0
	for range 20000 {
		if whole > 20 && caught > 20 {
			break
		}
		switch sum, err := unpackTo(t, root, b, unpack.Options{}); {
		case err == nil:
			whole++
		case sum.Changed:
			caught++
		}
	}
	stop.Store(true)
	<-done
	if whole == 0 || caught == 0 {
		t.Errorf("%d packages were unpacked, and %d stopped at a link: the attack did not take place", whole, caught)
	}
	if got := snapshot(t, outside, false); got != beside {
		t.Errorf("outside was\n%s and is\n%s", beside, got)
	}
}

// What is replaced is replaced as a whole, with its links to it left alone.
func TestReplace(t *testing.T) {
	root, _ := newRoot(t)
	path := func(name string) string { return filepath.Join(root, name) }
	for _, err := range []error{
		os.Link(path("etc/motd"), path("etc/motd.old")),
		os.Symlink("../etc/motd", path("home/joe/motd")),
		unix.Mkfifo(path("etc/fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	open, err := os.Open(path("etc/motd"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	b := pack(t, file("etc/motd", "new\n"), file("home/joe/motd", "joe's\n"), file("etc/fifo", "no more"),
		link("etc/same", "etc/motd"), link("etc/same", "etc/motd"), file("twice", "first"), symlink("twice", "x"), file("twice", "last"))
	if _, err := unpackTo(t, root, b, unpack.Options{}); err != nil {
		t.Fatal(err)
	}
	got := "\n" + snapshot(t, root, false)
	for _, want := range []string{
		"\n\"etc/motd\" 100644 0:0 4 \"new\\n\" linked \"etc/motd\" 2\n",
		"\n\"etc/same\" 100644 0:0 4 \"new\\n\" linked \"etc/motd\" 2\n",
		"\n\"etc/motd.old\" 100644 0:0 6 \"hello\\n\"\n",
		"\n\"home/joe/motd\" 100644 0:0 6 \"joe's\\n\"\n",
		"\n\"etc/fifo\" 100644 0:0 7 \"no more\"\n",
		"\n\"twice\" 100644 0:0 4 \"last\"\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in%s", want, got)
		}
	}
	if strings.Contains(got, ".imprint-") {
		t.Errorf("a temporary file is left: %s", got)
	}
	if b, err := io.ReadAll(open); err != nil || string(b) != "hello\n" {
		t.Errorf("who had the old file open reads %q, %v", b, err)
	}
}

// A directory that is there gets the package's owner and mode, and that is noted; or
// it keeps its own.
func TestDirectories(t *testing.T) {
	b := pack(t, tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o775, Uid: 1000, Gid: 1000}, dir("etc/ssh"),
		tar.Header{Typeflag: tar.TypeDir, Name: "lib/", Mode: 0o711}, tar.Header{Typeflag: tar.TypeDir, Name: "srv/", Mode: 0o700},
		tar.Header{Typeflag: tar.TypeDir, Name: "srv/", Mode: 0o750})
	for _, keep := range []bool{false, true} {
		root, _ := newRoot(t)
		sum, err := unpackTo(t, root, b, unpack.Options{KeepDirectories: keep})
		if err != nil {
			t.Fatal(err)
		}
		want, noted := []string{"\n\"etc\" 40775 1000:1000\n", "\n\"usr/lib\" 40711 0:0\n", "\n\"lib\" 120777 ", "\n\"srv\" 40750 0:0\n"}, "[etc usr/lib]"
		if keep {
			want, noted = []string{"\n\"etc\" 40755 0:0\n", "\n\"usr/lib\" 40755 0:0\n", "\n\"srv\" 40750 0:0\n"}, "[]"
		}
		got := "\n" + snapshot(t, root, false)
		for _, want := range want {
			if !strings.Contains(got, want) {
				t.Errorf("keep %t: no %s in%s", keep, want, got)
			}
		}
		if got := fmt.Sprint(sum.Directories); got != noted {
			t.Errorf("keep %t: %s is noted, want %s", keep, got, noted)
		}
	}
}

// Who has which number is looked up where the package goes to: in its own files, if
// it brings them, and never through a link out of the root.
func TestOwners(t *testing.T) {
	owned := tar.Header{Name: "x", Uid: 5, Gid: 6, Uname: "web", Gname: "web"}
	passwd := file("etc/passwd", "# web:x:1:\nweb:x:801:802::/:\nweb:x:1:\nbroken\n:x:3:\n")
	for _, c := range []struct {
		name    string
		prepare func(root, outside string) error
		entries []tar.Header
		owners  unpack.Owners
		want    string
	}{
		{"the image's", nil, []tar.Header{owned}, "", "733:734"},
		{"the package's", nil, []tar.Header{owned, passwd}, unpack.OwnersKnown, "801:734"},
		{"numbers", nil, []tar.Header{owned}, unpack.OwnersByNumber, "5:6"},
		{"no files", func(root, _ string) error { return os.RemoveAll(filepath.Join(root, "etc")) }, []tar.Header{owned}, "", "5:6"},
		{"a link out", func(root, outside string) error {
			if err := os.WriteFile(filepath.Join(outside, "passwd"), []byte("web:x:9:9\n"), 0o644); err != nil {
				return err
			}
			os.Remove(filepath.Join(root, "etc/passwd"))
			return os.Symlink("../../outside/passwd", filepath.Join(root, "etc/passwd"))
		}, []tar.Header{owned}, "", "5:734"},
	} {
		root, outside := newRoot(t)
		if c.prepare != nil {
			if err := c.prepare(root, outside); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := unpackTo(t, root, pack(t, c.entries...), unpack.Options{Owners: c.owners}); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := snapshot(t, root, false); !strings.Contains(got, "\n\"x\" 100644 "+c.want+" ") {
			t.Errorf("%s: want %s in\n%s", c.name, c.want, got)
		}
	}
	// A pipe in the place of the file is not waited for.
	root, _ := newRoot(t)
	os.Remove(filepath.Join(root, "etc/passwd"))
	if err := unix.Mkfifo(filepath.Join(root, "etc/passwd"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := unpackTo(t, root, pack(t, owned), unpack.Options{}); imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "etc/passwd of the image: it is no file") {
		t.Errorf("a pipe for etc/passwd: %v", err)
	}
}

// small is a filesystem of 1 MiB.
func small(t *testing.T) string {
	t.Helper()
	need.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,nr_inodes=20"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// What does not fit is known before anything is written; what takes the place of
// something needs only the difference.
func TestTooLittleSpace(t *testing.T) {
	root := small(t)
	half := strings.Repeat("x", 600<<10)
	b := pack(t, file("a", half), file("b", "1"), file("c", half))
	sum, err := unpackTo(t, root, b, unpack.Options{})
	if imprint.KindOf(err) != imprint.Exhausted || sum.Changed || !strings.Contains(err.Error(), "unpack c: the filesystem has too few free bytes") {
		t.Errorf("%+v, %v", sum, err)
	}
	if list, err := os.ReadDir(root); err != nil || len(list) != 0 {
		t.Errorf("the root has %v, %v", list, err)
	}
	var many []tar.Header
	for i := range 30 {
		many = append(many, file(fmt.Sprint(i), ""))
	}
	if sum, err := unpackTo(t, root, pack(t, many...), unpack.Options{}); imprint.KindOf(err) != imprint.Exhausted || sum.Changed || !strings.Contains(err.Error(), "too few free inodes") {
		t.Errorf("%+v, %v", sum, err)
	}
	third := strings.Repeat("x", 300<<10)
	for range 4 {
		if _, err := unpackTo(t, root, pack(t, file("a", third), file("b", third)), unpack.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := unpackTo(t, root, pack(t, file("c", strings.Repeat("x", 500<<10))), unpack.Options{}); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("more than is left: %v", err)
	}
}

// What only writing shows names the entry, and says that the filesystem was changed.
func TestDiskFull(t *testing.T) {
	root := small(t)
	b, name := sparse(t, strings.Repeat("data", 500<<10))
	b = append(pack(t, file("first", "1"))[:1024], b...)
	sum, err := unpackTo(t, root, b, unpack.Options{})
	if imprint.KindOf(err) != imprint.Exhausted || !sum.Changed || !strings.Contains(err.Error(), "unpack "+name+": write it: no space left on device") {
		t.Errorf("%+v, %v", sum, err)
	}
	list, err := os.ReadDir(root)
	if err != nil || len(list) != 1 || list[0].Name() != "first" {
		t.Errorf("the root has %v, %v", list, err)
	}
}

// sparse packs a file of content and a hole of 64 MiB behind it.
func sparse(t *testing.T, content string) (archive []byte, name string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "holes"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "holes"), 64<<20); err != nil {
		t.Fatal(err)
	}
	return compress(t, nil, "tar", "-Scf-", "-C", dir, "holes"), "holes"
}

// The holes of a file are holes again, also at its end.
func TestSparse(t *testing.T) {
	root, _ := newRoot(t)
	b, name := sparse(t, "data")
	if _, err := unpackTo(t, root, b, unpack.Options{}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(root, name), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 64<<20 || st.Blocks*512 > 64<<10 {
		t.Errorf("it has %d bytes and takes %d", st.Size, st.Blocks*512)
	}
}

// An immutable file of the image is found before anything is written.
func TestImmutable(t *testing.T) {
	root, _ := newRoot(t)
	path := filepath.Join(root, "etc/motd")
	flags := func(set int) {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, set); err != nil {
			need.Kernel(t, false, "immutable files in "+root)
		}
	}
	flags(unix.STATX_ATTR_IMMUTABLE) // the same number
	defer flags(0)
	sum, err := unpackTo(t, root, pack(t, file("new", "1"), file("etc/motd", "2")), unpack.Options{})
	if imprint.KindOf(err) != imprint.Conflict || sum.Changed || !strings.Contains(err.Error(), "unpack etc/motd: the image has it, or its directory, as immutable") {
		t.Errorf("%+v, %v", sum, err)
	}
}

// changing is a package that is another when it is read for the second time.
type changing struct {
	first, second []byte
	ends          int
}

func (c *changing) ReadAt(b []byte, off int64) (int, error) {
	from := c.first
	if c.ends > 0 {
		from = c.second
	}
	n, err := bytes.NewReader(from).ReadAt(b, off)
	if off+int64(n) == int64(len(from)) {
		c.ends++
	}
	return n, err
}

// What was not checked is not written.
func TestPackageThatChanges(t *testing.T) {
	first := pack(t, file("a", "1"), file("b", "2"))
	for name, second := range map[string][]byte{
		"another name": pack(t, file("a", "1"), file("../b", "2")),
		"another path": pack(t, file("a", "1"), file("c", "2")),
		"another kind": pack(t, file("a", "1"), symlink("b", "/etc")),
		"another size": pack(t, file("a", "1"), file("b", "22")),
		"fewer":        pack(t, file("a", "1")),
		"more":         pack(t, file("a", "1"), file("b", "2"), file("c", "2")),
	} {
		root, _ := newRoot(t)
		d, err := os.Open(root)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		const size = 10240 // as tar fills it up
		pad := func(b []byte) []byte { return append(slices.Clone(b), make([]byte, size-len(b))...) }
		sum, err := unpack.Unpack(t.Context(), d, &changing{first: pad(first), second: pad(second)}, size, unpack.Options{})
		if err == nil || !sum.Changed {
			t.Errorf("%s: %+v, %v", name, sum, err)
		}
		if got := snapshot(t, root, false); strings.Contains(got, "\"c\" ") || strings.Contains(got, "\"b\" 12") || strings.Contains(got, "\"b\" 100644 0:0 2") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// Nor is it when the file with the package changes while it is unpacked, so that what is
// behind a header lies elsewhere, and beyond the end.
func TestFileThatChanges(t *testing.T) {
	root, _ := newRoot(t)
	big := strings.Repeat("x", 4<<10)
	first := pack(t, file("a", "1"), file("b", big))
	shifted := file("b", big)
	shifted.Format, shifted.PAXRecords = tar.FormatPAX, map[string]string{"comment": strings.Repeat("c", 600)}
	path := filepath.Join(t.TempDir(), "package")
	if err := os.WriteFile(path, first, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	_, err = unpack.Unpack(t.Context(), d, f, int64(len(first)), unpack.Options{Progress: func(done, total int64) {
		if done == 1 {
			if _, err := f.WriteAt(pack(t, file("a", "1"), shifted)[:len(first)], 0); err != nil {
				t.Error(err)
			}
		}
	}})
	if err == nil || !strings.Contains(err.Error(), "unpack b: the package is not the one that was checked") {
		t.Errorf("%v", err)
	}
	if got := snapshot(t, root, false); strings.Contains(got, "\"b\" ") {
		t.Errorf("a part of it is there: %s", got)
	}
}

// An interrupted unpacking stops.
func TestInterrupted(t *testing.T) {
	root, _ := newRoot(t)
	d, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b := pack(t, file("a", "1"), file("b", "2"), file("c", "3"))
	ctx, cancel := context.WithCancel(t.Context())
	sum, err := unpack.Unpack(ctx, d, bytes.NewReader(b), int64(len(b)), unpack.Options{Progress: func(done, total int64) {
		if done == 2 && total == 3 {
			cancel()
		}
	}})
	if err == nil || !sum.Changed || strings.Contains(snapshot(t, root, false), "\"c\" ") {
		t.Errorf("%+v, %v", sum, err)
	}
	if sum, err := unpack.Unpack(ctx, d, bytes.NewReader(b), int64(len(b)), unpack.Options{}); err == nil || sum.Changed {
		t.Errorf("%+v, %v", sum, err)
	}
}
