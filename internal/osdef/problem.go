package osdef

import (
	"errors"
	"fmt"
	"io/fs"
)

// reason is the predicate of a sentence about a definition.
func reason(format string, args ...any) error { return fmt.Errorf(format, args...) }

// cause strips the operation and path that a sentence names already.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
