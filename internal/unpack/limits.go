package unpack

// Limits of one package. They bound what its author can cost, and are checked in
// the first pass.
type Limits struct {
	Size    int64 // bytes of the archive uncompressed, and of the files' contents, each
	Entries int   // entries, and directories made for them, together
}

// DefaultLimits returns what is enough for a whole operating system.
func DefaultLimits() Limits { return Limits{Size: 64 << 30, Entries: 1 << 18} }

// Limits that no package has a reason to exceed: they are Linux's own, or far above
// what such a file system needs.
const (
	MaxName       = 255      // bytes of one name (NAME_MAX)
	MaxPath       = 4095     // bytes of a path or of a symbolic link's target (PATH_MAX)
	MaxDepth      = 128      // directories above an entry
	MaxAttributes = 64       // extended attributes of one entry
	MaxAttribute  = 64 << 10 // bytes of one (XATTR_SIZE_MAX)
	MaxHeld       = 64 << 20 // bytes of names and targets of the whole package, which are held in memory
	MaxLinks      = 40       // symbolic links of the image on the way to one entry (as the kernel has it)

	MaxNotedDirectories = 16 // in a [Summary]

	maxAccounts = 1 << 20 // bytes of /etc/passwd or /etc/group
	maxWindow   = 1 << 27 // bytes of history that a zstd frame may want: zstd --ultra -22, or --long
	maxXZDict   = 1 << 26 // likewise for xz: xz -9
)
