package media

import (
	"cmp"
	"io/fs"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"imprint"
)

// Limits on what is written to a medium, and on what is read from one.
const (
	MaxFiles   = 4096     // files and directories
	MaxContent = 64 << 20 // bytes of all files together
	maxDepth   = 8        // levels of directories, the root among them (ECMA-119 section 6.8.2.1)
)

// Volume is what a medium holds.
type Volume struct {
	// Label names the file system. Guests look for it: on ISO 9660 in the case
	// given here, on FAT in capitals.
	Label string
	// Time is the modification time of everything, in UTC to the second.
	Time time.Time
	// Files are the contents by path: slash-separated, relative to the root.
	Files map[string][]byte
}

// node is a file or directory of a volume.
type node struct {
	name string
	data []byte
	dir  bool
	kids []*node // by name
}

// rules are what names a format can hold, so that every guest reads them alike.
type rules struct {
	format    string // for people, with an article
	forbidden string // characters, besides those that are not printable
	units     int    // UTF-16 code units in a name
	bytes     int    // bytes of UTF-8 in a name
	plane     bool   // only characters of one code unit
	windows   bool   // read by Windows, where case does not tell names apart
}

// refuse says why path cannot be on a medium.
func refuse(path, format string, args ...any) *imprint.Error {
	return imprint.Errorf(imprint.Invalid, "write", "file "+path, format, args...)
}

// tree returns the root directory of v's files. It fails with kind
// [imprint.Invalid] if a name is not one that r allows, and [imprint.Exhausted] if
// there is too much.
func (v *Volume) tree(r rules) (*node, error) {
	root := &node{dir: true}
	count, size := 0, int64(0)
	for _, path := range sortedPaths(v.Files) {
		if !fs.ValidPath(path) || path == "." {
			return nil, refuse(path, "it is not a path below the root").WithHint("name it without a leading slash, . and ..")
		}
		if n := strings.Count(path, "/") + 1; n > maxDepth {
			return nil, refuse(path, "it is %d levels deep; the limit is %d", n, maxDepth)
		}
		at := root
		for rest, more := path, true; more; {
			var name string
			name, rest, more = strings.Cut(rest, "/")
			var kid *node
			if n := len(at.kids); n > 0 && at.kids[n-1].name == name { // the order has it that no other can be
				kid = at.kids[n-1]
				if !more || !kid.dir {
					return nil, refuse(path, "%s is a file and a directory", name)
				}
			} else {
				if err := r.check(path, name); err != nil {
					return nil, err
				}
				if same := slices.IndexFunc(at.kids, func(n *node) bool { return strings.EqualFold(n.name, name) }); same >= 0 && r.windows {
					return nil, refuse(path, "%s differs from %s only by case, which %s does not tell apart", name, at.kids[same].name, r.format)
				}
				kid = &node{name: name, dir: more}
				at.kids = append(at.kids, kid)
				count++
			}
			at = kid
		}
		at.data = v.Files[path]
		size += int64(len(at.data))
	}
	if count > MaxFiles {
		return nil, imprint.Errorf(imprint.Exhausted, "write", r.format, "%d files and directories; the limit is %d", count, MaxFiles)
	}
	if size > MaxContent {
		return nil, tooLarge(r.format, size, MaxContent)
	}
	return root, nil
}

// sortedPaths returns the paths in the order of their elements, so that a
// directory's files come together.
func sortedPaths(files map[string][]byte) []string {
	paths := make([]string, 0, len(files))
	for path := range files {
		paths = append(paths, path)
	}
	slices.SortFunc(paths, comparePaths)
	return paths
}

// comparePaths compares as if the slash came before all other bytes.
func comparePaths(a, b string) int {
	for i := range min(len(a), len(b)) {
		switch x, y := a[i], b[i]; {
		case x == y:
		case x == '/':
			return -1
		case y == '/':
			return 1
		default:
			return cmp.Compare(x, y)
		}
	}
	return cmp.Compare(len(a), len(b))
}

// units returns how many code units of UTF-16 name takes.
func units(name string) (n int) {
	for _, c := range name {
		n += utf16.RuneLen(c)
	}
	return n
}

// check fails if name, an element of path, is none that r allows.
func (r rules) check(path, name string) error {
	if !utf8.ValidString(name) {
		return refuse(path, "its name is not UTF-8")
	}
	if n := units(name); n > r.units || len(name) > r.bytes {
		return refuse(path, "a name of %d characters and %d bytes; %s holds %d characters and %d bytes", n, len(name), r.format, r.units, r.bytes)
	}
	for _, c := range name {
		if !unicode.IsPrint(c) || strings.ContainsRune(r.forbidden, c) || c == '\\' {
			return refuse(path, "%s holds no name with the character %q", r.format, c)
		}
		if r.plane && c > 0xffff {
			return refuse(path, "%s holds no name with the character %q, which is beyond the basic plane of Unicode", r.format, c)
		}
	}
	if !r.windows {
		return nil
	}
	if last := name[len(name)-1]; last == '.' || last == ' ' || name[0] == ' ' {
		return refuse(path, "Windows drops the space or full stop at the end of the name %q", name)
	}
	base, _, _ := strings.Cut(name, ".")
	if isDevice(strings.ToUpper(base)) {
		return refuse(path, "Windows keeps the name %s for a device", base)
	}
	return nil
}

// isDevice reports whether Windows opens a device under base, whatever extension
// it has.
func isDevice(base string) bool {
	switch base {
	case "CON", "PRN", "AUX", "NUL":
		return true
	}
	return len(base) == 4 && (strings.HasPrefix(base, "COM") || strings.HasPrefix(base, "LPT")) && base[3] >= '1' && base[3] <= '9'
}

// tooLarge says by how much something does not fit.
func tooLarge(format string, need, have int64) error {
	return imprint.Errorf(imprint.Exhausted, "write", format, "the files need %d bytes and there is room for %d: %d too many", need, have, need-have).
		WithHint("shorten the user data, or choose a carrier with more room: imprint media list")
}

// checkLabel fails unless label has 1 to most printable characters of ASCII, and
// none that FAT cannot hold.
func checkLabel(label string, most int) error {
	if label == "" || len(label) > most {
		return imprint.Errorf(imprint.Invalid, "write", "label "+label, "it has %d characters; there may be 1 to %d", len(label), most)
	}
	for _, c := range label {
		if c <= ' ' || c >= 0x7f || strings.ContainsRune(`"*+,./:;<=>?[\]|`, c) {
			return imprint.Errorf(imprint.Invalid, "write", "label "+label, "no label has the character %q", c)
		}
	}
	return nil
}

// checkTime fails unless t is one that every format can hold: FAT begins in 1980,
// and the guests' clocks end in 2199.
func checkTime(t time.Time) error {
	if y := t.UTC().Year(); y < 1980 || y > 2099 {
		return imprint.Errorf(imprint.Invalid, "write", "time "+t.UTC().Format(time.DateTime), "media hold the years 1980 to 2099")
	}
	return nil
}
