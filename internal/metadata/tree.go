package metadata

import (
	"encoding/binary"
	"maps"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"

	"imprint"
)

// page is a reply that is ready: its bytes, and its length in the form that
// net/http keeps header fields in. It is shared by all requests and never changed.
type page struct {
	body     []byte
	length   []string
	media    media
	bootOnly bool
}

func newPage(body []byte, m media) *page {
	return &page{body: body, length: []string{strconv.Itoa(len(body))}, media: m}
}

// send answers with the page.
func (p *page) send(w http.ResponseWriter) {
	h := w.Header()
	h["Content-Type"], h["Content-Length"] = contentTypes[p.media][:], p.length
	w.Write(p.body) // if the client has gone, it is its loss
}

// media says what a page's bytes are.
type media uint8

const (
	plain media = iota
	object
	tgz
	octets
)

// contentTypes are the media's names, in the form that net/http keeps them in.
var contentTypes = [...][1]string{
	plain:  {textPlain},
	object: {"application/json"},
	tgz:    {"application/x-tgz"},
	octets: {"application/octet-stream"},
}

// dir is a directory of pages. Versions of a dialect that do not differ share
// theirs, which keeps a guest small: a tree for all versions has three hundred
// names and some sixty nodes.
type dir struct {
	nodes   []node // by name
	listing *page  // nil if the dialect lists none
}

// node is an entry of a directory: another one or a page.
type node struct {
	name string
	dir  *dir
	page *page
}

func (d *dir) node(name string) (node, bool) {
	i, ok := slices.BinarySearchFunc(d.nodes, name, func(n node, name string) int { return strings.Compare(n.name, name) })
	if !ok {
		return node{}, false
	}
	return d.nodes[i], true
}

// find returns the page of a clean relative path, or nil. A directory's page is
// its listing.
func (d *dir) find(name string) *page {
	for name != "" {
		first, rest, deeper := strings.Cut(name, "/")
		n, ok := d.node(first)
		switch {
		case !ok:
			return nil
		case n.page != nil && deeper:
			return nil
		case n.page != nil:
			return n.page
		}
		d, name = n.dir, rest
	}
	return d.listing
}

// clean makes a request's path relative and free of empty, "." and ".."
// elements, as Nova does (posixpath.normpath). It never leads out of the root.
func clean(p string) string {
	if p == "" || p[0] != '/' {
		p = "/" + p
	}
	return path.Clean(p)[1:]
}

// builder makes the trees of one snapshot and lets them share what is equal.
type builder struct {
	values map[string]imprint.Value // of all views
	names  []string                 // sorted
	pages  map[string]*page         // by name
	texts  map[string]*page         // listings, by content
	words  map[string]string        // elements of names; a name as a whole is not kept
	dirs   map[string]*dir          // by content
	number map[any]uint64           // of pages and directories, to compare contents by
	trees  []tree                   // that were made
}

// tree is a directory of all values and their names.
type tree struct {
	names []string
	root  *dir
}

func newBuilder(views []*imprint.View) *builder {
	b := &builder{values: map[string]imprint.Value{}, pages: map[string]*page{}, texts: map[string]*page{}, words: map[string]string{}, dirs: map[string]*dir{}, number: map[any]uint64{}}
	for _, view := range views {
		maps.Copy(b.values, view.Values)
	}
	b.names = slices.Sorted(maps.Keys(b.values))
	// The versions of a dialect share the bytes of what they have in common.
	type content struct {
		start    *byte
		length   int
		media    media
		bootOnly bool
	}
	shared := map[content]*page{}
	for _, name := range b.names {
		v, m := b.values[name], mediaOf(name)
		key := content{nil, len(v.Data), m, v.BootOnly}
		if len(v.Data) > 0 {
			key.start = &v.Data[0]
		}
		if shared[key] == nil {
			p := newPage(v.Data, m)
			p.bootOnly = v.BootOnly
			shared[key] = p
		}
		b.pages[name] = shared[key]
	}
	return b
}

// text returns a page of text, the same one for the same text.
func (b *builder) text(s string) *page {
	if b.texts[s] == nil {
		b.texts[s] = newPage([]byte(s), plain)
	}
	return b.texts[s]
}

// word returns s, the same string for the same word.
func (b *builder) word(s string) string {
	if _, ok := b.words[s]; !ok {
		s = strings.Clone(s)
		b.words[s] = s
	}
	return b.words[s]
}

// tree returns a directory of all values that are allowed.
func (b *builder) tree(allowed func(imprint.Value) bool) *dir {
	var names []string
	for _, name := range b.names {
		if allowed(b.values[name]) {
			names = append(names, name)
		}
	}
	for _, t := range b.trees { // few values are kept from anybody
		if slices.Equal(t.names, names) {
			return t.root
		}
	}
	root := b.dir("", names)
	b.trees = append(b.trees, tree{names, root})
	return root
}

// dir returns the directory at prefix, which is empty or ends in a slash; names
// are sorted, and all begin with it.
func (b *builder) dir(prefix string, names []string) *dir {
	d := &dir{}
	for len(names) > 0 {
		first, _, deeper := strings.Cut(names[0][len(prefix):], "/")
		n := node{name: b.word(first)}
		count := 1
		if deeper {
			inner := prefix + first + "/"
			for count < len(names) && strings.HasPrefix(names[count], inner) {
				count++
			}
			n.dir = b.dir(inner, names[:count])
		} else {
			n.page = b.pages[names[0]]
		}
		d.nodes = append(d.nodes, n)
		names = names[count:]
	}
	slices.SortFunc(d.nodes, func(x, y node) int { return strings.Compare(x.name, y.name) })
	d.listing = b.listing(prefix, d)
	key := b.appendNumber(nil, d.listing)
	for _, n := range d.nodes {
		key = append(append(key, n.name...), '/')
		if n.dir != nil {
			key = b.appendNumber(key, n.dir)
		} else {
			key = b.appendNumber(key, n.page)
		}
	}
	if same := b.dirs[string(key)]; same != nil {
		return same
	}
	d.nodes = slices.Clip(d.nodes)
	b.dirs[string(key)] = d
	return d
}

// appendNumber adds the number of one, a page or directory.
func (b *builder) appendNumber(key []byte, one any) []byte {
	n, ok := b.number[one]
	if !ok {
		n = uint64(len(b.number))
		b.number[one] = n
	}
	return binary.BigEndian.AppendUint64(key, n)
}

// listing returns what a request for the directory at prefix is answered with,
// or nil.
func (b *builder) listing(prefix string, d *dir) *page {
	family, rest, _ := strings.Cut(prefix, "/")
	switch familyOf(family) {
	case openStack:
		return b.listOpenStack(strings.TrimSuffix(rest, "/"), d)
	case ec2:
		return b.listEC2(prefix, d)
	case noCloud:
		b.fillNoCloud(d)
	}
	return nil
}

// mediaOf returns what the bytes of name are.
func mediaOf(name string) media {
	family, _, _ := strings.Cut(name, "/")
	switch familyOf(family) {
	case openStack:
		return openStackMedia(path.Base(name))
	case ganeti:
		return ganetiMedia(name)
	}
	return plain
}
