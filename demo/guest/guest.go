// Package guest builds the small Linux machine in which the demonstration and
// the tests show a birth: Debian's kernel, and an initramfs of one static busybox,
// the virtio modules, imprint-agent and a script. Nothing in it is made for
// imprint but the agent, which runs as a child of PID 1 as it would from any
// initramfs.
package guest

import (
	"bytes"
	"context"
	"debug/elf"
	_ "embed"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"imprint/internal/cpio"
)

// initScript is PID 1; it prepares the machine and runs /script.
//
//go:embed init.sh
var initScript []byte

// Demo is the script of the demonstration: enrol, then show who can read what.
//
//go:embed demo.sh
var Demo []byte

// modules is what the channels and a disk need beside the kernel.
var modules = []string{"virtio_pci", "virtio_console", "virtio_blk"}

// Append is the kernel command line of the guest.
const Append = "console=ttyS0 quiet loglevel=3 panic=-1 reboot=t random.trust_cpu=on mitigations=off no5lvl"

// Config says what goes into a guest.
type Config struct {
	Cache  string // directory that keeps the kernel between builds
	Out    string // the initramfs to write
	Agent  string // path of a static imprint-agent; "" leaves it out
	Script []byte // what the machine does once it is up, in sh; nil is [Demo]
	// Programs are paths of more static programs, which go into /bin.
	Programs []string
	// Modules are kernel modules to load beside those of the channels and disks.
	Modules []string
	// Generic takes Debian's kernel for all machines. It has drivers that the one for
	// virtual machines lacks, such as the floppy drive's, and takes longer to fetch.
	Generic bool
}

// Image is a guest that can be booted.
type Image struct {
	Kernel string
	Initrd string
}

// Build makes a guest. The same inputs give the same bytes.
func Build(ctx context.Context, c Config) (Image, error) {
	kind := cloudKernel()
	if c.Generic {
		kind = genericKernel()
	}
	kernel, err := kind.fetch(ctx, c.Cache)
	if err != nil {
		return Image{}, err
	}
	if c.Script == nil {
		c.Script = Demo
	}
	var image bytes.Buffer
	a := cpio.NewWriter(&image)
	if err := addBusybox(ctx, a); err != nil {
		return Image{}, err
	}
	if err := addModules(ctx, a, kernel, slices.Concat(modules, c.Modules)); err != nil {
		return Image{}, err
	}
	programs := map[string]string{}
	for _, path := range c.Programs {
		programs[filepath.Base(path)] = path
	}
	if c.Agent != "" {
		programs["imprint-agent"] = c.Agent
	}
	for _, name := range slices.Sorted(maps.Keys(programs)) {
		program, err := os.ReadFile(programs[name])
		if err != nil {
			return Image{}, err
		}
		a.File("bin/"+name, 0o755, program)
	}
	for _, dir := range []string{"dev", "proc", "sys", "run", "mnt", "etc/imprint"} {
		a.Dir(dir, 0o755)
	}
	a.Dir("tmp", 0o777|fs.ModeSticky)
	a.File("etc/passwd", 0o644, []byte("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"))
	a.File("etc/group", 0o644, []byte("root:x:0:\ndialout:x:20:\nnogroup:x:65534:\n"))
	a.File("script", 0o755, c.Script)
	a.File("init", 0o755, initScript)
	if err := a.Close(); err != nil {
		return Image{}, err
	}
	if err := os.WriteFile(c.Out, image.Bytes(), 0o644); err != nil {
		return Image{}, err
	}
	return Image{Kernel: kernel.Image, Initrd: c.Out}, nil
}

// addBusybox adds busybox under all its names.
func addBusybox(ctx context.Context, a *cpio.Writer) error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("find busybox: %w; apt-get install busybox-static", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if static, err := isStatic(data); err != nil || !static {
		return fmt.Errorf("read %s: it is not a static program; apt-get install busybox-static", path)
	}
	a.File("bin/busybox", 0o755, data)
	applets, err := run(ctx, "/", path, "--list")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(applets) {
		if name != "busybox" {
			a.Link("bin/"+name, "busybox")
		}
	}
	return nil
}

// isStatic reports whether program needs no dynamic loader.
func isStatic(program []byte) (bool, error) {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return false, err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false, nil
		}
	}
	return true, nil
}

// addModules adds the named kernel modules and what they need, numbered in the
// order in which they load.
func addModules(ctx context.Context, a *cpio.Writer, k Kernel, names []string) error {
	paths, err := k.Modules(ctx, names...)
	if err != nil {
		return err
	}
	a.Dir("modules", 0o755)
	for i, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, compressed := strings.CutSuffix(filepath.Base(path), ".xz")
		if compressed {
			out, err := run(ctx, "/", "busybox", "xzcat", path)
			if err != nil {
				return err
			}
			data = []byte(out)
		}
		a.File(fmt.Sprintf("modules/%02d-%s", i, name), 0o644, data)
	}
	return nil
}
