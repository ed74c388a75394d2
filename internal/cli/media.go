package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"

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
	mergeVendor                          bool
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
		if o.partition != "" {
			return p.addPartition(c.Context(), args[0], &o)
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
	c.MarkFlagRequired("dialect")
	c.MarkFlagsOneRequired("out", "partition")
	for _, whole := range []string{"out", "carrier", "append-to"} {
		c.MarkFlagsMutuallyExclusive(whole, "partition")
	}
	c.MarkFlagFilename("append-to")
	c.MarkFlagFilename("partition")
	c.RegisterFlagCompletionFunc("carrier", cobra.FixedCompletions(carriers, cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("dialect", cobra.FixedCompletions(dialects, cobra.ShellCompDirectiveNoFileComp))
	c.AddCommand(p.mediaListCommand(), p.mediaInspectCommand(), p.mediaBlankCommand(), p.mediaRemovePartitionCommand(), p.mediaForgetCommand())
	return c
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
	var before []byte
	if o.appendTo != "" {
		if carrier.Form != dialect.Initrd {
			return imprint.Errorf(imprint.Invalid, "append to", o.appendTo, "the carrier %s is none to append; initrd is", carrier.Name)
		}
		if before, err = readFile(o.appendTo, maxInitrd); err != nil {
			return err
		}
	}
	out, err := p.mediumOut(carrier, o.out)
	if err != nil {
		return err
	}
	defer out.discard()
	m, v, err := p.medium(ctx, ref, o.carrier, o)
	if err != nil {
		return err
	}
	if err := out.write(v, o.bytes(), before); err != nil {
		if o.out != "-" { // else some of it may be wherever standard output leads
			p.report(p.settleMedium(ctx, p.client(), ref, m.Number, out.unwritten(err)))
		}
		return err
	}
	if o.out != "-" {
		fmt.Fprintf(p.out, "%s of %s on %s written to %s%s\n", o.dialect, ref, o.carrier, o.out, withToken(m))
	}
	p.omitted(m)
	return nil
}

// medium asks for what the medium holds. That makes its token, so it comes last.
func (p *program) medium(ctx context.Context, ref, carrier string, o *mediaOptions) (*api.Medium, *media.Volume, error) {
	request := api.MediumRequest{Dialect: o.dialect, Carrier: carrier, MergeVendor: o.mergeVendor, AdminPassword: o.adminPassword}
	if o.ttl != "" {
		life, err := imprint.ParseDuration(o.ttl)
		if err != nil {
			return nil, nil, err
		}
		request.TTL = life
	}
	client := p.client()
	defer client.Close()
	m, err := client.Medium(ctx, ref, request)
	if err != nil {
		return nil, nil, err
	}
	return m, volumeOf(m), nil
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

func (p *program) omitted(m *api.Medium) {
	if len(m.Omitted) > 0 {
		fmt.Fprintf(p.err, "left out, because not all who can read a medium may read it: %s\n", strings.Join(m.Omitted, ", "))
	}
}

// settleTime is how long a report about a medium may take, also when the program
// has been asked to end.
const settleTime = 10 * time.Second

// settleMedium reports what became of a medium. If that fails the medium stays on
// record as it was, which the error tells.
func (p *program) settleMedium(ctx context.Context, client *api.Client, ref string, number uint32, outcome api.MediumOutcome) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	if err := client.SettleMedium(ctx, ref, number, outcome); err != nil {
		return imprint.Errorf(imprint.KindOf(err), "report", fmt.Sprintf("medium %d of %s", number, ref), "it is %s (%s), and that is not on record: %w", outcome.State, outcome.Detail, err).
			WithHint("when the server answers: imprint media forget %s %d --because TEXT", ref, number)
	}
	return nil
}

// maxInitrd is how large an initial RAM disk may be that something is appended to.
const maxInitrd = 1 << 30

// mediaFit is a dialect on a carrier, as "imprint media list" tells it.
type mediaFit struct {
	Dialect  string   `json:"dialect"`
	Carrier  string   `json:"carrier"`
	Label    string   `json:"label,omitempty"`
	Capacity int64    `json:"capacity"`
	Readers  []string `json:"readers"`
	Holds    []string `json:"holds"`
	Token    bool     `json:"token"`
	Summary  string   `json:"summary"`
}

func (p *program) mediaListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show which dialect fits which carrier, who can read it, and what it may hold",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var fits []mediaFit
			for _, d := range dialect.Drives() {
				for _, c := range media.Carriers() {
					if d.Fits(c.Form) {
						fits = append(fits, fitOf(d, c))
					}
				}
			}
			return p.print(fits, func(w io.Writer) {
				row(w, "DIALECT", "CARRIER", "LABEL", "CAPACITY", "READ BY", "MAY HOLD", "FOR")
				for _, f := range fits {
					holds := join(f.Holds)
					if f.Token {
						holds += ",token"
					}
					row(w, f.Dialect, f.Carrier, orNone(f.Label), f.Capacity, join(f.Readers), holds, f.Summary)
				}
			})
		},
	}
}

func fitOf(d dialect.Drive, c media.Carrier) mediaFit {
	readers := d.Readers | c.Readers
	f := mediaFit{Dialect: d.Name, Carrier: c.Name, Capacity: c.Capacity, Summary: d.Summary, Token: d.Payload && imprint.MayHoldToken(readers)}
	if c.Form == dialect.Volume {
		f.Label = d.Label
	}
	for _, r := range []struct {
		readers imprint.Readers
		name    string
	}{{imprint.GuestProcesses, "guest-processes"}, {imprint.GuestRoot, "guest-root"}, {imprint.PlatformAdmins, "platform-admins"}, {imprint.HostProcesses, "host-processes"}} {
		if readers&r.readers != 0 {
			f.Readers = append(f.Readers, r.name)
		}
	}
	for _, v := range []imprint.Visibility{imprint.Public, imprint.Private, imprint.SecretOnly} {
		if imprint.MayTravel(v, readers) {
			f.Holds = append(f.Holds, string(v))
		}
	}
	return f
}

// mediumReport is what "imprint media inspect" tells.
type mediumReport struct {
	Format  string         `json:"format"`
	Table   media.Table    `json:"table"`
	Start   int64          `json:"start"`
	Label   string         `json:"label,omitempty"`
	Second  string         `json:"secondLabel,omitempty"`
	Names   string         `json:"names"`
	Digest  imprint.Digest `json:"digest"` // of all files, as on an instance's record
	Payload *mediumPayload `json:"payload,omitempty"`
	Files   []mediumFile   `json:"files"`
}

type mediumFile struct {
	Path   string         `json:"path"`
	Size   int            `json:"size"`
	Digest imprint.Digest `json:"sha256"`
}

// mediumPayload is a payload without what it has of a credential.
type mediumPayload struct {
	Path       string               `json:"path"`
	Instance   imprint.InstanceID   `json:"instance"`
	Generation imprint.Generation   `json:"generation"`
	Tenant     imprint.TenantName   `json:"tenant"`
	Name       imprint.InstanceName `json:"name"`
	CheckIn    []string             `json:"checkIn,omitempty"`
	Token      bool                 `json:"token"`
	Digest     imprint.Digest       `json:"sha256"`
}

func (p *program) mediaInspectCommand() *cobra.Command {
	var print, label string
	c := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what is on a medium, whoever wrote it",
		Long: `Show what is on a medium, whoever wrote it: ISO 9660, FAT, alone or in the first
partition that has a file system, the cpio archive at the end of an initial RAM disk, an
SMBIOS structure, or a directory.
A payload is described without its one-time token, but --print shows a file as it is.`,
		Args: exactArgs("a file"),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := inspectMedium(args[0], label)
			if err != nil {
				return err
			}
			if print != "" {
				b, ok := c.Files[print]
				if !ok {
					return imprint.Errorf(imprint.NotFound, "inspect", args[0], "it has no file %s", print)
				}
				_, err := p.out.Write(b)
				return err
			}
			r := reportOf(c)
			return p.print(r, func(w io.Writer) { r.table(w) })
		},
	}
	c.Flags().StringVar(&label, "label", "", "show the partition that is called so, instead of the first")
	c.Flags().StringVar(&print, "print", "", "print this `path`'s content, and nothing else")
	return c
}

// inspectMedium reads what is at path: a file, a block device or a directory.
func inspectMedium(path, label string) (*media.Contents, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError("inspect", path, err)
	}
	defer f.Close()
	var c *media.Contents
	if info, failed := f.Stat(); failed == nil && info.IsDir() {
		if label != "" {
			return nil, imprint.Errorf(imprint.Invalid, "inspect", path, "it is a directory, and has no file systems with labels")
		}
		root, failed := os.OpenRoot(path)
		if failed != nil {
			return nil, fileError("inspect", path, failed)
		}
		defer root.Close()
		c, err = media.InspectDir(root.FS())
	} else {
		size, failed := f.Seek(0, io.SeekEnd) // of a block device too
		if failed != nil {
			return nil, fileError("inspect", path, failed)
		}
		if label == "" {
			return inspectOpened(f, size, path)
		}
		c, err = media.InspectLabelled(f, size, label)
	}
	return c, inspectError(path, err)
}

// inspectOpened is [media.Inspect] of what the user calls name.
func inspectOpened(r io.ReaderAt, size int64, name string) (*media.Contents, error) {
	c, err := media.Inspect(r, size)
	return c, inspectError(name, err)
}

// inspectError has the user's name for what was inspected.
func inspectError(name string, err error) error {
	var e *imprint.Error
	if errors.As(err, &e) {
		return imprint.Errorf(e.Kind, "inspect", name, "%w", e.Err)
	}
	return err
}

func reportOf(c *media.Contents) *mediumReport {
	r := &mediumReport{Format: c.Format, Table: c.Table, Start: c.Start, Label: c.Label, Second: c.Second, Names: c.Names, Digest: imprint.DigestOfFiles(c.Files), Files: []mediumFile{}}
	for _, path := range slices.Sorted(maps.Keys(c.Files)) {
		b := c.Files[path]
		r.Files = append(r.Files, mediumFile{path, len(b), imprint.DigestOf(b)})
		if p, err := imprint.DecodePayload(b); err == nil && r.Payload == nil {
			r.Payload = &mediumPayload{path, p.Instance, p.Generation, p.Tenant, p.Name, p.CheckIn, p.Token != "", imprint.DigestOf(b)}
		}
	}
	return r
}

// table prints the report. Names on a medium may be anybody's.
func (r *mediumReport) table(w io.Writer) {
	where := "the whole medium"
	if r.Table != media.NoTable {
		where = fmt.Sprintf("a partition at %d, table %s", r.Start, r.Table)
	} else if r.Start > 0 {
		where = fmt.Sprintf("from byte %d on", r.Start)
	}
	row(w, "Format", r.Format+", "+where)
	if r.Label != "" || r.Second != "" {
		row(w, "Label", orNone(string(harmless([]byte(r.Label)))))
		row(w, "Second label", orNone(string(harmless([]byte(r.Second)))))
	}
	row(w, "Names", r.Names)
	row(w, "Digest", r.Digest)
	if p := r.Payload; p != nil {
		token := "no token"
		if p.Token {
			token = "a one-time token"
		}
		row(w, "Payload", fmt.Sprintf("%s/%s, %s, generation %d, %s", p.Tenant, p.Name, p.Instance, p.Generation, token))
		row(w, "Payload digest", "sha256:"+string(p.Digest))
	}
	row(w, "")
	row(w, "SIZE", "SHA-256", "FILE")
	for _, f := range r.Files {
		row(w, f.Size, f.Digest, string(harmless([]byte(f.Path))))
	}
}
