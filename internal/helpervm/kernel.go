package helpervm

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
	"golang.org/x/sys/unix"

	"imprint"
)

// maxModule and maxModuleTable bound what is read of a kernel's modules, in bytes.
const (
	maxModule      = 64 << 20
	maxModuleTable = 16 << 20
)

// Kernel is a Linux kernel and where its modules are.
type Kernel struct {
	Image   string // the file to boot
	Modules string // the directory that has modules.dep; "" is none: everything is built in
}

// FindKernel returns the kernel that this host runs or, if it is not installed, as
// in a container, the newest that is. It fails with kind [imprint.NotFound].
func FindKernel() (Kernel, error) { return findKernel("/", release()) }

// KernelAt returns the kernel whose image is at path, with its modules below the directory
// beside the one that has the image, as a Linux system has them.
func KernelAt(path string) Kernel {
	abi := strings.TrimPrefix(filepath.Base(path), "vmlinuz-")
	return Kernel{path, filepath.Join(filepath.Dir(filepath.Dir(path)), "lib", "modules", abi)}
}

// release is that of the running kernel.
func release() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}

func findKernel(root, running string) (Kernel, error) {
	images, _ := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	// A virtual machine's kernel is smaller than that of the same day for all machines.
	slices.SortStableFunc(images, func(a, b string) int { return cmp.Compare(modified(b), modified(a)) })
	kernel := func(image string) (Kernel, bool) {
		abi := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
		k := Kernel{image, filepath.Join(root, "lib", "modules", abi)}
		_, err := os.Stat(filepath.Join(k.Modules, "modules.dep"))
		return k, err == nil
	}
	if running != "" {
		image := filepath.Join(root, "boot", "vmlinuz-"+running)
		for _, image := range []string{image, filepath.Join(root, "lib", "modules", running, "vmlinuz")} {
			if _, err := os.Stat(image); err != nil {
				continue
			}
			if k, ok := kernel(filepath.Join(root, "boot", "vmlinuz-"+running)); ok {
				k.Image = image
				return k, nil
			}
		}
	}
	for _, image := range images {
		if k, ok := kernel(image); ok {
			return k, nil
		}
	}
	return Kernel{}, imprint.Errorf(imprint.NotFound, "find", "a kernel for the helper VM", "neither /boot nor /lib/modules has one with its modules").
		WithHint("apt-get install linux-image-cloud-amd64, or name one with --helper-kernel")
}

func modified(name string) int64 {
	info, err := os.Stat(name)
	if err != nil {
		return 0
	}
	return info.ModTime().UnixNano()
}

// modules knows a kernel's modules by the tables that depmod(8) writes.
type modules struct {
	dir     string
	paths   map[string]string   // of a module's file, below dir
	needs   map[string][]string // in the order in which they load
	builtin map[string]bool
	alias   map[string][]string // exact ones only
	soft    map[string][]string // wanted before, names or aliases
}

// openModules reads the tables. It fails with kind [imprint.NotFound] or [imprint.Invalid].
func openModules(dir string) (*modules, error) {
	m := &modules{dir: dir, paths: map[string]string{}, needs: map[string][]string{}, builtin: map[string]bool{}, alias: map[string][]string{}, soft: map[string][]string{}}
	if dir == "" {
		return m, nil
	}
	err := m.table("modules.dep", func(line string) {
		file, needs, ok := strings.Cut(line, ":")
		if !ok {
			return
		}
		name := moduleName(file)
		m.paths[name] = file
		for _, n := range slices.Backward(strings.Fields(needs)) { // the first named loads last
			m.needs[name] = append(m.needs[name], moduleName(n))
		}
	})
	if err != nil {
		return nil, imprint.Errorf(imprint.NotFound, "read", filepath.Join(dir, "modules.dep"), "%w", err).WithHint("depmod(8) writes it")
	}
	m.table("modules.builtin", func(line string) { m.builtin[moduleName(line)] = true })
	m.table("modules.alias", func(line string) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "alias" && !strings.ContainsAny(f[1], "*?[") {
			m.alias[f[1]] = append(m.alias[f[1]], f[2])
		}
	})
	m.table("modules.softdep", func(line string) {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != "softdep" {
			return
		}
		for _, n := range f[2:] {
			if n == "post:" {
				break
			}
			if n != "pre:" {
				m.soft[moduleName(f[1])] = append(m.soft[moduleName(f[1])], n)
			}
		}
	})
	return m, nil
}

func (m *modules) table(name string, each func(line string)) error {
	f, err := os.Open(filepath.Join(m.dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxModuleTable))
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		if line := strings.TrimSpace(lines.Text()); line != "" && line[0] != '#' {
			each(line)
		}
	}
	return lines.Err()
}

// moduleName is what the kernel calls the module in a file.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(strings.TrimSpace(file)), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// order returns what has to be loaded for a module, itself last; nothing if it is built
// in. What need not be there begins with a question mark: better ways to do what the
// kernel can do anyhow, which not every processor has.
func (m *modules) order(name string) (names []string, ok bool) {
	name = moduleName(name)
	if m.builtin[name] || m.dir == "" {
		return nil, true
	}
	if _, ok := m.paths[name]; !ok {
		return nil, false
	}
	all := append(slices.Clone(m.needs[name]), name)
	for _, n := range all {
		for _, wanted := range m.soft[n] {
			candidates := m.alias[wanted]
			if _, is := m.paths[moduleName(wanted)]; is {
				candidates = append(candidates, wanted)
			}
			for _, c := range candidates {
				c = moduleName(c)
				for _, needed := range append(slices.Clone(m.needs[c]), c) {
					if _, is := m.paths[needed]; is && !slices.Contains(all, needed) && !slices.Contains(names, "?"+needed) {
						names = append(names, "?"+needed)
					}
				}
			}
		}
	}
	return append(names, all...), true
}

// read returns a module as finit_module(2) takes it, whatever the distribution
// compressed it with.
func (m *modules) read(name string) ([]byte, error) {
	file := filepath.Join(m.dir, m.paths[name])
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := unpackModule(f, file)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "read", file, "%w", err)
	}
	return b, nil
}

var errTooLarge = errors.New("it is too large")

func unpackModule(f io.Reader, name string) ([]byte, error) {
	r := f
	var err error
	switch path.Ext(name) {
	case ".ko":
	case ".xz":
		r, err = xz.NewReader(f, xz.DefaultDictMax)
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxModule)); err == nil {
			defer d.Close()
			r = d
		}
	default:
		return nil, fs.ErrInvalid
	}
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if n, err := io.CopyN(&b, r, maxModule+1); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	} else if n > maxModule {
		return nil, errTooLarge
	}
	return b.Bytes(), nil
}
