// Package cpio writes archives in the format "newc", which Linux unpacks into its
// initial RAM disk (Documentation/driver-api/early-userspace/buffer-format.rst). The
// same entries give the same bytes: all are root's, and of one time.
package cpio

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"
)

// Trailer is the name of the entry that ends an archive.
const Trailer = "TRAILER!!!"

// File types as in inode(7).
const (
	typeDir  = 0o040000
	typeFile = 0o100000
	typeLink = 0o120000
)

// Writer writes an archive. The first error of what it writes to stays, and
// [Writer.Close] returns it. Names are relative or absolute alike; the directories
// on the way are made, with mode 0755.
type Writer struct {
	Time time.Time // of all entries, until 2106; zero is 1970

	w    io.Writer
	n    int64
	ino  int
	made map[string]bool
	err  error
}

// NewWriter writes to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w, made: map[string]bool{}} }

// Has reports whether the archive has an entry of that name.
func (a *Writer) Has(name string) bool { return a.made[clean(name)] }

// File adds a file. perm has its permissions, and may have setuid and the like.
func (a *Writer) File(name string, perm fs.FileMode, data []byte) {
	if name, ok := a.begin(name); ok {
		a.entry(name, typeFile|int(perm.Perm()), 1, data)
	}
}

// Link adds a symbolic link.
func (a *Writer) Link(name, target string) {
	if name, ok := a.begin(name); ok {
		a.entry(name, typeLink|0o777, 1, []byte(target))
	}
}

// Dir adds a directory. perm may have the sticky bit.
func (a *Writer) Dir(name string, perm fs.FileMode) {
	if name, ok := a.begin(name); ok {
		mode := typeDir | int(perm.Perm())
		if perm&fs.ModeSticky != 0 {
			mode |= 0o1000
		}
		a.entry(name, mode, 2, nil)
	}
}

// Close ends the archive.
func (a *Writer) Close() error {
	a.ino, a.Time = -1, time.Time{} // as cpio(1) has it
	a.entry(Trailer, 0, 1, nil)
	return a.err
}

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// begin makes the directories that name is in, because the kernel does not, and
// reports whether name is new. Of two entries the first counts.
func (a *Writer) begin(name string) (string, bool) {
	name = clean(name)
	if name == "" || a.made[name] {
		return "", false
	}
	a.made[name] = true
	if parent := path.Dir(name); parent != "." {
		a.Dir(parent, 0o755)
	}
	return name, true
}

func (a *Writer) entry(name string, mode, links int, data []byte) {
	a.ino++
	var mtime int64
	if !a.Time.IsZero() {
		mtime = a.Time.Unix()
	}
	const uid, gid, major, minor, rmajor, rminor, check = 0, 0, 0, 0, 0, 0, 0
	a.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.ino, mode, uid, gid, links, mtime, len(data), major, minor, rmajor, rminor, len(name)+1, check, name))
	a.pad()
	a.write(data)
	a.pad()
}

// pad aligns to four bytes, as header and data both have to be.
func (a *Writer) pad() { a.write(make([]byte, -a.n&3)) }

func (a *Writer) write(b []byte) {
	if a.err == nil {
		var n int
		n, a.err = a.w.Write(b)
		a.n += int64(n)
	}
}
