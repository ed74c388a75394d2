package unpack

import (
	"archive/tar"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"imprint"
)

// A kind is what an entry is.
type kind uint8

const (
	file kind = iota
	directory
	symlink
	hardlink
	fifo
	charDevice
	blockDevice
)

func (k kind) String() string {
	return [...]string{"file", "directory", "symbolic link", "hard link", "FIFO", "character device", "block device"}[k]
}

// entry is one header of an archive, checked as far as it can be alone.
type entry struct {
	path   string // clean and relative; "" is the root directory
	kind   kind
	size   int64
	sparse bool
	mode   uint32 // the permissions, setuid, setgid and sticky
	number number
	name   names
	atime  time.Time // zero if the package does not say
	mtime  time.Time
	target string // a symbolic link's as it is, a hard link's clean and relative
	device [2]uint32
	attrs  []attr
}

// number and names are an owner and a group.
type (
	number struct{ user, group uint32 }
	names  struct{ user, group string }
)

// attr is an extended attribute.
type attr struct{ name, value string }

// refuse is an error about an entry that says what is wrong with it.
func refuse(kind imprint.Kind, path, format string, a ...any) *imprint.Error {
	if path == "" {
		path = "."
	}
	if quoted := strconv.Quote(path); quoted != `"`+path+`"` {
		path = quoted
	}
	if len(path) > 512 {
		path = path[:256] + "…" + path[len(path)-64:]
	}
	return imprint.Errorf(kind, "unpack", path, format, a...)
}

// reader reads entries.
type reader struct {
	*stream
	tar   *tar.Reader
	plain []byte // the archive, if memory has it
	last  string // the name of the entry before, for what cannot be read behind it
}

// newReader begins with the first entry of a.
func newReader(a *archive) (*reader, error) {
	s, r, err := a.stream()
	if err != nil {
		return nil, err
	}
	return &reader{stream: s, tar: tar.NewReader(r), plain: a.plain}, nil
}

// next returns the next entry, or [io.EOF] behind the last if the archive ends as it has to.
func (r *reader) next() (entry, error) {
	for {
		h, err := r.tar.Next()
		switch {
		case err == io.EOF:
			if err := r.end(); err != nil {
				return entry{}, r.broken(err)
			}
			return entry{}, io.EOF
		case err != nil && !errors.Is(err, tar.ErrInsecurePath): // of names, more is said below
			return entry{}, r.broken(err)
		}
		r.last = h.Name
		if h.Typeflag == tar.TypeXGlobalHeader {
			// git archive makes one with a comment. Others would change what the entries
			// behind them are, in some readers.
			for key := range h.PAXRecords {
				if key != "comment" {
					return entry{}, refuse(imprint.Invalid, h.Name, "it sets %q for all entries behind it", key).
						WithHint("pack it without global headers (tar --pax-option)")
				}
			}
			continue
		}
		return entryOf(h)
	}
}

// broken says what kind of failure err, which reading came to, is.
func (r *reader) broken(err error) error {
	var domain *imprint.Error
	if errors.As(err, &domain) || errors.Is(err, errSpoolFull) {
		return err
	}
	operand := "package"
	if r.last != "" {
		operand = refuse(0, r.last, "").Operand
	}
	if errors.Is(err, errTooLarge) {
		return imprint.Errorf(imprint.Exhausted, "unpack", operand, "the archive has more than %d bytes when it is uncompressed", r.limit).
			WithHint("is it what it should be? Raise the limit if so")
	}
	e := imprint.Errorf(imprint.Invalid, "unpack", operand, "the archive cannot be read from here on: %w", err)
	if errors.Is(err, tar.ErrHeader) && r.last == "" {
		return e.WithHint("a package is a .tar, .tar.gz, .tar.zst or .tar.xz")
	}
	return e.WithHint("the package is cut off or damaged: get it again, and compare its size and digest with the original's")
}

// entryOf checks what a header says.
func entryOf(h *tar.Header) (entry, error) {
	invalid := func(format string, a ...any) *imprint.Error { return refuse(imprint.Invalid, h.Name, format, a...) }
	path, err := cleanPath(h.Name)
	if err != nil {
		return entry{}, invalid("%w", err).WithHint("names are relative to the root directory: pack them with tar -C DIRECTORY .")
	}
	e := entry{path: path, mode: uint32(h.Mode & 0o7777), name: names{h.Uname, h.Gname}, atime: h.AccessTime, mtime: h.ModTime}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		e.kind, e.size = file, h.Size
		e.sparse = isSparse(h)
	case tar.TypeDir:
		e.kind = directory
	case tar.TypeSymlink:
		e.kind, e.target = symlink, h.Linkname
		if n := len(h.Linkname); n == 0 || n > MaxPath {
			return entry{}, invalid("the target of the symbolic link has %d bytes; 1 to %d are allowed", n, MaxPath)
		}
		if strings.ContainsRune(h.Linkname, 0) {
			return entry{}, invalid("the target of the symbolic link has a zero byte")
		}
	case tar.TypeLink:
		e.kind = hardlink
		if e.target, err = cleanPath(h.Linkname); err != nil {
			return entry{}, invalid("the hard link leads to %q: %w", h.Linkname, err)
		}
	case tar.TypeFifo:
		e.kind = fifo
	case tar.TypeChar, tar.TypeBlock:
		e.kind = charDevice
		if h.Typeflag == tar.TypeBlock {
			e.kind = blockDevice
		}
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return entry{}, invalid("no device has the number %d:%d", h.Devmajor, h.Devminor)
		}
		e.device = [2]uint32{uint32(h.Devmajor), uint32(h.Devminor)}
	default:
		return entry{}, invalid("it is of the kind %q, which is no file", h.Typeflag).
			WithHint("pack it without volume labels, several volumes or --listed-incremental")
	}
	if e.kind != directory && path == "" {
		return entry{}, invalid("the root directory would become a %s", e.kind)
	}
	if e.size < 0 {
		return entry{}, invalid("it has a size of %d bytes", e.size)
	}
	for _, n := range []int{h.Uid, h.Gid} {
		// The last number is what chown(2) takes for "leave it as it is".
		if n < 0 || n >= math.MaxUint32 {
			return entry{}, invalid("no user or group has the number %d", n)
		}
	}
	e.number = number{uint32(h.Uid), uint32(h.Gid)}
	if e.attrs, err = attrsOf(h.PAXRecords); err != nil {
		return entry{}, invalid("%w", err)
	}
	return e, nil
}

// cleanPath returns name without what changes nothing: "./", "//" and a slash at the end.
func cleanPath(name string) (string, error) {
	switch {
	case name == "":
		return "", errors.New("it has no name")
	case name[0] == '/':
		return "", errors.New("the name is absolute")
	case len(name) > MaxPath:
		return "", errors.New("the name has more than " + strconv.Itoa(MaxPath) + " bytes")
	case strings.ContainsRune(name, 0):
		return "", errors.New("the name has a zero byte")
	}
	parts := make([]string, 0, 8)
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "", part == ".":
			continue
		case part == "..":
			return "", errors.New("the name goes up by ..")
		case len(part) > MaxName:
			return "", errors.New("a part of the name has more than " + strconv.Itoa(MaxName) + " bytes")
		}
		parts = append(parts, part)
	}
	if len(parts) > MaxDepth {
		return "", errors.New("it is below more than " + strconv.Itoa(MaxDepth) + " directories")
	}
	return strings.Join(parts, "/"), nil
}

// isSparse reports whether the archive leaves out holes of the file.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}
