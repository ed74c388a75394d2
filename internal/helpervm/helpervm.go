// Package helpervm runs a job in a throw-away virtual machine, where everything
// untrusted happens: the host never mounts a guest's filesystem, never parses it,
// and never runs what is in it.
//
// [Run] boots a kernel with imprint-agent as PID 1 in QEMU, which itself is caged as
// far as the caller's rights allow, sends the [job.Job] over virtio-serial and
// returns the [job.Result]. A VM that powers off, hangs, panics or is killed has
// failed, whatever it did before.
package helpervm

import (
	"context"
	"io"
	"os"
	"time"

	"imprint"
	"imprint/internal/job"
)

// Config says what the VM is made of. The zero value of every field has a working
// meaning, but a job without a disk has little to do.
type Config struct {
	Kernel Kernel // the zero value is what [FindKernel] finds
	Agent  string // path of a static imprint-agent; "" is the one beside this program, or in PATH
	QEMU   string // path of the QEMU binary; "" is qemu-system-x86_64 in PATH
	Cache  string // directory that keeps initramfs between runs; "" is the user's cache directory

	MemoryMiB int           // 0 is 512
	CPUs      int           // 0 is 1
	TimeLimit time.Duration // of the whole VM; 0 is an hour
	Network   bool          // QEMU's own network, through which the VM reaches what the host reaches; otherwise it has none

	Disks []Disk
	// Streams are byte streams to and from tasks, by name (a lower-case word).
	Streams map[string]Stream

	// Instance is for whom the VM works, as messages and [Running] show it.
	Instance string
	// Progress and Log get what tasks say, in order, never at once. nil discards.
	Progress func(job.Progress)
	Log      func(job.Log)
	// Console gets a bounded amount of what the VM's kernel prints; nil discards.
	Console io.Writer
}

// Kernel is a Linux kernel and where its modules are.
type Kernel struct {
	Image   string // the file to boot
	Modules string // the directory that has modules.dep; "" is none: everything is built in
}

// Disk is a raw image or a block device, which the VM has whole.
type Disk struct {
	// Path is opened by Run, and claimed against other users for as long as the VM
	// runs. Alternatively File is open already and claimed by the caller, for what has no
	// name or has to stay claimed for longer; it stays open.
	Path string
	File *os.File
	// ReadOnly is for what goes in, such as a package: any regular file, whose length the
	// VM sees rounded up to 512 bytes.
	ReadOnly bool
}

// Stream is what a task's [inside.Env.Stream] is connected to. In is read until its end;
// Out gets what the task writes, and is closed when the task closes its end if it is
// an [io.Closer].
type Stream struct {
	In  io.Reader // nil is empty
	Out io.Writer // nil discards
}

// Run does j in a VM of its own, whose nonce and version it sets. It returns when the VM
// is gone and nothing of it is left on the host.
//
// If the job reported a fault the result is returned beside the error that it
// carries. All else that goes wrong is an error without a result: kind
// [imprint.Invalid] and [imprint.NotFound] before anything runs; [imprint.Conflict]
// if a disk is in use; [imprint.Exhausted] if the time was up, or as many helper VMs run
// as may; [imprint.Internal] if the VM ended without a result. What the disks hold is
// then anybody's guess.
func Run(ctx context.Context, c Config, j job.Job) (*job.Result, error) {
	if err := j.Check(); err != nil {
		return nil, err
	}
	return nil, imprint.Errorf(imprint.Unavailable, "run", "helper VM", "not built yet")
}

// FindKernel returns the kernel that this host runs, or the newest that is installed.
// It fails with kind [imprint.NotFound].
func FindKernel() (Kernel, error) {
	return Kernel{}, imprint.Errorf(imprint.NotFound, "find", "kernel", "not built yet")
}
