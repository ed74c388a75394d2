package cli

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creack/pty"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"imprint"
)

// commands returns all commands that a user sees.
func commands() []*cobra.Command {
	p := &program{out: io.Discard, err: io.Discard, output: asTable}
	var all []*cobra.Command
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if !sub.Hidden {
				all = append(all, sub)
				walk(sub)
			}
		}
	}
	walk(p.root())
	return all
}

func TestEveryCommandExplainsItself(t *testing.T) {
	t.Parallel()
	for _, c := range commands() {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short text %q", c.CommandPath(), c.Short)
		}
		if c.Parent().Parent() == nil && c.GroupID == "" {
			t.Errorf("%s is in no group", c.CommandPath())
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s: --%s has no text", c.CommandPath(), f.Name)
			}
		})
		if c.HasSubCommands() || c.RunE == nil {
			continue
		}
		if c.Args == nil {
			t.Errorf("%s takes whatever arguments there are", c.CommandPath())
		}
	}
}

// The examples in help texts have to be command lines that are understood.
func TestExamplesAreUnderstood(t *testing.T) {
	t.Parallel()
	examples := 0
	for _, c := range commands() {
		for line := range strings.Lines(c.Example) {
			line, _, _ = strings.Cut(strings.TrimSpace(line), " < ")
			line, _, _ = strings.Cut(line, " > ")
			words := strings.Fields(line)
			if len(words) == 0 || words[0] != "imprint" {
				t.Errorf("%s: example %q", c.CommandPath(), line)
				continue
			}
			root := (&program{output: asTable}).root()
			found, args, err := root.Find(words[1:])
			if err == nil {
				err = found.ParseFlags(args)
			}
			if err == nil {
				err = found.ValidateArgs(found.Flags().Args())
			}
			if err == nil {
				err = found.ValidateRequiredFlags()
			}
			if err != nil || found.Name() != c.Name() {
				t.Errorf("%s: example %q: %v", c.CommandPath(), line, err)
			}
			examples++
		}
	}
	if examples < 10 {
		t.Errorf("only %d examples", examples)
	}
}

// Every kind of error has one exit code, and no code has two meanings.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for _, s := range exitCodes() {
		if seen[s.code] {
			t.Errorf("code %d is there twice", s.code)
		}
		seen[s.code] = true
	}
	for k := imprint.Internal; !strings.HasPrefix(k.String(), "kind("); k++ {
		n := 0
		for _, s := range exitCodes() {
			for _, have := range s.kinds {
				if have == k {
					n++
				}
			}
		}
		if n != 1 {
			t.Errorf("kind %s has %d exit codes", k, n)
		}
	}
	if got := exitCode(errors.New("of nobody's")); got != 1 {
		t.Errorf("an unknown error has code %d", got)
	}
	if got := exitCode(imprint.Errorf(imprint.Contested, "claim", "web-1", "twice")); got != 9 {
		t.Errorf("contested has code %d", got)
	}
}

// The references in docs are what the code says; "make docs" writes them.
func TestReferencesAreCurrent(t *testing.T) {
	t.Parallel()
	files, err := references()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		have, err := os.ReadFile(filepath.Join("../../docs/reference", name))
		if err != nil || !bytes.Equal(have, want) {
			t.Errorf("docs/reference/%s is not what the code says (%v): run make docs", name, err)
		}
	}
}

// The references must not depend on who makes them, or where.
func TestReferencesAreTheSameForEveryone(t *testing.T) {
	before, err := references()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", "/somewhere/else")
	t.Setenv("XDG_RUNTIME_DIR", "/somewhere/else")
	t.Setenv("IMPRINT_SOCKET", "/somewhere/else")
	after, err := references()
	if err != nil {
		t.Fatal(err)
	}
	for name := range before {
		if !bytes.Equal(before[name], after[name]) || bytes.Contains(after[name], []byte("/somewhere/else")) {
			t.Errorf("%s depends on the environment", name)
		}
	}
}

// Colours are for terminals only, and for nobody who does not want them.
func TestColour(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	t.Setenv("CLICOLOR_FORCE", "")
	if got := colour(slave, green, "closed"); got != "\x1b[32mclosed\x1b[0m" {
		t.Errorf("on a terminal: %q", got)
	}
	if got := colour(&bytes.Buffer{}, green, "closed"); got != "closed" {
		t.Errorf("elsewhere: %q", got)
	}
	t.Setenv("CLICOLOR_FORCE", "1")
	if got := colour(&bytes.Buffer{}, green, "closed"); got != "\x1b[32mclosed\x1b[0m" {
		t.Errorf("forced: %q", got)
	}
	t.Setenv("NO_COLOR", "1")
	if got := colour(slave, green, "closed"); got != "closed" {
		t.Errorf("with NO_COLOR: %q", got)
	}
}

// Progress is for terminals only, and for creations that take a while.
func TestProgress(t *testing.T) {
	t.Parallel()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	(&program{err: slave}).progress(1, manyInstances-1) // shows nothing
	(&program{err: slave}).progress(7, manyInstances)
	buf := make([]byte, 64)
	n, err := master.Read(buf)
	if err != nil || string(buf[:n]) != "\r7 of 20" {
		t.Errorf("on a terminal: %q, %v", buf[:n], err)
	}
	var out bytes.Buffer
	(&program{err: &out}).progress(7, manyInstances)
	if out.Len() > 0 {
		t.Errorf("elsewhere: %q", out.String())
	}
}
