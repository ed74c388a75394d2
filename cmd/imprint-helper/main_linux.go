// Command imprint-helper is PID 1 of the helper VM, in which everything that nobody
// trusts is done: see packages internal/inside and internal/helpervm.
package main

import (
	"fmt"
	"os"

	"imprint/internal/confine"
	"imprint/internal/inside"
)

func main() {
	confine.Main()
	if !inside.Is() {
		fmt.Fprintln(os.Stderr, "imprint-helper: it is the first program of imprint's helper VM, and does nothing elsewhere")
		os.Exit(2)
	}
	inside.Main(inside.Perform)
}
