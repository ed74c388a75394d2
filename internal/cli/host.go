package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
	"imprint/internal/daemon"
	"imprint/internal/durable"
	"imprint/internal/hostapi"
)

func (p *program) hostCommand() *cobra.Command {
	var file, join, data, run, connect, logLevel string
	c := group(&cobra.Command{
		Use:   "host",
		Short: "Serve the machines of this hypervisor for a server elsewhere",
		Long: `Serve the machines that are placed on this hypervisor, over their serial and
virtio-serial ports, for a server on another machine. The first start needs the file
that "imprint host add" wrote on the server; the token in it is then spent.

The machines keep being served while the server is away: from a sealed copy, with
their reports kept on the disk until the server has them. Only enrolment waits.`,
		Example: "  imprint host --join hv2.json\n  imprint host --config /etc/imprint/host.yaml",
	})
	c.RunE = func(c *cobra.Command, _ []string) error {
		config := daemon.DefaultHostConfig()
		if file != "" {
			var err error
			if config, err = daemon.ReadHostConfig(file); err != nil {
				return err
			}
		}
		config.Data, config.Run, config.Connect = cmp.Or(data, config.Data), cmp.Or(run, config.Run), cmp.Or(connect, config.Connect)
		settings, err := config.Check()
		if err != nil {
			return err
		}
		logger, err := newLogger(p.err, logLevel)
		if err != nil {
			return usagef(c, "%v", err)
		}
		return daemon.RunHost(c.Context(), settings, join, daemon.Options{Version: version(), Logger: logger})
	}
	f := c.Flags()
	f.StringVar(&file, "config", "", "configuration `file`; see imprint host config example")
	f.StringVar(&join, "join", "", "the `file` that imprint host add wrote; needed once")
	f.StringVar(&data, "data", "", "`directory` of the identity, the copy and the queue")
	f.StringVar(&run, "run", "", "`directory` of the sockets that machines connect to")
	f.StringVar(&connect, "connect", "", "`address` of the server's check-in endpoint, if not where its name says")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	c.MarkFlagFilename("config", "yaml", "yml")
	c.AddCommand(p.hostAddCommand(), p.hostTokenCommand(), p.hostConfigCommand())
	return c
}

func (p *program) hostAddCommand() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "add NAME --out FILE",
		Short: "Add a hypervisor and write the file with which it joins, once",
		Long: `Add a hypervisor called NAME, a DNS name below the server's hosts.domains, and write
the file with which it joins to FILE (mode 0600). Instances are placed on it with
"host: NAME" in their manifest. The file holds a one-time token: whoever uses it first
is that hypervisor, and if another key turns up with it both are refused.`,
		Example: "  imprint host add hv2.example.net --out hv2.json",
		Args:    exactArgs("the hypervisor's name"),
		RunE: func(c *cobra.Command, args []string) error {
			client := p.client()
			defer client.Close()
			host := imprint.HostName(args[0])
			return p.joinFile(c.Context(), client, host, out, func() error {
				_, err := client.Create(c.Context(), hostapi.SpecOf(host), nil, false)
				switch imprint.KindOf(err) {
				case imprint.Exists:
					return imprint.Errorf(imprint.Exists, "add", string(host), "there is a hypervisor of that name").
						WithHint("for another join file: imprint host token %s", host)
				case imprint.NotFound:
					return imprint.Errorf(imprint.NotFound, "add", string(host), "the server has no hypervisors").
						WithHint("set hosts.domains in the server's configuration and restart it")
				}
				return err
			})
		},
	}
	c.Flags().StringVar(&out, "out", "", "the `file` to write, or - for standard output")
	c.MarkFlagRequired("out")
	return c
}

func (p *program) hostTokenCommand() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "token NAME --out FILE",
		Short: "Write another join file for a hypervisor that has not joined yet",
		Long: `Write another join file for a hypervisor that has not joined yet; the earlier one
counts no more. A hypervisor that joined before and lost its key starts a new life
first: imprint rebirth hosts/NAME, with hyphens for the dots in its name.`,
		Args: exactArgs("the hypervisor's name"),
		RunE: func(c *cobra.Command, args []string) error {
			client := p.client()
			defer client.Close()
			return p.joinFile(c.Context(), client, imprint.HostName(args[0]), out, func() error { return nil })
		},
	}
	c.Flags().StringVar(&out, "out", "", "the `file` to write, or - for standard output")
	c.MarkFlagRequired("out")
	return c
}

// joinFile writes a hypervisor's join file to out, after prepare has succeeded.
func (p *program) joinFile(ctx context.Context, client *api.Client, host imprint.HostName, out string, prepare func() error) error {
	if err := imprint.CheckDNSName("host name", string(host)); err != nil {
		return err
	}
	if err := imprint.CheckLabel("host name with hyphens for dots", string(hostapi.NameOf(host))); err != nil {
		return err
	}
	ref := string(hostapi.Tenant) + "/" + string(hostapi.NameOf(host))
	err := p.writePayload(out, func() (imprint.Secret, error) {
		if err := prepare(); err != nil {
			return imprint.Secret{}, err
		}
		payload, err := client.Payload(ctx, ref, 0)
		if imprint.KindOf(err) == imprint.Conflict && err != nil {
			err = imprint.Errorf(imprint.Conflict, "let join", string(host), "%w", err).
				WithHint("if it lost its key, start its next life: imprint rebirth %s", ref)
		}
		return payload, err
	})
	if err == nil && out != "-" {
		fmt.Fprintf(p.out, "%s joins with %s: imprint host --join %s\n", host, out, out)
	}
	return err
}

// writePayload writes what make returns to the new file out, or to standard output
// if that is "-". The file comes first, so that no token is made for nobody.
func (p *program) writePayload(out string, make func() (imprint.Secret, error)) error {
	// The file comes first, so that no token is made for nobody.
	var f *durable.File
	if out != "-" {
		var err error
		if f, err = durable.Create(out, 0o600); err != nil {
			return fileError("write", out, err).WithHint("name a file that does not exist yet, in a directory that you may write")
		}
		defer f.Discard()
	}
	payload, err := make()
	if err != nil {
		return err
	}
	if f == nil {
		_, err := p.out.Write(payload.Reveal())
		return err
	}
	if err := commit(f, payload.Reveal()); err != nil {
		return fileError("write", out, err)
	}
	return nil
}

func (p *program) hostConfigCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "config",
		Short: "Print or check the configuration of imprint host",
	})
	c.AddCommand(
		&cobra.Command{
			Use:   "example",
			Short: "Print a configuration file of imprint host that shows every field and its default",
			Args:  noArgs,
			RunE: func(*cobra.Command, []string) error {
				_, err := io.WriteString(p.out, daemon.ExampleHostConfig)
				return err
			},
		},
		&cobra.Command{
			Use:   "check FILE",
			Short: "Check a configuration file of imprint host without starting anything",
			Args:  exactArgs("a configuration file"),
			RunE: func(_ *cobra.Command, args []string) error {
				c, err := daemon.ReadHostConfig(args[0])
				if err != nil {
					return err
				}
				s, err := c.Check()
				if err != nil {
					return err
				}
				named, err := s.Named()
				if err != nil {
					return err
				}
				return p.print(named, func(w io.Writer) {
					row(w, "data", s.Data)
					row(w, "run", s.Run)
					row(w, "guestOwner", orNone(s.GuestOwner))
					row(w, "connect", orNone(s.Connect))
					row(w, "neutron", orNone(s.Neutron.Listen))
					rowsOfOthers(w, s.Dial, s.Adopt)
				})
			},
		},
	)
	return c
}
