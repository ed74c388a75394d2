// Package spool keeps entries on a disk, in order, until somebody has taken
// them over. An entry is on the disk before [Spool.Append] returns, and is gone
// from it before [Spool.Remove] does, whatever crashes in between.
//
// Each entry is a file of its own, named by its number:
//
//	sum      32 bytes, the SHA-256 of the rest
//	content  the entry
//
// A file whose sum is wrong was being written when the machine stopped: nobody
// was told that it is kept.
package spool

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"imprint"
)

// Limits on what is kept.
const (
	MaxEntry   = 64 << 10 // bytes of one entry
	MaxEntries = 8192     // entries
	MaxBytes   = 64 << 20 // bytes of all entries together
)

// Entry is one thing that is kept.
type Entry struct {
	Number  uint64 // later entries have greater ones
	Content []byte
}

// Spool is an ordered set of entries in a directory. Its methods may be called
// concurrently.
type Spool struct {
	files files

	mu    sync.Mutex
	next  uint64         // guarded by mu
	sizes map[uint64]int // guarded by mu; of the entries that are kept or being written
	bytes int            // guarded by mu; their sum
}

// Open returns the spool in dir, which it makes if there is none, and what is
// kept there, the oldest first. torn counts the entries that were being written
// when the process before this one ended; they are removed.
func Open(dir string) (s *Spool, kept []Entry, torn int, err error) {
	d, err := openDisk(dir)
	if err != nil {
		return nil, nil, 0, imprint.Errorf(imprint.Internal, "open", dir, "%w", err)
	}
	return open(d)
}

func open(d files) (s *Spool, kept []Entry, torn int, err error) {
	s = &Spool{files: d, next: 1, sizes: map[uint64]int{}}
	names, err := d.names()
	if err != nil {
		return nil, nil, 0, imprint.Errorf(imprint.Internal, "list", "kept entries", "%w", err)
	}
	for _, name := range names {
		number, err := strconv.ParseUint(name, 10, 64)
		if err != nil || fileName(number) != name {
			continue // not ours
		}
		s.next = max(s.next, number+1)
		content, err := d.read(name, sha256.Size+MaxEntry+1)
		if err != nil {
			return nil, nil, 0, imprint.Errorf(imprint.Internal, "read", "entry "+name, "%w", err)
		}
		content, whole := verified(content)
		if !whole {
			torn++
			if err := d.remove(name); err != nil {
				return nil, nil, 0, imprint.Errorf(imprint.Internal, "remove", "entry "+name, "%w", err)
			}
			continue
		}
		kept = append(kept, Entry{number, content})
		s.sizes[number] = len(content)
		s.bytes += len(content)
	}
	// What was found may be in the disk's cache only, and counts as kept from now on.
	if err := d.sync(); err != nil {
		return nil, nil, 0, imprint.Errorf(imprint.Internal, "sync", "kept entries", "%w", err)
	}
	slices.SortFunc(kept, func(a, b Entry) int { return cmp.Compare(a.Number, b.Number) })
	return s, kept, torn, nil
}

// verified returns the content of a file, if it is whole.
func verified(file []byte) (content []byte, whole bool) {
	if len(file) < sha256.Size || len(file) > sha256.Size+MaxEntry {
		return nil, false
	}
	sum := sha256.Sum256(file[sha256.Size:])
	return file[sha256.Size:], bytes.Equal(sum[:], file[:sha256.Size])
}

func fileName(number uint64) string { return fmt.Sprintf("%020d", number) }

// Append keeps content and returns its number when it is on the disk. It fails
// with kind [imprint.Exhausted] beyond the limits or when the disk is full; then
// nothing is kept.
func (s *Spool) Append(content []byte) (uint64, error) {
	number, err := s.reserve(len(content))
	if err != nil {
		return 0, err
	}
	name := fileName(number)
	sum := sha256.Sum256(content)
	err = s.files.create(name, slices.Concat(sum[:], content))
	if err == nil {
		err = s.files.sync()
	}
	if err == nil {
		return number, nil
	}
	kind := imprint.Internal
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		kind = imprint.Exhausted
	}
	fault := imprint.Errorf(kind, "keep", "entry "+name, "%w", err)
	if err := s.files.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fault // its room stays taken: it may come back at the next start
	}
	s.release(number)
	return 0, fault
}

// reserve takes room for an entry of n bytes.
func (s *Spool) reserve(n int) (uint64, error) {
	if n == 0 || n > MaxEntry {
		return 0, imprint.Errorf(imprint.Invalid, "keep", "entry", "%d bytes; an entry has 1 to %d", n, MaxEntry)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sizes) >= MaxEntries || s.bytes+n > MaxBytes {
		return 0, imprint.Errorf(imprint.Exhausted, "keep", "entry", "%d entries with %d bytes are kept already", len(s.sizes), s.bytes)
	}
	number := s.next
	s.next++
	s.sizes[number] = n
	s.bytes += n
	return number, nil
}

func (s *Spool) release(number uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes -= s.sizes[number]
	delete(s.sizes, number)
}

// Remove forgets an entry. When it returns nil the entry does not come back,
// also after a crash.
func (s *Spool) Remove(number uint64) error {
	err := s.files.remove(fileName(number))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = s.files.sync()
	}
	if err != nil {
		return imprint.Errorf(imprint.Internal, "remove", "entry "+fileName(number), "%w", err)
	}
	s.release(number)
	return nil
}

// Len returns how many entries are kept.
func (s *Spool) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sizes)
}
