package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
)

// format is the value of --output.
type format string

const (
	asTable format = "table"
	asJSON  format = "json"
	asYAML  format = "yaml"
)

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "format" }

func (f *format) Set(s string) error {
	switch format(s) {
	case asTable, asJSON, asYAML:
		*f = format(s)
		return nil
	}
	return fmt.Errorf("%q is none of table, json, yaml", s)
}

// print writes v as JSON or YAML when asked to, and by table otherwise.
func (p *program) print(v any, table func(w io.Writer)) error {
	switch p.output {
	case asJSON:
		enc := json.NewEncoder(p.out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	case asYAML:
		b, err := toYAML(v)
		if err != nil {
			return err
		}
		_, err = p.out.Write(b)
		return err
	}
	tw := tabwriter.NewWriter(p.out, 0, 4, 2, ' ', 0)
	table(tw)
	return tw.Flush()
}

// toYAML writes v with the names and the text forms that its JSON has.
func toYAML(v any) ([]byte, error) {
	j, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	// JSON is YAML; decoding into a node keeps the order of the fields.
	var node yaml.Node
	if err := yaml.Unmarshal(j, &node); err != nil {
		return nil, err
	}
	blockStyle(&node)
	return yaml.Marshal(&node)
}

// blockStyle drops the flow style and the quotes that JSON brought along where
// YAML does not need them.
func blockStyle(n *yaml.Node) {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && strings.Contains(n.Value, "\n") {
		n.Style = yaml.LiteralStyle
	}
	for _, c := range n.Content {
		blockStyle(c)
	}
}

// row writes one line of a table.
func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			io.WriteString(w, "\t")
		}
		fmt.Fprint(w, c)
	}
	io.WriteString(w, "\n")
}

// isTerminal reports whether people read what is written to w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// colour wraps s in an ANSI colour if w is a terminal and the user did not opt
// out (no-color.org), or asks for it anywhere with CLICOLOR_FORCE.
func colour(w io.Writer, code, s string) string {
	terminal := isTerminal(w) && os.Getenv("TERM") != "dumb"
	if os.Getenv("NO_COLOR") != "" || !terminal && os.Getenv("CLICOLOR_FORCE") == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

const (
	green  = "32"
	yellow = "33"
	red    = "31"
	dim    = "2"
)
