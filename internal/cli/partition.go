package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
	"imprint/internal/dialect"
	"imprint/internal/disk"
	"imprint/internal/media"
)

// addPartition adds a partition to the disk that o names. Everything about the disk
// is checked before the server is asked, so that no token is made for nobody.
func (p *program) addPartition(ctx context.Context, ref string, o *mediaOptions) error {
	drive, err := driveOn(o.dialect, dialect.Volume, "partition")
	if err != nil {
		return err
	}
	d, err := disk.Open(o.partition)
	if err != nil {
		return err
	}
	defer d.Close()
	place := media.Place{Size: o.bytes(), Sector: d.SectorSize()}
	if o.size == 0 {
		place.Size = place.MinPartition()
	}
	if err := place.Check(); err != nil {
		return err
	}
	part := disk.Partition{Name: drive.Label, Size: place.Size, ID: disk.NewID(), Type: place.Type()}
	slot, err := disk.Prepare(d, part)
	if err != nil {
		return onDisk(o.partition, err)
	}
	if d.Public() {
		return imprint.Errorf(imprint.Denied, "add to", o.partition, "every user of this machine may read it, and not everybody may read what a medium holds").
			WithHint("keep others out: chmod o= %s", o.partition)
	}
	place.Start = slot.Start
	m, err := p.medium(ctx, ref, "partition", o)
	if err != nil {
		return err
	}
	err = slot.Add(func(w io.Writer) error { return media.Partition(w, volumeOf(m), place) })
	if err != nil {
		state, detail := imprint.MediumLeft, "some of it may be on the disk, also in no partition: "+err.Error()
		if imprint.KindOf(err) == imprint.Conflict { // somebody else's table
			state, detail = imprint.MediumTaken, "it was never written"
		}
		p.report(p.settleMedium(ctx, ref, m.Number, state, detail))
		return onDisk(o.partition, err)
	}
	fmt.Fprintf(p.out, "%s of %s written to partition %d of %s, %d MiB from byte %d on, table %s%s\n",
		o.dialect, ref, slot.Number, o.partition, slot.Size>>20, slot.Start, slot.Scheme, withToken(m))
	p.omitted(o.dialect, m)
	return d.Tell(slot.Partition, true)
}

func (p *program) mediaRemovePartitionCommand() *cobra.Command {
	var label, ref string
	var labels []string
	for _, d := range dialect.Drives() {
		if d.Label != "" && !slices.Contains(labels, d.Label) {
			labels = append(labels, d.Label)
		}
	}
	c := &cobra.Command{
		Use:   "remove-partition DISK --label LABEL",
		Short: "Take a medium's partition away from a disk",
		Long: `Take the partition of a medium away from DISK, a raw disk image or a block device that
nobody uses: what it holds is overwritten with zeros, and its entry in the partition table
cleared. It is found by its name or its file system's label. If that is interrupted, run it
again. If it is on record as a medium that was given out, the server is told.`,
		Example: "  imprint media remove-partition /var/lib/images/web-1.raw --label config-2",
		Args:    exactArgs("a disk"),
		RunE: func(c *cobra.Command, args []string) error {
			if !slices.ContainsFunc(labels, func(l string) bool { return strings.EqualFold(l, label) }) {
				return imprint.Errorf(imprint.Invalid, "remove from", args[0], "no medium is called %q: they are called %s", label, strings.Join(labels, ", "))
			}
			d, err := disk.Open(args[0])
			if err != nil {
				return err
			}
			defer d.Close()
			settle, err := p.partitionOnRecord(c.Context(), d, label, ref, args[0])
			if err != nil {
				return err
			}
			part, err := disk.Remove(d, label)
			settle(part, err)
			if err != nil {
				return onDisk(args[0], err)
			}
			fmt.Fprintf(p.out, "partition %d removed from %s, and its %d MiB zeroed\n", part.Number, args[0], part.Size>>20)
			return d.Tell(part, false)
		},
	}
	c.Flags().StringVar(&ref, "instance", "", "whose medium it is, for the report; needed where it has no payload that says so")
	c.RegisterFlagCompletionFunc("instance", p.completeInstanceFlag)
	c.Flags().StringVar(&label, "label", "", "what it is called: "+strings.Join(labels, ", "))
	c.MarkFlagRequired("label")
	c.RegisterFlagCompletionFunc("label", cobra.FixedCompletions(labels, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// partitionOnRecord finds out which medium on record the partition is that is called
// label, and returns what reports how its removal ended. That it is on none is said and
// no error: it can be removed all the same. An instance ref that there is not is one.
func (p *program) partitionOnRecord(ctx context.Context, d *disk.File, label, ref, path string) (settle func(disk.Partition, error), err error) {
	part, err := disk.Find(d, label)
	if err != nil {
		return nil, onDisk(path, err)
	}
	client := p.client()
	defer client.Close()
	if ref != "" {
		if _, err := client.Get(ctx, ref); err != nil {
			return nil, err
		}
	}
	var i *api.Instance
	var m *imprint.Medium
	content := io.NewSectionReader(d, part.Start, part.Size)
	c, err := inspectOpened(content, part.Size, path)
	if err == nil {
		i, m, err = onRecord(ctx, client, ref, c, content, path, isPartition)
	}
	if err != nil {
		if e := (*imprint.Error)(nil); errors.As(err, &e) && e.Operand == path {
			err = e.Err
		}
		if empty, failed := disk.Blank(d, part); empty && failed == nil {
			err = errors.New("it holds nothing any more; if its machine overwrote it, that is on record")
		}
		fmt.Fprintf(p.err, "its removal will not be on record: %v\n  hint: put it there: imprint media forget %s NUMBER --because TEXT\n", err, cmp.Or(ref, "NAME"))
		return func(disk.Partition, error) {}, nil
	}
	return func(part disk.Partition, failed error) {
		state, detail := imprint.MediumTaken, fmt.Sprintf("partition %d removed and zeroed: %s", part.Number, path)
		if failed != nil {
			state, detail = imprint.MediumLeft, onDisk(path, failed).Error()
		}
		p.report(p.settleMedium(ctx, string(i.ID), m.Number, state, detail))
	}, nil
}

// onDisk lets an error about a disk name it, and one of the system say what it means.
func onDisk(path string, err error) error {
	var e *imprint.Error
	switch {
	case !errors.As(err, &e):
		return err
	case e.Kind == imprint.Unavailable && e.Err != nil:
		return fileError(e.Op, path, e.Err)
	case e.Operand != "disk":
		return err
	}
	named := *e
	named.Operand = path
	return &named
}
