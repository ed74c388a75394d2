// Package helpervm runs a job in a throw-away virtual machine, where everything
// untrusted happens: the host never mounts a guest's filesystem, never parses it,
// and never runs what is in it.
//
// [Run] boots a kernel with imprint-helper as PID 1 in QEMU, which itself is caged as
// far as the caller's rights allow, sends the [job.Job] over virtio-serial and
// returns the [job.Result]. A VM that powers off, hangs, panics or is killed has
// failed, whatever it did before.
package helpervm

import (
	"io"
	"os"
	"time"

	"imprint/internal/job"
	"imprint/internal/platform/qemu"
)

// Config says what the VM is made of. The zero value of every field has a working
// meaning, but a job without a disk has little to do.
type Config struct {
	Kernel Kernel // the zero value is what [FindKernel] finds
	Init   string // path of a static imprint-helper; "" is the one beside this program, or in PATH
	QEMU   string // path of the QEMU binary; "" is qemu-system-x86_64 in PATH
	Cache  string // directory that keeps what takes long to find out or to make; "" is the user's cache directory
	RunDir string // where the host's helper VMs are accounted; "" is [RunDir]

	Machine   qemu.Type     // "" is microvm if QEMU has it, and q35 otherwise
	MemoryMiB int           // 0 is 512
	CPUs      int           // 0 is 1
	TimeLimit time.Duration // of the whole VM; 0 is an hour
	// Programs and Modules are more than the job's tasks need: see [job.Needs].
	Programs, Modules []string

	// Cgroup is a directory of the second version's hierarchy that is this program's to
	// divide, with the controllers cpu, memory and pids in its cgroup.subtree_control. The
	// VM gets one in it, with the memory and processors from above. "" is none.
	Cgroup string

	Network bool // QEMU's own network, through which the VM reaches what the host reaches; otherwise it has none

	Disks []Disk
	// Streams are byte streams to and from tasks, by name (a lower-case word).
	Streams map[string]Stream

	// Instance is for whom the VM works, as messages and [Running] show it.
	Instance string
	// Progress and Log get what tasks say, in order, never at once. nil discards.
	Progress func(job.Progress)
	Log      func(job.Log)
	// Console gets a bounded amount of what the VM's kernel prints, line by line and
	// without secrets of the job; nil discards.
	Console io.Writer
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
