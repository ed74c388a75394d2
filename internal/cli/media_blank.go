package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/internal/blank"
)

func (p *program) mediaBlankCommand() *cobra.Command {
	var ref string
	var remove bool
	c := &cobra.Command{
		Use:   "blank FILE",
		Short: "Overwrite a medium with zeros, and report that it was taken away",
		Long: `Overwrite a medium that "imprint media" wrote with zeros, read them back, and report to
the server that it was taken away. FILE may be a block device, of which all is overwritten.

Only a medium that is on record is: its files have the digest and its format is the
carrier's that the server gave out. What is mounted, attached to a loop device or
open in QEMU is refused. What is refused is left as it is.

What was copied from the medium is still there: a snapshot, a backup, another file. So may
be what a disk of flash memory has put aside.`,
		Example: "  imprint media blank web-1.iso --remove\n  imprint media blank /dev/sdb\n  imprint media blank config.iso --instance web-1",
		Args:    exactArgs("a file"),
		RunE: func(c *cobra.Command, args []string) error {
			return p.mediaBlank(c.Context(), args[0], ref, remove)
		},
	}
	c.Flags().StringVar(&ref, "instance", "", "whose medium it is; needed where it has no payload that says so")
	c.Flags().BoolVar(&remove, "remove", false, "remove the file afterwards")
	c.RegisterFlagCompletionFunc("instance", p.completeInstanceFlag)
	return c
}

func (p *program) mediaBlank(ctx context.Context, path, ref string, remove bool) error {
	f, err := blank.Open(path)
	if err != nil {
		return unblankable(err)
	}
	defer f.Close()
	if remove && f.Device() {
		return imprint.Errorf(imprint.Invalid, "blank", path, "it is a block device, which cannot be removed")
	}
	c, err := inspectOpened(f, f.Size(), path)
	if err != nil {
		return unblankable(err)
	}
	client := p.client()
	defer client.Close()
	i, m, err := onRecord(ctx, client, ref, c, f, path, isWhole)
	if err != nil {
		return err
	}
	ref = string(i.ID)
	how, err := "blanked and verified: "+path, f.Blank(ctx)
	if err != nil {
		p.report(p.settleMedium(ctx, ref, m.Number, imprint.MediumLeft, err.Error()))
		return err
	}
	if remove {
		if err = f.Remove(); err == nil {
			how = "blanked, verified and removed: " + path
		}
	}
	if reported := p.settleMedium(ctx, ref, m.Number, imprint.MediumTaken, how); reported != nil {
		return reported
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(p.out, "medium %d of %s %s\n", m.Number, i.Ref, how)
	return nil
}

// unblankable says what to do with a medium that is not of a kind to blank: directories,
// and what libvirt takes.
func unblankable(err error) error {
	var e *imprint.Error
	if !errors.As(err, &e) || e.Kind != imprint.Invalid || e.Hint != "" {
		return err
	}
	return e.WithHint("if imprint wrote it, remove it by hand, and then: imprint media forget NAME NUMBER --because TEXT")
}
