package disk_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"imprint"
	"imprint/internal/disk"
)

// growLast lets the second partition of a test's disk take what is behind it.
func growLast(d disk.Device) error {
	g, err := disk.PrepareGrowth(d, 2)
	if err != nil {
		return err
	}
	return g.Grow()
}

// withTwo are the layouts whose second partition has room behind it.
func withTwo() map[string]func(*testing.T, string) {
	list := layouts()
	delete(list, "gpt of sgdisk")
	delete(list, "gpt without partitions")
	return list
}

// At whatever instant growing is killed, imprint and the tools of others read the old
// size or the new one, and the same command finishes what was begun.
func TestGrowthKilledAtAnyInstant(t *testing.T) {
	t.Parallel()
	for name, layout := range withTwo() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := image(t, layout)
			m := &memory{data: bytes.Clone(before)}
			if err := growLast(m); err != nil {
				t.Fatal(err)
			}
			old, new := list(t, before), list(t, m.data)
			whole := int64(len(before))/mib - 3 // the partition begins at 2 MiB, and the last MiB has the backup or is left for it
			if want := fmt.Sprintf("2 4096+%d", whole*mib/sector); len(old) != len(new) || !slices.ContainsFunc(new, func(s string) bool { return strings.HasPrefix(s, want) }) {
				t.Fatalf("%v became %v, want %s", old, new, want)
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
					t.Errorf("%s: read %v", when, got)
				}
				others.read(when, data, old, new)
				again := &memory{data: data}
				if err := growLast(again); err != nil || !slices.Equal(list(t, again.data), new) {
					t.Errorf("%s: again: %v, %v", when, err, list(t, again.data))
				}
			})
			if outcomes["old"] < 1 || outcomes["new"] < 1 {
				t.Errorf("only %v", outcomes)
			}
			if got := dumped(t, write(t, m.data)); !slices.Equal(got, new) {
				t.Errorf("sfdisk reads %v, want %v", got, new)
			}
		})
	}
}

// write makes an image of a disk.
func write(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A partition grows up to the one behind it, and not at all if that follows at once.
// What is in a partition is not touched.
func TestGrowthInTheMiddle(t *testing.T) {
	t.Parallel()
	for _, label := range []string{"gpt", "dos"} {
		before := image(t, func(t *testing.T, path string) {
			sfdisk(t, path, "label: "+label+"\nstart=2048, size=2048\nstart=8192, size=2048\n")
		})
		m := &memory{data: bytes.Clone(before)}
		g, err := disk.PrepareGrowth(m, 1)
		if err != nil || g.Size != mib || g.To != 3*mib {
			t.Fatalf("%s: %+v, %v", label, g, err)
		}
		if !bytes.Equal(m.data, before) {
			t.Errorf("%s: asking changed the disk", label)
		}
		if err := g.Grow(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m.data[mib:5*mib], before[mib:5*mib]) {
			t.Errorf("%s: what the partitions hold was changed", label)
		}
		if err := g.Grow(); imprint.KindOf(err) != imprint.Conflict {
			t.Errorf("%s: again, though the table is another: %v", label, err)
		}
		if g, err := disk.PrepareGrowth(m, 1); err != nil || g.To != g.Size {
			t.Errorf("%s: no room, and %v, %v", label, g, err)
		}
		if _, err := disk.PrepareGrowth(m, 3); imprint.KindOf(err) != imprint.NotFound {
			t.Errorf("%s: a partition that is not there: %v", label, err)
		}
	}
}

// A logical partition would need the extended one to grow too: that is refused.
func TestGrowthOfALogicalPartition(t *testing.T) {
	t.Parallel()
	m := &memory{data: image(t, func(t *testing.T, path string) {
		sfdisk(t, path, "label: dos\nstart=2048, size=6144, type=5\nstart=4096, size=2048\n")
	})}
	for _, number := range []int{1, 5} {
		if _, err := disk.PrepareGrowth(m, number); imprint.KindOf(err) != imprint.Conflict {
			t.Errorf("partition %d: %v", number, err)
		}
	}
}

// Whichever write fails, that is told.
func TestGrowthThatFails(t *testing.T) {
	t.Parallel()
	for name, layout := range withTwo() {
		before := image(t, layout)
		n := 0
		for ; ; n++ {
			err := growLast(&failing{&memory{data: bytes.Clone(before)}, n})
			if err == nil {
				break
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%s, write %d: %v", name, n, err)
			}
		}
		if n < 1 {
			t.Errorf("%s: no write failed", name)
		}
	}
}

// identifiers are the disk's and the partitions', as blkid reads them.
func identifiers(t *testing.T, data []byte) []string {
	t.Helper()
	table, err := disk.Read(bytes.NewReader(data), int64(len(data)), sector)
	if err != nil {
		t.Error(err)
		return nil
	}
	ids := []string{table.ID()}
	for _, p := range table.Partitions {
		ids = append(ids, table.PartUUID(p))
	}
	return ids
}

// A copy of a disk gets identifiers of its own: others read them as they were given,
// nothing else changes, and a crash leaves all old ones or all new ones.
func TestRenewedIdentifiers(t *testing.T) {
	t.Parallel()
	for name, layout := range withTwo() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := image(t, layout)
			old := identifiers(t, before)
			new := []string{"11111111-2222-4333-8444-555555555555", "0a0b0c0d-0e0f-4a0b-8c0d-aabbccddeeff", "01234567-89ab-4cde-8f01-23456789abcd"}
			if name == "mbr" {
				new = []string{"89abcdef", "89abcdef-01", "89abcdef-02"}
			}
			ids := map[string]string{"unknown": "ignored"}
			for i := range old {
				ids[old[i]] = new[i]
			}
			m := &memory{data: bytes.Clone(before)}
			if err := disk.Renew(m, ids); err != nil {
				t.Fatal(err)
			}
			if got := identifiers(t, m.data); !slices.Equal(got, new) {
				t.Errorf("got %v, want %v", got, new)
			}
			if got, want := list(t, m.data), list(t, before); !slices.Equal(got, want) {
				t.Errorf("the partitions %v became %v", want, got)
			}
			path := write(t, m.data)
			dump := strings.ToLower(run(t, "sfdisk", "--dump", path))
			for i, id := range new {
				if (name != "mbr" || i == 0) && !strings.Contains(dump, id) {
					t.Errorf("sfdisk does not read %s:\n%s", id, dump)
				}
			}
			m.crashes(before, func(when string, data []byte) {
				if got := identifiers(t, data); !slices.Equal(got, old) && !slices.Equal(got, new) {
					t.Errorf("%s: read %v", when, got)
				}
				again := &memory{data: data}
				if err := disk.Renew(again, ids); err != nil || !slices.Equal(identifiers(t, again.data), new) {
					t.Errorf("%s: again: %v", when, err)
				}
			})
		})
	}
}

// What is no identifier is not written.
func TestIdentifiersThatAreNone(t *testing.T) {
	t.Parallel()
	for label, bad := range map[string][]string{"gpt": {"", "123", "11111111-2222-4333-8444-55555555555g"}, "dos": {"", "00000000", "123456789", "wxyz1234"}} {
		m := &memory{data: image(t, func(t *testing.T, path string) { sfdisk(t, path, "label: "+label+"\nstart=2048, size=2048\n") })}
		before := bytes.Clone(m.data)
		for _, id := range bad {
			if err := disk.Renew(m, map[string]string{identifiers(t, m.data)[0]: id}); imprint.KindOf(err) != imprint.Invalid || err == nil {
				t.Errorf("%s, %q: %v", label, id, err)
			}
		}
		if !bytes.Equal(m.data, before) {
			t.Errorf("%s: the disk was changed", label)
		}
	}
}
