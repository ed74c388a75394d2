//go:build !linux

package durable

// renameNew renames from to to unless something has that name: then it fails
// with [io/fs.ErrExist].
func renameNew(from, to string) error { return linkNew(from, to) }
