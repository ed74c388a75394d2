//go:build linux

package unpack

import (
	"context"
	"io"
	"math"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
)

// plan is what the first pass found the second has to do.
type plan struct {
	steps    []step // one an entry, in their order
	total    int64  // bytes of the files' contents
	accounts accounts
}

// step is where one entry goes.
type step struct {
	path string // to know the entry again, with its kind and size
	kind kind
	size int64

	parents []string // directories to make before, each below the one before it
	dir     string   // the directory that it really goes to
	name    string   // its name there; "" is the root directory
	there   bool     // there is something: a directory is kept, all else replaced
	image   bool     // and it is the image's
	target  string   // of a hard link, where it really is
}

// checker makes a plan.
type checker struct {
	*tree
	o      *Options
	plan   plan
	count  int                // entries, and directories made for them
	space  map[uint64]*space  // by device
	brings accounts           // that the package has files of, or nil
	names  map[account]string // that have to be known, and an entry of each
}

// space is what is free on a device.
type space struct{ block, bytes, inodes int64 }

// check reads the whole package and returns where its entries go. It writes nothing.
func check(ctx context.Context, root *os.File, a *archive, o *Options) (*plan, error) {
	t, err := newTree(int(root.Fd()))
	if err != nil {
		return nil, err
	}
	r, err := newReader(a)
	if err != nil {
		return nil, err
	}
	defer r.close()
	c := &checker{tree: t, o: o, space: map[uint64]*space{}, names: map[account]string{}}
	for {
		if err := ctx.Err(); err != nil {
			return nil, imprint.Errorf(imprint.Unavailable, "unpack", "package", "%w", err)
		}
		e, err := r.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		s, err := c.add(&e)
		if err != nil {
			return nil, err
		}
		if err := c.readAccounts(join(s.dir, s.name), &e, r); err != nil {
			return nil, err
		}
		c.plan.steps = append(c.plan.steps, s)
	}
	if len(c.plan.steps) == 0 {
		return nil, imprint.Errorf(imprint.Invalid, "unpack", "package", "it has no entries")
	}
	return &c.plan, c.owners()
}

// add finds out where e goes, and lets the tree have it.
func (c *checker) add(e *entry) (step, error) {
	s := step{path: e.path, kind: e.kind, size: e.size}
	if err := c.limit(e); err != nil {
		return s, err
	}
	if e.path == "" {
		return s, nil
	}
	dir, last, err := c.walk(e.path, func(n *node) {
		c.count++
		n.kind, n.made, n.below = aDirectory, true, map[string]*node{}
		s.parents = append(s.parents, n.path)
	})
	if err != nil {
		return s, err
	}
	if c.count > c.o.Limits.Entries {
		return s, refuse(imprint.Exhausted, e.path, "with it the package has more than %d entries and directories", c.o.Limits.Entries)
	}
	if e.kind == directory && last.kind == aSymlink {
		// lib/ where lib is a link of the image to usr/lib: that directory is meant.
		links := 0
		if last, err = c.enter(last, e.path, &links, nil); err != nil {
			return s, err
		}
		if dir = last.parent; dir == nil {
			return s, nil
		}
	}
	s.dir, s.name, s.there, s.image = dir.path, last.name, last.kind != nothing, !last.made
	if err := c.fits(e, dir, last); err != nil {
		return s, err
	}
	now := &node{parent: dir, name: last.name, path: last.path, kind: aFile, made: true, dev: dir.dev}
	switch e.kind {
	case directory:
		if s.there {
			return s, nil
		}
		now.kind, now.below = aDirectory, map[string]*node{}
	case symlink:
		if leaves(dir.path, e.target) {
			return s, refuse(imprint.Invalid, e.path, "the symbolic link to %q leaves the root directory", e.target).
				WithHint("have it lead to a name within the image; an absolute one is within it")
		}
		now.kind, now.target = aSymlink, e.target
	case hardlink:
		to, err := c.linked(e, dir)
		if err != nil {
			return s, err
		}
		if to == last {
			return s, refuse(imprint.Invalid, e.path, "it is a hard link to itself")
		}
		s.target, now.kind, now.target = to.path, to.kind, to.target
	}
	if err := c.take(e, s.parents, now, last); err != nil {
		return s, err
	}
	dir.below[last.name] = now
	return s, nil
}

// limit counts e.
func (c *checker) limit(e *entry) error {
	c.count++
	c.held += int64(len(e.path) + len(e.target))
	switch {
	case e.kind == charDevice && !c.o.Devices, e.kind == blockDevice && !c.o.Devices:
		return refuse(imprint.Invalid, e.path, "it is a %s", e.kind).
			WithHint("the guest's kernel makes those that it needs; allow device nodes if the package has to bring them")
	case c.held > MaxHeld:
		return refuse(imprint.Exhausted, e.path, "the names in the package have more than %d bytes", int64(MaxHeld))
	case e.size > c.o.Limits.Size-c.plan.total:
		return refuse(imprint.Exhausted, e.path, "with its %d bytes the package has more than %d", e.size, c.o.Limits.Size)
	case max(len(e.name.user), len(e.name.group)) > MaxName:
		return refuse(imprint.Invalid, e.path, "the name of its owner has more than %d bytes", MaxName)
	}
	c.plan.total += e.size
	return c.require(e)
}

// fits checks that e can take the place of last, in dir.
func (c *checker) fits(e *entry, dir, last *node) error {
	switch {
	case len(last.path) > MaxPath:
		return refuse(imprint.Conflict, e.path, "through the links of the image its name has more than %d bytes", MaxPath)
	case last.kind == aDirectory && e.kind != directory:
		return refuse(imprint.Conflict, e.path, "it is a %s, and takes the place of a directory", e.kind).
			WithHint("a directory is never replaced: take it out of the image, or %s out of the package", e.path)
	case last.kind != aDirectory && last.kind != nothing && e.kind == directory:
		return refuse(imprint.Conflict, e.path, "it is a directory, and takes the place of a file").
			WithHint("take the file out of the image, or %s out of the package", e.path)
	case last.immutable, dir.immutable && last.kind != aDirectory:
		return refuse(imprint.Conflict, e.path, "the image has it, or its directory, as immutable").
			WithHint("chattr -ia in the image")
	}
	return nil
}

// linked returns what the hard link e, which is to be in dir, leads to.
func (c *checker) linked(e *entry, dir *node) (*node, error) {
	invalid := func(format string, a ...any) error {
		return refuse(imprint.Invalid, e.path, "the hard link to "+e.target+": "+format, a...).
			WithHint("the file has to be in the image, or before its links in the package")
	}
	if e.target == "" {
		return nil, invalid("that is the root directory")
	}
	_, to, err := c.walk(e.target, nil)
	if err != nil {
		return nil, invalid("%w", err)
	}
	switch {
	case to.kind == nothing:
		return nil, invalid("it is not there")
	case to.kind == aDirectory:
		return nil, invalid("it is a directory")
	case to.dev != dir.dev:
		return nil, invalid("it is on another filesystem")
	case to.immutable:
		return nil, invalid("the image has it as immutable")
	}
	to.held = 0 // bytes of two names are not free when one is gone
	return to, nil
}

// leaves reports whether a symbolic link in the directory dir goes above the root.
func leaves(dir, target string) bool {
	depth := 0
	if !strings.HasPrefix(target, "/") && dir != "" {
		depth = 1 + strings.Count(dir, "/")
	}
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

// take counts what e costs on its device, where it becomes now in place of last.
func (c *checker) take(e *entry, parents []string, now, last *node) error {
	sp, err := c.spaceOf(now)
	if err != nil {
		return err
	}
	var bytes int64
	switch {
	case e.kind == file && !e.sparse: // what a sparse one costs only writing shows
		bytes = (e.size + sp.block - 1) / sp.block * sp.block
	case e.kind == directory:
		bytes = sp.block
	}
	now.held = bytes
	sp.bytes -= bytes + int64(len(parents))*sp.block
	if e.kind != hardlink {
		sp.inodes--
	}
	sp.inodes -= int64(len(parents))
	if sp.bytes < 0 || sp.inodes < 0 {
		what := "bytes"
		if sp.inodes < 0 {
			what = "inodes"
		}
		return refuse(imprint.Exhausted, e.path, "the filesystem has too few free %s for the package up to here", what).
			WithHint("grow the disk, or pack less")
	}
	sp.bytes += last.held // free once e is in its place
	return nil
}

// spaceOf returns what is free where n is to be.
func (c *checker) spaceOf(n *node) (*space, error) {
	if sp := c.space[n.dev]; sp != nil {
		return sp, nil
	}
	dir := n.parent
	for dir.made {
		dir = dir.parent
	}
	fd, err := openBelow(c.fd, dir.path, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "look at", dir.path, "%w", err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "look at", dir.path, "%w", err)
	}
	sp := &space{block: max(st.Bsize, 1), inodes: int64(min(st.Ffree, math.MaxInt64))}
	if sp.bytes = int64(min(st.Bfree, uint64(math.MaxInt64/sp.block))) * sp.block; st.Files == 0 {
		sp.inodes = math.MaxInt64 // such as btrfs, which makes them as it needs them
	}
	c.space[n.dev] = sp
	return sp, nil
}
