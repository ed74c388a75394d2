package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/internal/disk"
	"imprint/internal/durable"
	"imprint/internal/helpervm"
	"imprint/internal/job"
	"imprint/internal/varstore"
)

// diskOptions are what work on a disk in a helper VM has in common.
type diskOptions struct {
	disk, kernel, program string
	verbose               bool
	limit                 time.Duration
}

func (o *diskOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.disk, "disk", "", "the disk: a raw image or a block device that nobody uses")
	f.StringVar(&o.kernel, "helper-kernel", "", "kernel `file` of the helper VM, with its modules in ../lib/modules (default this machine's)")
	f.StringVar(&o.program, "helper-program", "", "imprint-helper for the helper VM (default the one beside imprint, or in PATH)")
	f.DurationVar(&o.limit, "time-limit", time.Hour, "end the helper VM after this time")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "show what the programs print that do the work")
	c.MarkFlagRequired("disk")
	for _, name := range []string{"disk", "helper-kernel", "helper-program"} {
		c.MarkFlagFilename(name)
	}
}

// inHelper does one task to the disk in a helper VM, and shows how far it is.
func (p *program) inHelper(ctx context.Context, o *diskOptions, memoryMiB int, t job.Task) (*job.Outcome, error) {
	d, err := disk.Open(o.disk) // claims it; and that it is in use is said before a VM is started
	if err != nil {
		return nil, err
	}
	if err := d.Close(); err != nil {
		return nil, err
	}
	c := helpervm.Config{Init: o.program, MemoryMiB: memoryMiB, CPUs: 2, TimeLimit: o.limit, Disks: []helpervm.Disk{{Path: o.disk}}}
	if o.kernel != "" {
		c.Kernel = helpervm.KernelAt(o.kernel)
	}
	show := isTerminal(p.err)
	clearLine := func() {
		if show {
			fmt.Fprint(p.err, "\r\x1b[K")
		}
	}
	c.Progress = func(now job.Progress) {
		if show && now.Total > 0 {
			fmt.Fprintf(p.err, "\r\x1b[K%s: %d %%", now.Task, now.Done*100/now.Total)
		}
	}
	c.Log = func(l job.Log) {
		clearLine()
		if o.verbose {
			fmt.Fprintln(p.err, l.Line)
		} else if show {
			fmt.Fprint(p.err, l.Line[:min(len(l.Line), 70)])
		}
	}
	if show {
		fmt.Fprint(p.err, "starting the helper VM")
	}
	r, err := helpervm.Run(ctx, c, job.Job{Tasks: []job.Task{t}})
	clearLine()
	if err != nil {
		return nil, err
	}
	return &r.Tasks[0], nil
}

// fixOptions are the flags of "imprint fix".
type fixOptions struct {
	diskOptions
	job.Repair
	variables string
}

func (p *program) fixCommand() *cobra.Command {
	o := &fixOptions{}
	c := &cobra.Command{
		Use:   "fix --disk DISK [--grow] [--new-identity] [--add-driver NAME] [--efi-fallback] ...",
		Short: "Make the system on a disk fit for another machine",
		Long: `Make the system on DISK fit for the machine that it is to run on. What is not asked for
stays as it is. The disk is opened, and programs of the system run, only inside a helper VM;
nothing of it is mounted on this machine. If that is interrupted, run it again.

--grow lets the root partition and its filesystem take the room behind it. --new-identity
gives the disk, its partitions and filesystems new identifiers, also where the system refers
to them, and removes the machine ID, SSH host keys and random seeds, so that it differs from
every copy. --add-driver lets the initramfs of each kernel have a module, by the system's own
update-initramfs or dracut. --efi-fallback puts the system's boot loader where firmware
looks for one without a boot entry, and --efi-vars writes a boot entry into the variables of
QEMU's firmware (a copy of OVMF_VARS.fd).`,
		Example: `  imprint fix --disk /var/lib/images/web-1.raw --grow --new-identity
  imprint fix --disk /dev/vg/web-1 --add-driver virtio_scsi --add-driver virtio_net --dry-run`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return p.fix(c.Context(), o) },
	}
	o.flags(c)
	f := c.Flags()
	f.IntVar(&o.RootPartition, "root-partition", 0, "`number` of the partition with the root filesystem (default the only one with an operating system)")
	f.BoolVar(&o.Grow, "grow", false, "let the root partition and its filesystem fill the disk")
	f.BoolVar(&o.NewIdentity, "new-identity", false, "give the system new identifiers, and take its machine ID and keys away")
	f.StringSliceVar(&o.Drivers, "add-driver", nil, "kernel `module` that the initramfs has to have; can be repeated")
	f.BoolVar(&o.RebuildInitramfs, "rebuild-initramfs", false, "build the initramfs of each kernel again")
	f.BoolVar(&o.EFIFallback, "efi-fallback", false, "put the boot loader where UEFI firmware looks for one")
	f.StringVar(&o.variables, "efi-vars", "", "write a boot entry into this `file` of UEFI variables, a copy of OVMF_VARS.fd")
	f.BoolVar(&o.DryRun, "dry-run", false, "say what would be done, and change nothing")
	c.MarkFlagFilename("efi-vars")
	return c
}

func (p *program) fix(ctx context.Context, o *fixOptions) error {
	if r := &o.Repair; !r.Grow && !r.NewIdentity && !r.EFIFallback && !r.RebuildInitramfs && len(r.Drivers) == 0 && o.variables == "" {
		return imprint.Errorf(imprint.Invalid, "fix", o.disk, "nothing is to be done").
			WithHint("say what: --grow, --new-identity, --add-driver, --efi-fallback or --efi-vars")
	}
	var store *variables
	if o.variables != "" {
		var err error
		if store, err = openVariables(o.variables); err != nil {
			return err
		}
		defer store.file.Close()
	}
	// What builds an initramfs takes more memory than the rest.
	out, err := p.inHelper(ctx, &o.diskOptions, 1024, job.Task{Name: "fix", Repair: &o.Repair})
	if err != nil {
		return onDisk(o.disk, err)
	}
	done := out.Repair
	if done == nil {
		return imprint.Errorf(imprint.Internal, "fix", o.disk, "the helper VM said nothing of what it did")
	}
	if (o.EFIFallback || store != nil) && done.Loader == nil {
		return imprint.Errorf(imprint.NotFound, "find", "EFI boot loader", "the disk has none: %s", strings.Join(append(done.Warnings, "it starts by BIOS only"), "; "))
	}
	if store != nil {
		did, err := store.boot(done.Loader, o.DryRun)
		if err != nil {
			return err
		}
		done.Did = append(done.Did, did)
	}
	for _, w := range done.Warnings {
		fmt.Fprintf(p.err, "note: %s\n", w)
	}
	return p.print(done, func(w io.Writer) {
		verb := "fixed"
		if o.DryRun {
			verb = "would be changed"
		}
		if len(done.Did) == 0 {
			verb = "is as it was asked for already"
		}
		fmt.Fprintf(w, "%s on %s %s\n", done.System, o.disk, verb)
		for _, line := range done.Did {
			fmt.Fprintf(w, "  %s\n", line)
		}
	})
}

// variables is a file of UEFI variables that no machine has open.
type variables struct {
	path  string
	file  *disk.File
	info  os.FileInfo
	store *varstore.Store
}

// openVariables reads a file of UEFI variables, and keeps machines from it.
func openVariables(path string) (*variables, error) {
	f, err := disk.Open(path)
	if err != nil {
		return nil, err
	}
	v := &variables{path: path, file: f}
	v.info, err = f.Stat()
	if err == nil && f.Size() > varstore.MaxSize {
		err = imprint.Errorf(imprint.Invalid, "read", path, "it has %d bytes, and a file of UEFI variables at most %d", f.Size(), varstore.MaxSize)
	}
	if err == nil {
		b := make([]byte, f.Size())
		if _, err = f.ReadAt(b, 0); err == nil || errors.Is(err, io.EOF) {
			v.store, err = varstore.Read(b)
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

// boot lets the firmware start a loader first, and says so.
func (v *variables) boot(l *job.Loader, dryRun bool) (string, error) {
	name, err := v.store.Boot(varstore.Entry(*l))
	if err != nil {
		return "", err
	}
	b, err := v.store.Bytes()
	if err != nil {
		return "", err
	}
	if dryRun {
		return fmt.Sprintf("%s of %s starts %s first", name, v.path, l.Path), nil
	}
	if err := durable.WriteFile(v.path, b, v.info.Mode().Perm()); err != nil {
		return "", fileError("write", v.path, err)
	}
	if st, ok := v.info.Sys().(*syscall.Stat_t); ok {
		os.Chown(v.path, int(st.Uid), int(st.Gid)) // only root can, and only it has to
	}
	return fmt.Sprintf("%s of %s starts %s first", name, v.path, l.Path), nil
}
