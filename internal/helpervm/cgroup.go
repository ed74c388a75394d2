package helpervm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"imprint"
	"imprint/internal/platform/qemu"
)

// overhead is how many MiB a VM takes beside its own memory: QEMU's, the kernel's
// and the initramfs's files, and its share of the page cache that is not given back.
const overhead = 256

// maxTasks is how many threads QEMU may have.
const maxTasks = 256

// cgroup is what the kernel accounts a VM in; nil is none.
type cgroup struct {
	dir  string
	file *os.File
}

// newCgroup makes one in parent. Those that a killed program left, which are empty,
// are removed on the way. It fails with kind [imprint.Invalid] if parent cannot be divided.
func newCgroup(parent string, v *vm) (*cgroup, error) {
	if parent == "" {
		return nil, nil
	}
	left, _ := filepath.Glob(filepath.Join(parent, "helpervm-*"))
	for _, dir := range left {
		os.Remove(dir) // fails for one that has processes
	}
	dir, err := os.MkdirTemp(parent, "helpervm-")
	if err != nil {
		return nil, openError(parent, err)
	}
	g := &cgroup{dir: dir}
	memory := v.memory + overhead
	if v.accel != qemu.KVM {
		memory += tbSize
	}
	for _, set := range []struct{ file, value string }{
		{"memory.max", fmt.Sprint(int64(memory) << 20)}, {"memory.swap.max", "0"}, {"cpu.max", fmt.Sprintf("%d 100000", v.cpus*100_000)}, {"pids.max", fmt.Sprint(maxTasks)},
	} {
		err := os.WriteFile(filepath.Join(dir, set.file), []byte(set.value), 0)
		if os.IsNotExist(err) && set.file == "memory.swap.max" { // a kernel without swap
			continue
		}
		if err != nil {
			controller, _, _ := strings.Cut(set.file, ".")
			g.remove()
			return nil, imprint.Errorf(imprint.Invalid, "divide", "cgroup "+parent, "it has no controller %s for what is in it", controller).
				WithHint("echo +%s > %s", controller, filepath.Join(parent, "cgroup.subtree_control"))
		}
	}
	if g.file, err = os.Open(dir); err != nil {
		g.remove()
		return nil, openError(dir, err)
	}
	return g, nil
}

// apply has a process start in the cgroup.
func (g *cgroup) apply(attr *syscall.SysProcAttr) {
	if g != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(g.file.Fd())
	}
}

// remove removes it once its process has ended.
func (g *cgroup) remove() {
	if g == nil {
		return
	}
	if g.file != nil {
		g.file.Close()
	}
	os.Remove(g.dir)
}
