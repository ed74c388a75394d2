package disk_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint/internal/disk"
	"imprint/internal/media"
)

// drive is what the partition of a test holds.
func drive() *media.Volume {
	return &media.Volume{Label: "config-2", Time: time.Unix(2e9, 0), Files: map[string][]byte{
		"openstack/latest/meta_data.json": []byte(`{"uuid":"x"}`),
		"openstack/latest/user_data":      bytes.Repeat([]byte("canary "), 9000),
		"ec2/latest/meta-data.json":       []byte("{}"),
	}}
}

// Whatever disk others partitioned, others find the new partition and its files on
// it, nothing else has changed, and once it is removed the table is what it was.
func TestOthersAgreeOnAnyDisk(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 5))
		how := []string{"gpt by sfdisk", "gpt by sgdisk", "mbr", "mbr with logical partitions"}[seed%4]
		t.Run(fmt.Sprintf("%s %d", how, seed), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "disk")
			size := int64(40+r.IntN(80))*mib + int64(r.IntN(3))*37*sector
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			grow(t, path, size)
			partition(t, r, path, how, size)
			scheme := disk.Scheme(how[:3])
			if scheme == disk.GPT && r.IntN(2) == 0 {
				grow(t, path, int64(r.IntN(20*mib))/sector*sector)
			}
			before, dump := mark(t, r, path), run(t, "sfdisk", "--dump", path)

			p := addTo(t, path, media.MinDisk)
			after := read(t, path)
			intact(t, before, after, p)
			if p.Start%mib != 0 || p.Size != media.MinDisk {
				t.Errorf("the partition is from %d on, with %d bytes", p.Start, p.Size)
			}
			if out := run(t, "sfdisk", "--verify", path); !strings.Contains(out, "No errors detected") {
				t.Errorf("sfdisk --verify: %s", out)
			}
			if scheme == disk.GPT {
				if out := run(t, "sgdisk", "--verify", path); !strings.Contains(out, "No problems found") {
					t.Errorf("sgdisk --verify: %s", out)
				}
				if out := run(t, "sfdisk", "--part-label", path, fmt.Sprint(p.Number)); strings.TrimSpace(out) != "config-2" {
					t.Errorf("it is called %q", out)
				}
			}
			fat := run(t, "blkid", "-p", "-O", fmt.Sprint(p.Start), "-S", fmt.Sprint(p.Size), "-o", "export", path)
			for _, want := range []string{"LABEL=CONFIG-2", "LABEL_FATBOOT=CONFIG-2", "TYPE=vfat"} {
				if !slices.Contains(strings.Split(strings.TrimSpace(fat), "\n"), want) {
					t.Errorf("blkid: no %s in %s", want, fat)
				}
			}
			part := path + ".partition"
			if err := os.WriteFile(part, after[p.Start:p.Start+p.Size], 0o600); err != nil {
				t.Fatal(err)
			}
			if out := run(t, "fsck.vfat", "-n", "-v", part); strings.Contains(out, "differ") || strings.Contains(out, "eclaimed") {
				t.Errorf("fsck.vfat: %s", out)
			}
			same(t, path, p)

			removeFrom(t, path)
			intact(t, before, read(t, path), p)
			if !bytes.Equal(read(t, path)[p.Start:p.Start+p.Size], make([]byte, p.Size)) {
				t.Error("the partition's place is not zero")
			}
			if got := run(t, "sfdisk", "--dump", path); settled(got) != settled(dump) {
				t.Errorf("the table was\n%s\nand is\n%s", dump, got)
			}
		})
	}
}

// settled is a dump without where the last usable sector is: the backup of a table
// moves to the end of a disk that has grown.
func settled(dump string) string {
	lines := strings.Split(dump, "\n")
	return strings.Join(slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, "last-lba:") }), "\n")
}

// partition divides a disk at random, and leaves a gap in which a partition of 16
// MiB fits whatever its alignment.
func partition(t *testing.T, r *rand.Rand, path, how string, size int64) {
	t.Helper()
	type extent struct{ start, length int64 } // sectors
	var parts []extent
	gap := 1 + r.IntN(3) // before which partition the gap is
	at, end := int64(2048), size/sector-2048
	room := end - at - 18*2048
	for i := range 4 {
		if i == gap {
			at += 18 * 2048
		}
		length := 64 + r.Int64N(room/8)
		parts = append(parts, extent{at, length})
		at += length + r.Int64N(room/8)
		if how[:3] == "mbr" && i == 2 {
			break
		}
	}
	switch how {
	case "gpt by sgdisk":
		args, step := []string{"-a", "1"}, 1+2*r.IntN(2)
		for i, p := range parts {
			n := 1 + i*step // entries need not follow each other
			args = append(args, "-n", fmt.Sprintf("%d:%d:%d", n, p.start, p.start+p.length-1), "-c", fmt.Sprintf("%d:part %d ü", n, i))
		}
		run(t, "sgdisk", append(args, path)...)
	case "gpt by sfdisk":
		script := "label: gpt\n"
		for _, p := range parts {
			script += fmt.Sprintf("start=%d, size=%d\n", p.start, p.length)
		}
		sfdisk(t, path, script)
	default:
		script := "label: dos\n"
		for i, p := range parts {
			if i == len(parts)-1 && how != "mbr" {
				script += fmt.Sprintf("start=%d, size=%d, type=5\n", p.start, p.length)
				for k := range min(r.Int64N(4), (p.length-1)/2048) {
					script += fmt.Sprintf("start=%d, size=40\n", p.start+2048*k+63)
				}
				continue
			}
			script += fmt.Sprintf("start=%d, size=%d\n", p.start, p.length)
		}
		sfdisk(t, path, script)
	}
}

// mark writes something into every partition, and returns the disk's content.
func mark(t *testing.T, r *rand.Rand, path string) []byte {
	t.Helper()
	data := read(t, path)
	table, err := disk.Read(bytes.NewReader(data), int64(len(data)), sector)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range table.Partitions {
		if p.Type == 5 {
			continue
		}
		for _, at := range []int64{p.Start, p.Start + p.Size - 16} {
			overwrite(t, path, at, fmt.Appendf(nil, "%016x", r.Uint64()))
		}
	}
	return read(t, path)
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// intact fails the test if something changed outside of p and of the tables.
func intact(t *testing.T, before, after []byte, p disk.Partition) {
	t.Helper()
	if len(before) != len(after) {
		t.Fatalf("%d bytes became %d", len(before), len(after))
	}
	compare := func(from, to int64) {
		if !bytes.Equal(before[from:to], after[from:to]) {
			t.Errorf("something changed between %d and %d", from, to)
		}
	}
	compare(34*sector, p.Start)
	compare(p.Start+p.Size, int64(len(before))-33*sector)
	compare(0, 446) // a boot loader
}

func addTo(t *testing.T, path string, size int64) disk.Partition {
	t.Helper()
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	place := media.Place{Size: size, Sector: d.SectorSize()}
	p := disk.Partition{Name: "config-2", Size: size, ID: config2().ID, Type: place.Type()}
	s, err := disk.Prepare(d, p)
	if err != nil {
		t.Fatal(err)
	}
	place.Start = s.Start
	if err := s.Add(func(w io.Writer) error { return media.Partition(w, drive(), place) }); err != nil {
		t.Fatal(err)
	}
	if err := d.Tell(s.Partition, true); err != nil {
		t.Error(err)
	}
	return s.Partition
}

func removeFrom(t *testing.T, path string) {
	t.Helper()
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p, err := disk.Remove(d, "config-2")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Tell(p, false); err != nil {
		t.Error(err)
	}
}

// same fails the test unless mtools finds the files of drive in a partition.
func same(t *testing.T, path string, p disk.Partition) {
	t.Helper()
	dir := t.TempDir()
	run(t, "mcopy", "-s", "-n", "-i", fmt.Sprintf("%s@@%d", path, p.Start), "::", dir+"/")
	got := map[string][]byte{}
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		got[strings.TrimPrefix(name, dir+"/")] = b
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !maps.EqualFunc(got, drive().Files, bytes.Equal) {
		t.Errorf("mtools read %q", slices.Sorted(maps.Keys(got)))
	}
}
