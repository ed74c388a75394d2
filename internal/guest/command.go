package guest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"text/tabwriter"
	"time"

	"imprint"
)

// The exit codes of imprint-agent.
const (
	ExitOK          = 0
	ExitFailed      = 1 // something on this machine did not work
	ExitUsage       = 2 // the command line is wrong
	ExitNoPayload   = 3 // no source had a payload, or what was asked for does not exist
	ExitRefused     = 4 // imprint refused, or the payload is not for this machine
	ExitUnreachable = 5 // imprint could not be reached
	ExitUnusable    = 6 // a payload or certificate was found and is wrong
)

const usage = `imprint-agent gives this machine its identity.

  imprint-agent [run]       enrol, then stay and renew the certificate
  imprint-agent status      who this machine is, and what it holds
  imprint-agent param NAME  print the value of a parameter
  imprint-agent user-data   print the user data
  imprint-agent renew       renew the certificate now, if imprint finds it due
  imprint-agent version     print the version

Each command has -h. Exit codes: 0 done, 1 failed on this machine, 2 wrong usage,
3 nothing found, 4 refused, 5 imprint not reachable, 6 payload or certificate unusable.
`

// Command runs imprint-agent with the command line args, without the program's
// name, and returns its exit code. It returns soon after ctx ends.
func Command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	name := "run"
	if len(args) > 0 && len(args[0]) > 0 && args[0][0] != '-' {
		name, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("imprint-agent "+name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	c := command{stdout: stdout, stderr: stderr, args: args, flags: flags}
	flags.StringVar(&c.o.Root, "root", "", "put `DIR` before every path: prepare or inspect another system's files")
	var err error
	switch name {
	case "run":
		err = c.run(ctx)
	case "status":
		err = c.status()
	case "param":
		err = c.param(ctx)
	case "user-data":
		err = c.userData(ctx)
	case "renew":
		err = c.renew(ctx)
	case "version":
		fmt.Fprintln(stdout, version())
	case "help":
		fmt.Fprint(stdout, usage)
	default:
		fmt.Fprintf(stderr, "imprint-agent: there is no command %q\n\n%s", name, usage)
		return ExitUsage
	}
	switch {
	case err == nil:
		return ExitOK
	case errors.Is(err, flag.ErrHelp):
		return ExitOK
	case errors.Is(err, errUsage):
		return ExitUsage
	}
	console := NewConsole(stderr)
	console.Say("%v", err)
	if hint := imprint.HintOf(err); hint != "" {
		console.Say("%s", hint)
	}
	return exitCode(err)
}

func exitCode(err error) int {
	switch imprint.KindOf(err) {
	case imprint.NotFound:
		return ExitNoPayload
	case imprint.Denied, imprint.Unauthorized, imprint.Contested, imprint.Conflict:
		return ExitRefused
	case imprint.Unavailable, imprint.Pending:
		return ExitUnreachable
	case imprint.Invalid:
		return ExitUnusable
	}
	return ExitFailed
}

// errUsage is a mistake on the command line that the flag package has reported.
var errUsage = errors.New("wrong usage")

type command struct {
	args           []string
	flags          *flag.FlagSet
	stdout, stderr io.Writer
	o              Options
}

// parse reads the flags and exactly operands further arguments.
func (c *command) parse(operands int) error {
	if err := c.flags.Parse(c.args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if c.flags.NArg() != operands {
		fmt.Fprintf(c.stderr, "imprint-agent: %d arguments; %d expected\n\n%s", c.flags.NArg(), operands, usage)
		return errUsage
	}
	return nil
}

func (c *command) agentFlags() {
	c.flags.StringVar(&c.o.PayloadFile, "payload", "", "read the payload from `FILE` and look nowhere else")
	c.flags.BoolVar(&c.o.TrustCA, "trust-ca", true, "add the CA to those that every program on this machine trusts")
	c.flags.BoolVar(&c.o.TakeAway, "take-away", true, "overwrite the volume that the payload was on with zeros, if imprint made it, once the machine is enrolled")
	c.flags.BoolVar(&c.o.SSH, "ssh", true, "have the SSH host key certified too")
}

func (c *command) run(ctx context.Context) error {
	c.agentFlags()
	c.flags.DurationVar(&c.o.Wait, "wait", 10*time.Minute, "how long to look for a payload on a machine without identity")
	c.flags.BoolVar(&c.o.Once, "once", false, "end when the machine is enrolled")
	onConsole := c.flags.Bool("console", false, "say what happens on the system console too")
	if err := c.parse(0); err != nil {
		return err
	}
	out := []io.Writer{c.stderr}
	if *onConsole {
		if w, err := openConsole(); err == nil {
			defer w.Close()
			out = append(out, w)
		}
	}
	c.o.Enrolled = notifyReady
	return New(c.o, NewConsole(out...)).Run(ctx)
}

func (c *command) renew(ctx context.Context) error {
	c.agentFlags()
	if err := c.parse(0); err != nil {
		return err
	}
	serial, renewed, err := New(c.o, NewConsole(c.stderr)).Renew(ctx)
	if err != nil {
		return err
	}
	if !renewed {
		fmt.Fprintf(c.stdout, "certificate %s is not due for renewal yet\n", serial)
		return nil
	}
	fmt.Fprintf(c.stdout, "certificate %s\n", serial)
	return nil
}

func (c *command) param(ctx context.Context) error {
	live := c.flags.Bool("live", !keepsValues, "ask imprint instead of reading what the last boot fetched")
	c.flags.StringVar(&c.o.PayloadFile, "payload", "", "read the payload from `FILE` and look nowhere else")
	if err := c.parse(1); err != nil {
		return err
	}
	name := c.flags.Arg(0)
	if err := checkParamName(name); err != nil {
		return err
	}
	var value []byte
	if *live {
		secret, err := New(c.o, NewConsole(c.stderr)).OpenParam(ctx, name)
		if err != nil {
			return err
		}
		value = secret.Reveal()
	} else {
		var err error
		value, err = readFile(filepath.Join(Layout{c.o.Root}.Params(), name), imprint.MaxParamLen)
		if err != nil {
			return err
		}
	}
	_, err := c.stdout.Write(value)
	return err
}

func (c *command) userData(ctx context.Context) error {
	c.flags.StringVar(&c.o.PayloadFile, "payload", "", "read the payload from `FILE` and look nowhere else")
	if err := c.parse(0); err != nil {
		return err
	}
	data, err := New(c.o, NewConsole(c.stderr)).OpenUserData(ctx)
	if err != nil {
		return err
	}
	_, err = c.stdout.Write(data.Reveal())
	return err
}

func (c *command) status() error {
	if err := c.parse(0); err != nil {
		return err
	}
	a := New(c.o, NewConsole(c.stderr))
	rec, cred, err := a.current()
	if err != nil {
		return err
	}
	p, leaf, now := &rec.Payload, cred.leaf(), a.clock.now()
	verdict := "valid"
	if err := verify(cred.chain, p, cred.key, now); err != nil {
		verdict = err.Error()
	}
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("machine", "%s", p.Name)
	row("instance", "%s", p.Instance)
	row("tenant", "%s", p.Tenant)
	row("generation", "%d", p.Generation)
	row("payload from", "%s", rec.Source)
	row("key", "%s", keyID(cred.key))
	row("certificate", "%s, %s", cred.serial(), verdict)
	row("valid until", "%s", stamp(leaf.NotAfter))
	row("renewal about", "%s", stamp(renewAt(leaf, 0.5)))
	row("confirmed", "%t", rec.Confirmed == cred.serial())
	row("in use", "%t", rec.Applied == cred.serial())
	params, err := a.layout.loadIndex()
	if err != nil && imprint.KindOf(err) != imprint.NotFound {
		return err
	}
	for _, param := range params {
		state := "available"
		if !param.Available {
			state = "not available"
		}
		row("parameter", "%s, %s, %s", param.Name, param.Visibility, state)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if verdict != "valid" {
		return imprint.Errorf(imprint.Invalid, "check", "identity", "the certificate cannot be used").
			WithHint("imprint-agent run enrols again; its messages say what keeps it from that")
	}
	return nil
}

// openConsole opens the system console for writing.
func openConsole() (io.WriteCloser, error) {
	return os.OpenFile(consoleDevice, os.O_WRONLY|noControllingTTY, 0)
}

// version returns what the go command knows of this build: a tag, or the commit.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
