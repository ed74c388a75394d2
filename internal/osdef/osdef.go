// Package osdef reads OS definitions in the interface of Ganeti (its API version
// 20), checks parameters by what they declare, and runs their scripts: in a helper
// VM, or on the host if the operator trusts the definition, in a cage.
//
// A definition is a directory with the scripts create, import, export, rename and
// verify, and the files ganeti_api_version, parameters.list and variants.list. If
// it has create_untrusted beside create, the two run at the same time, the one in
// the VM and the other on the host, and talk over a pipe. What Ganeti cannot say,
// types of parameters and what a script needs, is in imprint.yaml beside them.
package osdef

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"imprint"
)

// APIVersion is the version of Ganeti's interface that is spoken.
const APIVersion = 20

// Limits on a definition.
const (
	maxListFile    = 64 << 10 // bytes of each of its lists, and of imprint.yaml
	maxVariants    = 256
	maxParams      = imprint.MaxParams
	maxDescription = 1 << 10 // bytes of a parameter's
	maxDefinitions = 512     // in one directory of the search path
	maxFiles       = 4096    // files of one definition
	maxBytes       = 64 << 20
)

// DefaultPath returns where definitions are looked for: in imprint's own directory,
// and then where Ganeti on Debian looks.
func DefaultPath() []string {
	return []string{"/etc/imprint/os", "/srv/ganeti/os", "/usr/local/lib/ganeti/os", "/usr/lib/ganeti/os", "/usr/share/ganeti/os"}
}

// Op is one of a definition's scripts.
type Op string

// The scripts.
const (
	Create Op = "create"
	Import Op = "import"
	Export Op = "export"
	Rename Op = "rename"
	Verify Op = "verify"
)

// untrusted ends the name of a script whose other half runs on the host.
const untrusted = "_untrusted"

// Definition is an OS definition as it was found.
type Definition struct {
	Name string
	Dir  string // without symbolic links
	API  []int
	// Scripts are those that it has, by file name: "create", "create_untrusted" and so on.
	Scripts  []string
	Variants []string // the first is the default; none is offered if it is empty
	Schema   Schema
	// Digest is that of all its files. The operator's trust is in this.
	Digest imprint.Digest
	// Problems say why it cannot be used; nil is that it can.
	Problems []string
}

// Halves reports which halves of op there are: the script that may run on the
// host, and the one that may not. A definition with one script for op has it run in
// the VM, unless the definition is trusted.
func (d *Definition) Halves(op Op) (host, vm bool) {
	return slices.Contains(d.Scripts, string(op)), slices.Contains(d.Scripts, string(op)+untrusted)
}

// Usable fails with kind [imprint.Invalid] if the definition has a problem, and
// unless variant is one of its own.
func (d *Definition) Usable(variant string) error {
	invalid := func(format string, args ...any) *imprint.Error {
		return imprint.Errorf(imprint.Invalid, "use", "OS definition "+d.Name, format, args...)
	}
	switch {
	case len(d.Problems) > 0:
		return invalid("%s", strings.Join(d.Problems, "; ")).WithHint("imprint os check %s says more", d.Name)
	case variant != "" && len(d.Variants) == 0:
		return invalid("it has no variants, and so not %s", variant).WithHint("name it without: %s", d.Name)
	case variant == "" && len(d.Variants) > 0:
		return invalid("a variant has to be named").WithHint("there are %s; write it like %s+%s", strings.Join(d.Variants, ", "), d.Name, d.Variants[0])
	case variant != "" && !slices.Contains(d.Variants, variant):
		return invalid("it has no variant %s", variant).WithHint("there are %s", strings.Join(d.Variants, ", "))
	}
	return nil
}

// Find returns the first definition of that name in path. It fails with kind
// [imprint.NotFound]; a definition that is there but has problems is returned.
func Find(path []string, name string) (*Definition, error) {
	if err := (imprint.OS{Name: name}).Check(); err != nil {
		return nil, err
	}
	for _, dir := range path {
		at := filepath.Join(dir, name)
		info, err := os.Stat(at)
		switch {
		case err == nil && info.IsDir():
			return read(name, at)
		case err == nil || errors.Is(err, fs.ErrNotExist):
		default:
			return nil, imprint.Errorf(imprint.Unavailable, "find", "OS definition "+name, "%w", err)
		}
	}
	return nil, imprint.Errorf(imprint.NotFound, "find", "OS definition "+name, "it is in none of %s", strings.Join(path, ", ")).
		WithHint("imprint os list shows those that there are")
}

// List returns all definitions in path by name, those with problems included; of
// two with one name it has the first.
func List(path []string) ([]*Definition, error) {
	var all []*Definition
	for _, dir := range path {
		entries, err := os.ReadDir(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, imprint.Errorf(imprint.Unavailable, "list", "OS definitions", "%w", err)
		case len(entries) > maxDefinitions:
			return nil, imprint.Errorf(imprint.Invalid, "list", dir, "%d files; %d are allowed", len(entries), maxDefinitions)
		}
		for _, e := range entries {
			at := filepath.Join(dir, e.Name())
			info, err := os.Stat(at)
			if err != nil || !info.IsDir() || (imprint.OS{Name: e.Name()}).Check() != nil ||
				slices.ContainsFunc(all, func(d *Definition) bool { return d.Name == e.Name() }) {
				continue
			}
			d, err := read(e.Name(), at)
			if err != nil {
				return nil, err
			}
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b *Definition) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// read reads the definition in dir.
func read(name, dir string) (*Definition, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "read", "OS definition "+name, "%w", err)
	}
	d := &Definition{Name: name, Dir: real}
	problem := func(err error) {
		if err != nil {
			d.Problems = append(d.Problems, err.Error())
		}
	}
	d.API, err = readAPI(real)
	problem(err)
	problem(d.findScripts())
	d.Variants, err = readVariants(real)
	problem(err)
	d.Schema, err = readSchema(real)
	problem(err)
	d.Digest, err = digest(real)
	problem(err)
	return d, nil
}

// findScripts looks for the scripts and says which are missing.
func (d *Definition) findScripts() error {
	for _, op := range []Op{Create, Import, Export, Rename, Verify} {
		found := false
		for _, script := range []string{string(op), string(op) + untrusted} {
			info, err := os.Stat(filepath.Join(d.Dir, script))
			switch {
			case errors.Is(err, fs.ErrNotExist):
				continue
			case err != nil:
				return reason("its script %s: %w", script, err)
			case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
				return reason("its script %s is not an executable file", script)
			}
			found = true
			d.Scripts = append(d.Scripts, script)
		}
		if !found && op == Create {
			return reason("it has neither create nor create_untrusted")
		}
		if !found {
			return reason("its script %s is missing", op)
		}
	}
	return nil
}

func readAPI(dir string) ([]int, error) {
	b, err := readFile(dir, "ganeti_api_version")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, reason("it has no ganeti_api_version")
	}
	if err != nil {
		return nil, err
	}
	var versions []int
	for _, line := range linesOf(b) {
		n, err := strconv.Atoi(line)
		if err != nil {
			return nil, reason("its ganeti_api_version has the line %.40q, which is not a number", line)
		}
		versions = append(versions, n)
	}
	if !slices.Contains(versions, APIVersion) {
		return versions, reason("it has the API versions %v, and not %d", versions, APIVersion)
	}
	return versions, nil
}

func readVariants(dir string) ([]string, error) {
	b, err := readFile(dir, "variants.list")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all := linesOf(b)
	if len(all) > maxVariants {
		return nil, reason("it has %d variants; %d are allowed", len(all), maxVariants)
	}
	for i, v := range all {
		if err := (imprint.OS{Name: "x", Variant: v}).Check(); err != nil || slices.Contains(all[:i], v) {
			return nil, reason("its variants.list has the line %.80q, which is not the name of a variant, or there twice", v)
		}
	}
	return all, nil
}

// readFile reads one of the definition's lists. A symbolic link may lead out of the
// directory, as the variants of Debian's debootstrap do to /etc.
func readFile(dir, name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return nil, reason("its file %s: %w", name, cause(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxListFile+1))
	if err != nil {
		return nil, reason("its file %s: %w", name, cause(err))
	}
	if len(b) > maxListFile {
		return nil, reason("its file %s has more than %d bytes", name, maxListFile)
	}
	return b, nil
}

// linesOf returns what is in the lines of b that are neither empty nor a comment.
func linesOf(b []byte) (all []string) {
	s := bufio.NewScanner(bytes.NewReader(b))
	s.Buffer(nil, maxListFile+1)
	for s.Scan() {
		if line := strings.TrimSpace(s.Text()); line != "" && line[0] != '#' {
			all = append(all, line)
		}
	}
	return all
}
