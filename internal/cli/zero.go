package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/internal/job"
)

func (p *program) zeroCommand() *cobra.Command {
	o := &diskOptions{}
	task := &job.Zero{}
	c := &cobra.Command{
		Use:   "zero --disk DISK",
		Short: "Zero the unused space of a disk's filesystems and swap",
		Long: `Make what the filesystems (ext4, xfs, btrfs) and the swap space on DISK do not use read as
zeros, and read it back: what was deleted is not in copies of the disk, and copies are small.
Where the disk can give space back it does. It happens inside a helper VM; if it is
interrupted nothing is lost, and it can be run again.

What is left are remains inside of what is used: in directories, in a journal, and behind the
end of a file in its last block.`,
		Example: "  imprint zero --disk /var/lib/images/template.raw",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			out, err := p.inHelper(c.Context(), o, 0, job.Task{Name: "zero", Zero: task})
			if err != nil {
				return onDisk(o.disk, err)
			}
			if out.Zero == nil {
				return imprint.Errorf(imprint.Internal, "zero", o.disk, "the helper VM said nothing of what it did")
			}
			if len(out.Zero.Volumes) == 0 {
				return imprint.Errorf(imprint.NotFound, "zero", o.disk, "it has no filesystem and no swap space that imprint knows")
			}
			return p.print(out.Zero, func(w io.Writer) {
				fmt.Fprintln(w, "PARTITION\tTYPE\tUNUSED MIB\tRESULT")
				for _, v := range out.Zero.Volumes {
					result := "zeroed, and read back"
					switch {
					case v.Skipped != "":
						result = "left alone: " + v.Skipped
					case task.DryRun:
						result = "would be zeroed"
					}
					part := "-"
					if v.Partition != 0 {
						part = fmt.Sprint(v.Partition)
					}
					fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", part, v.Type, v.Bytes>>20, result)
				}
			})
		},
	}
	o.flags(c)
	c.Flags().BoolVar(&task.DryRun, "dry-run", false, "say how much is unused, and change nothing")
	return c
}
