// Package manifest reads and writes the files in which an operator declares
// instances: strict YAML, several instances in one file. Every wrong field is
// reported with its line, all of them at once, and a field that was probably
// meant is named. Values of private and secret parameters are fetched from
// where the manifest says they are, and never become part of a spec.
//
// The fields are one table, [fieldsOf]; the reader and the reference in docs/
// are both made from it.
package manifest

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"

	"imprint"
)

// Limits on a manifest file.
const (
	MaxFile      = 1 << 20 // bytes
	MaxInstances = 1000    // documents in one file
	MaxDepth     = 16      // nested mappings and lists
	MaxProblems  = 20      // problems reported at once
)

// Manifest is one declared instance.
type Manifest struct {
	// ID is the instance's identifier; "" has one drawn.
	ID   imprint.InstanceID
	Spec imprint.Spec
	// Values holds the values of the private and secret parameters by name.
	Values map[string]imprint.Secret
}

// Load reads the manifests in the file at path; "-" is standard input. It fails
// with kind [imprint.Invalid] and all [Problems], or with kind
// [imprint.NotFound] or [imprint.Denied] if the file cannot be opened.
func Load(path string, src Sources) ([]Manifest, error) {
	if path == "-" {
		if src.Stdin == nil {
			return nil, imprint.Errorf(imprint.Invalid, "read", "standard input", "there is none")
		}
		data, err := readLimited(src.Stdin, MaxFile)
		if err != nil {
			return nil, imprint.Errorf(imprint.Invalid, "read", "standard input", "%w", err)
		}
		src.Stdin = nil // it is used up: {stdin: true} cannot read it again
		return Parse("standard input", data, src)
	}
	f, err := os.Open(path)
	if err != nil {
		kind := imprint.NotFound
		if errors.Is(err, os.ErrPermission) {
			kind = imprint.Denied
		}
		return nil, imprint.Errorf(kind, "read", path, "%w", cause(err))
	}
	defer f.Close()
	data, err := readLimited(f, MaxFile)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "read", path, "%w", err)
	}
	if src.Dir == "" {
		src.Dir = filepath.Dir(path)
	}
	return Parse(path, data, src)
}

// Parse reads the manifests in data; name stands for the file in errors. It
// fails with kind [imprint.Invalid] and a [Problems] in its chain.
func Parse(name string, data []byte, src Sources) ([]Manifest, error) {
	if len(data) > MaxFile {
		return nil, imprint.Errorf(imprint.Invalid, "read", name, "%w", tooLong(MaxFile))
	}
	r := &reader{src: &src}
	all := r.documents(data)
	if len(all) == 0 && len(r.problems) == 0 {
		r.add(Problem{Message: "declares no instance"})
	}
	if len(r.problems) > 0 {
		slices.SortStableFunc(r.problems, func(a, b Problem) int {
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
		})
		return nil, &imprint.Error{Kind: imprint.Invalid, Op: "read", Operand: name, Err: Problems(r.problems), Hint: r.hint()}
	}
	return all, nil
}

// documents reads every document; the problems are in r.
func (r *reader) documents(data []byte) []Manifest {
	type key struct {
		tenant imprint.TenantName
		name   imprint.InstanceName
	}
	var all []Manifest
	lines, ids := map[key]int{}, map[imprint.InstanceID]int{}
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var doc yaml.Node
		switch err := dec.Decode(&doc); {
		case err == io.EOF:
			return all
		case err != nil:
			r.add(syntaxProblem(data, err))
			return all // the decoder cannot go on after a syntax error
		}
		root := doc.Content[0]
		if isNull(root) {
			continue // an empty document between separators
		}
		if len(all) == MaxInstances {
			r.problem(root, "", "is one instance too many; a file may hold %d", MaxInstances)
			return all
		}
		m := r.instance(root)
		all = append(all, m)
		k := key{m.Spec.Tenant, m.Spec.Name}
		if line, dup := lines[k]; dup && k.name != "" {
			r.problem(r.at["name"], "name", "%q is declared at line %d already", k.name, line)
		}
		lines[k] = root.Line
		if line, dup := ids[m.ID]; dup && m.ID != "" {
			r.problem(r.at["id"], "id", "%q is declared at line %d already", m.ID, line)
		}
		ids[m.ID] = root.Line
	}
}

// instance reads one document and checks what it says.
func (r *reader) instance(root *yaml.Node) Manifest {
	var m Manifest
	r.at = map[string]*yaml.Node{"": root}
	if depth(root, 0) > MaxDepth {
		r.problem(root, "", "is nested deeper than %d levels", MaxDepth)
		return m
	}
	before := r.count
	r.mapping(root, "", fieldsOf(&m))
	if r.count > before {
		return m // what was not understood cannot be judged
	}
	for _, f := range check(&m.Spec, m.Values) {
		r.problem(r.nearest(f.Field), f.Field, "%s", f.Message)
	}
	return m
}

// depth returns how deep n is nested; it stops counting past MaxDepth. Aliases
// are refused by the reader and not followed here.
func depth(n *yaml.Node, level int) int {
	deepest := level
	if level > MaxDepth {
		return level
	}
	for _, c := range n.Content {
		deepest = max(deepest, depth(c, level+1))
	}
	return deepest
}

// syntaxProblem turns the YAML library's error about data into ours. The library
// names the line where the surrounding collection begins, counted differently by
// its two halves, so the line is looked for: it is the last one of the shortest
// beginning of data that fails in the same way.
func syntaxProblem(data []byte, err error) Problem {
	message := syntaxMessage(err)
	lines := bytes.SplitAfter(data, []byte("\n"))
	line := 1 + sort.Search(len(lines)-1, func(i int) bool {
		beginning := bytes.Join(lines[:i+1], nil)
		for dec := yaml.NewDecoder(bytes.NewReader(beginning)); ; {
			if err := dec.Decode(new(yaml.Node)); err != nil {
				return syntaxMessage(err) == message
			}
		}
	})
	if len(bytes.TrimSpace(lines[line-1])) == 0 && line > 1 {
		line-- // it is the end of the file that was not expected
	}
	return Problem{Line: line, Message: "is not YAML: " + message}
}

// syntaxMessage returns what the library says, without "yaml: line 3: ".
func syntaxMessage(err error) string {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(message, "line "); ok {
		if _, what, ok := strings.Cut(rest, ": "); ok {
			message = what
		}
	}
	if strings.HasPrefix(message, "unknown anchor") {
		// The library would print the text behind the asterisk, maybe a password.
		return "an alias without its anchor; put text that begins with * into quotes"
	}
	return message
}
