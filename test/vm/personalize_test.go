//go:build vm

package vm_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/demo/guest"
	"imprint/internal/helpervm"
	"imprint/internal/job"
	"imprint/internal/personalize"
	"imprint/test/need"
)

// helperVM is a helper VM with these disks, which has the kernel that guests have.
func helperVM(t *testing.T, disks ...helpervm.Disk) helpervm.Config {
	t.Helper()
	needQEMU(t)
	k, err := guest.FetchKernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	return helpervm.Config{
		Kernel: helpervm.Kernel{Image: k.Image, Modules: filepath.Join(k.Root, "lib/modules", k.ABI)}, Init: program("imprint-helper"),
		Cache: t.TempDir(), RunDir: filepath.Join(t.TempDir(), "run"), TimeLimit: 2 * time.Minute, Disks: disks,
	}
}

// write makes a file, and the directories above it.
func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// output runs a program that has to succeed.
func output(t *testing.T, program, debianPackage string, arg ...string) string {
	t.Helper()
	out, err := exec.Command(need.Program(t, program, debianPackage), arg...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
	return string(out)
}

// rootImage is a small system on a filesystem without a partition table.
func rootImage(t *testing.T) string {
	t.Helper()
	need.Root(t)
	tree, image := t.TempDir(), filepath.Join(t.TempDir(), "disk.raw")
	write(t, filepath.Join(tree, "etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:733:733::/:/bin/false\n")
	write(t, filepath.Join(tree, "etc/group"), "root:x:0:\nweb:x:734:\n")
	write(t, filepath.Join(tree, "etc/fstab"), "LABEL=root / ext4 defaults 0 1\n")
	write(t, filepath.Join(tree, "etc/os-release"), "ID=test\n")
	write(t, filepath.Join(tree, "etc/motd"), "hello\n")
	write(t, filepath.Join(tree, "usr/lib/keep"), "kept\n")
	if err := os.Symlink("usr/lib", filepath.Join(tree, "lib")); err != nil {
		t.Fatal(err)
	}
	write(t, image, "")
	if err := os.Truncate(image, 256<<20); err != nil {
		t.Fatal(err)
	}
	output(t, "mke2fs", "e2fsprogs", "-q", "-F", "-t", "ext4", "-L", "root", "-E", "root_owner=0:0", "-d", tree, image)
	return image
}

// mounted mounts an image that the test made itself, to look at it.
func mounted(t *testing.T, image string) string {
	t.Helper()
	_, err := os.Stat("/dev/loop-control")
	need.Kernel(t, err == nil, "loop devices")
	dir := t.TempDir()
	output(t, "mount", "mount", "-o", "ro,loop", image, dir)
	t.Cleanup(func() { output(t, "umount", "mount", dir) })
	return dir
}

// manyFiles is a package of 300 files with 38 MB, in dir.
func manyFiles(t *testing.T, dir string) (tree, archive string) {
	t.Helper()
	tree, archive = filepath.Join(dir, "tree"), filepath.Join(dir, "package.tar")
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		b := make([]byte, 127<<10)
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		write(t, filepath.Join(tree, fmt.Sprintf("srv/data/%02d/file%03d", i%20, i)), string(b))
	}
	output(t, "tar", "tar", "--owner=0", "--group=0", "-C", tree, "-cf", archive, ".")
	return tree, archive
}

// A package, and files of this machine, arrive on the root filesystem of an image
// through the helper VM, which alone mounts it; the image is sound afterwards.
func TestPersonalize(t *testing.T) {
	image, dir := rootImage(t), t.TempDir()
	tree, archive := manyFiles(t, dir)
	info, err := os.Stat(archive)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "key"), "of web")
	in, err := personalize.ParseInjection(filepath.Join(dir, "key") + ":/lib/web/key:0640:root:web")
	if err != nil {
		t.Fatal(err)
	}
	injected, size, err := personalize.Inject(t.Context(), []personalize.Injection{in})
	if err != nil {
		t.Fatal(err)
	}
	defer injected.Close()
	r, err := helpervm.Run(t.Context(), helperVM(t, helpervm.Disk{Path: image}, helpervm.Disk{Path: archive, ReadOnly: true}, helpervm.Disk{File: injected, ReadOnly: true}), job.Job{Tasks: []job.Task{
		{Unpack: &job.Unpack{Disk: 0, Package: 1, Size: info.Size()}},
		{Name: "inject", Unpack: &job.Unpack{Disk: 0, Package: 2, Size: size, Owners: "known", KeepDirectories: true}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the agent ran after %v, unpacking took %v and %v, the whole %v", r.Booted, r.Tasks[0].Took, r.Tasks[1].Took, r.Took)
	if u := r.Tasks[0].Unpack; u == nil || u.Bytes != 300*127<<10 || !u.Changed {
		t.Errorf("%+v", u)
	}
	output(t, "e2fsck", "e2fsprogs", "-fn", image)
	root := mounted(t, image)
	output(t, "diff", "diffutils", "-r", tree+"/srv", root+"/srv")
	var st unix.Stat_t
	if err := unix.Stat(root+"/usr/lib/web/key", &st); err != nil || st.Uid != 0 || st.Gid != 734 || st.Mode != 0o100640 {
		t.Errorf("the key has %d:%d %o, %v", st.Uid, st.Gid, st.Mode, err)
	}
	for name, want := range map[string]string{"usr/lib/web/key": "of web", "usr/lib/keep": "kept\n", "etc/motd": "hello\n"} {
		if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(b) != want {
			t.Errorf("%s is %q, %v", name, b, err)
		}
	}
}

// A package that may not be unpacked fails the job, and leaves the files of the image
// as they were.
func TestBadPackage(t *testing.T) {
	image, dir := rootImage(t), t.TempDir()
	write(t, filepath.Join(dir, "a/etc/motd"), "changed\n")
	write(t, filepath.Join(dir, "evil"), "evil\n")
	archive := filepath.Join(dir, "package.tar")
	output(t, "tar", "tar", "-C", filepath.Join(dir, "a"), "--transform=s,^/.*evil,../../evil,", "-Pczf", archive, "etc", filepath.Join(dir, "evil"))
	info, err := os.Stat(archive)
	if err != nil {
		t.Fatal(err)
	}
	r, err := helpervm.Run(t.Context(), helperVM(t, helpervm.Disk{Path: image}, helpervm.Disk{Path: archive, ReadOnly: true}), job.Job{Tasks: []job.Task{
		{Unpack: &job.Unpack{Disk: 0, Package: 1, Size: info.Size()}},
	}})
	if imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), "unpack ../../evil: the name goes up by ..") || imprint.HintOf(err) == "" {
		t.Errorf("%v (%s)", err, imprint.HintOf(err))
	}
	if r == nil || len(r.Tasks) != 1 || r.Tasks[0].Unpack.Changed {
		t.Errorf("the result is %+v", r)
	}
	root := mounted(t, image)
	if b, err := os.ReadFile(root + "/etc/motd"); err != nil || string(b) != "hello\n" {
		t.Errorf("the image's file is %q, %v", b, err)
	}
}
