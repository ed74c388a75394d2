package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/disk"
	"imprint/internal/image"
	"imprint/test/need"
)

// opened returns an image of this machine.
func opened(t *testing.T, source string) *image.Source {
	t.Helper()
	s, err := image.NewStore(image.Config{}).Open(t.Context(), imprint.Image{Source: source}, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func openedDisk(t *testing.T, path string) *disk.File {
	t.Helper()
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// An image of 20 MiB is not for a disk of 16, in whatever form, and the disk stays as
// it is.
func TestLargerThanTheDisk(t *testing.T) {
	raw := write(t, "image.raw", diskBytes(1, 20*mib))
	qemuImg := need.Program(t, "qemu-img", "qemu-utils")
	command(t, qemuImg, "convert", "-O", "qcow2", raw, raw+".qcow2")
	command(t, qemuImg, "convert", "-O", "vmdk", raw, raw+".vmdk")
	command(t, need.Program(t, "gzip", "gzip"), "-k", raw)
	command(t, need.Program(t, "zstd", "zstd"), "-q", raw)
	for _, source := range []string{raw, raw + ".qcow2", raw + ".vmdk", raw + ".gz", raw + ".zst"} {
		path := dirty(t, 16*mib)
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = install(t, source, path)
		if imprint.KindOf(err) != imprint.Exhausted || !strings.Contains(err.Error(), "an image is never cut off") || !strings.Contains(imprint.HintOf(err), "left as it is") {
			t.Errorf("%s: %v", source, err)
		}
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(before, after) {
			t.Errorf("%s: the disk was touched", source)
		}
	}
}

// What the disk held before does not shine through, neither in the image's holes nor
// behind it: on a block device as well, and without discards.
func TestNothingShinesThrough(t *testing.T) {
	want := diskBytes(2, 5*mib+512)
	sources := map[string]string{"raw": write(t, "image.raw", want)}
	sources["qcow2"] = sources["raw"] + ".qcow2"
	command(t, need.Program(t, "qemu-img", "qemu-utils"), "convert", "-O", "qcow2", sources["raw"], sources["qcow2"])
	for name, source := range sources {
		for _, allocate := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, allocate %v", name, allocate), func(t *testing.T) {
				path := dirty(t, 9*mib)
				if _, err := opened(t, source).Write(t.Context(), openedDisk(t, path), image.WriteOptions{Verify: true, Allocate: allocate}); err != nil {
					t.Fatal(err)
				}
				wantDisk(t, path, want)
				var st unix.Stat_t
				if err := unix.Stat(path, &st); err != nil {
					t.Fatal(err)
				}
				if full := st.Blocks*512 >= 9*mib; full != allocate {
					t.Errorf("the disk takes %d bytes", st.Blocks*512)
				}
			})
			t.Run(fmt.Sprintf("%s on a device, allocate %v", name, allocate), func(t *testing.T) {
				need.Root(t)
				file := dirty(t, 9*mib)
				device := loop(t, file)
				d := openedDisk(t, device)
				if _, err := opened(t, source).Write(t.Context(), d, image.WriteOptions{Verify: true, Allocate: allocate}); err != nil {
					t.Fatal(err)
				}
				d.Close()
				wantDisk(t, device, want)
			})
		}
	}
}

// loop attaches a file to a device.
func loop(t *testing.T, file string) string {
	t.Helper()
	out, err := exec.Command(need.Program(t, "losetup", "mount"), "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v\n%s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command("losetup", "--detach", device).Run() })
	return device
}

// An image is not written to itself, and nothing is to an image that a machine uses.
func TestNotToItself(t *testing.T) {
	want := diskBytes(3, mib)
	path := write(t, "image.raw", want)
	if _, err := opened(t, path).Write(t.Context(), openedDisk(t, path), image.WriteOptions{}); imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), "the image itself") {
		t.Errorf("%v", err)
	}
	wantDisk(t, path, want)
}

// The disk of a machine that runs is no image: QEMU writes to it.
func TestImageInUse(t *testing.T) {
	path := write(t, "image.raw", diskBytes(4, mib))
	c := exec.Command(need.Program(t, "qemu-io", "qemu-utils"), "-f", "raw", path)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer in.Close()
	fmt.Fprintln(in, "length") // whose answer comes once the image is open
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	_, err = image.NewStore(image.Config{}).Open(t.Context(), imprint.Image{Source: path}, image.OpenOptions{})
	if imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "a machine that runs") {
		t.Errorf("%v", err)
	}
}

// A wrong sum is found before the disk has a beginning or an end.
func TestWrongSum(t *testing.T) {
	body := diskBytes(5, 4*mib)
	source := write(t, "image.raw", body)
	for _, allocate := range []bool{false, true} {
		path := dirty(t, 8*mib)
		s, err := image.NewStore(image.Config{}).Open(t.Context(), imprint.Image{Source: source, Sum: sumOf(body[1:])}, image.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, err = s.Write(t.Context(), openedDisk(t, path), image.WriteOptions{Allocate: allocate})
		if imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), "its SHA256 is") || !strings.Contains(imprint.HintOf(err), "sum") {
			t.Errorf("%v", err)
		}
		noEnds(t, path, 4*mib)
	}
}

// noEnds fails unless the first and the last MiB of an image that was to be on a disk
// are zeros.
func noEnds(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{0, size - mib} {
		b := make([]byte, mib)
		if _, err := f.ReadAt(b, at); err != nil || !disk.IsZero(b) {
			t.Errorf("the disk has something at %d, %v", at, err)
		}
	}
}

// childWrite tells a child of the test to write an image, and to wait in the middle.
const childWrite = "write-and-wait"

// halfWay writes as imprint does, says when it is half done, and never ends.
func halfWay(source, path string) {
	s, err := image.NewStore(image.Config{}).Open(context.Background(), imprint.Image{Source: source}, image.OpenOptions{})
	if err != nil {
		panic(err)
	}
	d, err := disk.Open(path)
	if err != nil {
		panic(err)
	}
	s.Write(context.Background(), d, image.WriteOptions{Progress: func(_ string, done, total int64) {
		if done >= total/2 {
			fmt.Println("half")
			select {}
		}
	}})
}

// After a kill in the middle the disk boots nothing, and writing it again makes it
// right, from the first byte to the last.
func TestKilledInTheMiddle(t *testing.T) {
	want := diskBytes(6, 24*mib)
	raw := write(t, "image.raw", want)
	command(t, need.Program(t, "qemu-img", "qemu-utils"), "convert", "-c", "-O", "qcow2", raw, raw+".qcow2")
	for _, source := range []string{raw, raw + ".qcow2"} {
		path := dirty(t, 25*mib)
		c := exec.CommandContext(t.Context(), os.Args[0], childWrite, source, path)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		c.Process.Signal(syscall.SIGKILL)
		c.Wait()
		noEnds(t, path, 24*mib)
		if _, err := install(t, source, path); err != nil {
			t.Fatal(err)
		}
		wantDisk(t, path, want)
	}
}

// Who cancels gets the disk back without an image, and nothing goes on behind his back.
func TestCancelled(t *testing.T) {
	raw := write(t, "image.raw", diskBytes(7, 24*mib))
	command(t, need.Program(t, "qemu-img", "qemu-utils"), "convert", "-c", "-O", "qcow2", raw, raw+".qcow2")
	for _, source := range []string{raw, raw + ".qcow2"} {
		path := dirty(t, 25*mib)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := opened(t, source).Write(ctx, openedDisk(t, path), image.WriteOptions{Progress: func(string, int64, int64) { cancel() }})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		noEnds(t, path, 24*mib)
	}
}

// Reading back finds what did not get to the disk.
func TestReadBack(t *testing.T) {
	raw := write(t, "image.raw", bytes.Repeat([]byte("no zeros "), mib)[:8*mib])
	for at, what := range map[int64]string{5 * mib: "the image", 9*mib + 5: "behind it"} {
		path := dirty(t, 10*mib)
		spoilt := false
		_, err := opened(t, raw).Write(t.Context(), openedDisk(t, path), image.WriteOptions{Verify: true, Progress: func(stage string, done, total int64) {
			if stage != "verify" || spoilt {
				return
			}
			spoilt = true
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			b := bytes.Repeat([]byte{0x5a}, mib/2)
			for off := at; off < min(10*mib, at+3*mib); off += int64(len(b)) {
				f.WriteAt(b[:min(int64(len(b)), 10*mib-off)], off)
			}
		}})
		if imprint.KindOf(err) != imprint.Unavailable || !strings.Contains(err.Error(), "does not read as it was written") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A spec may only name images below the directories that the operator allowed, however
// it is spelt.
func TestOnlyFromTheseDirectories(t *testing.T) {
	dir, outside := t.TempDir(), write(t, "shadow", diskBytes(9, mib))
	inside := filepath.Join(dir, "image.raw")
	if err := os.WriteFile(inside, diskBytes(9, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	st := image.NewStore(image.Config{Dirs: []string{dir}})
	for source, allowed := range map[string]bool{
		"file:" + inside: true, "file://" + inside: true, inside: true,
		"file:" + outside: false, outside: false, "file:" + filepath.Join(dir, "link"): false,
		"file:" + dir + "/../" + filepath.Base(filepath.Dir(outside)) + "/shadow": false, dir + "x/../" + filepath.Base(dir) + "x": false,
		"/etc/passwd": false, "file:/proc/self/environ": false,
	} {
		s, err := st.Open(t.Context(), imprint.Image{Source: source}, image.OpenOptions{})
		if err == nil {
			s.Close()
		}
		if (err == nil) != allowed {
			t.Errorf("%s: %v", source, err)
		}
	}
	// The list of sums and its signature are files as well.
	_, err := st.Open(t.Context(), imprint.Image{Source: inside, Sums: outside}, image.OpenOptions{})
	if imprint.KindOf(err) != imprint.Denied {
		t.Errorf("a list from elsewhere: %v", err)
	}
}

// Who may write to such a directory cannot lead out of it while a file is opened.
func TestExchangedForALink(t *testing.T) {
	dir := t.TempDir()
	names := []string{filepath.Join(dir, "image"), filepath.Join(dir, "link")}
	if err := os.WriteFile(names[0], diskBytes(9, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	secret := write(t, "shadow", []byte("root:secret"))
	if err := os.Symlink(secret, names[1]); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var exchanging sync.WaitGroup
	exchanging.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, names[0], unix.AT_FDCWD, names[1], unix.RENAME_EXCHANGE)
			}
		}
	})
	defer exchanging.Wait()
	defer close(done)
	st := image.NewStore(image.Config{Dirs: []string{dir}})
	for range 5_000 {
		s, err := st.Open(t.Context(), imprint.Image{Source: names[0]}, image.OpenOptions{})
		if err != nil {
			continue
		}
		size := s.FileSize
		s.Close()
		if size != mib {
			t.Fatalf("a file of %d bytes was opened, which is outside", size)
		}
	}
}

// A pipe among the images keeps nobody waiting, nor does one that is to be a list of sums.
func TestPipes(t *testing.T) {
	dir := t.TempDir()
	pipe, inside := filepath.Join(dir, "pipe"), filepath.Join(dir, "image")
	if err := errors.Join(unix.Mkfifo(pipe, 0o600), os.WriteFile(inside, diskBytes(9, mib), 0o600)); err != nil {
		t.Fatal(err)
	}
	st := image.NewStore(image.Config{Dirs: []string{dir}})
	for _, m := range []imprint.Image{{Source: pipe}, {Source: inside, Sums: pipe}} {
		if _, err := st.Open(t.Context(), m, image.OpenOptions{}); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%+v: %v", m, err)
		}
	}
}

// Progress goes from nothing to all.
func TestProgress(t *testing.T) {
	raw := write(t, "image.raw", diskBytes(10, 8*mib))
	last := map[string]int64{}
	_, err := opened(t, raw).Write(t.Context(), openedDisk(t, dirty(t, 8*mib)), image.WriteOptions{Verify: true, Progress: func(stage string, done, total int64) {
		if done < last[stage] || done > total || total != 8*mib {
			t.Errorf("%s: %d of %d after %d", stage, done, total, last[stage])
		}
		last[stage] = done
	}})
	if err != nil || last["write"] != 8*mib || last["verify"] != 8*mib {
		t.Errorf("%v, %v", last, err)
	}
}
