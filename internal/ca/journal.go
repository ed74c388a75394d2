package ca

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"imprint"
)

// The journal holds the entries that are not in the tree yet. It is one file of
// records, each an entry with its index and a checksum, which is written again
// from its start whenever the tree has caught up. So what follows the last
// record may be the rest of earlier ones; their indices do not go on from it.
const (
	journalName   = "journal"
	journalHeader = 8 + 4 + 4 // index, length and checksum
	// maxJournal bounds the file. Appending waits for the tree when it is full.
	maxJournal = 16 << 20
	// The file grows by journalStep of zeros, so that most writes change nothing
	// but contents: a file system syncs these with one write to the disk.
	journalStep = 1 << 20
)

// journal is an open journal.
type journal struct {
	file *os.File
	next uint64 // index of the next entry
	end  int64  // where its record goes
	size int64  // of the file
	buf  []byte
}

// openJournal opens or makes the journal in dir for entries from next on. What
// it held is forgotten.
func openJournal(dir string, next uint64) (*journal, error) {
	refuse := func(err error) (*journal, error) {
		return nil, imprint.Errorf(imprint.Unavailable, "open", filepath.Join(dir, journalName), "%w", err)
	}
	// With O_DSYNC a write returns when the disk has it.
	f, err := os.OpenFile(filepath.Join(dir, journalName), os.O_CREATE|os.O_RDWR|syscall.O_DSYNC, 0o600)
	if err != nil {
		return refuse(err)
	}
	j := &journal{file: f, next: next}
	info, err := f.Stat()
	if err == nil {
		j.size = info.Size()
		err = syncDir(dir) // the file's name
	}
	if err != nil {
		f.Close()
		return refuse(err)
	}
	return j, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// fits reports whether entries of n bytes in total have room behind the last one.
func (j *journal) fits(entries, n int) bool {
	return j.end+int64(n+entries*journalHeader) <= maxJournal
}

// rewind makes the next record the first: all entries are in the tree.
func (j *journal) rewind() { j.end = 0 }

// append writes entries and returns the index of the first when all are on the
// disk. After an error the next ones take the place of these.
func (j *journal) append(entries [][]byte) (first uint64, err error) {
	j.buf = j.buf[:0]
	for i, e := range entries {
		h := recordHeader(j.next+uint64(i), e)
		j.buf = append(append(j.buf, h[:]...), e...)
	}
	end := j.end + int64(len(j.buf))
	if end > j.size {
		size := (end + journalStep - 1) / journalStep * journalStep
		if _, err := j.file.WriteAt(make([]byte, size-j.size), j.size); err != nil {
			return 0, err
		}
		j.size = size
	}
	if _, err := j.file.WriteAt(j.buf, j.end); err != nil {
		return 0, err
	}
	first = j.next
	j.next, j.end = first+uint64(len(entries)), end
	return first, nil
}

// recordHeader returns what comes before entry index.
func recordHeader(index uint64, entry []byte) (h [journalHeader]byte) {
	binary.BigEndian.PutUint64(h[:], index)
	binary.BigEndian.PutUint32(h[8:], uint32(len(entry)))
	sum := crc32.Update(crc32.Checksum(h[:12], castagnoli()), castagnoli(), entry)
	binary.BigEndian.PutUint32(h[12:], sum)
	return h
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// readWaiting returns the entries in the journal of log that a tree of the given
// size has not. ahead is set if the journal begins later than such a tree ends:
// it belongs to a larger one.
func readWaiting(log fs.FS, size uint64) (entries [][]byte, ahead bool, err error) {
	raw, err := readLimited(log, journalName, maxJournal)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	first, entries := parseJournal(raw)
	if len(entries) > 0 && size < first {
		return nil, true, nil
	}
	return entries[min(uint64(len(entries)), size-first):], false, nil
}

// parseJournal returns the entries in a journal and the index of the first. They
// end at the first record that is not whole: nobody was told that it is on the
// disk.
func parseJournal(raw []byte) (first uint64, entries [][]byte) {
	for len(raw) >= journalHeader {
		index, n := binary.BigEndian.Uint64(raw), binary.BigEndian.Uint32(raw[8:])
		if n > maxEntry || int(n) > len(raw)-journalHeader {
			break
		}
		entry := raw[journalHeader : journalHeader+n]
		if recordHeader(index, entry) != [journalHeader]byte(raw) {
			break
		}
		if len(entries) == 0 {
			first = index
		} else if index != first+uint64(len(entries)) {
			break
		}
		entries = append(entries, entry)
		raw = raw[journalHeader+n:]
	}
	return first, entries
}
