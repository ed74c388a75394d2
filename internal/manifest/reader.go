package manifest

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"imprint"
)

// reader turns the nodes of a YAML document into values and remembers where
// each field was, so that later checks can name its line.
type reader struct {
	src      *Sources
	at       map[string]*yaml.Node // of the current document, by path
	problems []Problem             // at most MaxProblems
	count    int                   // of all problems, reported or not
}

// field is one key of a mapping.
type field struct {
	name string
	typ  string // for people; "" hides the field from suggestions and the reference
	doc  string
	// read stores the value of node, which is at path.
	read func(r *reader, node *yaml.Node, path string)
	// inner are the fields of a nested mapping, for the reference.
	inner []field
}

func (r *reader) problem(n *yaml.Node, path, format string, args ...any) {
	p := Problem{Field: path, Message: fmt.Sprintf(format, args...)}
	if n != nil {
		p.Line, p.Column = n.Line, n.Column
	}
	r.add(p)
}

func (r *reader) add(p Problem) {
	r.count++
	if len(r.problems) < MaxProblems {
		r.problems = append(r.problems, p)
	}
}

func (r *reader) hint() string {
	if r.count > MaxProblems {
		return fmt.Sprintf("these are the first %d of %d problems", MaxProblems, r.count)
	}
	return "docs/reference/manifest.md describes every field"
}

// nearest returns the node at path, or at the closest path around it.
func (r *reader) nearest(path string) *yaml.Node {
	for path != "" {
		if n := r.at[path]; n != nil {
			return n
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return r.at[""]
}

// usable reports whether n may be looked into at all.
func (r *reader) usable(n *yaml.Node, path string) bool {
	switch {
	case n.Kind == yaml.AliasNode, n.Anchor != "":
		r.problem(n, path, "uses a YAML anchor or alias, which manifests do not have; write the value out, and put text that begins with & or * into quotes")
		return false
	case n.Style&yaml.TaggedStyle != 0 && n.ShortTag() != "!!str":
		r.problem(n, path, "has a YAML tag, which manifests do not have; put text that begins with ! into quotes")
		return false
	}
	r.at[path] = n
	return true
}

// entries calls each for every key of a mapping; keys that are not plain text
// or come twice are problems.
func (r *reader) entries(n *yaml.Node, path string, each func(key string, keyNode, value *yaml.Node)) {
	if !r.usable(n, path) {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.problem(n, path, "is %s where a mapping of names to values belongs", describe(n))
		return
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || k.Anchor != "" || isNull(k) || k.ShortTag() == "!!merge" {
			r.problem(k, path, "has a key that is not a plain name")
			continue
		}
		if line, dup := lines[k.Value]; dup {
			r.problem(k, join(path, k.Value), "is there twice, first at line %d", line)
			continue
		}
		lines[k.Value] = k.Line
		each(k.Value, k, v)
	}
}

// mapping reads n by the table.
func (r *reader) mapping(n *yaml.Node, path string, fields []field) {
	r.entries(n, path, func(key string, k, v *yaml.Node) {
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == key })
		if i < 0 {
			r.problem(k, join(path, key), "is not a field%s", r.instead(key, fields))
			return
		}
		fields[i].read(r, v, join(path, key))
	})
}

func (r *reader) instead(key string, fields []field) string {
	names := make([]string, 0, len(fields))
	for _, f := range fields {
		if f.typ != "" { // not one that only says that it is unsupported
			names = append(names, f.name)
		}
	}
	if m := meant(key, names); m != "" {
		return fmt.Sprintf("; did you mean %q?", m)
	}
	if len(names) > 8 {
		return "" // the hint names the reference
	}
	return "; there are " + listed(names, "and")
}

// list calls each for every element of a sequence of at most limit elements.
func (r *reader) list(n *yaml.Node, path string, limit int, each func(n *yaml.Node, path string)) {
	if !r.usable(n, path) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		r.problem(n, path, "is %s where a list belongs", describe(n))
		return
	}
	if len(n.Content) > limit {
		r.problem(n, path, "has %d elements; %d are allowed", len(n.Content), limit)
		return
	}
	for i, c := range n.Content {
		each(c, fmt.Sprintf("%s[%d]", path, i))
	}
}

// text returns a scalar exactly as it is written: 12:30:45, yes and 1e3 stay
// what they are, whatever YAML would make of them.
func (r *reader) text(n *yaml.Node, path string) (string, bool) {
	if !r.usable(n, path) {
		return "", false
	}
	switch {
	case n.Kind != yaml.ScalarNode:
		r.problem(n, path, "is %s where text belongs", describe(n))
		return "", false
	case isNull(n) && n.Value == "":
		r.problem(n, path, `has no value; write "" for empty text`)
		return "", false
	case isNull(n):
		r.problem(n, path, "is null; write %q in quotes if that text is meant", n.Value)
		return "", false
	}
	return n.Value, true
}

// The constructors below make the read function of a field from the place
// where its value belongs.

func textInto[T ~string](to *T) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) {
		if s, ok := r.text(n, path); ok {
			*to = T(s)
		}
	}
}

func listInto[T any](to *[]T, limit int, parse func(string) (T, error)) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) {
		r.list(n, path, limit, func(n *yaml.Node, path string) {
			if s, ok := r.text(n, path); ok {
				v, err := parse(s)
				if err != nil {
					r.problem(n, path, "%s", err)
					return
				}
				*to = append(*to, v)
			}
		})
	}
}

func boolInto(to *bool) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) {
		s, ok := r.text(n, path)
		if !ok {
			return
		}
		if quoted(n) || s != "true" && s != "false" {
			r.problem(n, path, "is %q; it is either true or false", s)
			return
		}
		*to = s == "true"
	}
}

func intInto(to *int) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) {
		s, ok := r.text(n, path)
		if !ok {
			return
		}
		v, err := strconv.Atoi(s)
		if err != nil || quoted(n) {
			r.problem(n, path, "is %q; a whole number belongs here", s)
			return
		}
		*to = v
	}
}

func durationInto(to *imprint.Duration) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) {
		s, ok := r.text(n, path)
		if !ok {
			return
		}
		d, err := imprint.ParseDuration(s)
		if err != nil {
			r.problem(n, path, "is %q, which is not a duration; write it like 90s, 36h or 7d", s)
			return
		}
		*to = d
	}
}

func parseText[T ~string](s string) (T, error) { return T(s), nil }

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return a, fmt.Errorf("is %q, which is not an IP address", s)
	}
	return a, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("is %q, which is not an address with a prefix length, like 192.0.2.10/24", s)
	}
	return p, nil
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func quoted(n *yaml.Node) bool {
	return n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
}

func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(n):
		return "empty"
	}
	return "a single value"
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
