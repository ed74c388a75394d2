package cli

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
)

func (p *program) mediaForgetCommand() *cobra.Command {
	var why string
	c := &cobra.Command{
		Use:   "forget NAME NUMBER --because TEXT",
		Short: "Take a medium off the record that is no more",
		Long: `Say what became of a medium that imprint cannot take away, because it was burnt and
broken, deleted, or never attached. NUMBER is as in "imprint describe". Nothing is
checked: what is said is put on the timeline, with who said it.`,
		Example:           "  imprint media forget web-1 2 --because 'the stick was shredded'",
		Args:              exactArgs("an instance", "the number of a medium"),
		ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			number, err := strconv.ParseUint(args[1], 10, 32)
			if err != nil {
				return usagef(c, "%q is not the number of a medium", args[1])
			}
			client := p.client()
			defer client.Close()
			outcome := api.MediumOutcome{State: imprint.MediumTaken, Detail: "unchecked: " + why}
			if err := client.SettleMedium(c.Context(), args[0], uint32(number), outcome); err != nil {
				return err
			}
			fmt.Fprintf(p.out, "medium %d of %s is off the record\n", number, args[0])
			return nil
		},
	}
	c.Flags().StringVar(&why, "because", "", "what became of it, for the timeline")
	c.MarkFlagRequired("because")
	return c
}
