//go:build linux

package unpack_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/unpack"
	"imprint/test/need"
)

// pack returns an archive of entries. A file's content is in the field Linkname,
// which it has no other use for.
func pack(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		content := ""
		if h.Typeflag == tar.TypeReg || h.Typeflag == 0 {
			content, h.Linkname, h.Typeflag = h.Linkname, "", tar.TypeReg
			h.Size = int64(len(content))
		}
		if h.Mode == 0 && h.Typeflag != tar.TypeXGlobalHeader {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, content string) tar.Header { return tar.Header{Name: name, Linkname: content} }
func dir(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}
}
func symlink(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}
func link(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}

// newRoot returns a directory with what a small image has, beside another that
// nothing may change.
func newRoot(t testing.TB) (root, outside string) {
	t.Helper()
	need.Root(t)
	top := t.TempDir()
	root, outside = filepath.Join(top, "root"), filepath.Join(top, "outside")
	for _, d := range []string{"root/etc/ssh", "root/usr/lib/modules", "root/run", "root/var", "root/home/joe", "outside"} {
		if err := os.MkdirAll(filepath.Join(top, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{
		"root/etc/passwd":          "root:x:0:0:root:/root:/bin/sh\nweb:x:733:733::/:/bin/false\njoe:x:1000:1000::/home/joe:/bin/sh\n",
		"root/etc/group":           "root:x:0:\nweb:x:734:\n",
		"root/etc/motd":            "hello\n",
		"root/etc/ssh/sshd_config": "Port 22\n",
		"outside/secret":           "untouched\n",
	} {
		if err := os.WriteFile(filepath.Join(top, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{
		"root/lib": "usr/lib", "root/var/run": "/run", "root/out": outside, "root/up": "../outside",
		"root/loop": "loop", "root/nowhere": "not/there",
	} {
		if err := os.Symlink(to, filepath.Join(top, name)); err != nil {
			t.Fatal(err)
		}
	}
	return root, outside
}

func unpackTo(t testing.TB, root string, b []byte, o unpack.Options) (unpack.Summary, error) {
	t.Helper()
	d, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return unpack.Unpack(t.Context(), d, bytes.NewReader(b), int64(len(b)), o)
}

// snapshot returns all that tar can say of a tree, by name, in one text.
func snapshot(t testing.TB, root string, times bool) string {
	t.Helper()
	var out strings.Builder
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&out, "%q %o %d:%d", rel, st.Mode, st.Uid, st.Gid)
		if times && rel != "." {
			fmt.Fprintf(&out, " %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if len(b) > 100 {
				fmt.Fprintf(&out, " %d %x", len(b), sha256.Sum256(b))
			} else {
				fmt.Fprintf(&out, " %d %q", len(b), b)
			}
			if st.Nlink > 1 {
				if first[st.Ino] == "" {
					first[st.Ino] = rel
				}
				fmt.Fprintf(&out, " linked %q %d", first[st.Ino], st.Nlink)
			}
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " -> %q", to)
		case unix.S_IFCHR, unix.S_IFBLK:
			fmt.Fprintf(&out, " %x", st.Rdev)
		}
		names := make([]byte, 64<<10)
		n, err := unix.Llistxattr(path, names)
		if err != nil {
			return err
		}
		for _, name := range slices.Sorted(strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00")) {
			if name == "" {
				continue
			}
			value := make([]byte, 64<<10)
			n, err := unix.Lgetxattr(path, name, value)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %s=%q", name, value[:n])
		}
		out.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// compress runs b through a program.
func compress(t testing.TB, b []byte, program string, arg ...string) []byte {
	t.Helper()
	cmd := exec.Command(need.Program(t, program, map[string]string{"xz": "xz-utils", "zstd": "zstd"}[program]), arg...)
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", program, err)
	}
	return out
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(b)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// A package lands on the image as tar would put it there, inside the root through
// the links that the image has, and keeps what it does not name.
func TestUnpack(t *testing.T) {
	when := time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)
	b := pack(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700, Uid: 1000},
		dir("./etc"),
		tar.Header{Name: "./etc/motd", Linkname: "welcome\n", Mode: 0o600, Uid: 5, Gid: 6, ModTime: when, Format: tar.FormatPAX},
		tar.Header{Name: "./usr/bin/su", Linkname: "x", Mode: 0o4755, PAXRecords: map[string]string{"SCHILY.xattr.user.note": "a\x00b"}, Format: tar.FormatPAX},
		file("lib/modules/new/a.ko", "module"),
		file("var/run/here", "1"),
		tar.Header{Typeflag: tar.TypeDir, Name: "srv/empty", Mode: 0o1777, ModTime: when, Format: tar.FormatPAX},
		tar.Header{Name: "srv/web", Linkname: "w", Uname: "web", Gname: "web", Uid: 33, Gid: 33},
		tar.Header{Name: "srv/who", Linkname: "w", Uname: "nobody-knows", Uid: 44, Gid: 45},
		link("srv/web2", "./srv/web"),
		symlink("srv/link", "/etc/motd"),
		tar.Header{Typeflag: tar.TypeFifo, Name: "srv/fifo", Mode: 0o622},
	)
	root, outside := newRoot(t)
	for name, from := range map[string]struct {
		b      []byte
		memory int64
		file   bool
	}{
		"tar": {b: b}, "gzip": {b: gzipped(t, b)}, "zstd": {b: compress(t, b, "zstd")}, "xz": {b: compress(t, b, "xz")},
		"tar in a file": {b: b, file: true}, "gzip in a file": {b: gzipped(t, b), file: true}, "gzip in memory": {b: gzipped(t, b), memory: 1 << 20},
		"zstd in memory": {b: compress(t, b, "zstd"), memory: int64(len(b))}, "xz in too little memory": {b: compress(t, b, "xz"), memory: int64(len(b)) - 1},
	} {
		root := root + name
		if out, err := exec.Command("cp", "-a", strings.TrimSuffix(root, name), root).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var r io.ReaderAt = bytes.NewReader(from.b)
		if from.file {
			path := filepath.Join(t.TempDir(), "package")
			if err := os.WriteFile(path, append(slices.Clone(from.b), "padding"...), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			r = f
		}
		d, err := os.Open(root)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		sum, err := unpack.Unpack(t.Context(), d, r, int64(len(from.b)), unpack.Options{Memory: from.memory})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if sum.Entries != 12 || sum.Bytes != 18 || !sum.Changed {
			t.Errorf("%s: %+v", name, sum)
		}
		got := "\n" + snapshot(t, root, true)
		for _, want := range []string{
			"\n\"etc/motd\" 100600 5:6 1714979289.123456789 8 \"welcome\\n\"\n",
			"\n\"etc/ssh/sshd_config\" 100644 0:0 ",
			"\n\"usr/bin/su\" 104755 0:0 0.000000000 1 \"x\" user.note=\"a\\x00b\"\n",
			"\n\"usr/bin\" 40755 0:0 ",
			"\n\"usr/lib/modules/new/a.ko\" 100644 0:0 0.000000000 6 \"module\"\n",
			"\n\"run/here\" 100644 ",
			"\n\"srv/empty\" 41777 0:0 1714979289.123456789\n",
			"\n\"srv/web\" 100644 733:734 0.000000000 1 \"w\" linked \"srv/web\" 2\n",
			"\n\"srv/web2\" 100644 733:734 0.000000000 1 \"w\" linked \"srv/web\" 2\n",
			"\n\"srv/who\" 100644 44:45 ",
			"\n\"srv/link\" 120777 0:0 0.000000000 -> \"/etc/motd\"\n",
			"\n\"srv/fifo\" 10622 0:0 0.000000000\n",
			"\n\"lib\" 120777 ",
			"\n\".\" 40755 0:0",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %s in%s", name, want, got)
			}
		}
		if strings.Contains(got, ".imprint-") {
			t.Errorf("%s: a temporary file is left: %s", name, got)
		}
	}
	if got := snapshot(t, outside, false); strings.Count(got, "\n") != 2 || !strings.Contains(got, "untouched") {
		t.Errorf("outside: %s", got)
	}
}

// A plain archive may begin with a name that looks like something else.
func TestNameLikeMagic(t *testing.T) {
	root, _ := newRoot(t)
	for _, name := range []string{"BZh", "PK\x03\x04", "070701", "\x1f\x8b"} {
		if _, err := unpackTo(t, root, pack(t, file(name, "x")), unpack.Options{}); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// What may not be unpacked is refused by name, and the root is as it was: also what
// is only found at the end of the package.
func TestRefused(t *testing.T) {
	long := strings.Repeat("n", 256)
	good := file("etc/new", "new\n")
	for _, c := range []struct {
		name    string
		pack    []byte
		options unpack.Options
		kind    imprint.Kind
		want    string
	}{
		{name: "absolute", pack: pack(t, good, file("/etc/motd", "")), want: "unpack /etc/motd: the name is absolute"},
		{name: "up", pack: pack(t, good, file("etc/../../x", "")), want: "unpack etc/../../x: the name goes up by .."},
		{name: "long name", pack: pack(t, good, file("etc/"+long, "")), want: "a part of the name has more than 255 bytes"},
		{name: "long path", pack: pack(t, good, file(strings.Repeat("12345678/", 500)+"f", "")), want: "the name has more than 4095 bytes"},
		{name: "deep", pack: pack(t, good, file(strings.Repeat("d/", 200)+"f", "")), want: "it is below more than 128 directories"},
		{name: "device", pack: pack(t, good, tar.Header{Typeflag: tar.TypeBlock, Name: "dev/sda", Devmajor: 8}), want: "unpack dev/sda: it is a block device"},
		{name: "link up", pack: pack(t, good, symlink("etc/a", "../../x")), want: `unpack etc/a: the symbolic link to "../../x" leaves the root directory`},
		{name: "link up in a link", pack: pack(t, good, symlink("lib/a", "../../../x")), want: "leaves the root directory"},
		{name: "absolute link up", pack: pack(t, good, symlink("etc/a", "/../x")), want: "leaves the root directory"},
		{name: "hard link up", pack: pack(t, good, link("etc/a", "../outside/secret")), want: `unpack etc/a: the hard link leads to "../outside/secret": the name goes up by ..`},
		{name: "hard link absolute", pack: pack(t, good, link("etc/a", "/etc/motd")), want: "the name is absolute"},
		{name: "hard link to nothing", pack: pack(t, good, link("etc/a", "etc/none")), want: "unpack etc/a: the hard link to etc/none: it is not there"},
		{name: "hard link to a directory", pack: pack(t, good, link("etc/a", "etc/ssh")), want: "it is a directory"},
		{name: "hard link to itself", pack: pack(t, good, link("etc/motd", "etc/motd")), want: "it is a hard link to itself"},
		{name: "hard link through a link", pack: pack(t, good, link("etc/a", "out/secret")), want: "the hard link to out/secret: "},
		{name: "through own link", pack: pack(t, good, symlink("srv", "/etc"), file("srv/motd", "")), want: "unpack srv/motd: it goes through srv, a symbolic link that the package brings"},
		{name: "directory through own link", pack: pack(t, good, symlink("srv", "/etc"), dir("srv")), want: "unpack srv: it goes through srv"},
		{name: "out of the root", pack: pack(t, good, file("out/secret", "x")), kind: imprint.Conflict, want: "unpack out/secret: a symbolic link of the image on the way leads to "},
		{name: "loop", pack: pack(t, good, file("loop/x", "x")), kind: imprint.Conflict, want: "more than 40 symbolic links are on the way"},
		{name: "nowhere", pack: pack(t, good, file("nowhere/x", "x")), kind: imprint.Conflict, want: "a symbolic link of the image on the way leads to not, which is not there"},
		{name: "below a file", pack: pack(t, good, file("etc/motd/x", "x")), kind: imprint.Conflict, want: "unpack etc/motd/x: etc/motd, a file of the image, is no directory"},
		{name: "below a file of its own", pack: pack(t, good, file("etc/new/x", "x")), kind: imprint.Conflict, want: "unpack etc/new/x: etc/new, a file that the package brings, is no directory"},
		{name: "directory by file", pack: pack(t, good, file("etc/ssh", "x")), kind: imprint.Conflict, want: "unpack etc/ssh: it is a file, and takes the place of a directory"},
		{name: "directory by link", pack: pack(t, good, symlink("etc/ssh", "x")), kind: imprint.Conflict, want: "it is a symbolic link, and takes the place of a directory"},
		{name: "own directory by link", pack: pack(t, good, dir("srv"), symlink("srv", "x")), kind: imprint.Conflict, want: "takes the place of a directory"},
		{name: "file by directory", pack: pack(t, good, dir("etc/motd")), kind: imprint.Conflict, want: "it is a directory, and takes the place of a file"},
		{name: "root by link", pack: pack(t, good, symlink("./", "x")), want: "the root directory would become a symbolic link"},
		{name: "entries", pack: pack(t, good, file("a/b/c", "")), options: unpack.Options{Limits: unpack.Limits{Size: 1 << 20, Entries: 3}}, kind: imprint.Exhausted, want: "unpack a/b/c: with it the package has more than 3 entries"},
		{name: "unknown owner", pack: pack(t, good, tar.Header{Name: "x", Uname: "postgres"}), options: unpack.Options{Owners: unpack.OwnersKnown}, kind: imprint.Conflict, want: `unpack x: the image does not know the user "postgres", which it names`},
		{name: "way to find owners", pack: pack(t, good), options: unpack.Options{Owners: "guess"}, want: `owners are found by "guess"`},
		{name: "global header", pack: pack(t, good, tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"uid": "7"}, Format: tar.FormatPAX}), want: `it sets "uid" for all entries behind it`},
		{name: "nothing", pack: nil, want: "it is empty"},
		{name: "zeros", pack: make([]byte, 10240), want: "it has no entries"},
		{name: "text", pack: []byte(strings.Repeat("no archive\n", 100)), want: "the archive cannot be read from here on"},
		{name: "zip", pack: []byte("PK\x03\x04"), want: "it is made by zip"},
		{name: "cut at a header", pack: pack(t, good)[:1024], want: "it stops without the end of an archive"},
		{name: "cut in a file", pack: pack(t, file("a", strings.Repeat("x", 2000)))[:1024], want: "the package is cut off"},
		{name: "cut gzip", pack: gzipped(t, pack(t, good))[:60], want: "cannot be read from here on"},
		{name: "two archives", pack: append(pack(t, good), pack(t, file("b", ""))...), want: "something follows the end of the archive"},
		{name: "garbage behind gzip", pack: append(gzipped(t, pack(t, good)), "garbage behind"...), want: "cannot be read from here on"},
		{name: "garbage behind zstd", pack: append(compress(t, pack(t, good), "zstd"), "garbage behind"...), want: "cannot be read from here on"},
		{name: "garbage behind xz", pack: append(compress(t, pack(t, good), "xz"), "garbage behind"...), want: "cannot be read from here on"},
		{name: "bomb", pack: gzipped(t, pack(t, good, file("zeros", strings.Repeat("\x00", 16<<20)))), options: unpack.Options{Limits: unpack.Limits{Size: 1 << 20, Entries: 10}}, kind: imprint.Exhausted, want: "unpack zeros: with its 16777216 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, outside := newRoot(t)
			before, beside := snapshot(t, root, true), snapshot(t, outside, true)
			for _, c.options.Memory = range []int64{1 << 20, 1000} {
				if _, err := unpackTo(t, root, c.pack, c.options); err == nil || !strings.Contains(err.Error()+imprint.HintOf(err), c.want) {
					t.Errorf("with memory for %d bytes: %v; want %s", c.options.Memory, err, c.want)
				}
			}
			c.options.Memory = 0
			sum, err := unpackTo(t, root, c.pack, c.options)
			if err == nil {
				t.Fatal("it was unpacked")
			}
			hint := imprint.HintOf(err)
			if text := err.Error() + " (" + hint + ")"; !strings.Contains(text, c.want) {
				t.Errorf("error %s; want %s", text, c.want)
			}
			if c.kind == 0 {
				c.kind = imprint.Invalid
			}
			if kind := imprint.KindOf(err); kind != c.kind {
				t.Errorf("the kind is %s, want %s", kind, c.kind)
			}
			if sum.Changed {
				t.Error("it is said to have changed something")
			}
			if after := snapshot(t, root, true); after != before {
				t.Errorf("the root was\n%s and is\n%s", before, after)
			}
			if after := snapshot(t, outside, true); after != beside {
				t.Errorf("outside was\n%s and is\n%s", beside, after)
			}
		})
	}
}
