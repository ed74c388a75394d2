// Package sandbox locks up a process before it looks at bytes that nobody vouches
// for: this program again, in a process of its own, that keeps what it has open and
// gets nothing else.
//
// [Command] prepares such a process and [Enter] is its first act. What must hold is a
// seccomp filter that lets through what Go's runtime needs to compute, read and write,
// and nothing that opens a file, makes a socket or a process. Around it, where
// the system allows: another user, an empty root directory and network namespace,
// Landlock, no capabilities; limits on memory and time in any case.
package sandbox
