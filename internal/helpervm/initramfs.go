package helpervm

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"imprint"
	"imprint/internal/cpio"
	"imprint/internal/job"
)

// Program is the name of the program that becomes PID 1.
const Program = "imprint-helper"

// driverModules are what disks and ports need, on any of the machine types.
func driverModules() []string {
	return []string{"virtio_mmio", "virtio_pci", "virtio_blk", "virtio_console"}
}

// alwaysLoadable is the filesystem that nearly every job meets.
const alwaysLoadable = "ext4"

// initramfs returns what the VM boots from: its PID 1, the modules and what the
// job's tasks need. It is not compressed: under emulation that costs more than it saves.
func initramfs(c *Config, needs job.Needs) ([]byte, error) {
	var image bytes.Buffer
	a := cpio.NewWriter(&image)
	program, err := readInit(c.Init)
	if err != nil {
		return nil, err
	}
	a.File("init", 0o755, program)
	a.File(job.Marker, 0o444, nil)
	a.Link("sbin/modprobe", "/init")
	for _, dir := range []string{"dev", "proc", "sys", "run", "mnt", "etc", "root"} {
		a.Dir(dir, 0o755)
	}
	a.Dir("tmp", 0o777|fs.ModeSticky)
	a.Link("etc/mtab", "/proc/mounts")
	a.File("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"))
	a.File("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	if err := addModules(a, c.Kernel.Modules, needs.Modules); err != nil {
		return nil, err
	}
	t := newTools(a)
	for _, name := range needs.Programs {
		if _, err := t.program(name); err != nil {
			return nil, err
		}
	}
	for _, path := range needs.Files {
		if err := t.files(path); err != nil {
			return nil, err
		}
	}
	return image.Bytes(), a.Close()
}

// FindProgram returns the path of one of imprint's programs that is beside this one, or
// in PATH. It fails with kind [imprint.NotFound].
func FindProgram(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		if path, err = exec.LookPath(name); err != nil {
			return "", imprint.Errorf(imprint.NotFound, "find", name, "it is neither beside %s nor in PATH", self).
				WithHint("install it there, or build it: make build")
		}
	}
	return path, nil
}

// readInit returns the program that becomes PID 1, which has to be static.
func readInit(path string) ([]byte, error) {
	if path == "" {
		var err error
		if path, err = FindProgram(Program); err != nil {
			return nil, err
		}
	}
	b, err := readProgram(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, imprint.Errorf(imprint.NotFound, "read", path, "%w", err)
	}
	if err != nil {
		return nil, err
	}
	if !static(b) {
		return nil, imprint.Errorf(imprint.Invalid, "read", path, "it is no static program, as the helper VM's first has to be").
			WithHint("build it without cgo: CGO_ENABLED=0 go build")
	}
	return b, nil
}

// addModules adds what every VM loads at once, and what tasks may ask for.
func addModules(a *cpio.Writer, dir string, wanted []string) error {
	m, err := openModules(dir)
	if err != nil {
		return err
	}
	var list bytes.Buffer
	var boot []string
	add := func(names []string) error {
		for _, n := range names {
			n = strings.TrimPrefix(n, "?")
			if a.Has(job.ModuleDir + n + ".ko") {
				continue
			}
			b, err := m.read(n)
			if err != nil {
				return err
			}
			a.File(job.ModuleDir+n+".ko", 0o444, b)
		}
		return nil
	}
	for _, name := range driverModules() {
		names, ok := m.order(name)
		if !ok {
			return imprint.Errorf(imprint.NotFound, "find", "kernel module "+name, "%s has none", dir).
				WithHint("take a kernel with virtio drivers, such as Debian's linux-image-cloud-amd64")
		}
		for _, n := range names {
			if !slices.Contains(boot, n) {
				boot = append(boot, n)
			}
		}
		if err := add(names); err != nil {
			return err
		}
	}
	fmt.Fprintf(&list, "%s %s\n", job.ModulesAtBoot, strings.Join(boot, " "))
	for _, name := range append([]string{alwaysLoadable}, wanted...) {
		names, ok := m.order(name)
		if !ok || len(names) == 0 {
			continue
		}
		if err := add(names); err != nil {
			return err
		}
		fmt.Fprintf(&list, "%s %s\n", moduleName(name), strings.Join(names, " "))
	}
	a.File(job.ModuleList, 0o444, list.Bytes())
	return nil
}
