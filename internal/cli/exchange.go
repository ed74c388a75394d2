package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"imprint"
)

func (p *program) payloadCommand() *cobra.Command {
	var out string
	var ttl string
	c := &cobra.Command{
		Use:   "payload NAME --out FILE",
		Short: "Write a payload with a one-time token, to be carried to the machine by hand",
		Long: `Write the instance's payload with a fresh one-time token to FILE (mode 0600).
Put it on a volume labelled IMPRINT as payload.json, or into the machine as
/etc/imprint/payload.json. The token is bound to the first key that presents it
and spent when that machine confirms. Only the latest token counts.`,
		Args:              exactArgs("an instance"),
		ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			var life imprint.Duration
			if ttl != "" {
				var err error
				if life, err = imprint.ParseDuration(ttl); err != nil {
					return err
				}
			}
			client := p.client()
			defer client.Close()
			if err := p.writePayload(out, func() (imprint.Secret, error) { return client.Payload(c.Context(), args[0], life) }); err != nil || out == "-" {
				return err
			}
			fmt.Fprintf(p.out, "payload of %s written to %s\n", args[0], out)
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "", "the `file` to write, or - for standard output")
	c.Flags().StringVar(&ttl, "ttl", "", "how long the token may be used, like 36h")
	c.MarkFlagRequired("out")
	return c
}
