// Command mkguest builds the demonstration's guest and prints the paths of its kernel
// and its initramfs, for demo/run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"imprint/demo/guest"
)

func main() {
	var c guest.Config
	flag.StringVar(&c.Cache, "cache", ".cache", "`directory` that keeps the kernel")
	flag.StringVar(&c.Out, "out", "guest.cpio", "initramfs `file` to write")
	flag.StringVar(&c.Agent, "agent", "bin/imprint-agent", "static agent `program`")
	flag.Parse()
	image, err := guest.Build(context.Background(), c)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkguest:", err)
		os.Exit(1)
	}
	fmt.Println(image.Kernel, image.Initrd)
}
