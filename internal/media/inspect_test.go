package media_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"imprint"
	"imprint/internal/media"
	"imprint/test/need"
)

// What other programs write, Inspect reads.
func TestInspectReadsWhatOthersWrite(t *testing.T) {
	t.Parallel()
	files := map[string][]byte{"openstack/latest/meta_data.json": []byte("{}"), "user-data": bytes.Repeat([]byte("x"), 70000)}
	dir := t.TempDir()
	for path, b := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	genisoimage, mkfs, mcopy, cpio := need.Program(t, "genisoimage", "genisoimage"), need.Program(t, "mkfs.vfat", "dosfstools"), need.Program(t, "mcopy", "mtools"), need.Program(t, "cpio", "cpio")
	vfat := func(image string, args ...string) {
		run(t, mkfs, append([]string{"-n", "IMPRINT", "-C", image}, args...)...)
		run(t, mcopy, "-s", "-i", image, dir+"/openstack", dir+"/user-data", "::")
	}
	for name, write := range map[string]func(image string){
		"iso9660 Rock Ridge":   func(image string) { run(t, genisoimage, "-quiet", "-J", "-r", "-V", "IMPRINT", "-o", image, dir) },
		"iso9660 Joliet":       func(image string) { run(t, genisoimage, "-quiet", "-J", "-V", "IMPRINT", "-o", image, dir) },
		"fat12 FAT long names": func(image string) { vfat(image, "1440") },
		"fat16 FAT long names": func(image string) { vfat(image, "-F", "16", "32768") },
		"fat32 FAT long names": func(image string) { vfat(image, "-F", "32", "65536") },
		"cpio cpio": func(image string) {
			run(t, "sh", "-c", "cd "+dir+" && find . -mindepth 1 -printf '%P\n' | "+cpio+" -o --quiet -H newc > "+image)
		},
	} {
		image := filepath.Join(t.TempDir(), "image")
		write(image)
		b, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		c, err := media.Inspect(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := c.Format + " " + c.Names; got != name {
			t.Errorf("%s was taken for %s", name, got)
		}
		if c.Format != "cpio" && c.Label != "IMPRINT" {
			t.Errorf("%s: label %q", name, c.Label)
		}
		same(t, name, c.Files, files)
	}
}

// An archive is found at the end of a compressed initial RAM disk.
func TestInspectFindsWhatWasAppended(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	b.WriteString("\x1f\x8b a compressed archive of odd length")
	b.Write(make([]byte, 512-b.Len()))
	v := &media.Volume{Time: at, Files: map[string][]byte{"etc/imprint/payload.json": []byte("{}")}}
	if err := media.Initrd(&b, v); err != nil {
		t.Fatal(err)
	}
	c, err := media.Inspect(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil || c.Start != 512 {
		t.Fatalf("%+v, %v", c, err)
	}
	same(t, "Inspect", c.Files, v.Files)
}

func TestInspectDirectory(t *testing.T) {
	t.Parallel()
	files := fstest.MapFS{"qemu.conf": {Data: []byte("x")}, "org.imprint/payload": {Data: []byte("{}")}}
	c, err := media.InspectDir(files)
	if err != nil || c.Format != "directory" {
		t.Fatalf("%+v, %v", c, err)
	}
	same(t, "InspectDir", c.Files, map[string][]byte{"qemu.conf": []byte("x"), "org.imprint/payload": []byte("{}")})

	files["large"] = &fstest.MapFile{Data: make([]byte, media.MaxContent)}
	if _, err := media.InspectDir(files); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("more than a medium holds: %v", err)
	}
	if _, err := media.InspectDir(fstest.MapFS{"link": {Data: []byte("/etc/passwd"), Mode: fs.ModeSymlink}}); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("a link: %v", err)
	}
	many := fstest.MapFS{}
	for i := range media.MaxFiles {
		many[fmt.Sprint(i)] = &fstest.MapFile{}
	}
	if _, err := media.InspectDir(many); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("%d files and their directory: %v", len(many), err)
	}
}

// Damage is told, and never answered with something that was not written.
func FuzzInspect(f *testing.F) {
	v := &media.Volume{Label: "cidata", Time: at, Files: map[string][]byte{"user-data": []byte("#cloud-config\n"), "a/long-name.json": []byte("{}")}}
	for _, write := range []func(io.Writer, *media.Volume) error{media.ISO, media.Initrd} {
		var b bytes.Buffer
		if err := write(&b, v); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte("\x01\x1b\x00\x01\x01\x00\x00\x02" + strings.Repeat("u", 16) + "\x06\x00\x00QEMU\x00serial\x00\x00"))
	f.Add([]byte("\x0b\x05\x00\x0e\x01io.systemd.credential.binary:a=YQ==\x00\x00"))
	var b bytes.Buffer
	if err := media.Floppy(&b, v); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes()[:40<<10]) // its files are in the first clusters
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := media.Inspect(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if k := imprint.KindOf(err); k != imprint.Invalid && k != imprint.Exhausted {
				t.Errorf("%s: %v", k, err)
			}
			return
		}
		total := 0
		for path, data := range c.Files {
			total += len(data)
			if strings.ContainsRune(path, 0) {
				t.Errorf("the path %q", path)
			}
		}
		if total > media.MaxContent || len(c.Files) > media.MaxFiles {
			t.Errorf("%d files of %d bytes", len(c.Files), total)
		}
	})
}
