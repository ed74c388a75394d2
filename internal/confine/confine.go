// Package confine runs a program that nobody trusts: in namespaces of its own, in
// a root of its own, without the capabilities that reach the kernel or the
// hardware, and with limits on time, memory, processes and output.
//
// What builds the cage runs as a process of its own, which is this program once
// more: its main function has to begin with [Main].
package confine

import (
	"context"
	"io"
	"os"
	"time"

	"imprint"
)

// Command is a program to run. The zero value of every field but Path has a
// working meaning.
type Command struct {
	Path string   // absolute, as seen from Root
	Args []string // without the program's name
	Env  []string // all of it; nothing is inherited
	Dir  string   // working directory, as seen from Root; "" is /

	// Root becomes the program's root directory; "" is the caller's, read-only. /proc,
	// /dev, /sys (read-only), /tmp and /run are mounted over what it has there.
	Root   string
	Mounts []Mount
	// Devices are device nodes of the caller that the program gets under the same
	// path, beside null, zero, full, random, urandom and tty.
	Devices []string
	Network bool // has the caller's network; otherwise it has none, not even loopback up
	// UID and GID are whom it runs as.
	UID, GID uint32

	Stdin          io.Reader  // nil is empty
	Stdout, Stderr io.Writer  // nil discards; never more than Limits.Output together
	Files          []*os.File // descriptors 3, 4 and so on

	Limits Limits
}

// Mount is a directory or file of the caller that the program sees.
type Mount struct {
	Source, Target string // Target as seen from Root; it has to exist there
	Writable       bool
}

// Limits bound what the program uses. 0 is the default of that limit.
type Limits struct {
	Time      time.Duration // 0 is an hour
	Memory    int64         // bytes, of all processes together where cgroups allow; 0 is no limit
	Processes int           // at once; 0 is 512
	Output    int64         // bytes on Stdout and Stderr; more end the program; 0 is 16 MiB
	FileSize  int64         // bytes of one file that it writes; 0 is no limit
	OpenFiles int           // descriptors of one process; 0 is 1024
}

// Run runs the program to its end; no process of it is left. It fails with kind
// [imprint.Exhausted] if a limit ended it, which the error names; with
// [imprint.Internal] and an [ExitError] in the chain if it failed by itself, and
// with the context's error.
func (c *Command) Run(ctx context.Context) error {
	return imprint.Errorf(imprint.Internal, "run", c.Path, "not built yet")
}

// ExitError is how a program ended that failed by itself.
type ExitError struct {
	Status int    // exit status, or -1
	Signal string // what killed it, or ""
}

func (e *ExitError) Error() string { return "" }

// Main does the work inside the cage, and does not return, if this process was
// started to do that; otherwise it does nothing. It has to be called first in main.
func Main() {}
