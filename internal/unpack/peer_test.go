//go:build linux

package unpack_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"imprint/internal/unpack"
	"imprint/test/need"
)

// grow makes a random tree below dir: everything that a file can be, have and be called.
func grow(t *testing.T, r *rand.Rand, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dirs, files := []string{dir}, []string{}
	for i := range 60 {
		name := fmt.Sprintf("%d", i) + []string{"", " a b", "ü€", "-x", "\\n", "\ttab", "'\"", "%=:;", strings.Repeat("long", 55), strings.Repeat("n", 90)}[r.IntN(10)]
		in := dirs[r.IntN(len(dirs))]
		path := filepath.Join(in, name)
		kind := r.IntN(12)
		switch kind {
		case 0, 1, 2:
			if strings.Count(path, "/") < 16 && len(path) < 2500 {
				must(os.Mkdir(path, 0o755))
				dirs = append(dirs, path)
			} else {
				must(os.WriteFile(path, nil, 0o644))
			}
		case 3:
			must(os.Symlink([]string{"/etc/passwd", "nowhere", ".", strings.Repeat("t", 200), "/" + strings.Repeat("u/", 300)}[r.IntN(5)], path))
		case 4:
			must(unix.Mkfifo(path, 0o644))
		case 5:
			must(unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, uint32(r.IntN(300))))))
		case 6:
			if len(files) > 0 {
				must(os.Link(files[r.IntN(len(files))], path))
				continue
			}
			fallthrough
		case 7: // with holes, at the end as well
			f, err := os.Create(path)
			must(err)
			for range r.IntN(4) {
				_, err := f.WriteAt(bytes.Repeat([]byte{'d'}, 1+r.IntN(9000)), int64(r.IntN(1<<18)))
				must(err)
			}
			must(f.Truncate(int64(1<<18 + r.IntN(1<<16))))
			must(f.Close())
			files = append(files, path)
		default:
			b := make([]byte, []int{0, 1, 511, 512, 513, 4096, 70000}[r.IntN(7)])
			for i := range b {
				b[i] = byte(r.Uint32() >> 7 & 0x33)
			}
			must(os.WriteFile(path, b, 0o644))
			files = append(files, path)
		}
		must(os.Lchown(path, r.IntN(3)*500, r.IntN(1<<22)))
		if kind == 3 {
			if r.IntN(2) == 0 {
				must(unix.Lsetxattr(path, "security.selinux", []byte("system_u:object_r:etc_t:s0\x00"), 0))
			}
			continue
		}
		must(unix.Chmod(path, uint32(r.IntN(0o10000))))
		if kind != 4 && kind != 5 {
			for _, a := range []struct{ name, value string }{
				{"user.plain", "value"}, {"user.binary", "\x00\xff=\n\x00"}, {"user.empty", ""}, {"trusted.t", strings.Repeat("v", 3000)},
				{"security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
				{"security.selinux", "system_u:object_r:shadow_t:s0\x00"},
				{"system.posix_acl_access", "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x08\x00\x05\x00\x07\x00\x00\x00\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"},
			} {
				if r.IntN(5) > 0 || a.name == "security.capability" && kind < 3 {
					continue
				}
				must(unix.Setxattr(path, a.name, []byte(a.value), 0))
			}
		}
		must(unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: 5}, {Sec: int64(r.IntN(1 << 32)), Nsec: int64(r.IntN(1e9))}}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// body is a tree's snapshot without the root directory, which stays as it is.
func body(t *testing.T, dir string) string {
	t.Helper()
	_, text, _ := strings.Cut(snapshot(t, dir, true), "\n")
	return text
}

// A tree that tar packs arrives as it does if the same tar unpacks it as root:
// owners, modes, attributes, links, contents and times.
func TestSameAsTar(t *testing.T) {
	need.Root(t)
	gnu, bsd := need.Program(t, "tar", "tar"), need.Program(t, "bsdtar", "libarchive-tools")
	for _, peer := range []struct {
		name         string
		pack, unpack []string
	}{
		{"GNU tar", []string{gnu, "--format=gnu", "-cf"}, []string{gnu, "--numeric-owner", "-pxf"}},
		{"GNU tar, sparse", []string{gnu, "--format=gnu", "-Scf"}, []string{gnu, "--numeric-owner", "-pxf"}},
		{"GNU tar, pax", []string{gnu, "--xattrs", "--xattrs-include=*", "--acls", "--selinux", "-cf"}, []string{gnu, "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-pxf"}},
		{"GNU tar, pax, sparse", []string{gnu, "--xattrs", "--xattrs-include=*", "-Sczf"}, []string{gnu, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-pxzf"}},
		{"GNU tar, pax, sparse 0.1", []string{gnu, "--format=posix", "--sparse-version=0.1", "-ScJf"}, []string{gnu, "--numeric-owner", "-pxJf"}},
		{"bsdtar", []string{bsd, "--xattrs", "--acls", "--format=pax", "-cf"}, []string{bsd, "--xattrs", "--acls", "--numeric-owner", "-pxf"}},
		{"bsdtar, zstd", []string{bsd, "--xattrs", "--acls", "--format=pax", "--zstd", "-cf"}, []string{bsd, "--xattrs", "--acls", "--numeric-owner", "-pxf"}},
	} {
		t.Run(peer.name, func(t *testing.T) {
			for seed := range uint64(2) {
				top := t.TempDir()
				from, theirs, ours := filepath.Join(top, "from"), filepath.Join(top, "theirs"), filepath.Join(top, "ours")
				for _, d := range []string{from, theirs, ours} {
					if err := os.Mkdir(d, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				grow(t, rand.New(rand.NewPCG(seed, 7)), from)
				archive := filepath.Join(top, "archive")
				run := func(arg []string, more ...string) {
					cmd := exec.Command(arg[0], append(append(arg[1:], archive), more...)...)
					cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Fatalf("%s: %v\n%s", cmd.Args, err, out)
					}
				}
				run(peer.pack, "-C", from, ".")
				run(peer.unpack, "-C", theirs)
				b, err := os.ReadFile(archive)
				if err != nil {
					t.Fatal(err)
				}
				// GNU tar has names in access control lists, which are this machine's.
				etc := filepath.Join(ours, "etc")
				if err := os.CopyFS(etc, accounts(t)); err != nil {
					t.Fatal(err)
				}
				if _, err := unpackTo(t, ours, b, unpack.Options{Owners: unpack.OwnersByNumber, Devices: true}); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if err := os.RemoveAll(etc); err != nil {
					t.Fatal(err)
				}
				if got, want := body(t, ours), body(t, theirs); got != want {
					t.Errorf("seed %d:\n%s", seed, difference(got, want))
				}
			}
		})
	}
}

// accounts are this machine's users and groups, as they are in /etc.
func accounts(t *testing.T) fs.FS {
	t.Helper()
	files := fstest.MapFS{}
	for _, name := range []string{"passwd", "group"} {
		b, err := os.ReadFile("/etc/" + name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: b}
	}
	return files
}

// difference shows the lines of got and want that the other does not have.
func difference(got, want string) string {
	var out strings.Builder
	for _, side := range []struct{ sign, a, b string }{{"-", want, got}, {"+", got, want}} {
		has := map[string]bool{}
		for line := range strings.Lines(side.b) {
			has[line] = true
		}
		for line := range strings.Lines(side.a) {
			if !has[line] {
				out.WriteString(side.sign + line[:min(len(line), 1000)] + "\n")
			}
		}
	}
	return out.String()
}
