package cli

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
	"imprint/internal/dialect"
	"imprint/internal/media"
)

// mediaOptions are the flags of "imprint media".
type mediaOptions struct {
	carrier, dialect, out, ttl, appendTo string
	partition                            string // the disk that gets one
	adminPassword                        string
	userPasswords                        map[string]string // parameters, by user
	mergeVendor                          bool
	attended                             bool  // it is for a run, which takes it away
	size                                 int64 // MiB
}

// bytes is the size in bytes. One beyond counting stays wrong.
func (o *mediaOptions) bytes() int64 { return max(-1, min(o.size, math.MaxInt64>>20)) << 20 }

func (p *program) mediaCommand() *cobra.Command {
	var o mediaOptions
	c := group(&cobra.Command{
		Use:   "media NAME --dialect DIALECT {--out FILE | --partition DISK}",
		Short: "Write what a machine reads at its first boot as a CD image, disk, partition, floppy, initrd or firmware strings",
		Long: `Write the instance's configuration to FILE (mode 0600), in the shape that the guest's
software expects, on a medium that it finds. "imprint media list" says what fits what.

Only what everybody who can read the medium may read is put there: private and secret
parameters never are, and what was left out is named. A dialect with a payload has a
one-time token in it, which replaces an earlier one, is bound to the first key that
presents it, and is spent when that machine confirms.

FILE must not exist, and is there only when it is whole. The carriers fw-cfg and esp
are directories.

DISK is a raw disk image or a block device that has a GUID partition table or a master
boot record, and that nobody uses. It gets one more partition, at the end of its last gap
with room; what the others hold stays as it is. If anything interrupts that, the disk has
its partitions as before, or the new one as well. "imprint media remove-partition" takes it
away again.`,
		Example: "  imprint media web-1 --dialect openstack --out web-1.iso\n" +
			"  imprint media web-1 --dialect openstack --partition /var/lib/images/web-1.raw\n" +
			"  imprint media web-1 --dialect nocloud --carrier fat-mbr --out web-1.img\n" +
			"  imprint media win-1 --dialect unattend --carrier floppy --out win-1.flp\n" +
			"  imprint media web-1 --dialect native --carrier initrd --append-to initrd.img --out web-1-initrd.img\n" +
			"  imprint media web-1 --dialect native --carrier fw-cfg --out web-1.fwcfg",
	})
	c.Args, c.ValidArgsFunction = exactArgs("an instance"), p.completeInstances
	c.RunE = func(c *cobra.Command, args []string) error {
		switch {
		case o.partition != "":
			return p.addPartition(c.Context(), args[0], &o)
		case o.out == "":
			return usagef(c, "it needs --out FILE or --partition DISK")
		}
		return p.media(c.Context(), args[0], &o)
	}
	f := c.Flags()
	carriers, dialects := carrierNames(), dialectNames()
	f.StringVar(&o.carrier, "carrier", "iso", "what to write: "+strings.Join(carriers, ", "))
	f.StringVar(&o.dialect, "dialect", "", "for whom: "+strings.Join(dialects, ", "))
	f.StringVar(&o.out, "out", "", "the `file` to write, or - for standard output")
	f.StringVar(&o.ttl, "ttl", "", "how long the one-time token may be used, like 36h")
	f.StringVar(&o.partition, "partition", "", "the `disk` to add a partition to, instead of writing a file")
	f.Int64Var(&o.size, "size", 0, "`MiB` of a disk (default the smallest that holds it, from 16) or partition (default 16, and 17 on sectors of 4096 bytes)")
	f.StringVar(&o.appendTo, "append-to", "", "an initial RAM disk, a `file` that FILE begins with; for the carrier initrd")
	f.BoolVar(&o.mergeVendor, "merge-vendor-data", false, "put vendor data into the user data, for cloud-init before 0.7.6 and for altcloud")
	f.StringVar(&o.adminPassword, "admin-password", "", "the public `parameter` that becomes the administrator's password; for unattend and sysprep")
	f.StringToStringVar(&o.userPasswords, "user-password", nil, "`USER=PARAMETER` makes that public parameter the password of a user; for unattend")
	f.Lookup("user-password").DefValue = "" // which is not worth a word
	c.MarkFlagRequired("dialect")
	for _, whole := range []string{"out", "carrier", "append-to"} {
		c.MarkFlagsMutuallyExclusive(whole, "partition")
	}
	c.MarkFlagFilename("append-to")
	c.MarkFlagFilename("partition")
	c.RegisterFlagCompletionFunc("carrier", completeCarriers(&o.dialect, carriers))
	c.RegisterFlagCompletionFunc("dialect", cobra.FixedCompletions(dialects, cobra.ShellCompDirectiveNoFileComp))
	c.AddCommand(p.mediaListCommand(), p.mediaInspectCommand(), p.mediaBlankCommand(), p.mediaRemovePartitionCommand(), p.mediaForgetCommand())
	return c
}

// completeCarriers offers those of the carriers that a dialect fits, if one was named.
func completeCarriers(named *string, carriers []string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		drive, err := dialect.DriveOf(*named)
		var fit []string
		for _, c := range media.Carriers() {
			if slices.Contains(carriers, c.Name) && (err != nil || drive.Fits(c.Form)) {
				fit = append(fit, c.Name)
			}
		}
		return fit, cobra.ShellCompDirectiveNoFileComp
	}
}

func carrierNames() (names []string) {
	for _, m := range media.Carriers() {
		if m.Kind != media.Added {
			names = append(names, m.Name)
		}
	}
	return names
}

func dialectNames() (names []string) {
	for _, d := range dialect.Drives() {
		names = append(names, d.Name)
	}
	return names
}

// driveOn returns the dialect called name, if it can be put on a carrier of a form.
func driveOn(name string, form dialect.Form, carrier string) (dialect.Drive, error) {
	drive, err := dialect.DriveOf(name)
	if err == nil && !drive.Fits(form) {
		err = imprint.Errorf(imprint.Invalid, "put", drive.Name+" on "+carrier, "nothing would look for it there").
			WithHint("see what fits: imprint media list")
	}
	return drive, err
}

func (p *program) media(ctx context.Context, ref string, o *mediaOptions) error {
	carrier, err := media.CarrierOf(o.carrier)
	if err != nil {
		return err
	}
	if carrier.Kind == media.Added {
		return imprint.Errorf(imprint.Invalid, "write", o.out, "a %s is no file of its own", carrier.Name).WithHint("name the disk that gets one: --partition DISK")
	}
	if err := carrier.CheckSize(o.bytes()); err != nil {
		return err
	}
	m, err := p.writeMedium(ctx, ref, carrier, o)
	if err != nil {
		return err
	}
	if o.out != "-" {
		fmt.Fprintf(p.out, "%s of %s on %s written to %s%s\n", o.dialect, ref, o.carrier, o.out, withToken(m))
	}
	p.omitted(o.dialect, m)
	return nil
}

// maxInitrd is how large an initial RAM disk may be that something is appended to, in
// bytes.
const maxInitrd = 1 << 30

// writeMedium has the server give a medium out, and writes it where o says. What can
// be checked is before that, so that no token is made for nobody.
func (p *program) writeMedium(ctx context.Context, ref string, carrier media.Carrier, o *mediaOptions) (*api.Medium, error) {
	var before []byte
	var err error
	if o.appendTo != "" {
		if carrier.Form != dialect.Initrd {
			return nil, imprint.Errorf(imprint.Invalid, "append to", o.appendTo, "the carrier %s is none to append; initrd is", carrier.Name)
		}
		if before, err = readFile(o.appendTo, maxInitrd); err != nil {
			return nil, err
		}
	}
	out, err := p.mediumOut(carrier, o.out)
	if err != nil {
		return nil, err
	}
	defer out.discard()
	m, err := p.medium(ctx, ref, carrier.Name, o)
	if err != nil {
		return nil, err
	}
	if err := out.write(volumeOf(m), o.bytes(), before); err != nil {
		if out.stdout == nil { // else some of it may be wherever standard output leads
			state, detail := out.unwritten(err)
			p.report(p.settleMedium(ctx, ref, m.Number, state, detail))
		}
		return nil, err
	}
	return m, nil
}

// medium asks for what the medium holds. That makes its token, so it comes last.
func (p *program) medium(ctx context.Context, ref, carrier string, o *mediaOptions) (*api.Medium, error) {
	request := api.MediumRequest{
		Dialect: o.dialect, Carrier: carrier, MergeVendor: o.mergeVendor, AdminPassword: o.adminPassword, UserPasswords: o.userPasswords, Attended: o.attended,
	}
	if o.ttl != "" {
		life, err := imprint.ParseDuration(o.ttl)
		if err != nil {
			return nil, err
		}
		request.TTL = life
	}
	client := p.client()
	defer client.Close()
	return client.Medium(ctx, ref, request)
}

func volumeOf(m *api.Medium) *media.Volume {
	return &media.Volume{Label: m.Label, Time: m.Time, Files: m.FileBytes()}
}

// withToken says whether there is one, behind what was done.
func withToken(m *api.Medium) string {
	if m.Token {
		return ", with a one-time token"
	}
	return ""
}

// omitted says what is not on the medium, and why.
func (p *program) omitted(dialect string, m *api.Medium) {
	if len(m.Omitted) > 0 {
		fmt.Fprintf(p.err, "left out, because not all who can read a medium may read it: %s\n", strings.Join(m.Omitted, ", "))
	}
	if len(m.Unsupported) > 0 {
		fmt.Fprintf(p.err, "left out, because %s has no place for it: %s\n", dialect, strings.Join(m.Unsupported, ", "))
	}
}
