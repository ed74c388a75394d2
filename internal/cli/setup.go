package cli

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
	"imprint/internal/platform/qemu"
)

func (p *program) setupCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "setup",
		Short: "Say what a machine has for its next installation only",
		Long: `Say what a machine has for its next installation only: media, a boot order, more
disks and network interfaces, or a kernel. "imprint boot" applies it. It is kept
until an installation succeeded, which is when "imprint install" has finished or
the machine has confirmed its identity, and then it is gone: later boots are
without it. A power-off tells nothing, and a failed installation keeps it.

For a machine that has its identity already it waits for its next life, which
"imprint rebirth" begins; until then the machine boots as always.

Everybody who may see the instance sees it, so that it is no place for a password.`,
	})
	c.AddCommand(p.setupSetCommand(), p.setupShowCommand(), p.setupClearCommand())
	return c
}

// setupOptions are the flags of "imprint setup set".
type setupOptions struct {
	cds, floppies, mediumDisks []string
	disks, writable, nics      []string
	order                      []string
	kernel, initrd, append     string
}

func (p *program) setupSetCommand() *cobra.Command {
	var o setupOptions
	c := &cobra.Command{
		Use:   "set NAME",
		Short: "Set what a machine has for its next installation, in the place of what was set",
		Long: `Set what a machine has for its next installation, in the place of what was set
before. Files are those of the host on which the machine runs.`,
		Example: "  imprint setup set web-1 --cd debian-netinst.iso --boot-order cd,disk\n" +
			"  imprint setup set web-1 --kernel linux --initrd initrd.gz --append auto=true --nic any",
		Args: exactArgs("an instance"), ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			setup, err := o.setup()
			if err != nil {
				return err
			}
			client := p.client()
			defer client.Close()
			i, err := client.SetUpInstallation(c.Context(), args[0], *setup)
			if err != nil {
				return err
			}
			return p.print(i, func(w io.Writer) {
				fmt.Fprintf(w, "%s has for its next installation only:\n", i.Ref)
				describeSetup(w, i)
			})
		},
	}
	f := c.Flags()
	f.StringArrayVar(&o.cds, "cd", nil, "a CD image; repeatable")
	f.StringArrayVar(&o.floppies, "floppy", nil, "a floppy image; repeatable")
	f.StringArrayVar(&o.mediumDisks, "disk-medium", nil, "a disk image that the machine cannot change, such as one for a USB stick; repeatable")
	f.StringArrayVar(&o.disks, "disk", nil, "a disk behind the machine's own, raw or qcow2 by its name; what is written to it is dropped; repeatable")
	f.StringArrayVar(&o.writable, "writable-disk", nil, "a disk behind the machine's own, raw or qcow2 by its name; what is written to it is kept; repeatable")
	f.StringArrayVar(&o.nics, "nic", nil, "a network interface behind the machine's own: a `MAC` address, a tap of the host, MAC@TAP, or any; repeatable")
	f.StringSliceVar(&o.order, "boot-order", nil, "in which order firmware tries what it may boot from: cd, disk, floppy, network")
	f.StringVar(&o.kernel, "kernel", "", "Linux kernel to boot directly")
	f.StringVar(&o.initrd, "initrd", "", "its initial RAM disk")
	f.StringVar(&o.append, "append", "", "its command line")
	c.RegisterFlagCompletionFunc("boot-order", cobra.FixedCompletions([]string{"cd", "disk", "floppy", "network"}, cobra.ShellCompDirectiveNoFileComp))
	for _, name := range []string{"cd", "floppy", "disk-medium", "disk", "writable-disk", "kernel", "initrd"} {
		c.MarkFlagFilename(name)
	}
	return c
}

// setup returns what the flags say.
func (o *setupOptions) setup() (*imprint.InstallSetup, error) {
	s := &imprint.InstallSetup{Append: o.append}
	var err error
	absolute := func(path string) string {
		if path == "" || err != nil {
			return path
		}
		path, err = filepath.Abs(path)
		return path
	}
	for _, list := range []struct {
		drive imprint.BootDevice
		paths []string
	}{{imprint.BootCD, o.cds}, {imprint.BootFloppy, o.floppies}, {imprint.BootDisk, o.mediumDisks}} {
		for _, path := range list.paths {
			s.Media = append(s.Media, imprint.InstallMedium{Drive: list.drive, Path: absolute(path)})
		}
	}
	for _, path := range o.disks {
		s.Disks = append(s.Disks, imprint.InstallDisk{Path: absolute(path), Format: diskFormat(path)})
	}
	for _, path := range o.writable {
		s.Disks = append(s.Disks, imprint.InstallDisk{Path: absolute(path), Format: diskFormat(path), Writable: true})
	}
	for _, text := range o.nics {
		s.NICs = append(s.NICs, parseNIC(text))
	}
	for _, d := range o.order {
		s.BootOrder = append(s.BootOrder, imprint.BootDevice(d))
	}
	s.Kernel, s.Initrd = absolute(o.kernel), absolute(o.initrd)
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "find", "working directory", "%w", err)
	}
	if s.IsZero() {
		return nil, imprint.Errorf(imprint.Invalid, "set up", "installation", "no flag says what the machine is to have").
			WithHint("give it something, such as --cd FILE; to take away what there is: imprint setup clear NAME")
	}
	return s, s.Check()
}

// parseNIC reads MAC, TAP, MAC@TAP or any.
func parseNIC(text string) imprint.InstallNIC {
	mac, tap, both := strings.Cut(text, "@")
	switch _, err := net.ParseMAC(text); {
	case text == "any":
		return imprint.InstallNIC{}
	case both:
		return imprint.InstallNIC{MAC: mac, Tap: tap}
	case err == nil:
		return imprint.InstallNIC{MAC: text}
	}
	return imprint.InstallNIC{Tap: text}
}

func diskFormat(path string) string {
	if strings.HasSuffix(path, ".qcow2") {
		return "qcow2"
	}
	return "raw"
}

func (p *program) setupShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show what a machine has for its next installation only",
		Args: exactArgs("an instance"), ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			client := p.client()
			defer client.Close()
			i, err := client.Get(c.Context(), args[0])
			if err != nil {
				return err
			}
			if i.InstallSetup == nil && p.output == asTable {
				_, err := fmt.Fprintf(p.err, "%s has nothing for its next installation that it does not always have.\n", i.Ref)
				return err
			}
			return p.print(i.InstallSetup, func(w io.Writer) { describeSetup(w, i) })
		},
	}
}

func (p *program) setupClearCommand() *cobra.Command {
	return &cobra.Command{
		Use: "clear NAME", Short: "Take away what a machine has for its next installation only",
		Args: exactArgs("an instance"), ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			client := p.client()
			defer client.Close()
			i, err := client.ClearInstallSetup(c.Context(), args[0])
			if err != nil {
				return err
			}
			return p.print(i, func(w io.Writer) { fmt.Fprintf(w, "%s boots as always\n", i.Ref) })
		},
	}
}

// describeSetup shows what i has for its next installation only.
func describeSetup(w io.Writer, i *api.Instance) {
	s := i.InstallSetup
	if s == nil {
		return
	}
	label := "For the installation only"
	show := func(format string, args ...any) {
		row(w, label, fmt.Sprintf(format, args...))
		label = ""
	}
	for _, m := range s.Media {
		show("%s %s", m.Drive, m.Path)
	}
	if len(s.BootOrder) > 0 {
		show("boot order %s", join(s.BootOrder))
	}
	for _, d := range s.Disks {
		kept := "what is written to it is dropped"
		if d.Writable {
			kept = "writable"
		}
		show("disk %s (%s)", d.Path, kept)
	}
	for _, n := range s.NICs {
		show("network interface %s", describeSetupNIC(n))
	}
	if s.Kernel != "" {
		show("kernel %s", s.Kernel)
	}
	if s.Initrd != "" {
		show("initial RAM disk %s", s.Initrd)
	}
	if s.Append != "" {
		show("command line %s", s.Append)
	}
	when := fmt.Sprintf("set by %s, %s", s.By, when(s.Set))
	if s.At(i.Generation) == nil {
		when += fmt.Sprintf("; counts from generation %d, which imprint rebirth %s begins", s.Generation, i.Ref)
	}
	show("%s", when)
}

func describeSetupNIC(n imprint.InstallNIC) string {
	switch {
	case n.Tap == "" && n.MAC == "":
		return "on a network of QEMU's own"
	case n.Tap == "":
		return n.MAC + " on a network of QEMU's own"
	}
	return strings.TrimSpace(n.MAC + " on tap " + n.Tap)
}

// applySetup gives m what instance i has for the installation of its present
// generation, and says so. What is asked for on the command line comes before it.
func (p *program) applySetup(m *qemu.Machine, i *api.Instance) {
	s := i.InstallSetup.At(i.Generation)
	if s == nil {
		return
	}
	if m.Kernel == "" && s.Kernel != "" {
		m.Kernel, m.Initrd, m.Append = s.Kernel, s.Initrd, kernelLine(s.Append)
	}
	if m.Kernel == "" {
		m.BootOrder = slices.Clone(s.BootOrder)
	}
	drives := map[imprint.BootDevice]qemu.Drive{imprint.BootCD: qemu.CDDrive, imprint.BootFloppy: qemu.FloppyDrive, imprint.BootDisk: qemu.DiskDrive}
	for _, one := range s.Media {
		m.Drives = append(m.Drives, qemu.Medium{Drive: drives[one.Drive], Path: one.Path})
	}
	for _, d := range s.Disks {
		m.Disks = append(m.Disks, qemu.Disk{Path: d.Path, Format: d.Format, Writable: d.Writable})
	}
	for _, n := range s.NICs {
		m.NICs = append(m.NICs, qemu.NIC{MAC: n.MAC, Tap: n.Tap, Open: n.Tap == ""})
	}
	fmt.Fprintf(p.err, "%s has what imprint setup set for its installation; once that succeeded it boots without\n", i.Ref)
}
