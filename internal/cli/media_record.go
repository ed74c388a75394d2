package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
	"imprint/internal/media"
)

// settleTime is how long a report about a medium may take, also when the program
// has been asked to end.
const settleTime = 10 * time.Second

// maxDetail is how many characters of a report's detail a server takes. It remembers less.
const maxDetail = 1024

// settleMedium reports what became of a medium. If that fails the medium stays on
// record as it was, which the error tells.
func (p *program) settleMedium(ctx context.Context, ref string, number uint32, state imprint.MediumState, detail string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	client := p.client()
	defer client.Close()
	if text := []rune(detail); len(text) > maxDetail {
		detail = string(text[:maxDetail])
	}
	if err := client.SettleMedium(ctx, ref, number, api.MediumOutcome{State: state, Detail: detail}); err != nil {
		return imprint.Errorf(imprint.KindOf(err), "report", fmt.Sprintf("medium %d of %s", number, ref), "it is %s (%s), and that is not on record: %w", state, detail, err).
			WithHint("when the server answers: imprint media forget %s %d --because TEXT", ref, number)
	}
	return nil
}

// over reports whether a medium of a generation has nothing to do any more.
func over(i *api.Instance, gen imprint.Generation) bool {
	return i.Generation != gen || i.Enrolment.State.Enrolled() || !i.Enrolment.State.Open()
}

// onRecord returns whose medium f is, whose content is c, and which. ref is "" if what
// is on it is to tell. is tells whether it is as imprint writes a carrier.
func onRecord(ctx context.Context, client *api.Client, ref string, c *media.Contents, f io.ReaderAt, path string, is carrierTest) (*api.Instance, *imprint.Medium, error) {
	if payload := reportOf(c).Payload; ref == "" && payload != nil {
		ref = string(payload.Instance)
	}
	if ref == "" {
		return nil, nil, imprint.Errorf(imprint.Invalid, "blank", path, "no payload on it says whose it is").WithHint("name the instance with --instance")
	}
	i, err := client.Get(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	m, err := recorded(i, c, f, path, is)
	return i, m, err
}

// recorded returns which of i's media f is, whose content is c: the one that is
// still out, or else any, for there may be copies. It fails with kind
// [imprint.Conflict] if f is none of them, or not that alone.
func recorded(i *api.Instance, c *media.Contents, f io.ReaderAt, path string, is carrierTest) (*imprint.Medium, error) {
	refuse := func(format string, args ...any) *imprint.Error {
		return imprint.Errorf(imprint.Conflict, "blank", path, format, args...)
	}
	digest := c.Digest()
	var found, elsewhere *imprint.Medium
	for n := range i.Media {
		m := &i.Media[n]
		switch {
		case m.Digest != digest:
		case !is(m.Carrier, c):
			elsewhere = m
		case found == nil || found.State == imprint.MediumTaken:
			found = m
		}
	}
	switch {
	case found == nil && elsewhere != nil && elsewhere.Carrier == "partition" && c.Table != media.NoTable:
		return nil, refuse("it is a disk, and medium %d of %s is a partition of it", elsewhere.Number, i.Ref).
			WithHint("imprint media remove-partition %s --label %s --instance %s", path, c.Label, i.Ref)
	case found == nil && elsewhere != nil:
		return nil, refuse("its files are those of medium %d of %s, but it is not as imprint writes %s, and may hold more", elsewhere.Number, i.Ref, elsewhere.Carrier).
			WithHint("remove it by hand, and then: imprint media forget %s %d --because TEXT", i.Ref, elsewhere.Number)
	case found == nil:
		return nil, refuse("it is none of the media of %s on record", i.Ref).
			WithHint("imprint media inspect %s shows what it is, and imprint describe %s what is out", path, i.Ref)
	case c.Partitions > 1:
		return nil, refuse("it has %d partitions, of which imprint wrote one", c.Partitions).
			WithHint("remove that partition, and then: imprint media forget %s %d --because TEXT", i.Ref, found.Number)
	case c.Format == "cpio" && c.Start > 0 && !isInitrd(f):
		return nil, refuse("what is before the archive is no initial RAM disk").
			WithHint("remove it by hand, and then: imprint media forget %s %d --because TEXT", i.Ref, found.Number)
	}
	return found, nil
}

// carrierTest reports whether what was found is as imprint writes a carrier.
type carrierTest func(name string, c *media.Contents) bool

// isWhole is for what is a medium of its own.
func isWhole(name string, c *media.Contents) bool {
	carrier, err := media.CarrierOf(name)
	return err == nil && carrier.Kind != media.Added && carrier.Is(c)
}

// isPartition is for what is in a partition beside others, of which c is all.
func isPartition(name string, c *media.Contents) bool {
	carrier, err := media.CarrierOf(name)
	return err == nil && carrier.Kind == media.Added && carrier.Is(c)
}

// isInitrd reports whether f begins as an initial RAM disk does, in any of the
// forms that Linux knows (lib/decompress.c, init/initramfs.c).
func isInitrd(f io.ReaderAt) bool {
	head := make([]byte, 6)
	if _, err := f.ReadAt(head, 0); err != nil {
		return false
	}
	for _, magic := range []string{"070701", "070702", "\x1f\x8b", "\x1f\x9e", "BZh", "\x5d\x00\x00", "\xfd7zXZ\x00", "\x89LZO", "\x02\x21\x4c\x18", "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	return false
}

// maxWhy is how long a reason may be, in bytes, for which the timeline has room.
const maxWhy = 1000

func (p *program) mediaForgetCommand() *cobra.Command {
	var why string
	c := &cobra.Command{
		Use:   "forget NAME NUMBER --because TEXT",
		Short: "Take a medium off the record that is no more",
		Long: `Say what became of a medium that imprint cannot take away, because it was burnt and
broken, deleted, or never attached. NUMBER is as in "imprint describe". Nothing is
checked: what is said is put on the timeline, with who said it.`,
		Example:           "  imprint media forget web-1 2 --because shredded",
		Args:              exactArgs("an instance", "the number of a medium"),
		ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			number, err := strconv.ParseUint(args[1], 10, 32)
			if err != nil {
				return usagef(c, "%q is not the number of a medium", args[1])
			}
			if why = strings.TrimSpace(why); why == "" || len(why) > maxWhy {
				return usagef(c, "--because has %d bytes, from 1 to %d are possible", len(why), maxWhy)
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
