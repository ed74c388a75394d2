package cli

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"imprint"
	"imprint/api"
	"imprint/internal/blank"
	"imprint/internal/dialect"
	"imprint/internal/media"
	"imprint/internal/platform/qemu"
)

// takeTime is how long QEMU and the disk may take to let go of a medium.
const takeTime = 30 * time.Second

// bootMedium is the medium of one run of a machine. It is planned, attached, made,
// and taken away: when the machine has confirmed, or at the latest with its end.
type bootMedium struct {
	*program
	instance *api.Instance // before the machine began to run
	carrier  media.Carrier
	dialect  string
	asDisk   bool
	before   string // the initial RAM disk that it is appended to
	dir      string // the run's private directory; "" if the command line is only shown
	path     string

	number  uint32   // of the medium on record; 0 before it was made
	checkIn []string // where the machine is to check in
	blanked bool     // its file is no more
	taken   bool     // nothing is left of it, and that is on record
}

// bootCarriers are the carriers that a run of a machine can have.
func bootCarriers() []string {
	return []string{"iso", "fat", "fat-mbr", "fat-gpt", "floppy", "initrd", "smbios", "fw-cfg"}
}

// planMedium checks what the flags say of a medium and makes its place.
func (p *program) planMedium(i *api.Instance, o *bootOptions) (*bootMedium, error) {
	carrier, err := media.CarrierOf(o.carrier)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(bootCarriers(), carrier.Name) {
		return nil, imprint.Errorf(imprint.Invalid, "boot", i.Ref, "it cannot be given the carrier %s, but %s", carrier.Name, strings.Join(bootCarriers(), ", "))
	}
	if o.asDisk && carrier.Name != "iso" {
		return nil, imprint.Errorf(imprint.Invalid, "boot", i.Ref, "the carrier %s is not a CD image, which --as-disk is for", carrier.Name)
	}
	drive, err := driveOn(cmp.Or(o.dialect, "native"), carrier.Form, carrier.Name)
	if err != nil {
		return nil, err
	}
	b := &bootMedium{program: p, instance: i, carrier: carrier, dialect: drive.Name, asDisk: o.asDisk}
	if carrier.Form == dialect.Initrd {
		b.before = o.initrd
	}
	if o.print {
		b.path = string(i.Spec.Name) + "." + carrier.Name
		return b, nil
	}
	if b.dir, err = os.MkdirTemp("", "imprint-boot-"); err != nil { // 0700
		return nil, fileError("make a directory in", os.TempDir(), err).WithHint("TMPDIR says where media are for as long as they are attached")
	}
	b.path = filepath.Join(b.dir, "medium")
	return b, nil
}

// byHand is the command that makes the medium where the shown command line has it.
func (b *bootMedium) byHand() string {
	line := fmt.Sprintf("imprint media %s --dialect %s --carrier %s --out %s", b.instance.Ref, b.dialect, b.carrier.Name, b.path)
	if b.before != "" {
		line += " --append-to " + b.before
	}
	return line
}

// attach puts the medium into m, and gives m a network.
func (b *bootMedium) attach(m *qemu.Machine) {
	m.NICs = append(m.NICs, qemu.NIC{Open: true})
	m.Control = b.dir != ""
	switch {
	case b.carrier.Form == dialect.Initrd:
		m.Initrd = b.path
	case b.carrier.Form == dialect.Firmware:
		m.OEMStrings = b.path
	case b.carrier.Form == dialect.FWCfg:
		m.ReadConfig = filepath.Join(b.path, media.QEMUConfig)
	case b.carrier.Name == "iso" && !b.asDisk:
		m.Medium = &qemu.Medium{Drive: qemu.CDDrive, Path: b.path}
	case b.carrier.Name == "floppy":
		m.Medium = &qemu.Medium{Drive: qemu.FloppyDrive, Path: b.path}
	default:
		m.Medium = &qemu.Medium{Drive: qemu.DiskDrive, Path: b.path}
	}
}

// make has the server give the medium out, and writes it.
func (b *bootMedium) make(ctx context.Context) error {
	m, err := b.writeMedium(ctx, string(b.instance.ID), b.carrier, &mediaOptions{dialect: b.dialect, out: b.path, appendTo: b.before, attended: true})
	if err != nil {
		return err
	}
	b.number, b.checkIn = m.Number, m.CheckIn
	b.omitted(b.dialect, m)
	return nil
}

// follow takes the medium away as soon as the machine has confirmed, or may not
// enrol any more. It returns when that is done, or when ctx ends, as it is to when the
// machine does.
func (b *bootMedium) follow(ctx context.Context, machine *qemu.Process) {
	if over(b.instance, b.instance.Generation) {
		return // nothing would tell when the machine has read what it wants
	}
	client := b.client()
	defer client.Close()
	for n, err := range client.Watch(ctx, api.Scope{Instance: string(b.instance.ID)}, 0) {
		if err != nil {
			fmt.Fprintf(b.err, "the medium of %s stays in the machine until it ends: %v\n", b.instance.Ref, err)
			return
		}
		if n.Instance != nil && over(n.Instance, b.instance.Generation) {
			b.takeAway(ctx, machine)
			return
		}
	}
}

// takeAway takes the medium out of the machine, which runs, and blanks its file.
// What fails because the run is ending is left to the end.
func (b *bootMedium) takeAway(running context.Context, machine *qemu.Process) {
	ctx, cancel := context.WithTimeout(running, takeTime)
	defer cancel()
	how, err := "", error(nil)
	inMemory := b.carrier.Form != dialect.Volume
	if !inMemory {
		how, err = machine.TakeAway(ctx)
		how += ", "
	}
	gone := ""
	if err == nil {
		if gone, err = b.blank(ctx); err != nil {
			err = fmt.Errorf("%s%w", how, err)
		}
	}
	switch {
	case err != nil && (running.Err() != nil || ended(machine)):
	case err != nil:
		fmt.Fprintf(b.err, "the medium of %s was not taken away: %v\n", b.instance.Ref, err)
		b.left(ctx, err.Error())
	case inMemory:
		b.left(ctx, gone+", but it is in the machine's memory until that is switched off")
	default:
		b.report(b.away(ctx, how+gone)) // if that failed, the end tries again
	}
}

func ended(machine *qemu.Process) bool {
	select {
	case <-machine.Done():
		return true
	default:
		return false
	}
}

// end blanks what is there of the medium, which nothing has attached any more, and
// removes the private directory. It fails with kind [imprint.Conflict] if anything
// is left, and as the report does.
func (b *bootMedium) end(ctx context.Context) error {
	if b.dir == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeTime)
	defer cancel()
	gone, err := "", error(nil)
	if b.number != 0 && !b.taken {
		gone, err = b.blank(ctx)
	}
	removed := os.RemoveAll(b.dir)
	switch {
	case b.number == 0 || b.taken:
	case err == nil:
		err = b.away(ctx, "at the end of the run, "+gone)
	default:
		why := "at the end of the run its file was removed, but not blanked: "
		if removed != nil {
			why = "after the run its file is there still: "
		}
		b.left(ctx, why+err.Error())
		return imprint.Errorf(imprint.Conflict, "take away", fmt.Sprintf("medium %d of %s", b.number, b.instance.Ref), "%s%w", why, err)
	}
	if err == nil && removed != nil {
		err = fileError("remove", b.dir, removed)
	}
	return err
}

// blank overwrites and removes the file, or those in the directory. It returns what
// was done, in words; it is no error if that was done before.
func (b *bootMedium) blank(ctx context.Context) (gone string, err error) {
	gone = "file blanked, verified and removed"
	if b.carrier.Kind == media.Directory {
		gone = "files blanked, verified and removed"
	}
	if b.blanked {
		return gone, nil
	}
	err = filepath.WalkDir(b.path, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return blankFile(ctx, path)
	})
	if err == nil && b.carrier.Kind == media.Directory {
		err = os.RemoveAll(b.path)
	}
	b.blanked = err == nil
	return gone, err
}

func blankFile(ctx context.Context, path string) error {
	f, err := blank.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Blank(ctx); err != nil {
		return err
	}
	return f.Remove()
}

// away has it recorded that the medium was taken away.
func (b *bootMedium) away(ctx context.Context, how string) error {
	err := b.settleMedium(ctx, string(b.instance.ID), b.number, imprint.MediumTaken, how)
	b.taken = err == nil
	return err
}

// left has it recorded that the medium was not taken away.
func (b *bootMedium) left(ctx context.Context, why string) {
	b.report(b.settleMedium(ctx, string(b.instance.ID), b.number, imprint.MediumLeft, why))
}
