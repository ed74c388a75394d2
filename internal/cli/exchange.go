package cli

import (
	"bytes"
	"fmt"
	"io"
	"unicode"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
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

func (p *program) pipeCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "pipe",
		Short: "Exchange messages with a machine over its channel",
	})
	c.AddCommand(
		&cobra.Command{
			Use: "send NAME", Short: "Queue standard input as one message for the machine",
			Args: exactArgs("an instance"), ValidArgsFunction: p.completeInstances,
			RunE: func(c *cobra.Command, args []string) error {
				message, err := io.ReadAll(io.LimitReader(p.in, api.MaxPipeMessage+1))
				if err != nil {
					return imprint.Errorf(imprint.Unavailable, "read", "message", "%w", err)
				}
				if len(message) == 0 {
					return imprint.Errorf(imprint.Invalid, "send message to", args[0], "it is empty").
						WithHint("write it to standard input: echo hello | imprint pipe send %s", args[0])
				}
				if len(message) > api.MaxPipeMessage {
					return imprint.Errorf(imprint.Exhausted, "send message to", args[0], "more than %d bytes", api.MaxPipeMessage).
						WithHint("send it in several messages")
				}
				client := p.client()
				defer client.Close()
				return client.SendPipe(c.Context(), args[0], message)
			},
		},
		&cobra.Command{
			Use: "receive NAME", Short: "Print the oldest message from the machine, if there is one",
			Args: exactArgs("an instance"), ValidArgsFunction: p.completeInstances,
			RunE: func(c *cobra.Command, args []string) error {
				client := p.client()
				defer client.Close()
				message, err := client.ReceivePipe(c.Context(), args[0])
				if err != nil {
					return err
				}
				if isTerminal(p.out) {
					message = harmless(message)
				}
				_, err = p.out.Write(message)
				return err
			},
		},
	)
	return c
}

// harmless replaces in a machine's message what a terminal would obey. Root of
// the machine is not root of the operator's terminal.
func harmless(message []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, message)
}
