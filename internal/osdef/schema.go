package osdef

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"imprint"
)

// Schema is what a definition says of its parameters and its scripts.
type Schema struct {
	Params []Param
	// SecretsInEnvironment has secret values in OSP_ variables, as scripts written
	// for Ganeti expect them, where every process of the same user can read them. Otherwise
	// they are in files in memory, and OSP_NAME_FILE has the path.
	SecretsInEnvironment bool
	// Programs and Files are what the untrusted scripts need of the host, by name
	// and by absolute path, Modules the kernel's modules that they load.
	Programs, Files, Modules []string
	// Network has the scripts reach what the host reaches.
	Network bool
	// Privileged has the trusted scripts run as root, with the instance's disks, and with
	// the right to mount; otherwise they run as nobody and have no disk.
	Privileged bool
}

// Type is what the value of a parameter may be.
type Type string

// The types.
const (
	Text    Type = "text"    // "" is this one
	Integer Type = "integer" // a decimal number of 64 bits
	Boolean Type = "boolean" // true or false
)

// Param is a parameter of a definition.
type Param struct {
	Name        string
	Description string
	Type        Type
	Required    bool
	// Visibility is the least that is kept from others: a parameter that is private
	// may also be secret, but not public. "" leaves it to the instance.
	Visibility imprint.Visibility
	Default    string
	Enum       []string // nil allows all
	Pattern    *regexp.Regexp
}

// maxPattern bounds a pattern in bytes.
const maxPattern = 1 << 10

// schemaFile is imprint.yaml.
type schemaFile struct {
	Params   map[string]paramFile `yaml:"params"`
	Secrets  string               `yaml:"secrets"`
	Programs []string             `yaml:"programs"`
	Files    []string             `yaml:"files"`
	Modules  []string             `yaml:"modules"`
	Network  bool                 `yaml:"network"`
	// Privileged is of the trusted scripts.
	Privileged bool `yaml:"privileged"`
}

type paramFile struct {
	Description string   `yaml:"description"`
	Type        string   `yaml:"type"`
	Required    bool     `yaml:"required"`
	Visibility  string   `yaml:"visibility"`
	Default     string   `yaml:"default"`
	Enum        []string `yaml:"enum"`
	Pattern     string   `yaml:"pattern"`
}

// readSchema reads parameters.list and imprint.yaml.
func readSchema(dir string) (Schema, error) {
	var s Schema
	list, err := readFile(dir, "parameters.list")
	if errors.Is(err, fs.ErrNotExist) {
		return s, reason("it has no parameters.list; an empty one says that it has no parameters")
	}
	if err != nil {
		return s, err
	}
	if s.Params, err = parseList(list); err != nil {
		return s, err
	}
	text, err := readFile(dir, "imprint.yaml")
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	return s, s.refine(text)
}

// parseList reads parameters.list: a name and a description on each line.
func parseList(b []byte) ([]Param, error) {
	var params []Param
	variables := map[string]string{}
	for _, line := range linesOf(b) {
		name, description, _ := strings.Cut(line, " ")
		variable, ok := variableOf(name)
		switch {
		case !ok || len(name) > imprint.MaxParamNameLen:
			return nil, reason("its parameters.list has the line %.80q, which does not begin with a parameter's name", line)
		case variables[variable] != "":
			return nil, reason("its parameters %s and %s would both be the variable %s", variables[variable], name, variable)
		case len(params) == maxParams:
			return nil, reason("it has more than %d parameters", maxParams)
		}
		variables[variable] = name
		params = append(params, Param{Name: name, Description: clip(strings.TrimSpace(description)), Type: Text})
	}
	return params, nil
}

func clip(s string) string {
	if len(s) > maxDescription {
		return strings.ToValidUTF8(s[:maxDescription], "") + " …"
	}
	return s
}

// refine adds what imprint.yaml says.
func (s *Schema) refine(text []byte) error {
	var f schemaFile
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&f); err != nil && !errors.Is(err, io.EOF) {
		return reason("its imprint.yaml: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	switch f.Secrets {
	case "", "files":
	case "environment":
		s.SecretsInEnvironment = true
	default:
		return reason("its imprint.yaml has secrets: %.40q, which is neither files nor environment", f.Secrets)
	}
	for _, path := range f.Files {
		if !strings.HasPrefix(path, "/") {
			return reason("its imprint.yaml has the file %.80q, which is not an absolute path", path)
		}
	}
	for _, name := range slices.Concat(f.Programs, f.Modules) {
		if (imprint.OS{Name: strings.ReplaceAll(name, "+", "p")}).Check() != nil {
			return reason("its imprint.yaml has the program or module %.80q, which is not a name", name)
		}
	}
	s.Programs, s.Files, s.Modules, s.Network, s.Privileged = f.Programs, f.Files, f.Modules, f.Network, f.Privileged
	for name, p := range f.Params {
		i := slices.IndexFunc(s.Params, func(p Param) bool { return p.Name == name })
		if i < 0 {
			return reason("its imprint.yaml has the parameter %.80q, which its parameters.list has not", name)
		}
		if err := s.Params[i].refine(p); err != nil {
			return reason("its parameter %s %w", name, err)
		}
	}
	return nil
}

func (p *Param) refine(f paramFile) error {
	if f.Description != "" {
		p.Description = clip(f.Description)
	}
	switch t := Type(f.Type); t {
	case Text, Integer, Boolean:
		p.Type = t
	case "":
	default:
		return reason("has the type %.40q; there are text, integer and boolean", f.Type)
	}
	if p.Visibility = imprint.Visibility(f.Visibility); p.Visibility != "" && p.Visibility.Audience() == 0 {
		return reason("has the visibility %.40q; there are public, private and secret", f.Visibility)
	}
	p.Required, p.Default, p.Enum = f.Required, f.Default, f.Enum
	if f.Pattern != "" {
		if len(f.Pattern) > maxPattern {
			return reason("has a pattern of %d bytes; %d are allowed", len(f.Pattern), maxPattern)
		}
		pattern, err := regexp.Compile(`\A(?:` + f.Pattern + `)\z`)
		if err != nil {
			return reason("has the pattern %.80q, which cannot be used", f.Pattern)
		}
		p.Pattern = pattern
	}
	if p.Default != "" {
		if p.Visibility == imprint.Private || p.Visibility == imprint.SecretOnly {
			return reason("is %s and has a default, which everybody could read in the definition", p.Visibility)
		}
		if fault := p.fault(p.Default); fault != "" {
			return reason("has a default that it does not allow: it %s", fault)
		}
	}
	return nil
}

// fault says why v cannot be the value, or "". It does not show v.
func (p *Param) fault(v string) string {
	switch p.Type {
	case Integer:
		if _, err := strconv.ParseInt(v, 10, 64); err != nil {
			return "is not a whole number"
		}
	case Boolean:
		if v != "true" && v != "false" {
			return "is neither true nor false"
		}
	}
	switch {
	case strings.Contains(v, "\x00"):
		return "has a zero byte, which no script can be given"
	case p.Enum != nil && !slices.Contains(p.Enum, v):
		return "is none of " + strings.Join(p.Enum, ", ")
	case p.Pattern != nil && !p.Pattern.MatchString(v):
		return "does not match " + strings.TrimSuffix(strings.TrimPrefix(p.Pattern.String(), `\A(?:`), `)\z`)
	}
	return ""
}

// allows reports whether an instance may have the parameter with visibility v.
func (p *Param) allows(v imprint.Visibility) bool {
	return p.Visibility == "" || v.Audience().Within(p.Visibility.Audience())
}

// Check judges the parameters of a spec by the schema, or only the one called name:
// values are those of private and secret ones, as far as they are at hand. One that the schema does not have is
// the machine's own: scripts do not see it. The error is of kind
// [imprint.Invalid], names all that is wrong, and shows no value.
func (s *Schema) Check(params []imprint.Param, values map[string]imprint.Secret, name string) error {
	var faults []string
	fault := func(p *Param, format string, args ...any) {
		faults = append(faults, fmt.Sprintf("parameter %s %s", p.Name, fmt.Sprintf(format, args...)))
	}
	for i := range s.Params {
		p := &s.Params[i]
		if name != "" && name != p.Name {
			continue
		}
		n := slices.IndexFunc(params, func(q imprint.Param) bool { return q.Name == p.Name })
		if n < 0 {
			if p.Required && p.Default == "" {
				fault(p, "is required%s", p.about())
			}
			continue
		}
		given := params[n]
		if !p.allows(given.Visibility) {
			fault(p, "is %s here, and the definition has it %s", given.Visibility, p.Visibility)
			continue
		}
		value, known := given.Value, given.Visibility == imprint.Public
		if v, ok := values[p.Name]; ok && !known {
			value, known = string(v.Reveal()), true
		}
		if !known {
			continue
		}
		if p.Required && value == "" && p.Default == "" {
			fault(p, "is empty, and required%s", p.about())
		} else if why := p.fault(value); why != "" && value != "" {
			fault(p, "%s", why)
		}
	}
	if faults == nil {
		return nil
	}
	return imprint.Errorf(imprint.Invalid, "check", "parameters", "%s", strings.Join(faults, "; "))
}

func (p *Param) about() string {
	if p.Description == "" {
		return ""
	}
	return ": " + p.Description
}

// called returns the name of the parameter that is a variable, or "".
func (s *Schema) called(variable string) string {
	for _, p := range s.Params {
		if v, _ := variableOf(p.Name); v == variable {
			return p.Name
		}
	}
	return ""
}

// variableOf returns the name of the variable for a parameter, in Ganeti's manner:
// OSP_, capitals, and underscores for what a shell cannot have in a name.
func variableOf(name string) (string, bool) {
	var b strings.Builder
	b.WriteString("OSP_")
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z':
			c -= 'a' - 'A'
		case c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_':
		case c == '-' || c == '.':
			c = '_'
		default:
			return "", false
		}
		b.WriteByte(c)
	}
	return b.String(), name != ""
}
