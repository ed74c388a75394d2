package cli

import (
	"errors"
	"io/fs"
	"os"

	"imprint"
	"imprint/api"
	"imprint/internal/install"
	"imprint/internal/platform/qemu"
)

// installedDisks lets the machine keep what it writes to the disks that were installed
// for it, and refuses those that are not complete.
func (p *program) installedDisks(m *qemu.Machine, i *api.Instance, o *bootOptions) error {
	journal := install.Journal{Dir: o.journal}
	for n := range m.Disks {
		d := &m.Disks[n]
		d.Writable = o.keep
		f, err := journal.Find(d.Path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // QEMU will say so
			continue
		case err != nil:
			return err
		case f.Unfinished != "":
			return imprint.Errorf(imprint.Conflict, "boot", i.Ref, "%s is no disk to start from: %s", d.Path, f.Unfinished).
				WithHint("install it: imprint install %s --disk %s", i.Ref, d.Path)
		case f.Instance == i.ID && f.Generation != i.Generation:
			return imprint.Errorf(imprint.Conflict, "boot", i.Ref, "generation %d is installed on %s, and this is generation %d", f.Generation, d.Path, i.Generation).
				WithHint("install it again: imprint install %s --disk %s", i.Ref, d.Path)
		case f.Instance == i.ID:
			d.Writable = true
		case f.Instance != "":
			return imprint.Errorf(imprint.Conflict, "boot", i.Ref, "%s is installed for %s", d.Path, f.Ref).
				WithHint("name the disk of %s", i.Ref)
		}
	}
	return nil
}

// chosenFirmware returns the file of the firmware, "" for QEMU's own.
func (o *bootOptions) chosenFirmware(m *qemu.Machine) (string, error) {
	switch o.firmware {
	case "bios":
		return "", nil
	case "uefi":
		return qemu.UEFI()
	case "":
	default:
		if _, err := os.Stat(o.firmware); err != nil {
			return "", fileError("read", o.firmware, err)
		}
		return o.firmware, nil
	}
	if len(m.Disks) == 0 || !partitionedByGUID(m.Disks[0].Path) {
		return "", nil
	}
	path, err := qemu.UEFI()
	if imprint.KindOf(err) == imprint.NotFound {
		return "", nil // such a disk may have a loader for a BIOS too
	}
	return path, err
}

// partitionedByGUID reports whether the header of a GUID partition table is in the second
// sector (UEFI 2.10 section 5.3.2). No more is read of what a guest may have written.
func partitionedByGUID(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	b := make([]byte, 8)
	for _, sector := range []int64{512, 4096} {
		if _, err := f.ReadAt(b, sector); err == nil && string(b) == "EFI PART" {
			return true
		}
	}
	return false
}
