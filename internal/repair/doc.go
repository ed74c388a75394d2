// Package repair finds the system on a disk and makes it fit for the machine that it
// is to run on: grown, bootable, distinct from other copies of its image, and without
// old data in what it does not use.
//
// It runs in the helper VM, as root, on a disk that nobody trusts: filesystems are
// mounted only there, paths are resolved within the root that they belong to, and
// what the system has of programs runs confined. What is done can be interrupted at
// any instant and done again, which finishes it.
package repair
