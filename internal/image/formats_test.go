package image_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/disk"
	"imprint/internal/image"
	"imprint/test/need"
)

const mib = 1 << 20

// diskBytes returns what a disk may hold: runs of data and of zeros of many lengths,
// some of which repeat, so that they compress.
func diskBytes(seed uint64, size int) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(seed, 1))
	for at := 0; at < size; {
		n := min(1<<r.IntN(20), size-at)
		switch run := b[at : at+n]; r.IntN(3) {
		case 0:
			for i := range run {
				run[i] = byte(r.Uint32())
			}
		case 1:
			copy(run, bytes.Repeat([]byte("all work and no play "), n/20+1))
		}
		at += n
	}
	return b
}

func write(t *testing.T, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// dirty returns a disk of so many bytes that had another life.
func dirty(t *testing.T, size int) string {
	t.Helper()
	return write(t, "disk", bytes.Repeat([]byte("secret "), size/7+1)[:size])
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func install(t *testing.T, source, path string) (image.Written, error) {
	t.Helper()
	s, err := image.NewStore(image.Config{}).Open(t.Context(), imprint.Image{Source: source}, image.OpenOptions{})
	if err != nil {
		return image.Written{}, err
	}
	defer s.Close()
	d, err := disk.Open(path)
	if err != nil {
		return image.Written{}, err
	}
	defer d.Close()
	return s.Write(t.Context(), d, image.WriteOptions{Verify: true})
}

// wantDisk fails unless a disk holds an image, and zeros behind it.
func wantDisk(t *testing.T, disk string, image []byte) {
	t.Helper()
	got, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) < len(image) || !bytes.Equal(got[:len(image)], image) {
		t.Fatalf("the disk does not hold the image")
	}
	if rest := bytes.TrimLeft(got[len(image):], "\x00"); len(rest) > 0 {
		t.Fatalf("behind the image the disk still has %q", rest[:min(len(rest), 20)])
	}
}

// Every format is written to the disk byte by byte as QEMU and the compressors made
// it, whatever the disk held before.
func TestEveryFormatIsWrittenWhole(t *testing.T) {
	qemuImg := need.Program(t, "qemu-img", "qemu-utils")
	formats := map[string][]string{
		"raw":                        nil,
		"qcow2":                      {qemuImg, "convert", "-O", "qcow2"},
		"qcow2 of version 2":         {qemuImg, "convert", "-O", "qcow2", "-o", "compat=0.10"},
		"qcow2 of clusters of 512":   {qemuImg, "convert", "-O", "qcow2", "-o", "cluster_size=512"},
		"qcow2 of clusters of 2M":    {qemuImg, "convert", "-O", "qcow2", "-o", "cluster_size=2M"},
		"qcow2 with subclusters":     {qemuImg, "convert", "-O", "qcow2", "-o", "extended_l2=on"},
		"qcow2 preallocated":         {qemuImg, "convert", "-O", "qcow2", "-o", "preallocation=metadata"},
		"qcow2 by zlib":              {qemuImg, "convert", "-c", "-O", "qcow2"},
		"qcow2 by zlib, 2M":          {qemuImg, "convert", "-c", "-O", "qcow2", "-o", "cluster_size=2M"},
		"qcow2 by zlib, version 2":   {qemuImg, "convert", "-c", "-O", "qcow2", "-o", "compat=0.10"},
		"qcow2 by zstd":              {qemuImg, "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd"},
		"qcow2 by zstd, subclusters": {qemuImg, "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd,extended_l2=on"},
		"vmdk":                       {qemuImg, "convert", "-O", "vmdk"},
		"vmdk with zeroed grains":    {qemuImg, "convert", "-O", "vmdk", "-o", "zeroed_grain=on", "-S", "0"},
		"vmdk streamOptimized":       {qemuImg, "convert", "-O", "vmdk", "-o", "subformat=streamOptimized"},
		"gzip":                       {need.Program(t, "gzip", "gzip"), "-c"},
		"xz":                         {need.Program(t, "xz", "xz-utils"), "-c", "-1"},
		"zstd":                       {need.Program(t, "zstd", "zstd"), "-q", "-c"},
		"bzip2":                      {need.Program(t, "bzip2", "bzip2"), "-c"},
	}
	for name, make := range formats {
		sizes := []int{5*mib + 512, 512}
		switch name {
		case "xz", "bzip2": // which are slow
			sizes = []int{mib + 512, 512}
		case "raw", "qcow2": // whose beginning and end overlap, of what is written last
			sizes = append(sizes, 3*mib/2)
		}
		for _, size := range sizes {
			t.Run(fmt.Sprintf("%s, %d bytes", name, size), func(t *testing.T) {
				want := diskBytes(uint64(size), size)
				source := write(t, "image", want)
				if len(make) > 0 {
					made := source + ".made"
					c := exec.Command(make[0], append(make[1:len(make):len(make)], source)...)
					if make[1] == "convert" {
						c.Args = append(c.Args, made)
					} else {
						out, err := os.Create(made)
						if err != nil {
							t.Fatal(err)
						}
						defer out.Close()
						c.Stdout = out
					}
					if err := c.Run(); err != nil {
						t.Fatalf("%q: %v", c.Args, err)
					}
					source = made
				}
				if strings.HasPrefix(name, "vmdk") { // whose disks are of whole grains
					want = append(want, bytes.Repeat([]byte{0}, (65536-size%65536)%65536)...)
				}
				disk := dirty(t, 6*mib)
				w, err := install(t, source, disk)
				if err != nil {
					t.Fatal(err)
				}
				if w.Size > int64(len(want)) {
					t.Errorf("the image has %d bytes; its disk %d", w.Size, len(want))
				}
				wantDisk(t, disk, want)
			})
		}
	}
}
