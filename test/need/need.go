// Package need skips tests whose surroundings are missing, always for one of a
// few typed reasons, so that a report can tell an expected skip from a silent one.
//
// With IMPRINT_TEST_STRICT=1 in the environment a skip is a failure: that is how
// continuous integration runs, where everything is installed.
package need

import (
	"os"
	"os/exec"
	"testing"
)

// strict names the variable that turns every skip into a failure.
const strict = "IMPRINT_TEST_STRICT"

// Program returns the path of program, or skips the test and says which Debian
// package has it.
func Program(t testing.TB, program, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		missing(t, "program "+program+" (apt install "+debianPackage+")")
	}
	return path
}

// File skips the test unless path exists, and says which Debian package has it:
// for what a program loads at run time.
func File(t testing.TB, path, debianPackage string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		missing(t, "file "+path+" (apt install "+debianPackage+")")
	}
}

// Root skips the test unless it runs as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root (run with sudo)")
	}
}

// Kernel skips the test unless the kernel has the feature.
func Kernel(t testing.TB, has bool, feature string) {
	t.Helper()
	if !has {
		missing(t, "a kernel with "+feature)
	}
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv(strict) == "1" {
		t.Fatal("need: " + what)
	}
	t.Skip("need: " + what)
}
