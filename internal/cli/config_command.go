package cli

import (
	"cmp"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"imprint/internal/daemon"
)

func (p *program) configCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "config",
		Short: "Print or check the server's configuration",
	})
	c.AddCommand(
		&cobra.Command{
			Use:   "example",
			Short: "Print a configuration file that shows every field and its default",
			Args:  noArgs,
			RunE: func(*cobra.Command, []string) error {
				_, err := io.WriteString(p.out, daemon.ExampleConfig)
				return err
			},
		},
		&cobra.Command{
			Use:   "check FILE",
			Short: "Check a configuration file without starting anything",
			Args:  exactArgs("a configuration file"),
			RunE: func(_ *cobra.Command, args []string) error {
				c, err := daemon.ReadConfig(args[0])
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
					row(w, "name", s.Name)
					row(w, "data", s.Data)
					row(w, "run", s.Run)
					row(w, "socket", s.Socket)
					rowsOfOthers(w, s.Dial, s.Adopt)
					row(w, "check-in", orNone(s.CheckIn.Listen))
					row(w, "neutron", orNone(s.Neutron.Listen))
					row(w, "operator", orNone(s.Operator))
					if len(s.Store.Endpoints) == 0 {
						row(w, "store", "embedded")
					} else {
						row(w, "store", fmt.Sprint(s.Store.Endpoints))
					}
					for _, t := range s.Tenants {
						row(w, "tenant "+string(t.Name), fmt.Sprint(t.Domains, " ", t.Networks))
					}
				})
			},
		},
	)
	return c
}

// rowsOfOthers shows the sockets and the interfaces that others make.
func rowsOfOthers(w io.Writer, dial []daemon.DialConfig, adopt []daemon.AdoptConfig) {
	for _, d := range dial {
		row(w, "dial "+d.Channel, d.Socket+" for "+cmp.Or(d.Instance, "every instance"))
	}
	for _, a := range adopt {
		row(w, "adopt", a.Interface+" for "+cmp.Or(a.Instance, "every instance"))
	}
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
