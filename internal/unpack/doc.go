// Package unpack writes a personalization package onto a root filesystem: a tar
// archive, plain or compressed by gzip, zstd or xz, with the shape of that
// filesystem. It runs inside the helper VM, but knows nothing of it: it is given a
// directory and something to read.
//
// # Two passes
//
// The first pass reads the whole package and touches nothing. It knows what the
// root has and follows what the package makes of it, entry by entry, so that all
// that can be known before is an error before the first byte is written: names that
// leave the root, entries below a file or through a symbolic link of the package,
// what is too large for the package's limits or for the space that is free. The
// second pass reads the package again and writes. What it meets that the first did
// not is what only writing shows, such as a disk that fails; [Summary.Changed] says
// that it had begun.
//
// # Where an entry goes
//
// Names are resolved as they would be by a process whose root directory it is, with
// the links that the image has: lib/x lands in usr/lib where lib is a link to it.
// The first pass finds for each entry the directory that it really goes to; the
// second opens that by openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS, so
// that it follows no link at all, whoever puts one there in between.
//
// # What becomes of an entry
//
//   - What is there already and is no directory is replaced by rename(2): a reader
//     sees the old or the new one. A directory is never replaced by something else,
//     nor anything else by a directory.
//   - A directory that is there gets the owner, mode, times and attributes that the
//     package has for it, unless [Options.KeepDirectories]; everything in it that the
//     package does not name stays. The root directory itself stays as it is: in most
//     packages its entry describes the directory that somebody packed.
//   - A directory that the package needs and does not name is made with mode 0755,
//     owned by root.
//   - Hard links, symbolic links, FIFOs, sparse files, modification times,
//     extended attributes (with POSIX ACLs, SELinux labels and capabilities) arrive as
//     they are in the package. Device nodes do only if [Options.Devices].
//   - Of two entries for one name the last counts, as with every tar.
package unpack
