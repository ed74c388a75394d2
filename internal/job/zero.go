package job

// Zero makes the unused space of a disk's filesystems and swap read as zeros.
type Zero struct {
	Disk   int  `json:"disk"`             // index of the disk
	DryRun bool `json:"dryRun,omitempty"` // only find out how much that is
}

// Needs implements the interface of a task's kinds.
func (*Zero) Needs() Needs { return filesystemNeeds() }

// Zeroed is what came of a [Zero].
type Zeroed struct {
	Volumes []ZeroedVolume `json:"volumes,omitempty"`
}

// ZeroedVolume is one filesystem or swap space.
type ZeroedVolume struct {
	Partition int    `json:"partition"` // its number; 0 is the whole disk
	Type      string `json:"type"`      // ext4, xfs, btrfs, swap
	Bytes     int64  `json:"bytes"`     // that are unused, and are zeros now
	// Skipped says why nothing was zeroed; "" if it was, and was read back.
	Skipped string `json:"skipped,omitempty"`
}
