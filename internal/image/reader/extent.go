package reader

import "fmt"

// kind says what an extent is made of.
type kind uint8

const (
	zeros  kind = iota // reads as zeros
	stored             // is in the file as it is
	packed             // is in the file, compressed
)

// extent is consecutive bytes of a virtual disk.
type extent struct {
	kind   kind
	length int64 // bytes of the virtual disk
	at     int64 // where in the file, unless zeros
	size   int64 // bytes there, if packed
}

// layout is an image that is not raw.
type layout interface {
	// Size is that of the virtual disk, in bytes.
	Size() int64
	// extents calls yield with all extents in the order of the virtual disk, of which
	// a packed one is never larger than unit bytes, until yield fails.
	extents(yield func(extent) error) error
	unit() int64
	// unpack fills b with what a packed extent holds. It is safe for concurrent use.
	unpack(b []byte, e extent) error
}

// damaged is an error about an image that contradicts itself.
func damaged(format string, args ...any) error {
	return fmt.Errorf("it is damaged: "+format, args...)
}
