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
	large := func(size int64) func(io.Writer, *media.Volume) error {
		return func(w io.Writer, v *media.Volume) error {
			return media.Partition(w, v, media.Place{Size: size, Sector: 4096})
		}
	}
	mtools := func(offset int) func(*testing.T, string) map[string][]byte {
		return func(t *testing.T, image string) map[string][]byte { return mcopied(t, image, offset) }
	}
	return []writer{
		{"iso by Rock Ridge", "config-2", media.ISO, func(t *testing.T, image string) map[string][]byte { return isoinfo(t, image, "-R") }},
		{"iso by Joliet", "config-2", media.ISO, func(t *testing.T, image string) map[string][]byte { return isoinfo(t, image, "-J") }},
		{"iso by xorriso", "config-2", media.ISO, xorrisoExtracted},
		{"floppy", "CONFIG-2", media.Floppy, mtools(0)},
		{"fat16", "CONFIG-2", disk(media.NoTable, 0), mtools(0)},
		{"fat16 of 40 MiB", "CONFIG-2", disk(media.NoTable, 40<<20), mtools(0)},
		{"fat32", "CONFIG-2", disk(media.NoTable, 64<<20), mtools(0)},
		{"fat32 of 300 MiB", "CONFIG-2", disk(media.NoTable, 300<<20), mtools(0)},
		{"fat16 in sectors of 4096", "CONFIG-2", large(17 << 20), mtools(0)},
		{"fat16 of 256 MiB in sectors of 4096", "CONFIG-2", large(256 << 20), mtools(0)},
		{"fat32 of 257 MiB in sectors of 4096", "CONFIG-2", large(257 << 20), mtools(0)},
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

func xorrisoExtracted(t *testing.T, image string) map[string][]byte {
	program := need.Program(t, "xorriso", "xorriso")
	dir := filepath.Join(t.TempDir(), "out")
	out := run(t, program, "-report_about", "SORRY", "-indev", image, "-osirrox", "on", "-extract", "/", dir, "-pvd_info")
	if !strings.Contains(out, "Volume Id    : config-2\n") {
		t.Errorf("xorriso finds the label:\n%s", out)
	}
	if out, err := exec.Command("chmod", "-R", "u+w", dir).CombinedOutput(); err != nil { // as they are on the medium, no one may remove them
		t.Errorf("chmod: %v\n%s", err, out)
	}
	return tree(t, dir)
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
		if strings.Contains(w.name, "300") || strings.Contains(w.name, "25") {
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
				out := run(t, fsck, "-n", "-v", image)
				if bits := strings.TrimPrefix(w.name, "fat")[:2]; w.name[:3] == "fat" && !strings.Contains(out, bits+" bit entries") {
					t.Errorf("fsck.vfat finds no FAT%s: %s", bits, out)
				}
				if strings.Contains(out, "differ") || strings.Contains(out, "eclaimed") {
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
