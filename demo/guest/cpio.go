package guest

import (
	"bytes"
	"fmt"
	"path"
	"slices"
)

// archive builds an initramfs: a cpio archive in the "newc" format that
// Linux unpacks (Documentation/driver-api/early-userspace/buffer-format.rst). The
// same entries give the same bytes: there are no times and no owners but root.
type archive struct {
	buf  bytes.Buffer
	made map[string]bool // directories
	ino  int
}

// File types and permissions as in inode(7).
const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
)

func (a *archive) file(name string, perm int, data []byte) {
	a.parents(name)
	a.entry(name, modeFile|perm, data)
}

func (a *archive) link(name, target string) {
	a.parents(name)
	a.entry(name, modeLink|0o777, []byte(target))
}

func (a *archive) dir(name string, perm int) {
	a.parents(name)
	if a.made == nil {
		a.made = map[string]bool{}
	}
	if !a.made[name] {
		a.made[name] = true
		a.entry(name, modeDir|perm, nil)
	}
}

// parents makes what name is in, because the kernel does not.
func (a *archive) parents(name string) {
	if parent := path.Dir(name); parent != "." {
		a.dir(parent, 0o755)
	}
}

// bytes ends the archive and returns it.
func (a *archive) bytes() []byte {
	a.entry("TRAILER!!!", 0, nil)
	return slices.Clone(a.buf.Bytes())
}

func (a *archive) entry(name string, mode int, data []byte) {
	a.ino++
	const uid, gid, links, mtime, major, minor, rmajor, rminor, check = 0, 0, 1, 0, 0, 0, 0, 0, 0
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, uid, gid, links, mtime, len(data), major, minor, rmajor, rminor, len(name)+1, check, name)
	a.pad()
	a.buf.Write(data)
	a.pad()
}

// pad aligns to four bytes, as header and data both have to be.
func (a *archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}
