package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"imprint"
)

// Sources is where the values come from that a manifest only refers to. A nil
// member refuses references of its sort, so the zero value reads files only.
type Sources struct {
	// Dir is what relative paths in the manifest are relative to; "" is the
	// manifest's own directory for [Load] and the working directory for [Parse].
	Dir string
	// Open opens a referenced file; nil is [os.Open].
	Open func(path string) (io.ReadCloser, error)
	// Env looks an environment variable up, as [os.LookupEnv] does.
	Env func(name string) (value string, ok bool)
	// Stdin gives one value from standard input.
	Stdin io.Reader
	// Prompt asks whoever sits at the terminal for the value of a parameter.
	Prompt func(param string) (imprint.Secret, error)
}

// sourceFields is the mapping form of a parameter's value.
func sourceFields(s *source) []field {
	return []field{
		{name: "file", typ: "path", doc: "Read the value from this file, relative to the manifest.", read: textInto(&s.file)},
		{name: "env", typ: "name", doc: "Take the value from this environment variable.", read: textInto(&s.env)},
		{name: "stdin", typ: "true", doc: "Read the value from standard input; one value of a file may.", read: boolInto(&s.stdin)},
		{name: "prompt", typ: "true", doc: "Ask for the value on the terminal.", read: boolInto(&s.prompt)},
		{name: "raw", typ: "true or false", doc: "Keep the final newline of `file` or `stdin`, which is dropped otherwise.", read: boolInto(&s.raw)},
	}
}

type source struct {
	file, env          string
	stdin, prompt, raw bool
}

// value fetches the value of a parameter: literal text, or a mapping that says
// where it is.
func (r *reader) value(n *yaml.Node, path, param string) (imprint.Secret, bool) {
	if n.Kind == yaml.ScalarNode {
		s, ok := r.text(n, path)
		return imprint.NewSecret([]byte(s)), ok
	}
	var s source
	before := r.count
	r.mapping(n, path, sourceFields(&s))
	if r.count > before {
		return imprint.Secret{}, false
	}
	ways := 0
	for _, used := range []bool{s.file != "", s.env != "", s.stdin, s.prompt} {
		if used {
			ways++
		}
	}
	if ways != 1 {
		r.problem(n, path, "names %d sources; it has exactly one of file, env, stdin and prompt", ways)
		return imprint.Secret{}, false
	}
	v, err := r.src.fetch(s, param)
	if err != nil {
		r.problem(n, path, "%s", err)
		return imprint.Secret{}, false
	}
	return v, true
}

// fetch returns the value; its error is the predicate of a sentence about the parameter.
func (src *Sources) fetch(s source, param string) (imprint.Secret, error) {
	switch {
	case s.env != "":
		if src.Env == nil {
			return imprint.Secret{}, errors.New("refers to the environment, which cannot be read here")
		}
		v, ok := src.Env(s.env)
		if !ok || v == "" {
			return imprint.Secret{}, fmt.Errorf("refers to the environment variable %s, which is not set; set it, or refer to a file", s.env)
		}
		return imprint.NewSecret([]byte(v)), nil
	case s.prompt:
		if src.Prompt == nil {
			return imprint.Secret{}, errors.New("is asked for on a terminal, and there is none; refer to a file or an environment variable")
		}
		v, err := src.Prompt(param)
		if err != nil {
			return imprint.Secret{}, fmt.Errorf("could not be asked for: %w", err)
		}
		return v, nil
	case s.stdin:
		if src.Stdin == nil {
			return imprint.Secret{}, errors.New("refers to standard input, which is not available or was read already")
		}
		v, err := readLimited(src.Stdin, imprint.MaxParamLen)
		src.Stdin = nil
		if err != nil {
			return imprint.Secret{}, fmt.Errorf("could not be read from standard input: %w", err)
		}
		return imprint.NewSecret(s.trim(v)), nil
	}
	v, err := src.file(s.file, imprint.MaxParamLen)
	return imprint.NewSecret(s.trim(v)), err
}

// trim drops the one newline that editors and echo put at the end.
func (s source) trim(b []byte) []byte {
	if s.raw {
		return b
	}
	if b, ok := bytes.CutSuffix(b, []byte("\r\n")); ok {
		return b
	}
	return bytes.TrimSuffix(b, []byte("\n"))
}

// file reads a referenced file of at most limit bytes; its error is the
// predicate of a sentence.
func (src *Sources) file(path string, limit int) ([]byte, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(src.Dir, path)
	}
	open := src.Open
	if open == nil {
		open = func(path string) (io.ReadCloser, error) { return os.Open(path) }
	}
	f, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("refers to the file %s: %w", path, cause(err))
	}
	defer f.Close()
	b, err := readLimited(f, limit)
	if err != nil {
		return nil, fmt.Errorf("refers to the file %s: %w", path, cause(err))
	}
	return b, nil
}

// readLimited reads all of r, and fails if that is more than limit bytes.
func readLimited(r io.Reader, limit int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(b) > limit {
		return nil, tooLong(limit)
	}
	return b, nil
}

func tooLong(limit int) error { return fmt.Errorf("more than %d bytes", limit) }

// cause strips the operation and path that a sentence names already.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
