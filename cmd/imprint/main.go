// Command imprint gives new machines their identity. See "imprint help".
package main

import (
	"os"

	"imprint/internal/cli"
	"imprint/internal/confine"
)

func main() {
	confine.Main()
	os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
