package media_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/media"
	"imprint/test/need"
)

var at = time.Date(2026, 11, 25, 19, 30, 44, 0, time.UTC)

// configDrive has what config drives have: names that are too long for eight
// characters and three, and files of the same content.
func configDrive() *media.Volume {
	v := &media.Volume{Label: "config-2", Time: at, Files: map[string][]byte{
		"openstack/content/0000": nil,
		"openstack/latest/big":   bytes.Repeat([]byte("0123456789abcdef"), 5000),
	}}
	for _, version := range []string{"2012-08-10", "2013-04-04", "2013-10-17", "2015-10-15", "latest"} {
		v.Files["openstack/"+version+"/meta_data.json"] = []byte(`{"uuid":"x"}`)
		v.Files["openstack/"+version+"/vendor_data.json"] = []byte(`{"version":"` + version + `"}`)
		v.Files["openstack/"+version+"/vendor_data2.json"] = []byte("{}")
	}
	return v
}

// writer makes a medium, and says how others read it.
type writer struct {
	name    string
	label   string // as it must be found
	write   func(io.Writer, *media.Volume) error
	extract func(t *testing.T, image string) map[string][]byte
}

func writers() []writer {
	disk := func(table media.Table, size int64) func(io.Writer, *media.Volume) error {
		return func(w io.Writer, v *media.Volume) error { return media.FAT(w, v, table, size) }
	}
	mtools := func(offset int) func(*testing.T, string) map[string][]byte {
		return func(t *testing.T, image string) map[string][]byte { return mcopied(t, image, offset) }
	}
	return []writer{
		{"iso by Rock Ridge", "config-2", media.ISO, func(t *testing.T, image string) map[string][]byte { return isoinfo(t, image, "-R") }},
		{"iso by Joliet", "config-2", media.ISO, func(t *testing.T, image string) map[string][]byte { return isoinfo(t, image, "-J") }},
		{"floppy", "CONFIG-2", media.Floppy, mtools(0)},
		{"fat16", "CONFIG-2", disk(media.NoTable, 0), mtools(0)},
		{"fat16 of 40 MiB", "CONFIG-2", disk(media.NoTable, 40<<20), mtools(0)},
		{"fat32", "CONFIG-2", disk(media.NoTable, 64<<20), mtools(0)},
		{"fat32 of 300 MiB", "CONFIG-2", disk(media.NoTable, 300<<20), mtools(0)},
		{"mbr", "CONFIG-2", disk(media.MBR, 0), mtools(1 << 20)},
		{"mbr fat32", "CONFIG-2", disk(media.MBR, 80<<20), mtools(1 << 20)},
		{"gpt", "CONFIG-2", disk(media.GPT, 0), mtools(1 << 20)},
		{"initrd", "", media.Initrd, cpioExtracted},
	}
}

// Programs that others wrote find on each medium exactly the files that were put
// there, and so does Inspect.
func TestOthersReadTheSameFiles(t *testing.T) {
	t.Parallel()
	for _, w := range writers() {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			compare(t, w, configDrive())
		})
	}
}

// Whatever files go in, the same come out.
func TestAnyFilesComeOut(t *testing.T) {
	t.Parallel()
	for _, w := range writers() {
		if strings.Contains(w.name, "MiB") {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(6) {
				compare(t, w, randomVolume(rand.New(rand.NewPCG(seed, 1))))
			}
		})
	}
}

func randomVolume(r *rand.Rand) *media.Volume {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789-_~+=@#"
	name := func() string {
		b := []byte{letters[r.IntN(36)]}
		for range r.IntN(40) {
			if r.IntN(12) == 0 {
				b = append(b, '.')
			}
			b = append(b, letters[r.IntN(len(letters))])
		}
		return string(b)
	}
	v := &media.Volume{Label: "config-2", Time: at, Files: map[string][]byte{}}
	dirs := []string{""}
	for range 1 + r.IntN(60) {
		dir := dirs[r.IntN(len(dirs))]
		if r.IntN(4) == 0 && strings.Count(dir, "/") < 5 {
			dir += name() + "/"
			dirs = append(dirs, dir)
		}
		b := make([]byte, []int{0, 1, 511, 512, 2047, 2048, 2049, 9000}[r.IntN(8)])
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		v.Files[dir+name()] = b
	}
	return v
}

func compare(t *testing.T, w writer, v *media.Volume) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := w.write(f, v); err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	got, err := media.Inspect(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "Inspect", got.Files, v.Files)
	if got.Label != w.label {
		t.Errorf("Inspect found the label %q", got.Label)
	}
	same(t, "another program", w.extract(t, image), v.Files)
}

func same(t *testing.T, who string, got, want map[string][]byte) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if b, ok := got[path]; !ok || !bytes.Equal(b, want[path]) {
			t.Errorf("%s read %d bytes in %q, and %d were written", who, len(b), path, len(want[path]))
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s found %q, which was not written", who, path)
		}
	}
}

// run runs a program in the C.UTF-8 locale and returns what it prints; it fails the
// test unless the program succeeds.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MTOOLS_SKIP_CHECK=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s%s", filepath.Base(program), args, err, out, &stderr)
	}
	return string(out)
}

func isoinfo(t *testing.T, image, extension string) map[string][]byte {
	program := need.Program(t, "isoinfo", "genisoimage")
	args := []string{"-i", image, extension}
	files := map[string][]byte{}
	listing := run(t, program, append(args, "-l")...)
	dir := ""
	for line := range strings.Lines(listing) {
		line = strings.TrimRight(line, " \n")
		if d, ok := strings.CutPrefix(line, "Directory listing of "); ok {
			dir = d
			continue
		}
		_, name, ok := strings.Cut(line, "] ")
		if !ok || line[0] == 'd' {
			continue
		}
		path := dir + strings.TrimSpace(name)
		files[path[1:]] = []byte(run(t, program, append(args, "-x", path)...))
	}
	return files
}

func mcopied(t *testing.T, image string, offset int) map[string][]byte {
	program := need.Program(t, "mcopy", "mtools")
	dir := t.TempDir()
	run(t, program, "-s", "-n", "-i", fmt.Sprintf("%s@@%d", image, offset), "::", dir+"/")
	return tree(t, dir)
}

func cpioExtracted(t *testing.T, image string) map[string][]byte {
	program := need.Program(t, "cpio", "cpio")
	dir := t.TempDir()
	cmd := exec.Command(program, "-id", "--quiet", "--no-preserve-owner", "--no-absolute-filenames")
	cmd.Dir = dir
	in, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd.Stdin = in
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	return tree(t, dir)
}

func tree(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, dir+"/")] = b
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// The same input gives the same bytes, and a file with holes the same as a stream.
func TestMediaAreDeterministic(t *testing.T) {
	t.Parallel()
	for _, w := range writers() {
		if strings.Contains(w.name, "300") {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			var one bytes.Buffer
			if err := w.write(&one, configDrive()); err != nil {
				t.Fatal(err)
			}
			f, err := os.Create(filepath.Join(t.TempDir(), "image"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := w.write(f, configDrive()); err != nil {
				t.Fatal(err)
			}
			two, err := os.ReadFile(f.Name())
			if err != nil || !bytes.Equal(one.Bytes(), two) {
				t.Errorf("%d bytes, and other %d bytes: %v", one.Len(), len(two), err)
			}
		})
	}
}

// The checkers of file systems and partition tables have nothing to say, and the
// labels are where udev and old readers look.
func TestCheckersAgree(t *testing.T) {
	t.Parallel()
	sgdisk := need.Program(t, "sgdisk", "gdisk")
	fsck, blkid, sfdisk := need.Program(t, "fsck.vfat", "dosfstools"), need.Program(t, "blkid", "util-linux"), need.Program(t, "sfdisk", "fdisk")
	for _, w := range writers() {
		if w.name == "initrd" {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			image := filepath.Join(t.TempDir(), "image")
			f, err := os.Create(image)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := w.write(f, configDrive()); err != nil {
				t.Fatal(err)
			}
			if table := w.name[:3]; table == "mbr" || table == "gpt" {
				disk, err := os.ReadFile(image)
				if err != nil {
					t.Fatal(err)
				}
				if out := run(t, sfdisk, "--verify", image); !strings.Contains(out, "No errors detected") {
					t.Errorf("sfdisk --verify: %s", out)
				}
				if table == "gpt" {
					if last, usable := uint64(len(disk))/512-1, binary.LittleEndian.Uint64(disk[512+48:]); usable != last-33 {
						t.Errorf("sector %d is the last to be used of %d; the second table is there", usable, last)
					}
					if out := run(t, sgdisk, "--verify", image); !strings.Contains(out, "No problems found") {
						t.Errorf("sgdisk --verify: %s", out)
					}
				}
				end := len(disk)
				if table == "gpt" {
					end -= 1 << 20
				}
				if hidden := binary.LittleEndian.Uint32(disk[1<<20+28:]); hidden != 2048 { // Windows mounts no other
					t.Errorf("the file system says that %d sectors are before it", hidden)
				}
				image += ".partition"
				if err := os.WriteFile(image, disk[1<<20:end], 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if !strings.HasPrefix(w.name, "iso") {
				if out := run(t, fsck, "-n", "-v", image); strings.Contains(out, "differ") || strings.Contains(out, "eclaimed") {
					t.Errorf("fsck.vfat: %s", out)
				}
				if out := run(t, blkid, "-p", "-o", "value", "-s", "LABEL_FATBOOT", image); strings.TrimSpace(out) != w.label {
					t.Errorf("label %q in the boot sector", out)
				}
			}
			if out := run(t, blkid, "-p", "-o", "value", "-s", "LABEL", image); strings.TrimSpace(out) != w.label {
				t.Errorf("label %q", out)
			}
		})
	}
}

func TestWhatMediaCannotHoldIsRefused(t *testing.T) {
	t.Parallel()
	one := func(path string) map[string][]byte { return map[string][]byte{path: []byte("x")} }
	long := strings.Repeat("n", 65)
	many := map[string][]byte{}
	for i := range 230 {
		many[fmt.Sprintf("F%d", i)] = nil
	}
	all := []string{"iso", "floppy", "disk", "initrd"}
	for name, c := range map[string]struct {
		files map[string][]byte
		on    []string
		kind  imprint.Kind
		says  string
	}{
		"path that climbs":         {one("../etc/passwd"), all, imprint.Invalid, "not a path below the root"},
		"path from the root":       {one("/etc/passwd"), all, imprint.Invalid, "not a path below the root"},
		"empty path":               {one(""), all, imprint.Invalid, "not a path below the root"},
		"backslash":                {one(`a\b`), all, imprint.Invalid, `the character '\\'`},
		"newline":                  {one("a\nb"), all, imprint.Invalid, `the character '\n'`},
		"no UTF-8":                 {one("a\xff"), all, imprint.Invalid, "path below the root"},
		"colon":                    {one("a:b"), []string{"iso", "floppy", "disk"}, imprint.Invalid, `the character ':'`},
		"device of Windows":        {one("a/aux.txt"), []string{"iso", "floppy", "disk"}, imprint.Invalid, "for a device"},
		"full stop at the end":     {one("a."), []string{"iso", "floppy", "disk"}, imprint.Invalid, "Windows drops"},
		"names differing by case":  {map[string][]byte{"user-data": nil, "User-Data": nil}, []string{"iso", "floppy", "disk"}, imprint.Invalid, "only by case"},
		"file that is a directory": {map[string][]byte{"a": nil, "a/b": nil}, all, imprint.Invalid, "a file and a directory"},
		"name beyond Joliet":       {one(long), []string{"iso"}, imprint.Invalid, "65 characters"},
		"character beyond UCS-2":   {one("😀"), []string{"iso"}, imprint.Invalid, "beyond the basic plane"},
		"nine levels":              {one("1/2/3/4/5/6/7/8/9"), all, imprint.Invalid, "9 levels deep"},
		"more than a floppy holds": {map[string][]byte{"a": make([]byte, 1457665)}, []string{"floppy"}, imprint.Exhausted, "1458176 bytes and there is room for 1457664: 512 too many"},
		"full root of a floppy":    {many, []string{"floppy"}, imprint.Exhausted, "231 entries"},
		"more than anything holds": {map[string][]byte{"a": make([]byte, media.MaxContent+7)}, all, imprint.Exhausted, ": 7 too many"},
	} {
		for _, on := range c.on {
			write := map[string]func(io.Writer, *media.Volume) error{
				"iso": media.ISO, "floppy": media.Floppy, "initrd": media.Initrd,
				"disk": func(w io.Writer, v *media.Volume) error { return media.FAT(w, v, media.NoTable, 0) },
			}[on]
			var out bytes.Buffer
			err := write(&out, &media.Volume{Label: "cidata", Time: at, Files: c.files})
			if imprint.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s on %s: %v", name, on, err)
			}
			if out.Len() != 0 {
				t.Errorf("%s on %s: %d bytes were written all the same", name, on, out.Len())
			}
		}
	}
}

func TestLabelsAndTimes(t *testing.T) {
	t.Parallel()
	for _, label := range []string{"", "a b", "a/b", "ümlaut", strings.Repeat("L", 17)} {
		if err := media.ISO(io.Discard, &media.Volume{Label: label, Time: at}); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("label %q: %v", label, err)
		}
	}
	if err := media.Floppy(io.Discard, &media.Volume{Label: "twelve-chars", Time: at}); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("a label of 12 characters on FAT: %v", err)
	}
	if err := media.ISO(io.Discard, &media.Volume{Label: "cidata"}); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("the year 1: %v", err)
	}
	if err := media.FAT(io.Discard, configDrive(), media.NoTable, 15<<20); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("a disk of 15 MiB: %v", err)
	}
	if err := media.FAT(io.Discard, configDrive(), "apm", 0); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("a table of another kind: %v", err)
	}
}

// Names in other scripts come out as they went in, where Linux reads them and
// where Windows does.
func TestNamesInOtherScripts(t *testing.T) {
	t.Parallel()
	v := &media.Volume{Label: "cidata", Time: at, Files: map[string][]byte{"Grüße/名前.txt": []byte("x"), "Ärger": nil}}
	for _, w := range writers() {
		var b bytes.Buffer
		if err := w.write(&b, v); err != nil {
			t.Fatal(err)
		}
		variants := [][]byte{b.Bytes()}
		if w.name == "iso by Joliet" { // a reader that knows no Rock Ridge
			variants[0] = bytes.Replace(b.Bytes(), []byte("SP\x07\x01"), []byte("XX\x07\x01"), 1)
		}
		for _, image := range variants {
			c, err := media.Inspect(bytes.NewReader(image), int64(len(image)))
			if err != nil {
				t.Fatal(err)
			}
			same(t, w.name+" by "+c.Names, c.Files, v.Files)
		}
	}
}

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

// What describes an ISO as a whole is in order: both extensions are announced, and
// the path table, which old readers use, leads to each directory.
func TestISODescribesItself(t *testing.T) {
	t.Parallel()
	isoinfo := need.Program(t, "isoinfo", "genisoimage")
	image := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := media.ISO(f, &media.Volume{Label: "cidata", Time: at, Files: map[string][]byte{"a/b/c": nil, "d/e": nil}}); err != nil {
		t.Fatal(err)
	}
	out := run(t, isoinfo, "-d", "-i", image)
	for _, want := range []string{"Volume id: cidata\n", "Joliet with UCS level 3 found", "Rock Ridge signatures version 1 found"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	var table []string
	for line := range strings.Lines(run(t, isoinfo, "-p", "-i", image)) {
		if fields := strings.Fields(line); len(fields) >= 3 && strings.HasSuffix(fields[0], ":") {
			table = append(table, fields[0]+" "+fields[1]+" "+strings.Join(fields[3:], " "))
		}
	}
	if want := []string{"1: 1 ", "2: 1 A", "3: 1 D", "4: 2 B"}; !slices.Equal(table, want) {
		t.Errorf("path table %q, want %q", table, want)
	}
}

// Each carrier is what its name says, and says truly how much it holds.
func TestCarriers(t *testing.T) {
	t.Parallel()
	for _, c := range media.Carriers() {
		if imprint.MayTravel(imprint.Private, c.Readers) {
			t.Errorf("%s may hold private values, and administrators of the platform read it", c.Name)
		}
		got, err := media.CarrierOf(c.Name)
		if err != nil || got.Name != c.Name {
			t.Errorf("%s: %v", c.Name, err)
		}
		v := &media.Volume{Label: "cidata", Time: at, Files: map[string][]byte{"f": make([]byte, c.Capacity)}}
		if c.Name == "smbios" {
			v.Files["f"] = v.Files["f"][:c.Capacity*3/4-64]
		}
		if err := c.Write(io.Discard, v, 0); err != nil {
			t.Errorf("%s does not hold %d bytes: %v", c.Name, c.Capacity, err)
		}
		if c.Name == "smbios" { // base64
			continue
		}
		v.Files["f"] = make([]byte, c.Capacity+1)
		if err := c.Write(io.Discard, v, 0); imprint.KindOf(err) != imprint.Exhausted {
			t.Errorf("%s and one byte more than it holds: %v", c.Name, err)
		}
		if c.Name[:3] != "fat" {
			if err := c.Write(io.Discard, configDrive(), 32<<20); imprint.KindOf(err) != imprint.Invalid {
				t.Errorf("%s of 32 MiB: %v", c.Name, err)
			}
		}
	}
	if _, err := media.CarrierOf("tape"); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("an unknown carrier: %v", err)
	}
}

func TestSMBIOS(t *testing.T) {
	t.Parallel()
	v := &media.Volume{Files: map[string][]byte{"system.hostname": []byte("web-1"), "tmpfiles.extra": []byte("d /x\n\x00"), "empty": nil}}
	var b bytes.Buffer
	if err := media.SMBIOS(&b, v); err != nil {
		t.Fatal(err)
	}
	want := "\x0b\x05\x00\x0e\x03" + "io.systemd.credential.binary:empty=\x00" + "io.systemd.credential.binary:system.hostname=d2ViLTE=\x00" +
		"io.systemd.credential.binary:tmpfiles.extra=ZCAveAoA\x00\x00"
	if b.String() != want {
		t.Errorf("wrote %q", b.String())
	}
	c, err := media.Inspect(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil || c.Format != "smbios" {
		t.Fatalf("%+v, %v", c, err)
	}
	same(t, "Inspect", c.Files, v.Files)

	many := map[string][]byte{}
	for i := range 256 {
		many[fmt.Sprint(i)] = nil
	}
	for name, c := range map[string]struct {
		files map[string][]byte
		kind  imprint.Kind
		says  string
	}{
		"directory":  {map[string][]byte{"a/b": nil}, imprint.Invalid, "the character '/'"},
		"equal sign": {map[string][]byte{"a=b": nil}, imprint.Invalid, "the character '='"},
		"no name":    {map[string][]byte{"": nil}, imprint.Invalid, "no name"},
		"many":       {many, imprint.Exhausted, "256 strings"},
		"none":       {nil, imprint.Exhausted, "0 strings"},
		"large":      {map[string][]byte{"a": make([]byte, 50000)}, imprint.Exhausted, "too many"},
	} {
		var out bytes.Buffer
		if err := media.SMBIOS(&out, &media.Volume{Files: c.files}); imprint.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.says) || out.Len() > 0 {
			t.Errorf("%s: %v, and %d bytes", name, err, out.Len())
		}
	}
}

// What the benchmarks in test/bench measure beside other programs, without the
// rendering and the making of a file.
func BenchmarkWrite(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "image"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	v := configDrive()
	for name, write := range map[string]func(io.Writer, *media.Volume) error{"ISO": media.ISO, "Floppy": media.Floppy} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := write(f, v); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
