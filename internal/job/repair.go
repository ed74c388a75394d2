package job

// Repair makes the system on a disk find its root, start on this platform, fill its disk,
// and differ from other copies of the same image. What it is not asked for it
// leaves alone. A repair that was interrupted can be done again, and finishes then
// what was begun.
type Repair struct {
	Disk int `json:"disk"` // index of the disk
	// RootPartition is the number of the partition that has the root filesystem; 0
	// is the only one with an operating system.
	RootPartition int `json:"rootPartition,omitempty"`

	// Grow lets the root partition, and its filesystem, take the room behind it.
	Grow bool `json:"grow,omitempty"`
	// NewIdentity gives filesystems, partitions and the disk new identifiers, in what
	// refers to them as well, and removes the machine ID, SSH host keys, random seeds and the like.
	NewIdentity bool `json:"newIdentity,omitempty"`
	// Drivers are Linux modules, such as virtio_scsi, that the initramfs of every kernel has to have.
	Drivers []string `json:"drivers,omitempty"`
	// RebuildInitramfs rebuilds the initramfs even if there are no Drivers.
	RebuildInitramfs bool `json:"rebuildInitramfs,omitempty"`
	// EFIFallback puts a boot loader where firmware without boot entries looks for it. That
	// the disk has no EFI system partition, or no loader, is a warning; the result has no Loader then.
	EFIFallback bool `json:"efiFallback,omitempty"`

	// AgentFollows says that a later task puts imprint-agent into a system that has none, and
	// with it what makes SSH host keys.
	AgentFollows bool `json:"agentFollows,omitempty"`

	// DryRun finds out what would be done, and changes nothing.
	DryRun bool `json:"dryRun,omitempty"`
}

// Needs implements the interface of a task's kinds.
func (*Repair) Needs() Needs { return filesystemNeeds() }

// mountNeeds is what it takes to mount the filesystems of a system.
func mountNeeds() Needs {
	return Needs{
		Programs: []string{"e2fsck", "fsck.vfat"},
		Modules:  []string{"ext4", "xfs", "btrfs", "vfat", "nls_cp437", "nls_ascii", "nls_iso8859-1"},
	}
}

// filesystemNeeds is what it takes to change them.
func filesystemNeeds() Needs {
	n := mountNeeds()
	n.Programs = append(n.Programs, "tune2fs", "resize2fs", "xfs_db", "btrfstune")
	n.Modules = append(n.Modules, "loop")
	return n
}

// Repaired is what came of a [Repair].
type Repaired struct {
	System string `json:"system"` // as it calls itself, such as "Debian GNU/Linux 12 (bookworm)"
	Root   int    `json:"root"`   // number of the partition with the root filesystem; 0 if that is the whole disk
	// Did is what was done, or would be, a sentence each.
	Did []string `json:"did,omitempty"`
	// Warnings are what a user may have to do as well.
	Warnings []string `json:"warnings,omitempty"`
	// Loader is what a boot entry of the firmware has to name; nil if the disk has no EFI system partition.
	Loader *Loader `json:"loader,omitempty"`
}

// Loader is an EFI boot loader on a disk.
type Loader struct {
	Title     string `json:"title"`     // what a boot menu shows
	Partition int    `json:"partition"` // number of the EFI system partition
	PartUUID  string `json:"partUUID"`  // its identifier, as in fstab
	Start     int64  `json:"start"`     // its first logical sector
	Sectors   int64  `json:"sectors"`   // how many it has
	Path      string `json:"path"`      // of the loader, such as \EFI\debian\shimx64.efi
}
