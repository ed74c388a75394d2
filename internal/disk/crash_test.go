package disk_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"imprint"
	"imprint/internal/disk"
	"imprint/test/need"
)

const (
	sector = 512
	mib    = 1 << 20
)

// memory is a disk that remembers in which order it was written.
type memory struct {
	data   []byte
	epochs []epoch // what was written between one sync and the next
}

type epoch []disk.Write

func (m *memory) Size() int64       { return int64(len(m.data)) }
func (m *memory) SectorSize() int64 { return sector }
func (m *memory) ReadAt(b []byte, at int64) (int, error) {
	return bytes.NewReader(m.data).ReadAt(b, at)
}
func (m *memory) Zero(at, n int64) error { _, err := m.WriteAt(make([]byte, n), at); return err }
func (m *memory) Sync() error            { m.epochs = append(m.epochs, nil); return nil }
func (m *memory) WriteAt(b []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(b)) > m.Size() {
		return 0, io.ErrShortWrite
	}
	if len(m.epochs) == 0 {
		m.epochs = []epoch{nil}
	}
	last := &m.epochs[len(m.epochs)-1]
	*last = append(*last, disk.Write{At: at, Data: bytes.Clone(b)})
	return copy(m.data[at:], b), nil
}

// sectors are the writes of an epoch, one by one: a disk writes each whole or not
// at all. Those that change nothing in data are left out.
func (e epoch) sectors(data []byte) []disk.Write {
	var list []disk.Write
	for _, w := range e {
		for at := w.At / sector * sector; at < w.At+int64(len(w.Data)); at += sector {
			s := bytes.Clone(data[at : at+sector])
			from := max(at, w.At)
			copy(s[from-at:], w.Data[from-w.At:])
			if !bytes.Equal(s, data[at:at+sector]) {
				list = append(list, disk.Write{At: at, Data: s})
			}
		}
	}
	return list
}

// crashes calls check with the disk as each crash may leave it: after all syncs so
// far, with every prefix of what was written since, every suffix, each sector alone,
// all but one, and random subsets. The disk is check's until it returns.
func (m *memory) crashes(before []byte, check func(when string, data []byte)) {
	base, data := bytes.Clone(before), make([]byte, len(before))
	r := rand.New(rand.NewPCG(1, 2))
	for n, e := range m.epochs {
		list := e.sectors(base)
		try := func(when string, landed func(i int) bool) {
			copy(data, base)
			for i, s := range list {
				if landed(i) {
					copy(data[s.At:], s.Data)
				}
			}
			check(fmt.Sprintf("epoch %d, %s of %d sectors", n, when, len(list)), data)
		}
		stride := max(1, len(list)/20)
		for i := 0; i <= len(list); i += stride {
			try(fmt.Sprintf("the first %d", i), func(k int) bool { return k < i })
			try(fmt.Sprintf("from %d on", i), func(k int) bool { return k >= i })
			try(fmt.Sprintf("only %d", i), func(k int) bool { return k == i })
			try(fmt.Sprintf("all but %d", i), func(k int) bool { return k != i })
		}
		for i := range 24 {
			try(fmt.Sprintf("random subset %d", i), func(int) bool { return r.IntN(2) == 0 })
		}
		for _, w := range e {
			copy(base[w.At:], w.Data)
		}
	}
	check("at the end", base)
}

// layouts are disks that others partitioned.
func layouts() map[string]func(t *testing.T, path string) {
	const two = "start=2048, size=2048, name=root\nstart=4096, size=2048, name=data\n"
	gpt := func(t *testing.T, path string) { sfdisk(t, path, "label: gpt\n"+two) }
	damaged := func(at int64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			gpt(t, path)
			overwrite(t, path, at, bytes.Repeat([]byte("damage! "), 8))
		}
	}
	return map[string]func(*testing.T, string){
		"gpt":                            gpt,
		"gpt of sgdisk":                  func(t *testing.T, path string) { run(t, "sgdisk", "-n", "1:2048:4095", "-c", "1:root", path) },
		"gpt without partitions":         func(t *testing.T, path string) { sfdisk(t, path, "label: gpt\n") },
		"gpt grown by 2 MiB":             func(t *testing.T, path string) { gpt(t, path); grow(t, path, 2*mib) },
		"gpt grown by 4 KiB":             func(t *testing.T, path string) { gpt(t, path); grow(t, path, 4096) },
		"gpt with damaged first entries": damaged(2 * sector),
		"gpt with damaged last entries":  damaged(diskSize - 33*sector),
		"gpt with damaged last header":   damaged(diskSize - sector),
		"mbr": func(t *testing.T, path string) {
			sfdisk(t, path, "label: dos\nstart=2048, size=2048\nstart=4096, size=2048\n")
		},
	}
}

const diskSize = 6 * mib

// At whatever instant a change is killed, and whatever of the last writes has
// reached the disk then: imprint and the tools of others read the table as it was or
// as it is to be, and the same command finishes what was begun.
func TestKilledAtAnyInstant(t *testing.T) {
	t.Parallel()
	for name, layout := range layouts() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := image(t, layout)
			m := &memory{data: bytes.Clone(before)}
			add(t, m)
			added := bytes.Clone(m.data)
			old, new := list(t, before), list(t, added)
			if len(new) != len(old)+1 {
				t.Fatalf("%v became %v", old, new)
			}
			outcomes := map[string]int{}
			others := newTools(t)
			m.crashes(before, func(when string, data []byte) {
				got := list(t, data)
				switch {
				case slices.Equal(got, old):
					outcomes["old"]++
				case slices.Equal(got, new):
					outcomes["new"]++
				default:
					t.Errorf("add, %s: read %v", when, got)
				}
				others.read(when, data, old, new)
				again := &memory{data: data}
				if s, err := disk.Prepare(again, config2()); err == nil {
					if err := s.Add(fill); err != nil {
						t.Errorf("add, %s: again: %v", when, err)
					}
				} else if imprint.KindOf(err) != imprint.Exists {
					t.Errorf("add, %s: again: %v", when, err)
				}
				if !slices.Equal(list(t, again.data), new) {
					t.Errorf("add, %s: again: %v", when, list(t, again.data))
				}
			})

			m = &memory{data: bytes.Clone(added)}
			if _, err := disk.Remove(m, "CONFIG-2"); err != nil {
				t.Fatal(err)
			}
			m.crashes(added, func(when string, data []byte) {
				got := list(t, data)
				if !slices.Equal(got, new) && !slices.Equal(got, old) {
					t.Errorf("remove, %s: read %v", when, got)
				}
				others.read(when, data, old, new)
				again := &memory{data: data}
				if _, err := disk.Remove(again, "config-2"); err != nil && imprint.KindOf(err) != imprint.NotFound {
					t.Errorf("remove, %s: again: %v", when, err)
				}
				if !slices.Equal(list(t, again.data), old) || bytes.Contains(again.data, []byte("secret")) {
					t.Errorf("remove, %s: again: %v", when, list(t, again.data))
				}
			})
			t.Logf("%v, %d tables for others", outcomes, len(others.seen))
			if outcomes["old"] < 10 || outcomes["new"] < 1 || len(others.seen) < 10 && name != "mbr" {
				t.Errorf("only %v, %d tables for others", outcomes, len(others.seen))
			}
		})
	}
}

// failing is a disk that is full after so many writes.
type failing struct {
	*memory
	left int
}

func (f *failing) WriteAt(b []byte, at int64) (int, error) {
	if f.left--; f.left < 0 {
		return 0, syscall.ENOSPC
	}
	return f.memory.WriteAt(b, at)
}

// Whichever write fails, that is told, and the table is the old one or the new one.
func TestWriteThatFails(t *testing.T) {
	t.Parallel()
	for name, layout := range layouts() {
		before := image(t, layout)
		m := &memory{data: bytes.Clone(before)}
		add(t, m)
		old, new := list(t, before), list(t, m.data)
		n := 0
		for ; ; n++ {
			d := &failing{&memory{data: bytes.Clone(before)}, n}
			s, err := disk.Prepare(d, config2())
			if err != nil {
				t.Fatal(err)
			}
			if err = s.Add(fill); err == nil {
				break
			}
			if got := list(t, d.data); !errors.Is(err, syscall.ENOSPC) || !slices.Equal(got, old) && !slices.Equal(got, new) {
				t.Errorf("%s, write %d: %v, %v", name, n, err, got)
			}
		}
		if n < 4 {
			t.Errorf("%s: only %d writes failed", name, n)
		}
	}
}

// Of content that could not be written whole nothing stays, and no partition is made.
func TestContentThatFails(t *testing.T) {
	t.Parallel()
	before := image(t, layouts()["gpt"])
	m := &memory{data: bytes.Clone(before)}
	s, err := disk.Prepare(m, config2())
	if err != nil {
		t.Fatal(err)
	}
	half := errors.New("no more")
	err = s.Add(func(w io.Writer) error {
		if err := fill(w); err != nil {
			return err
		}
		return half
	})
	if !errors.Is(err, half) || !bytes.Equal(m.data, before) {
		t.Errorf("%v; the disk is as before: %t", err, bytes.Equal(m.data, before))
	}
}

// config2 is a partition as a test adds it.
func config2() disk.Partition {
	return disk.Partition{Name: "config-2", Size: mib, ID: [16]byte{1, 2, 3, 4, 5, 6, 0x77, 8, 0x89}, Type: 0x0e}
}

// fill writes the boot sector of a FAT12 volume called CONFIG-2, and something that
// nobody may find later.
func fill(w io.Writer) error {
	b := make([]byte, sector)
	copy(b, "\xeb\x3c\x90IMPRINT \x00\x02\x04\x01\x00\x02\x00\x02\x00\x08\xf8\x02\x00")
	copy(b[38:], "\x29\x01\x02\x03\x04CONFIG-2   FAT12   ")
	copy(b[510:], "\x55\xaa")
	f := w.(io.WriterAt)
	for at, b := range map[int64][]byte{0: b, 40000: []byte("secret"), mib - 6: []byte("secret")} {
		if _, err := f.WriteAt(b, at); err != nil {
			return err
		}
	}
	return nil
}

func add(t *testing.T, d disk.Device) {
	t.Helper()
	s, err := disk.Prepare(d, config2())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Add(fill); err != nil {
		t.Fatal(err)
	}
}

// list reads the partitions of a disk: number, first and last sector, name.
func list(t *testing.T, data []byte) []string {
	t.Helper()
	table, err := disk.Read(bytes.NewReader(data), int64(len(data)), sector)
	if err != nil {
		t.Error(err)
		return nil
	}
	var out []string
	for _, p := range table.Partitions {
		out = append(out, fmt.Sprintf("%d %d+%d %s", p.Number, p.Start/sector, p.Size/sector, p.Name))
	}
	slices.Sort(out)
	return out
}

// tools are the programs by which others read a table, each of which sees a table only once.
type tools struct {
	t    *testing.T
	dir  string
	seen map[[32]byte]bool
}

func newTools(t *testing.T) *tools {
	need.Program(t, "sgdisk", "gdisk")
	return &tools{t, t.TempDir(), map[[32]byte]bool{}}
}

// read fails the test unless the tools find the old or the new partitions.
func (o *tools) read(when string, data []byte, old, new []string) {
	o.t.Helper()
	tables := sha256.New()
	tables.Write(data[:34*sector])
	for at := 34 * sector; at < len(data); at += sector { // wherever a backup is
		if bytes.HasPrefix(data[at:], []byte("EFI PART")) {
			fmt.Fprint(tables, at)
			tables.Write(data[max(at-32*sector, 0) : at+sector])
		}
	}
	sum := [32]byte(tables.Sum(nil))
	if o.seen[sum] {
		return
	}
	o.seen[sum] = true
	path := filepath.Join(o.dir, fmt.Sprint(len(o.seen)))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		o.t.Fatal(err)
	}
	defer os.Remove(path)
	readers := map[string][]string{"sfdisk": dumped(o.t, path)}
	if bytes.Contains(data[:4096], []byte("EFI PART")) || bytes.Contains(data[len(data)-4096:], []byte("EFI PART")) {
		readers["sgdisk"] = printed(o.t, path)
	}
	for who, got := range readers {
		if !slices.Equal(got, old) && !slices.Equal(got, new) {
			o.t.Errorf("%s: %s reads %v", when, who, got)
		}
	}
}

// dumped is what sfdisk reads, as [list] has it.
func dumped(t *testing.T, path string) []string {
	t.Helper()
	var dump struct {
		PartitionTable struct {
			Partitions []struct {
				Node        string
				Start, Size int64
				Name        string
			}
		}
	}
	if err := json.Unmarshal([]byte(run(t, "sfdisk", "--json", path)), &dump); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range dump.PartitionTable.Partitions {
		out = append(out, fmt.Sprintf("%s %d+%d %s", strings.TrimPrefix(strings.TrimPrefix(p.Node, path), "p"), p.Start, p.Size, p.Name))
	}
	slices.Sort(out)
	return out
}

// printed is what sgdisk reads, as [list] has it.
func printed(t *testing.T, path string) []string {
	t.Helper()
	var out []string
	_, lines, _ := strings.Cut(run(t, "sgdisk", "-p", path), "Number  Start")
	for line := range strings.Lines(lines) {
		var number, start, end int64
		if n, _ := fmt.Sscan(line, &number, &start, &end); n == 3 {
			fields := strings.Fields(line)
			out = append(out, fmt.Sprintf("%d %d+%d %s", number, start, end-start+1, strings.Join(fields[6:], " ")))
		}
	}
	slices.Sort(out)
	return out
}

// image returns a disk of 6 MiB and what the layout grows it by.
func image(t *testing.T, layout func(*testing.T, string)) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, diskSize); err != nil {
		t.Fatal(err)
	}
	layout(t, path)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// What is not a table's is random, so that a change of it is seen.
	table, err := disk.Read(bytes.NewReader(data), int64(len(data)), sector)
	if err != nil {
		return data
	}
	r := rand.NewChaCha8([32]byte{})
	for _, p := range slices.SortedFunc(slices.Values(table.Partitions), func(a, b disk.Partition) int { return cmp.Compare(a.Start, b.Start) }) {
		r.Read(data[p.Start+4096 : p.Start+p.Size])
	}
	return data
}

func grow(t *testing.T, path string, by int64) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()+by); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, path string, at int64, with []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(with, at); err != nil {
		t.Fatal(err)
	}
}

func sfdisk(t *testing.T, path, script string) {
	t.Helper()
	cmd := exec.Command(need.Program(t, "sfdisk", "fdisk"), "--quiet", path)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
}

// run runs a program of fdisk's, gdisk's and util-linux's and returns what it
// prints; it fails the test unless the program succeeds.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	packages := map[string]string{"sgdisk": "gdisk", "sfdisk": "fdisk", "blkid": "util-linux", "fsck.vfat": "dosfstools", "mcopy": "mtools"}
	cmd := exec.Command(need.Program(t, program, packages[program]), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s%s", program, args, err, out, &stderr)
	}
	return string(out)
}

// lying is a disk that says that it has zeroed, and has not.
type lying struct{ *memory }

func (lying) Zero(int64, int64) error { return nil }

// What was removed is read back.
func TestZerosThatAreNone(t *testing.T) {
	t.Parallel()
	m := &memory{data: image(t, layouts()["gpt"])}
	add(t, m)
	if _, err := disk.Remove(lying{m}, "config-2"); err == nil || imprint.KindOf(err) != imprint.Internal || !strings.Contains(err.Error(), "reads back other than zeros") {
		t.Errorf("%v", err)
	}
}
