package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"imprint"
)

// errCrash is what a disk says that has stopped.
var errCrash = errors.New("the machine stopped")

// fragile is a directory that stops at its n-th step. What was not synced by then
// may be there afterwards or not, each change for itself, and a file that was
// being written may be there in part.
type fragile struct {
	left    int                // steps until it stops
	durable map[string][]byte  // what is there for certain
	cached  map[string]*[]byte // later changes; nil is a removal
	rnd     *rand.Rand
}

func (d *fragile) step() error {
	if d.left--; d.left < 0 {
		return errCrash
	}
	return nil
}

func (d *fragile) now() map[string][]byte {
	all := map[string][]byte{}
	for name, b := range d.durable {
		all[name] = b
	}
	for name, b := range d.cached {
		if delete(all, name); b != nil {
			all[name] = *b
		}
	}
	return all
}

func (d *fragile) names() ([]string, error) {
	var names []string
	for name := range d.now() {
		names = append(names, name)
	}
	return names, nil
}

func (d *fragile) read(name string, limit int) ([]byte, error) {
	b, ok := d.now()[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return b[:min(len(b), limit)], nil
}

func (d *fragile) create(name string, content []byte) error {
	if _, there := d.now()[name]; there {
		return fs.ErrExist
	}
	for _, part := range [][]byte{nil, content[:d.rnd.IntN(len(content))], content} {
		if err := d.step(); err != nil {
			return err
		}
		part = bytes.Clone(part)
		d.cached[name] = &part
	}
	return d.step()
}

func (d *fragile) remove(name string) error {
	if _, there := d.now()[name]; !there {
		return fs.ErrNotExist
	}
	if err := d.step(); err != nil {
		return err
	}
	d.cached[name] = nil
	return nil
}

func (d *fragile) sync() error {
	if err := d.step(); err != nil {
		return err
	}
	d.durable, d.cached = d.now(), map[string]*[]byte{}
	return nil
}

// restart returns what is on the disk after the crash.
func (d *fragile) restart() *fragile {
	after := &fragile{left: 1 << 30, durable: map[string][]byte{}, cached: map[string]*[]byte{}, rnd: d.rnd}
	for name, b := range d.durable {
		after.durable[name] = b
	}
	for name, b := range d.cached {
		if d.rnd.IntN(2) == 0 {
			continue
		}
		if delete(after.durable, name); b != nil {
			after.durable[name] = *b
		}
	}
	return after
}

// TestCrashAtEveryStep: a history of appends and removals is stopped at each of
// its steps, and the disk keeps this or that of what was not synced. Whatever was
// acknowledged is so, in order, and nothing is there that nobody kept.
func TestCrashAtEveryStep(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		for stop := 0; ; stop++ {
			rnd := rand.New(rand.NewPCG(seed, uint64(stop)))
			d := &fragile{left: stop, durable: map[string][]byte{}, cached: map[string]*[]byte{}, rnd: rnd}
			h := play(rand.New(rand.NewPCG(seed, 0)), d)
			s, kept, _, err := open(d.restart())
			if err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, stop, err)
			}
			if fault := h.judge(kept); fault != "" {
				t.Fatalf("seed %d, step %d: %s; kept %q", seed, stop, fault, contents(kept))
			}
			// It goes on after what was there.
			if number, err := s.Append([]byte("after")); err != nil || len(kept) > 0 && number <= kept[len(kept)-1].Number {
				t.Fatalf("seed %d, step %d: the next entry is number %d, %v", seed, stop, number, err)
			}
			if d.left >= 0 {
				break // it went to its end
			}
		}
	}
}

// history is what a user of a spool was told.
type history struct {
	appended []string // in order, acknowledged
	removed  map[string]bool
	open     map[string]bool // neither here nor there: the call did not return nil
}

func play(rnd *rand.Rand, d *fragile) *history {
	h := &history{removed: map[string]bool{}, open: map[string]bool{}}
	s, _, _, err := open(d)
	if err != nil {
		return h
	}
	numbers := map[string]uint64{}
	for n := range 12 {
		if len(h.appended) > len(h.removed) && rnd.IntN(3) == 0 {
			oldest := h.appended[len(h.removed)]
			if err := s.Remove(numbers[oldest]); err != nil {
				h.open[oldest] = true
				return h
			}
			h.removed[oldest] = true
			continue
		}
		text := fmt.Sprintf("entry %d", n)
		number, err := s.Append([]byte(text))
		if err != nil {
			h.open[text] = true
			return h
		}
		h.appended, numbers[text] = append(h.appended, text), number
	}
	return h
}

func (h *history) judge(kept []Entry) string {
	got := contents(kept)
	var certain []string
	for _, text := range h.appended {
		if !h.removed[text] && !h.open[text] {
			certain = append(certain, text)
		}
	}
	var sure []string
	for _, text := range got {
		if !h.open[text] {
			sure = append(sure, text)
		}
	}
	if !slices.Equal(sure, certain) {
		return fmt.Sprintf("%q was acknowledged, %q is there", certain, sure)
	}
	return ""
}

func contents(kept []Entry) []string {
	var all []string
	for _, e := range kept {
		all = append(all, string(e.Content))
	}
	return all
}

func TestOnADisk(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "queue")
	s, kept, torn, err := Open(dir)
	if err != nil || len(kept) != 0 || torn != 0 {
		t.Fatal(kept, torn, err)
	}
	var numbers []uint64
	for _, text := range []string{"a", "b", "c"} {
		n, err := s.Append([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, n)
	}
	if err := errors.Join(s.Remove(numbers[0]), s.Remove(numbers[0])); err != nil {
		t.Error(err)
	}
	// One that was cut short, one that was changed, and something else.
	for name, content := range map[string]string{fileName(7): "short", fileName(8): string(make([]byte, 40)), "README": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, kept, torn, err = Open(dir)
	if err != nil || torn != 2 || !slices.Equal(contents(kept), []string{"b", "c"}) || s.Len() != 2 {
		t.Errorf("after a restart: %q, %d torn, %v", contents(kept), torn, err)
	}
	if n, err := s.Append([]byte("d")); err != nil || n != 9 {
		t.Errorf("the next is number %d, %v", n, err)
	}
	info, err := os.Stat(filepath.Join(dir, fileName(9)))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// full is a disk without room.
type full struct{ fragile }

func (d *full) create(name string, content []byte) error {
	part := content[:1]
	d.cached[name] = &part
	return syscall.ENOSPC
}

func TestLimits(t *testing.T) {
	t.Parallel()
	d := &fragile{left: 1 << 30, durable: map[string][]byte{}, cached: map[string]*[]byte{}, rnd: rand.New(rand.NewPCG(1, 1))}
	s, _, _, err := open(d)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, MaxEntry + 1} {
		if _, err := s.Append(make([]byte, size)); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	big := make([]byte, MaxEntry)
	var last uint64
	for n := 0; ; n++ {
		number, err := s.Append(big)
		if err != nil {
			if imprint.KindOf(err) != imprint.Exhausted || n != MaxBytes/MaxEntry {
				t.Errorf("entry %d: %v", n, err)
			}
			break
		}
		last = number
	}
	if err := s.Remove(last); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(big); err != nil {
		t.Errorf("there is room again: %v", err)
	}

	none := &full{fragile{left: 1 << 30, durable: map[string][]byte{}, cached: map[string]*[]byte{}}}
	s, _, _, err = open(none)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append([]byte("x")); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("a full disk: %v", err)
	}
	if s.Len() != 0 || len(none.now()) != 0 {
		t.Errorf("%d entries, files %q are left of what was not kept", s.Len(), none.now())
	}
}
