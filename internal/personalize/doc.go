// Package personalize is the host's side of a personalization package: it gets one
// from where it is, or makes one of files that are here, and holds it in a file that
// the helper VM is given as a disk. What is in a package only the VM reads: see
// package unpack.
package personalize
