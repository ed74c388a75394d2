package media

import (
	"io"
	"slices"
	"strings"

	"imprint"
	"imprint/internal/dialect"
)

// Carrier is a kind of medium.
type Carrier struct {
	Name    string
	Summary string
	// Capacity is how many bytes of files it holds at most; what names and
	// directories take comes off it.
	Capacity int64
	// Readers are who can read it: whoever may look at the platform's storage, and
	// in the guest those who may open the device.
	Readers imprint.Readers
	// Form is how the guest gets at the files.
	Form  dialect.Form
	write func(w io.Writer, v *Volume, size int64) error
	// Files returns the files of a carrier that is a directory, as [FWCfg] does; nil
	// for those that are one file.
	Files func(v *Volume, dir string) (map[string][]byte, error)
	sized bool // a disk, whose size may be chosen
}

// Carriers returns all kinds of media.
func Carriers() []Carrier {
	// A block device belongs to root and to groups that are counted as root
	// (docs/security.md), as is what is unpacked from an initrd.
	const readers = imprint.GuestRoot | imprint.PlatformAdmins
	disk := func(table Table) func(io.Writer, *Volume, int64) error {
		return func(w io.Writer, v *Volume, size int64) error { return FAT(w, v, table, size) }
	}
	fixed := func(write func(io.Writer, *Volume) error) func(io.Writer, *Volume, int64) error {
		return func(w io.Writer, v *Volume, _ int64) error { return write(w, v) }
	}
	return []Carrier{
		{"iso", "CD image: ISO 9660 with Joliet and Rock Ridge", MaxContent, readers, dialect.Volume, fixed(ISO), nil, false},
		{"floppy", "floppy disk of 1.44 MB: FAT12", FloppySize - 33*fatSector, readers, dialect.Volume, fixed(Floppy), nil, false},
		{"fat", "disk without partitions: FAT16, or FAT32 from 64 MiB on; Windows does not mount it", MaxContent, readers, dialect.Volume, disk(NoTable), nil, true},
		{"fat-mbr", "disk with one FAT partition in a master boot record", MaxContent, readers, dialect.Volume, disk(MBR), nil, true},
		{"fat-gpt", "disk with one FAT partition in a GUID partition table", MaxContent, readers, dialect.Volume, disk(GPT), nil, true},
		{"initrd", "cpio archive to append to an initial RAM disk", MaxContent, readers, dialect.Initrd, fixed(Initrd), nil, false},
		{"smbios", "SMBIOS structure of OEM strings, for QEMU's -smbios file=", oemSize, readers, dialect.Firmware, fixed(SMBIOS), nil, false},
		{"smbios-system", "SMBIOS structure of the system's UUID and serial number, for QEMU's -smbios file=", systemSize, readers, dialect.System, fixed(System), nil, false},
		{"fw-cfg", "directory of files for QEMU's fw_cfg, with what attaches them to QEMU and libvirt", fwCfgSize, readers, dialect.FWCfg, nil, FWCfg, false},
		{"esp", "directory to copy into an EFI system partition: credentials that systemd-stub hands over", stubSize, readers, dialect.Stub, nil, Stub, false},
		{"libvirt-smbios", "part of a domain of libvirt's: OEM strings, which are on QEMU's command line", oemSize, readers | imprint.HostProcesses, dialect.Firmware, fixed(LibvirtOEM), nil, false},
		{"libvirt-system", "part of a domain of libvirt's: the system's serial number", systemSize, readers | imprint.HostProcesses, dialect.System, fixed(LibvirtSystem), nil, false},
		{"partition", "FAT partition added to a disk that has others, with --partition", MaxContent, readers, dialect.Volume, nil, nil, false},
	}
}

// CarrierOf returns the carrier called name. It fails with kind [imprint.Invalid].
func CarrierOf(name string) (Carrier, error) {
	all := Carriers()
	i := slices.IndexFunc(all, func(c Carrier) bool { return c.Name == name })
	if i < 0 {
		var names []string
		for _, c := range all {
			names = append(names, c.Name)
		}
		return Carrier{}, imprint.Errorf(imprint.Invalid, "find", "carrier "+name, "there are %s", strings.Join(names, ", "))
	}
	return all[i], nil
}

// Added reports whether it is added to a disk that is there, by [Partition]. Others
// are written whole.
func (c Carrier) Added() bool { return c.write == nil && c.Files == nil }

// CheckSize fails with kind [imprint.Invalid] if no medium of the kind can have size
// bytes. 0 is for the size that it takes.
func (c Carrier) CheckSize(size int64) error {
	switch {
	case size == 0:
		return nil
	case !c.sized:
		return imprint.Errorf(imprint.Invalid, "write", "carrier "+c.Name, "it has no size to choose; disks have")
	}
	return checkSize("disk", size, MinDisk)
}

// Write writes v. size is that of a disk, as in [FAT], and 0 for the others. It fails
// with kind [imprint.Invalid] for what is added and for what is a directory.
func (c Carrier) Write(w io.Writer, v *Volume, size int64) error {
	switch {
	case c.Added():
		return imprint.Errorf(imprint.Invalid, "write", "carrier "+c.Name, "it is no file of its own, but is added to a disk")
	case c.write == nil:
		return imprint.Errorf(imprint.Invalid, "write", "carrier "+c.Name, "it is a directory and not one file")
	}
	if err := c.CheckSize(size); err != nil {
		return err
	}
	return c.write(w, v, size)
}
