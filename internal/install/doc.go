// Package install takes a disk from whatever is on it to a system that a machine
// boots: the image is fetched and checked, written, and changed in a helper VM.
//
// [Installer.Run] decides what has to be done and in which order, and keeps a journal
// for each disk. What an earlier run has done for the same [Plan] is left out; what it
// was killed in is done again from the last point at which the content of the disk is
// known: nothing that was half changed is built upon. A disk whose installation failed
// is marked in its first sector, so that no firmware boots from it.
//
// How images are fetched and written, what changes them and who is told are interfaces
// that the wiring fills in.
package install
