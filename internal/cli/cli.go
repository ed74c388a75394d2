// Package cli is imprint's command line: configuration, subcommands and all
// wiring. It is the only package that knows every other.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
	"imprint/internal/daemon"
	"imprint/internal/image/reader"
)

// program is what all subcommands share: the streams and the global flags.
type program struct {
	in       io.Reader
	out, err io.Writer
	socket   string
	remote   remote
	over     *api.Client // to remote, if one is given
	output   format
	running  bool // the command line was understood
}

// Main runs the command line in args and returns the exit code: see [exitCodes].
func Main(args []string, in io.Reader, out, err io.Writer) int {
	if reader.IsMain(args) { // this is no command, but a sandbox for one
		return reader.Main(args)
	}
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		signals = append(signals, syscall.SIGHUP) // or a closed terminal leaves a medium behind
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	p := &program{in: in, out: out, err: err, output: asTable}
	root := p.root()
	root.SetArgs(args)
	return p.report(p.execute(ctx, root))
}

// execute runs the command that root finds. What cobra complains about before
// that is a wrong usage.
func (p *program) execute(ctx context.Context, root *cobra.Command) error {
	c, err := root.ExecuteContextC(ctx)
	var known *imprint.Error
	if err == nil || p.running || errors.As(err, &known) {
		return err
	}
	return usagef(c, "%v", err)
}

// noteRuns makes every command below c note that it runs.
func (p *program) noteRuns(c *cobra.Command) {
	if run := c.RunE; run != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			p.running = true
			return run(c, args)
		}
	}
	for _, sub := range c.Commands() {
		p.noteRuns(sub)
	}
}

// root returns the whole command tree.
func (p *program) root() *cobra.Command {
	root := group(&cobra.Command{
		Use:   "imprint",
		Short: "Give every new machine its identity, configuration and secrets",
		Long: `imprint gives every new machine its identity, configuration and secrets at
first boot, over the most trustworthy channel that its platform has.

Run "imprint serve" on one machine, describe an instance in a file, create it
with "imprint create -f FILE" and boot it.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version(),
	})
	root.PersistentPreRunE = func(*cobra.Command, []string) (err error) {
		if p.remote.url != "" {
			p.over, err = p.remote.client()
			return err
		}
		if p.socket != "" || os.Getenv("IMPRINT_SOCKET") != "" {
			return nil
		}
		return daemon.CheckDefaultSocket()
	}
	root.SetIn(p.in)
	root.SetOut(p.out)
	root.SetErr(p.err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef(c, "%v", err)
	})
	flags := root.PersistentFlags()
	flags.StringVar(&p.socket, "socket", "", "control `socket` of the server (default $IMPRINT_SOCKET, else imprint.sock in /run/imprint or, for an ordinary user, $XDG_RUNTIME_DIR/imprint)")
	p.remote.flags(flags)
	flags.VarP(&p.output, "output", "o", "how to print: table, json or yaml")
	root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddGroup(
		&cobra.Group{ID: "machines", Title: "Machines:"},
		&cobra.Group{ID: "disks", Title: "Disks:"},
		&cobra.Group{ID: "trust", Title: "Certificates:"},
		&cobra.Group{ID: "server", Title: "Server:"},
	)
	root.SetHelpCommandGroupID("server")
	root.SetCompletionCommandGroupID("server")
	for group, commands := range map[string][]*cobra.Command{
		"machines": {p.createCommand(), p.getCommand(), p.describeCommand(), p.watchCommand(), p.bootCommand(), p.nicCommand(),
			p.rebirthCommand(), p.setupCommand(), p.deleteCommand(), p.setCommand(), p.unsetCommand(), p.osCommand(), p.payloadCommand(), p.mediaCommand(), p.imageCommand(), p.pipeCommand(), p.passwordCommand()},
		"disks":  {p.installCommand(), p.fixCommand(), p.zeroCommand()},
		"trust":  {p.approveCommand(), p.revokeCommand(), p.caCommand(), p.logCommand()},
		"server": {p.serveCommand(), p.hostCommand(), p.signCommand(), p.sealCommand(), p.doctorCommand(), p.configCommand(), p.versionCommand()},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	root.AddCommand(p.docsCommand())
	p.noteRuns(root)
	return root
}

// group makes c a command that only has others below it.
func group(c *cobra.Command) *cobra.Command {
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		if c.SuggestionsMinimumDistance == 0 {
			c.SuggestionsMinimumDistance = 2
		}
		if close := c.SuggestionsFor(args[0]); len(close) > 0 {
			return usagef(c, "there is no command %q; did you mean %s?", args[0], strings.Join(close, " or "))
		}
		return usagef(c, "there is no command %q", args[0])
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	return c
}

// client returns a client of the control API at the chosen server or socket.
func (p *program) client() *api.Client {
	if p.over != nil {
		return p.over
	}
	socket := p.socket
	if socket == "" {
		socket = os.Getenv("IMPRINT_SOCKET")
	}
	if socket == "" {
		socket = daemon.DefaultSocket()
	}
	return api.NewUnix(socket)
}

// report prints err as one sentence and its hint, and returns the exit code.
func (p *program) report(err error) int {
	if err == nil {
		return exitOK
	}
	if errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	fmt.Fprintf(p.err, "imprint: %s\n", err)
	if hint := imprint.HintOf(err); hint != "" {
		fmt.Fprintf(p.err, "  hint: %s\n", hint)
	}
	return exitCode(err)
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func usagef(c *cobra.Command, format string, args ...any) error {
	return &usageError{imprint.Errorf(imprint.Invalid, "run", `"`+c.CommandPath()+`"`, format, args...).
		WithHint("see: %s --help", c.CommandPath())}
}

// Unwrap lets the hint be found.
func (u *usageError) Unwrap() error { return u.error }

// fileError says why the file at path could not be used. Kinds: Exists, NotFound,
// Denied, Exhausted, and Invalid for a directory; Unavailable for the rest.
func fileError(op, path string, err error) *imprint.Error {
	kind := imprint.Unavailable
	switch {
	case errors.Is(err, fs.ErrExist):
		kind = imprint.Exists
	case errors.Is(err, fs.ErrNotExist):
		kind = imprint.NotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		kind = imprint.Denied
	case errors.Is(err, syscall.EISDIR):
		kind = imprint.Invalid
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind = imprint.Exhausted
	}
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err // without the path, which is said already
	}
	return imprint.Errorf(kind, op, path, "%w", err)
}

// exactArgs accepts exactly the arguments that names lists.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef(c, "it needs %s", strings.Join(names[len(args):], " and "))
		case len(args) > len(names):
			return usagef(c, "unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// noArgs refuses arguments.
func noArgs(c *cobra.Command, args []string) error { return exactArgs()(c, args) }

// atMostOne accepts one argument or none.
func atMostOne(c *cobra.Command, args []string) error {
	return exactArgs()(c, args[min(1, len(args)):])
}

// oneOrTwo accepts first, and second after it or nothing.
func oneOrTwo(first, second string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < 2 {
			return exactArgs(first)(c, args)
		}
		return exactArgs(first, second)(c, args)
	}
}

// oneOrMore accepts any number of what but none.
func oneOrMore(what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error { return exactArgs(what)(c, args[:min(1, len(args))]) }
}

func (p *program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this program", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(p.out, version())
			return err
		},
	}
}

// version is what the go command knows of this build: a tag, or the commit.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(unknown)"
	}
	return info.Main.Version
}
