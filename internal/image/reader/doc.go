// Package reader understands disk images that somebody else made: qcow2, VMDK and
// compressed raw ones. All of it runs in a sandbox (see [Main]); what it finds goes
// to the parent process as a stream of frames ([Encoder], [Decoder]), and only the
// parent writes to a disk.
//
// A layout says where the bytes of the virtual disk are in the file. Stored ones the
// parent copies from the file by itself; so a reader that was taken over could name
// other bytes of the same image, and nothing else.
package reader
