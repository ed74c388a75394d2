// Package image gets the image that a machine is installed from, makes sure that it
// is the right one, and writes it to a disk.
//
// [Store.Open] fetches an image (or finds it in the cache) and checks who vouches for
// it. [Source.Write] checks everything that can be checked before it touches the
// disk, and writes the beginning and the end of the disk last, once all else is on it
// and the image's sum was right: a disk that has less than all of an image that
// somebody vouches for has no partition table, and does not boot.
//
// Raw images are copied. Whatever has to be understood, such as qcow2 or gzip, is
// read by package reader in a sandbox: see [reader.Main], which every program that
// uses this package has to call.
package image
