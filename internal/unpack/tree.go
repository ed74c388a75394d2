//go:build linux

package unpack

import (
	"errors"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
)

// node is what a name is, or will be once the entries so far are written.
type node struct {
	parent *node // nil of the root
	name   string
	path   string // where it really is, below the root
	kind   nodeKind
	made   bool             // by the package
	target string           // of a symbolic link
	below  map[string]*node // of a directory, what was looked for

	// Of what is on the disk:
	dev       uint64
	held      int64 // bytes that are free once it is replaced
	immutable bool
}

type nodeKind uint8

const (
	nothing nodeKind = iota
	aDirectory
	aSymlink
	aFile // and whatever else is not the above
)

// join returns the path of what is called name in the directory at path.
func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "/" + name
}

// tree is the root filesystem as it will be.
type tree struct {
	fd   int // of the root directory
	root *node
	held int64 // bytes of names and targets in memory
}

func newTree(fd int) (*tree, error) {
	t := &tree{fd: fd, root: &node{kind: aDirectory, below: map[string]*node{}}}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "look at", "the root directory", "%w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, imprint.Errorf(imprint.Invalid, "unpack", "the root directory", "it is no directory")
	}
	t.root.dev = st.Dev
	return t, nil
}

// child returns what is called name in the directory d.
func (t *tree) child(d *node, name string) (*node, error) {
	if n := d.below[name]; n != nil {
		return n, nil
	}
	n := &node{parent: d, name: name, path: join(d.path, name), dev: d.dev}
	if !d.made {
		if err := t.look(n); err != nil {
			return nil, imprint.Errorf(imprint.Internal, "look at", n.path, "%w", err)
		}
	}
	d.below[name] = n
	t.held += int64(len(n.path) + len(n.target))
	return n, nil
}

// look finds out what n is on the disk.
func (t *tree) look(n *node) error {
	fd, err := openBelow(t.fd, n.path, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &st); err != nil {
		return err
	}
	n.dev = unix.Mkdev(st.Dev_major, st.Dev_minor)
	n.immutable = st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0
	if st.Nlink == 1 {
		n.held = int64(st.Blocks) * 512
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		n.kind, n.below = aDirectory, map[string]*node{}
	case unix.S_IFLNK:
		n.kind = aSymlink
		buf := make([]byte, MaxPath+1)
		got, err := unix.Readlinkat(fd, "", buf)
		if err != nil {
			return err
		}
		n.target = string(buf[:got])
	default:
		n.kind = aFile
	}
	return nil
}

// walk returns the directory that path, an entry's, goes to, and what has its last
// name there; the path is not empty. Directories that are missing on the way are
// made if mk is not nil, which is told of each.
func (t *tree) walk(path string, mk func(*node)) (dir, last *node, err error) {
	links := 0
	if dir, err = t.descend(t.root, parentOf(path), path, &links, mk); err != nil {
		return nil, nil, err
	}
	last, err = t.child(dir, baseOf(path))
	return dir, last, err
}

func parentOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return ""
}

// descend returns the directory that path leads to from dir, as chroot(2) would have it.
// The path is part of the name of entry, or a link's target on the way to it.
func (t *tree) descend(dir *node, path, entry string, links *int, mk func(*node)) (*node, error) {
	if strings.HasPrefix(path, "/") {
		dir = t.root
	}
	for part := range strings.SplitSeq(path, "/") {
		switch part {
		case "", ".":
			continue
		case "..": // of a link's target: above the root is the root
			if dir.parent != nil {
				dir = dir.parent
			}
			continue
		}
		n, err := t.child(dir, part)
		if err != nil {
			return nil, err
		}
		if dir, err = t.enter(n, entry, links, mk); err != nil {
			return nil, err
		}
	}
	return dir, nil
}

// enter returns the directory that n is or leads to.
func (t *tree) enter(n *node, entry string, links *int, mk func(*node)) (*node, error) {
	switch n.kind {
	case aDirectory:
		return n, nil
	case nothing:
		switch {
		case mk != nil:
			mk(n)
			return n, nil
		case *links > 0:
			return nil, refuse(imprint.Conflict, entry, "a symbolic link of the image on the way leads to %s, which is not there", n.path).
				WithHint("have the package bring the directory %s before", n.path)
		}
		return nil, refuse(imprint.Invalid, entry, "%s is not there", n.path)
	case aSymlink:
		if n.made {
			return nil, refuse(imprint.Invalid, entry, "it goes through %s, a symbolic link that the package brings", n.path).
				WithHint("pack the files under the directory that they are to be in")
		}
		if *links++; *links > MaxLinks {
			return nil, refuse(imprint.Conflict, entry, "more than %d symbolic links are on the way", MaxLinks)
		}
		return t.descend(n.parent, n.target, entry, links, nil)
	}
	whose := "of the image"
	if n.made {
		whose = "that the package brings"
	}
	return nil, refuse(imprint.Conflict, entry, "%s, a file %s, is no directory", n.path, whose).
		WithHint("take one of the two out of the package or the image")
}

// openBelow opens what is at path below dir, without following a link anywhere.
func openBelow(dir int, path string, flags uint64) (int, error) {
	if path == "" {
		path = "."
	}
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	return openat2(dir, path, &how)
}

// openat2 is [unix.Openat2], again if a rename elsewhere or a signal came between.
func openat2(dir int, path string, how *unix.OpenHow) (fd int, err error) {
	for range 64 {
		fd, err = unix.Openat2(dir, path, how)
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	return fd, err
}

// baseOf is the last name of path.
func baseOf(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }
