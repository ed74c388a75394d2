// Command mkguest builds the demonstrations' guests and prints the paths of kernel
// and initramfs, and with -debian that of a disk.
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
	debian := flag.Bool("debian", false, "make a Debian with its own cloud-init, on a disk, and no agent")
	flag.Parse()
	if err := build(context.Background(), c, *debian); err != nil {
		fmt.Fprintln(os.Stderr, "mkguest:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, c guest.Config, debian bool) error {
	paths := []any{}
	if debian {
		kernel, err := guest.FetchKernel(ctx, c.Cache)
		if err != nil {
			return err
		}
		disk, err := guest.Debian(ctx, c.Cache, kernel)
		if err != nil {
			return err
		}
		c.Agent, c.Script, paths = "", guest.SwitchRoot, append(paths, disk)
	}
	image, err := guest.Build(ctx, c)
	if err != nil {
		return err
	}
	fmt.Println(append([]any{image.Kernel, image.Initrd}, paths...)...)
	return nil
}
