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
	// Kind is what has to be done to have one.
	Kind Kind
	// Capacity is how many bytes of files it holds at most; what names and
	// directories take comes off it.
	Capacity int64
	// Readers are who can read it: whoever may look at the platform's storage, and
	// in the guest those who may open the device.
	Readers imprint.Readers
	// Form is how the guest gets at the files.
	Form dialect.Form

	// One of these makes it; none does where Kind is [Added].
	whole func(io.Writer, *Volume) error
	sized func(w io.Writer, v *Volume, size int64) error
	files func(v *Volume, dir string) (map[string][]byte, error)
	// formats and table are what [Inspect] finds on it, by which it is known again. What
	// is no file system may be below any table, which is "" then.
	formats []string
	table   Table
}

// Kind says how a carrier comes to be.
type Kind string

// The kinds.
const (
	OneFile   Kind = "file"      // written by [Carrier.Write]
	Directory Kind = "directory" // of the files that [Carrier.Files] returns
	Added     Kind = "added"     // to a disk that is there, by [Partition]
)

// Carriers returns all kinds of media.
func Carriers() []Carrier {
	// A block device belongs to root and to groups that are counted as root
	// (docs/security.md), as is what is unpacked from an initrd.
	const readers = imprint.GuestRoot | imprint.PlatformAdmins
	disk := func(table Table) func(io.Writer, *Volume, int64) error {
		return func(w io.Writer, v *Volume, size int64) error { return FAT(w, v, table, size) }
	}
	fat := []string{"fat16", "fat32"}
	list := []Carrier{
		{
			Name: "iso", Summary: "CD image: ISO 9660 with Joliet and Rock Ridge",
			Capacity: MaxContent, Form: dialect.Volume,
			whole: ISO, formats: []string{"iso9660"}, table: NoTable,
		}, {
			Name: "floppy", Summary: "floppy disk of 1.44 MB: FAT12",
			Capacity: FloppySize - 33*fatSector, Form: dialect.Volume,
			whole: Floppy, formats: []string{"fat12"}, table: NoTable,
		}, {
			Name: "fat", Summary: "disk without partitions: FAT16, or FAT32 from 64 MiB on; Windows does not mount it",
			Capacity: MaxContent, Form: dialect.Volume,
			sized: disk(NoTable), formats: fat, table: NoTable,
		}, {
			Name: "fat-mbr", Summary: "disk with one FAT partition in a master boot record",
			Capacity: MaxContent, Form: dialect.Volume,
			sized: disk(MBR), formats: fat, table: MBR,
		}, {
			Name: "fat-gpt", Summary: "disk with one FAT partition in a GUID partition table",
			Capacity: MaxContent, Form: dialect.Volume,
			sized: disk(GPT), formats: fat, table: GPT,
		}, {
			Name: "initrd", Summary: "cpio archive to append to an initial RAM disk",
			Capacity: MaxContent, Form: dialect.Initrd,
			whole: Initrd, formats: []string{"cpio"},
		}, {
			Name: "smbios", Summary: "SMBIOS structure of OEM strings, for QEMU's -smbios file=",
			Capacity: oemSize, Form: dialect.Firmware,
			whole: SMBIOS, formats: []string{"smbios"},
		}, {
			Name: "smbios-system", Summary: "SMBIOS structure of the system's UUID and serial number, for QEMU's -smbios file=",
			Capacity: systemSize, Form: dialect.System,
			whole: System, formats: []string{"smbios"},
		}, {
			Name: "fw-cfg", Summary: "directory of files for QEMU's fw_cfg, with what attaches them to QEMU and libvirt",
			Kind: Directory, Capacity: maxCredentials, Form: dialect.FWCfg,
			files: FWCfg,
		}, {
			Name: "esp", Summary: "directory to copy into an EFI system partition: credentials that systemd-stub hands over",
			Kind: Directory, Capacity: maxCredentials, Form: dialect.Stub,
			files: Stub,
		}, {
			Name: "libvirt-smbios", Summary: "part of a domain of libvirt's: OEM strings, which are on QEMU's command line",
			Capacity: oemSize, Form: dialect.Firmware, Readers: imprint.HostProcesses,
			whole: LibvirtOEM,
		}, {
			Name: "libvirt-system", Summary: "part of a domain of libvirt's: the system's serial number",
			Capacity: systemSize, Form: dialect.System, Readers: imprint.HostProcesses,
			whole: LibvirtSystem,
		}, {
			Name: "partition", Summary: "FAT partition added to a disk that has others, with --partition",
			Kind: Added, Capacity: MaxContent, Form: dialect.Volume,
			formats: fat, table: NoTable, // it is inspected by itself
		},
	}
	for i := range list {
		list[i].Readers |= readers
		if list[i].Kind == "" {
			list[i].Kind = OneFile
		}
	}
	return list
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

// Write writes v. size is that of a disk, as in [FAT], and 0 for the others. It fails
// with kind [imprint.Invalid] unless c is [OneFile], and as its format does.
func (c Carrier) Write(w io.Writer, v *Volume, size int64) error {
	switch {
	case c.Kind == Added:
		return c.refuse("it is no file of its own, but is added to a disk")
	case c.Kind == Directory:
		return c.refuse("it is a directory and not one file")
	}
	if err := c.CheckSize(size); err != nil {
		return err
	}
	if c.sized != nil {
		return c.sized(w, v, size)
	}
	return c.whole(w, v)
}

// CheckSize fails with kind [imprint.Invalid] if no medium of the kind can have size
// bytes. 0 is for the size that it takes.
func (c Carrier) CheckSize(size int64) error {
	switch {
	case size == 0:
		return nil
	case c.sized == nil:
		return c.refuse("it has no size to choose; disks have")
	}
	return checkSize("disk", size, MinDisk)
}

// Check fails as writing v does, if no medium of the kind can hold it, of whatever size.
func (c Carrier) Check(v *Volume) error {
	switch c.Kind {
	case Directory:
		_, err := c.files(v, "/")
		return err
	case Added:
		return FAT(io.Discard, v, NoTable, 0)
	}
	return c.Write(io.Discard, v, 0)
}

// Files returns the files of the directory dir, an absolute path, by their paths
// below it. It fails with kind [imprint.Invalid] unless c is a [Directory], and as its
// format does.
func (c Carrier) Files(v *Volume, dir string) (map[string][]byte, error) {
	if c.Kind != Directory {
		return nil, c.refuse("it is no directory")
	}
	return c.files(v, dir)
}

func (c Carrier) refuse(why string) error {
	return imprint.Errorf(imprint.Invalid, "write", "carrier "+c.Name, "%s", why)
}

// Is reports whether what was found is as c is written. It never is where imprint
// writes what others are to take apart: a directory, or a part of libvirt's XML.
func (c Carrier) Is(found *Contents) bool {
	return slices.Contains(c.formats, found.Format) && (c.table == "" || c.table == found.Table)
}
