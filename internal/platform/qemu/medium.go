package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"imprint"
)

// Drive says in what a [Medium] is.
type Drive string

// The drives.
const (
	CDDrive     Drive = "cd"     // in Linux /dev/sr0, by virtio_scsi and sr_mod
	DiskDrive   Drive = "disk"   // a disk that can be unplugged; in Linux /dev/sda, by virtio_scsi and sd_mod
	FloppyDrive Drive = "floppy" // of 1.44 MB; in Linux /dev/fd0, by floppy
)

// Medium is a raw image in a drive from which it can be taken while the machine
// runs. The machine cannot write to it.
//
// CDs and disks are on a virtio SCSI controller, because the kernels that
// distributions make for virtual machines all have a driver for it, which several
// lack for AHCI, and because on every machine type a SCSI disk can be unplugged
// without the guest's consent, unlike one on PCI.
type Medium struct {
	Drive Drive
	Path  string
}

// mediumID is the name of the medium's device in QEMU's monitor.
const mediumID = "medium"

// MaxDrives is how many media a machine may have beside its [Machine.Medium].
const MaxDrives = 4

// media returns all that are in drives, the one first that can be taken away.
func (m *Machine) media() []Medium {
	if m.Medium == nil {
		return m.Drives
	}
	return append([]Medium{*m.Medium}, m.Drives...)
}

func (m *Machine) checkMedia() error {
	floppies := 0
	for _, one := range m.media() {
		switch {
		case one.Path == "":
			return imprint.Errorf(imprint.Invalid, "describe", "medium", "no file is given")
		case one.Drive == FloppyDrive && m.Type == Microvm:
			return imprint.Errorf(imprint.Invalid, "describe", "medium", "a microvm has no floppy drive").WithHint("use machine type q35 or pc")
		case one.Drive == FloppyDrive:
			floppies++
		case one.Drive != CDDrive && one.Drive != DiskDrive:
			return imprint.Errorf(imprint.Invalid, "describe", "medium", "%q is none of cd, disk, floppy", one.Drive)
		}
	}
	if len(m.Drives) > MaxDrives || floppies > maxFloppies {
		return imprint.Errorf(imprint.Invalid, "describe", "media", "%d of them, %d floppies; %d and a floppy controller's %d are allowed", len(m.Drives), floppies, MaxDrives, maxFloppies)
	}
	for i, d := range m.BootOrder {
		switch {
		case m.Kernel != "" || m.Type == Microvm:
			return imprint.Errorf(imprint.Invalid, "describe", "boot order", "no firmware chooses what is booted").
				WithHint("leave the kernel out, and use machine type q35 or pc")
		case !slices.Contains([]imprint.BootDevice{imprint.BootCD, imprint.BootDisk, imprint.BootFloppy, imprint.BootNetwork}, d), slices.Contains(m.BootOrder[:i], d):
			return imprint.Errorf(imprint.Invalid, "describe", "boot order", "%q is none of cd, disk, floppy and network, or twice there", d)
		}
	}
	return nil
}

// maxFloppies is how many drives a controller has.
const maxFloppies = 2

// bootOrder gives each device its place.
type bootOrder struct {
	wanted []imprint.BootDevice
	used   map[imprint.BootDevice]int
}

// devicesOfASort is more than a machine can have.
const devicesOfASort = 100

// index returns the option of the next device of that sort, "" if firmware is not to
// boot from it.
func (o *bootOrder) index(d imprint.BootDevice) string {
	place := slices.Index(o.wanted, d)
	if place < 0 {
		return ""
	}
	if o.used == nil {
		o.used = map[imprint.BootDevice]int{}
	}
	o.used[d]++
	return fmt.Sprintf(",bootindex=%d", place*devicesOfASort+o.used[d])
}

func bootDevice(d Drive) imprint.BootDevice {
	switch d {
	case CDDrive:
		return imprint.BootCD
	case FloppyDrive:
		return imprint.BootFloppy
	}
	return imprint.BootDisk
}

// medium attaches m; floppy is how many floppies come before it.
func (a *args) medium(id string, m *Medium, floppy int, boot string) {
	drive := fmt.Sprintf("id=%s-image,if=none,file=%s,format=raw,readonly=on", id, escape(m.Path))
	if m.Drive == CDDrive {
		drive += ",media=cdrom"
	}
	a.add("-drive", drive)
	device := fmt.Sprintf("drive=%[1]s-image,id=%[1]s%[2]s", id, boot)
	switch m.Drive {
	case FloppyDrive:
		if boot != "" { // it is the controller that tells firmware, by the letter of the drive
			property, place, _ := strings.Cut(strings.TrimPrefix(boot, ","), "=")
			a.add("-global", fmt.Sprintf("isa-fdc.%s%c=%s", property, 'A'+rune(floppy), place))
			device = strings.TrimSuffix(device, boot)
		}
		a.add("-device", "floppy,drive-type=144,"+device)
	case CDDrive:
		a.add("-device", "virtio-scsi-pci", "-device", "scsi-cd,"+device)
	default:
		a.add("-device", "virtio-scsi-pci", "-device", "scsi-hd,removable=on,"+device)
	}
}

// TakeAway ejects the machine's medium or unplugs the disk that it is, whatever
// the guest does with it, and verifies that QEMU has let go of its file. It
// returns what was done, in words. It needs [Machine.Control], can be called once, and
// fails with kind [imprint.Unavailable].
func (p *Process) TakeAway(ctx context.Context) (how string, err error) {
	if p.control == nil || p.medium == nil {
		return "", imprint.Errorf(imprint.Unavailable, "take away", "medium", "the machine has none that can be taken")
	}
	// QEMU keeps what nobody reads, and a guest that opens and closes its drive has it
	// say so each time.
	defer p.control.conn.Close()
	if how, err = p.control.takeAway(ctx, p.medium); err != nil {
		return "", imprint.Errorf(imprint.Unavailable, "take away", p.medium.Path, "%w", err)
	}
	return how, nil
}

func (m *monitor) takeAway(ctx context.Context, medium *Medium) (how string, err error) {
	type device struct {
		ID    string `json:"id"`
		Force bool   `json:"force,omitempty"` // also if the guest has locked it
	}
	var said *refusal
	if medium.Drive == DiskDrive {
		how = "disk unplugged"
		if err := m.execute(ctx, "device_del", device{ID: mediumID}, nil); err != nil && !(errors.As(err, &said) && said.class == deviceNotFound) {
			return "", err
		}
	} else {
		how = map[Drive]string{CDDrive: "CD", FloppyDrive: "floppy"}[medium.Drive] + " ejected"
		// In two commands, to open the drive and to take what is in it, a guest can
		// close it in between.
		if err := m.execute(ctx, "eject", device{mediumID, true}, nil); err != nil {
			return "", err
		}
	}
	return how, m.waitClosed(ctx, medium.Path)
}

// waitClosed returns once no block device or node of QEMU's uses path: a device
// that is unplugged goes a moment later.
func (m *monitor) waitClosed(ctx context.Context, path string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		open, err := m.uses(ctx, path)
		if err != nil || !open {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("QEMU still has its file open")
		}
	}
}

func (m *monitor) uses(ctx context.Context, path string) (bool, error) {
	type image struct {
		File string `json:"file"`
	}
	var nodes []image
	if err := m.execute(ctx, "query-named-block-nodes", nil, &nodes); err != nil {
		return false, err
	}
	var drives []struct {
		Inserted *image `json:"inserted"`
	}
	if err := m.execute(ctx, "query-block", nil, &drives); err != nil {
		return false, err
	}
	for _, d := range drives {
		if d.Inserted != nil {
			nodes = append(nodes, *d.Inserted)
		}
	}
	return slices.Contains(nodes, image{path}), nil
}
