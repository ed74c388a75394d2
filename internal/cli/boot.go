package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
	"imprint/internal/platform/qemu"
)

// bootOptions are the flags of "imprint boot".
type bootOptions struct {
	kernel, initrd, append string
	disks, channels        []string
	machine, product       string
	firmware               string
	keep                   bool
	journal                string
	stock                  string
	carrier, dialect       string
	asDisk                 bool
	console                string
	memory, cpus           int
	timeout                time.Duration
	print                  bool
}

func (p *program) bootCommand() *cobra.Command {
	var o bootOptions
	c := &cobra.Command{
		Use:   "boot NAME",
		Short: "Run an instance in a local QEMU with imprint's channels attached",
		Long: `Run an instance in a local QEMU whose serial port, virtio-serial port or network
interface is imprint's. A kernel is booted directly; without one firmware boots
what it finds: UEFI if the first disk is partitioned for that and the machine has
OVMF, else QEMU's own BIOS. With --print the command line is shown instead of run.

Writes to disks are discarded, so that one image serves many machines; those to a disk
that "imprint install" has installed for this instance are kept. A disk whose
installation failed, or did not end, starts no machine.

What "imprint setup" says of the machine's installation is added, until that
succeeded; a kernel on the command line is booted in the place of that one.

Unmodified cloud-init looks at the machine's SMBIOS to find out where to ask;
--stock sets it:

  openstack  the metadata of Nova, over the channel nic
  ec2        that of EC2 with session tokens (IMDSv2), over the channel nic
  nocloud    http://169.254.169.254/nocloud/, over the channel nic
  smartos    ttyS1, the channel serial

By hand: --product "OpenStack Nova" is openstack, --product "SmartDC HVM" smartos,
and --append "ds=nocloud-net;s=http://169.254.169.254/nocloud/" nocloud, which
works on a microvm too.

With --carrier the machine gets a medium with its payload, or with what --dialect
says, and a network of QEMU's own over which it checks in. The medium is taken away
when the machine has confirmed that it has its certificate: the CD or floppy is
ejected, the disk unplugged, the file overwritten with zeros, checked and removed. What is
in an initial RAM disk or in the firmware stays in the machine's memory until it ends.

KVM is used if a probe shows that guests really run under it; IMPRINT_ACCEL=tcg or
kvm decides without probing.`,
		Example: "  imprint boot web-1 --disk web-1.raw\n" +
			"  imprint boot web-1 --kernel vmlinuz --initrd initrd.img\n" +
			"  imprint boot web-1 --kernel vmlinuz --disk root.raw --append root=/dev/vda --stock openstack --channel nic\n" +
			"  imprint boot web-1 --kernel vmlinuz --disk root.raw --append root=/dev/vda --print\n" +
			"  imprint boot web-1 --kernel vmlinuz --initrd initrd.img --carrier iso",
		Args:              exactArgs("an instance"),
		ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			return p.boot(c.Context(), args[0], &o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.kernel, "kernel", "", "Linux kernel to boot")
	f.StringVar(&o.initrd, "initrd", "", "its initial RAM disk")
	f.StringVar(&o.append, "append", "", "more for the kernel's command line")
	f.StringArrayVar(&o.disks, "disk", nil, "a disk image, raw or qcow2 by its name; repeatable")
	f.StringSliceVar(&o.channels, "channel", nil, "attach only these of the instance's channels: serial, virtio-serial, nic")
	f.StringVar(&o.machine, "machine", string(qemu.Q35), "machine type: q35, pc or microvm")
	f.StringVar(&o.firmware, "firmware", "", "what boots the machine if no kernel is given: uefi, bios, or the `file` of a firmware (default as the disk needs)")
	f.BoolVar(&o.keep, "keep", false, "keep what the machine writes to its disks")
	f.StringVar(&o.journal, "journal", installJournal(), "`directory` in which imprint install remembers how far it is")
	f.StringVar(&o.product, "product", "", `SMBIOS product, such as "SmartDC HVM" for cloud-init over the serial port`)
	f.StringVar(&o.stock, "stock", "", "what to look like to stock cloud-init: openstack, ec2, nocloud or smartos")
	c.MarkFlagsMutuallyExclusive("product", "stock")
	c.RegisterFlagCompletionFunc("stock", cobra.FixedCompletions(stockNames(), cobra.ShellCompDirectiveNoFileComp))
	f.StringVar(&o.carrier, "carrier", "", "attach a `medium`, and take it away again: "+strings.Join(bootCarriers(), ", "))
	f.StringVar(&o.dialect, "dialect", "", "for whom the medium is (default native)")
	f.BoolVar(&o.asDisk, "as-disk", false, "attach the CD image as a disk, for kernels without a driver for CD drives")
	c.RegisterFlagCompletionFunc("carrier", completeCarriers(&o.dialect, bootCarriers()))
	c.RegisterFlagCompletionFunc("channel", cobra.FixedCompletions([]string{"serial", "virtio-serial", "nic"}, cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("machine", cobra.FixedCompletions([]string{string(qemu.Q35), string(qemu.PC), string(qemu.Microvm)}, cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("dialect", cobra.FixedCompletions(dialectNames(), cobra.ShellCompDirectiveNoFileComp))
	f.StringVar(&o.console, "console", "-", "where the guest's console goes: a file, or - for this terminal")
	f.IntVar(&o.memory, "memory", 512, "MiB of memory")
	f.IntVar(&o.cpus, "cpus", 1, "processors")
	f.DurationVar(&o.timeout, "timeout", 10*time.Minute, "end the machine after this long; 0 is never")
	f.BoolVar(&o.print, "print", false, "print the command line instead of running it")
	for _, name := range []string{"kernel", "initrd", "disk", "console", "firmware"} {
		c.MarkFlagFilename(name)
	}
	c.MarkFlagDirname("journal")
	return c
}

func stockNames() (names []string) {
	for _, s := range qemu.Stocks() {
		names = append(names, string(s))
	}
	return names
}

func (p *program) boot(ctx context.Context, ref string, o *bootOptions) (err error) {
	client := p.client()
	defer client.Close()
	d, err := client.Describe(ctx, ref)
	if err != nil {
		return err
	}
	if d.Host.State == api.HostConnected || d.Host.State == api.HostAway {
		return imprint.Errorf(imprint.Conflict, "boot", ref, "it is placed on the hypervisor %s", d.Host.Name).
			WithHint("start it there, connected to the sockets that imprint describe %s shows", ref)
	}
	info, err := client.Info(ctx)
	if err != nil {
		return err
	}
	m, err := o.machineFor(&d.Instance, info.Run)
	if err != nil {
		return err
	}
	for _, port := range d.Ports {
		if port.Dialled && slices.ContainsFunc(m.Channels, func(c qemu.Channel) bool { return c.Kind == port.Channel }) {
			return imprint.Errorf(imprint.Conflict, "boot", ref, "imprint dials %s for its channel %s, and does not listen", port.Socket, port.Channel).
				WithHint("choose another channel with --channel, or take the socket out of dial in the server's configuration")
		}
	}
	if slices.Contains(o.wanted(&d.Instance), imprint.LinkLocal) {
		nic, err := waitNIC(ctx, client, d.Instance.ID, info.Host)
		if err != nil {
			return err
		}
		m.NICs = append(m.NICs, *nic)
	}
	if err := p.installedDisks(m, &d.Instance, o); err != nil {
		return err
	}
	p.applySetup(m, &d.Instance)
	o.kernel, o.initrd = m.Kernel, m.Initrd
	var medium *bootMedium
	if o.carrier != "" {
		if medium, err = p.planMedium(&d.Instance, o); err != nil {
			return err
		}
		// Whoever read what is said here, such as a pager, may end first, and writing to
		// nobody would end this before the medium is taken away.
		unread := make(chan os.Signal, 1)
		signal.Notify(unread, syscall.SIGPIPE)
		defer signal.Stop(unread)
		defer func() {
			if left := medium.end(ctx); err == nil {
				err = left
			} else {
				p.report(left)
			}
		}()
		medium.attach(m)
	} else if o.dialect != "" || o.asDisk {
		return imprint.Errorf(imprint.Invalid, "boot", ref, "it gets no medium").WithHint("say with --carrier which it is to have")
	}
	if m.Kernel == "" && m.Type != qemu.Microvm {
		if m.Firmware, err = o.chosenFirmware(m); err != nil {
			return err
		}
	}
	if m.Accel, err = (qemu.Probe{Kernel: o.kernel}).Accel(ctx); err != nil {
		return err
	}
	if o.print {
		line, err := m.Command()
		if err != nil {
			return err
		}
		fmt.Fprintln(p.out, line)
		if medium != nil {
			fmt.Fprintf(p.err, "write the medium first: %s\n", medium.byHand())
		}
		return nil
	}
	return p.runMachine(ctx, ref, m, medium, o)
}

// runMachine makes the medium, if there is to be one, and returns when the machine
// has ended.
func (p *program) runMachine(ctx context.Context, ref string, m *qemu.Machine, medium *bootMedium, o *bootOptions) error {
	for _, ch := range m.Channels {
		if err := waitSocket(ctx, ch.Socket); err != nil {
			return err
		}
	}
	if missing := qemu.Check(o.kernel); len(missing) > 0 {
		return imprint.Errorf(imprint.Unavailable, "boot", ref, "%s is missing: %s", missing[0].Name, missing[0].Problem).
			WithHint("%s", missing[0].Remedy)
	}
	if medium != nil {
		if _, err := m.Args(); err != nil { // before a token is made for nobody
			return err
		}
		for _, path := range append(o.disks, o.initrd) {
			if _, err := os.Stat(path); path != "" && err != nil {
				return fileError("read", path, err)
			}
		}
		if err := medium.make(ctx); err != nil {
			return err
		}
		p.warnUnreachable(ctx, ref, medium.checkIn)
	}
	const never = 100 * 365 * 24 * time.Hour
	run := qemu.Run{Timeout: cmp.Or(o.timeout, never), Stdout: p.out, Stderr: p.err}
	if in, ok := p.in.(*os.File); ok && m.Console.Kind == qemu.ConsoleStdio {
		run.Stdin = in
	}
	machine, err := m.Start(ctx, run)
	if err != nil {
		return err
	}
	var following sync.WaitGroup
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	if medium != nil {
		following.Go(func() { medium.follow(running, machine) })
	}
	status, err := machine.Wait()
	cancel()
	following.Wait()
	if err == nil && status != 0 {
		err = imprint.Errorf(imprint.Internal, "boot", ref, "QEMU ended with status %d", status)
	}
	return err
}

// machineFor describes the virtual machine for instance i.
func (o *bootOptions) machineFor(i *api.Instance, runDir string) (*qemu.Machine, error) {
	m := &qemu.Machine{
		Type: qemu.Type(o.machine), CPUs: o.cpus, MemoryMiB: o.memory,
		Kernel: o.kernel, Initrd: o.initrd,
		TSCKHz: qemu.HostTSC(), Instance: i.ID, Product: o.product,
		Console: qemu.Console{Kind: qemu.ConsoleStdio},
	}
	if o.kernel != "" {
		m.Append = kernelLine(o.append)
	}
	if o.console != "-" {
		m.Console = qemu.Console{Kind: qemu.ConsoleFile, Path: o.console}
	}
	for _, d := range o.disks {
		m.Disks = append(m.Disks, qemu.Disk{Path: d, Format: diskFormat(d)})
	}
	if o.stock != "" {
		if err := m.LookLike(qemu.Stock(o.stock)); err != nil {
			return nil, err
		}
	}
	for _, name := range o.channels {
		if !slices.Contains(i.Spec.Channels, imprint.ChannelKind(name)) {
			return nil, imprint.Errorf(imprint.Invalid, "boot", i.Ref, "it has no channel %q; it has %s", name, join(i.Spec.Channels))
		}
	}
	for _, kind := range o.wanted(i) {
		if kind == imprint.Serial2 || kind == imprint.VirtioSerial {
			m.Channels = append(m.Channels, qemu.Channel{Kind: kind, Socket: filepath.Join(runDir, string(i.ID), string(kind)+".sock")})
		}
	}
	return m, nil
}

// kernelLine is the command line of a kernel whose console is the first serial port.
func kernelLine(more string) string { return strings.TrimSpace("console=ttyS0 " + more) }

// wanted returns the channels to attach.
func (o *bootOptions) wanted(i *api.Instance) []imprint.ChannelKind {
	if len(o.channels) == 0 {
		return i.Spec.Channels
	}
	var kinds []imprint.ChannelKind
	for _, name := range o.channels {
		kinds = append(kinds, imprint.ChannelKind(name))
	}
	return kinds
}

// socketPatience is how long a freshly reserved instance's socket or interface may
// take to appear.
const socketPatience = 10 * time.Second

// waitSocket returns once something listens at path. The server binds the socket
// a moment after it stored the reservation.
func waitSocket(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, socketPatience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		info, err := os.Stat(path)
		if err == nil && info.Mode()&fs.ModeSocket != 0 {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return imprint.Errorf(imprint.Denied, "boot", path, "%w", err).
				WithHint("guestOwner in the server's configuration says who may use the guests' sockets")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return imprint.Errorf(imprint.Unavailable, "boot", path, "no host serves this socket").
				WithHint("the instance must be placed on this host, and imprint serve must run here")
		}
	}
}

// waitNIC returns the interface that the server made for the instance on this
// host's link-local network, which it does a moment after it stored the reservation.
func waitNIC(ctx context.Context, client *api.Client, id imprint.InstanceID, host imprint.HostName) (*qemu.NIC, error) {
	end := time.NewTimer(socketPatience)
	defer end.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		d, err := client.Describe(ctx, string(id))
		if err != nil {
			return nil, err
		}
		var port api.Port
		if n := slices.IndexFunc(d.Ports, func(p api.Port) bool { return p.Channel == imprint.LinkLocal }); n >= 0 {
			port = d.Ports[n]
		}
		if port.Adopts != "" {
			return nil, imprint.Errorf(imprint.Conflict, "boot", d.Instance.Ref, "the platform makes its interface, %s, and imprint adopts it", port.Adopts).
				WithHint("start it there, with what imprint nic libvirt %s prints; --channel can leave nic out", d.Instance.Ref)
		}
		nic := d.Instance.NIC
		if port.Problem == "" && port.Interface != "" && nic != nil && nic.Host == host {
			return &qemu.NIC{MAC: nic.MAC, Tap: port.Interface}, nil
		}
		e := imprint.Errorf(imprint.Unavailable, "boot", d.Instance.Ref, "its channel nic: %s", cmp.Or(port.Problem, "no host serves it")).
			WithHint("the instance must be placed on this host, and imprint serve must run here with a link-local network; --channel can leave nic out")
		if port.Problem != "" && port.Interface == "" { // none is on its way
			return nil, e
		}
		select {
		case <-tick.C:
		case <-end.C:
			return nil, e
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
