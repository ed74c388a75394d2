// Package cli is imprint's command line: configuration, subcommands and all
// wiring. It is the only package that knows every other.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
	"imprint/internal/daemon"
)

// program is what all subcommands share: the streams and the global flags.
type program struct {
	in       io.Reader
	out, err io.Writer
	socket   string
	output   format
}

// Main runs the command line in args and returns the exit code: see [exitCode].
func Main(args []string, in io.Reader, out, err io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p := &program{in: in, out: out, err: err, output: asTable}
	root := p.root()
	root.SetArgs(args)
	return p.report(root.ExecuteContext(ctx))
}

// root returns the whole command tree.
func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "imprint",
		Short: "Give every new machine its identity, configuration and secrets",
		Long: `imprint gives every new machine its identity, configuration and secrets at
first boot, over the most trustworthy channel that its platform has.

Run "imprint serve" on one machine, describe an instance in a file, create it
with "imprint create -f FILE" and boot it.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version(),
	}
	root.SetIn(p.in)
	root.SetOut(p.out)
	root.SetErr(p.err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef(c, "%v", err)
	})
	flags := root.PersistentFlags()
	flags.StringVar(&p.socket, "socket", "", "control `socket` of the server (default $IMPRINT_SOCKET, else "+daemon.DefaultSocket()+")")
	flags.VarP(&p.output, "output", "o", "how to print: table, json or yaml")
	root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddGroup(
		&cobra.Group{ID: "machines", Title: "Machines:"},
		&cobra.Group{ID: "trust", Title: "Certificates:"},
		&cobra.Group{ID: "server", Title: "Server:"},
	)
	root.SetHelpCommandGroupID("server")
	root.SetCompletionCommandGroupID("server")
	for group, commands := range map[string][]*cobra.Command{
		"machines": {p.createCommand(), p.getCommand(), p.describeCommand(), p.watchCommand(), p.bootCommand(),
			p.rebirthCommand(), p.deleteCommand(), p.setCommand(), p.payloadCommand(), p.pipeCommand()},
		"trust":  {p.approveCommand(), p.revokeCommand(), p.caCommand(), p.logCommand()},
		"server": {p.serveCommand(), p.signCommand(), p.sealCommand(), p.doctorCommand(), p.configCommand()},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	return root
}

// client returns a client of the control API at the chosen socket.
func (p *program) client() *api.Client {
	socket := p.socket
	if socket == "" {
		socket = os.Getenv("IMPRINT_SOCKET")
	}
	if socket == "" {
		socket = daemon.DefaultSocket()
	}
	return api.NewUnix(socket)
}

// exitCode maps an error to the program's exit status. The codes are documented
// in docs/reference and never change meaning.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	var u *usageError
	if errors.As(err, &u) {
		return 2
	}
	switch imprint.KindOf(err) {
	case imprint.Invalid:
		return 3
	case imprint.NotFound:
		return 4
	case imprint.Exists, imprint.Conflict:
		return 5
	case imprint.Denied, imprint.Unauthorized:
		return 6
	case imprint.Unavailable:
		return 7
	case imprint.Exhausted:
		return 8
	case imprint.Contested:
		return 9
	case imprint.Pending:
		return 10
	}
	return 1
}

// report prints err as one sentence and its hint, and returns the exit code.
func (p *program) report(err error) int {
	if err == nil {
		return 0
	}
	if errors.Is(err, context.Canceled) {
		return 130 // as after an interrupt
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
var noArgs = exactArgs()

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(unknown)"
	}
	return info.Main.Version
}
