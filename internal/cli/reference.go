package cli

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"imprint/internal/daemon"
	"imprint/internal/manifest"
	"imprint/internal/server"
)

//go:generate go run imprint/cmd/imprint docs ../../docs/reference

// docsCommand writes the references that are made from code.
func (p *program) docsCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "docs DIR",
		Short:  "Write the references in docs/reference from the code",
		Hidden: true,
		Args:   exactArgs("a directory"),
		RunE: func(_ *cobra.Command, args []string) error {
			files, err := references()
			if err != nil {
				return err
			}
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fileError("write", args[0], err)
			}
			for name, content := range files {
				if err := os.WriteFile(filepath.Join(args[0], name), content, 0o644); err != nil {
					return fileError("write", name, err)
				}
			}
			return nil
		},
	}
}

// references returns the files of docs/reference that are made from code.
func references() (map[string][]byte, error) {
	openAPI, err := server.OpenAPI()
	if err != nil {
		return nil, err
	}
	p := &program{output: asTable}
	root := p.root()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	return map[string][]byte{
		"cli.md":      cliReference(root),
		"manifest.md": []byte(manifest.Reference()),
		"configuration.md": []byte("# The server's configuration\n\n`imprint config example` prints this file, `imprint config check FILE` checks one.\n\n```yaml\n" + daemon.ExampleConfig + "```\n" +
			"\n# The configuration of imprint host\n\n`imprint host config example` prints this file, `imprint host config check FILE` checks one.\n\n```yaml\n" + daemon.ExampleHostConfig + "```\n"),
		"exit-codes.md": []byte(exitReference()),
		"openapi.json":  openAPI,
	}, nil
}

// cliReference describes all commands below root as Markdown.
func cliReference(root *cobra.Command) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# imprint\n\n%s\n\nEvery command has these options:\n\n```\n%s```\n", root.Long, root.PersistentFlags().FlagUsages())
	for _, group := range root.Groups() {
		fmt.Fprintf(&b, "\n## %s\n", strings.TrimSuffix(group.Title, ":"))
		for _, c := range root.Commands() {
			if c.GroupID == group.ID {
				describeCommands(&b, c)
			}
		}
	}
	return b.Bytes()
}

func describeCommands(b *bytes.Buffer, c *cobra.Command) {
	if c.Runnable() && (!c.HasSubCommands() || c.LocalNonPersistentFlags().HasFlags()) { // imprint host is both
		text := c.Long
		if text == "" {
			text = c.Short + "."
		}
		fmt.Fprintf(b, "\n### %s\n\n%s\n\n```\n%s\n```\n", c.CommandPath(), strings.TrimSpace(text), c.UseLine())
		if c.Example != "" {
			fmt.Fprintf(b, "\nFor example:\n\n```\n%s\n```\n", c.Example)
		}
		if own := c.NonInheritedFlags().FlagUsages(); own != "" {
			fmt.Fprintf(b, "\n```\n%s```\n", own)
		}
	}
	for _, sub := range c.Commands() {
		if !sub.Hidden {
			describeCommands(b, sub)
		}
	}
}
