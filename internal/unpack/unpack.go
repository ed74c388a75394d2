//go:build linux

package unpack

import (
	"context"
	"errors"
	"io"
	"os"

	"imprint"
)

// Owners says whom the files belong to: a package has both a number and, as a rule,
// a name for each owner and group, and images differ in who has which number.
type Owners string

// The ways to find an owner.
const (
	// OwnersByName takes the number that the target's own /etc/passwd and /etc/group
	// (those of the package, if it brings them) have for the name, and the package's
	// number where they do not know it or there is no name: what tar does when root
	// runs it in the guest.
	OwnersByName Owners = "name"
	// OwnersByNumber takes the numbers of the package, as tar --numeric-owner does.
	OwnersByNumber Owners = "number"
	// OwnersKnown is OwnersByName, but a name that the target does not know is an error.
	OwnersKnown Owners = "known"
)

// Options say how a package is unpacked. The zero value is the usual way.
type Options struct {
	Owners          Owners // "" is OwnersByName
	Devices         bool   // allow device nodes
	KeepDirectories bool   // a directory that is there keeps its owner, mode, times and attributes
	Limits          Limits // the zero value is DefaultLimits

	// Memory is how many bytes may be taken to keep a compressed package in, which then
	// need not be decompressed twice.
	Memory int64
	// Progress is told from time to time how many bytes of the files' contents are
	// written, of how many; nil if nobody wants to know.
	Progress func(done, total int64)
}

// Summary says what became of a package.
type Summary struct {
	Entries int   // that the package has
	Bytes   int64 // of the files' contents

	// Changed says that writing had begun. With an error it means that the filesystem
	// is neither what it was nor what it should be: nobody may boot from it.
	Changed bool

	// Directories are those of the image that got another owner or mode, at most
	// MaxNotedDirectories: often more than whoever packed the package had in mind.
	Directories []string
}

// Unpack writes the package in the first size bytes of r onto the directory root,
// which has to be open for reading. It needs root's capabilities. It is fastest if r is
// an [os.File], which nobody may shorten meanwhile.
//
// It fails, with the entry as operand, with kind [imprint.Invalid] for a package
// that may not be unpacked, [imprint.Conflict] for one that does not fit what is
// there, [imprint.Exhausted] for one beyond a limit or the space that is free, and
// [imprint.Internal] for what reading or writing fails with.
// Unless Summary.Changed, the root is as it was.
func Unpack(ctx context.Context, root *os.File, r io.ReaderAt, size int64, o Options) (Summary, error) {
	switch o.Owners {
	case "":
		o.Owners = OwnersByName
	case OwnersByName, OwnersByNumber, OwnersKnown:
	default:
		return Summary{}, imprint.Errorf(imprint.Invalid, "unpack", "package", "owners are found by %q; use %s, %s or %s",
			o.Owners, OwnersByName, OwnersByNumber, OwnersKnown)
	}
	if o.Limits == (Limits{}) {
		o.Limits = DefaultLimits()
	}
	a, err := open(r, size, o.Limits)
	if err != nil {
		return Summary{}, err
	}
	free, err := a.hold(o.Memory)
	if err != nil {
		return Summary{}, err
	}
	defer free()
	plan, err := check(ctx, root, a, &o)
	if errors.Is(err, errSpoolFull) {
		a.spool = nil // it has to be decompressed twice
		plan, err = check(ctx, root, a, &o)
	}
	if err != nil {
		return Summary{}, err
	}
	if a.spool != nil {
		a.plain = a.spool.bytes()
	}
	return write(ctx, root, a, plan, &o)
}
