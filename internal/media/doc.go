// Package media turns a tree of files into the bytes of a medium that a guest
// reads where there is no live channel, and such bytes back into files: ISO 9660
// with Joliet and Rock Ridge, FAT as a floppy, a disk or a partition of one, the
// cpio archive of an initial RAM disk, and strings of the firmware.
//
// The writers are pure functions: the same [Volume] gives the same bytes. They
// check everything first and write nothing if they fail. [Inspect] reads what
// anybody wrote, within limits.
//
// [Carriers] are the media by name, with who can read them.
package media
