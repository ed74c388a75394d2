package job

// Unpack writes a personalization package onto the root filesystem of a disk. If it
// fails, [Unpacked.Changed] says whether the disk is still what it was.
type Unpack struct {
	Disk    int   `json:"disk"`    // index of the disk
	Package int   `json:"package"` // index of the disk, read-only, that is the package
	Size    int64 `json:"size"`    // bytes of the package; what the disk has more is padding

	// Owners is how the owners of the files are found: "name", which is also "", looks the
	// package's names up in the target's /etc/passwd and /etc/group, and takes its number
	// where they are not known there; "known" refuses those; "number" takes the numbers.
	Owners string `json:"owners,omitempty"`
	// Devices allows device nodes in the package.
	Devices bool `json:"devices,omitempty"`
	// KeepDirectories leaves directories that are there their owner and mode.
	KeepDirectories bool `json:"keepDirectories,omitempty"`
	// Unless is a path in the guest, of which its presence means that the package is not
	// needed: then nothing is unpacked. "" is none.
	Unless string `json:"unless,omitempty"`
	// MaxSize and MaxEntries bound the package when it is uncompressed; 0 is the default.
	MaxSize    int64 `json:"maxSize,omitempty"`
	MaxEntries int   `json:"maxEntries,omitempty"`
}

// Needs implements the interface of a task's kinds.
func (*Unpack) Needs() Needs { return mountNeeds() }

// Unpacked is what came of an [Unpack].
type Unpacked struct {
	Entries int   `json:"entries"`
	Bytes   int64 `json:"bytes"` // of the files' contents
	// Changed says that writing had begun: if the task failed, nobody may boot from the disk.
	Changed bool `json:"changed,omitempty"`
	// Had says that the guest had what makes the package unnecessary.
	Had bool `json:"had,omitempty"`
	// Directories are those of the image that got another owner or mode, up to a few.
	Directories []string `json:"directories,omitempty"`
}
