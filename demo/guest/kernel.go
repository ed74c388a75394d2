package guest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// Kernel is a Debian kernel for virtual machines, unpacked but not installed.
type Kernel struct {
	ABI   string // its version, as in /lib/modules
	Image string // path of the kernel image
	Root  string // the directory that holds lib/modules
}

// flavour is one of Debian's kernels.
type flavour struct {
	dir        string // below the cache
	dependency string // the package that depends on the current one
	name       *regexp.Regexp
}

func cloudKernel() flavour {
	return flavour{"kernel", "linux-image-cloud-amd64", regexp.MustCompile(`Depends: (linux-image-(\S+-cloud-amd64))`)}
}

func genericKernel() flavour {
	return flavour{"generic", "linux-image-amd64", regexp.MustCompile(`Depends: (linux-image-([0-9]\S+-amd64))`)}
}

// FetchKernel returns the kernel for virtual machines that is in the directory
// cache. If there is none yet it downloads Debian's current one, which takes apt-get
// and the network.
func FetchKernel(ctx context.Context, cache string) (Kernel, error) {
	return cloudKernel().fetch(ctx, cache)
}

func (v flavour) fetch(ctx context.Context, cache string) (Kernel, error) {
	cache, err := filepath.Abs(cache) // programs that run in another directory get it
	if err != nil {
		return Kernel{}, err
	}
	dir := filepath.Join(cache, v.dir)
	if k, err := openKernel(dir); err == nil {
		return k, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Kernel{}, err
	}
	lock, err := os.Create(dir + ".lock") // several tests may be here for the first time
	if err != nil {
		return Kernel{}, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return Kernel{}, err
	}
	if k, err := openKernel(dir); err == nil {
		return k, nil
	}
	temp, err := os.MkdirTemp(cache, v.dir+"-*")
	if err != nil {
		return Kernel{}, err
	}
	defer os.RemoveAll(temp)
	if err := os.Chmod(temp, 0o755); err != nil { // apt-get downloads as another user
		return Kernel{}, err
	}
	if err := v.download(ctx, temp); err != nil {
		return Kernel{}, fmt.Errorf("fetch %s: %w; run apt-get update if apt's lists are old", v.dependency, err)
	}
	if err := os.Rename(temp, dir); err != nil {
		return Kernel{}, err
	}
	return openKernel(dir)
}

// download fetches the package and unpacks it in dir.
func (v flavour) download(ctx context.Context, dir string) error {
	out, err := run(ctx, dir, "apt-cache", "depends", "--important", v.dependency)
	if err != nil {
		return err
	}
	found := v.name.FindStringSubmatch(out)
	if found == nil {
		return fmt.Errorf("apt knows no kernel by that name")
	}
	pkg, abi := found[1], found[2]
	if _, err := run(ctx, dir, "apt-get", "-q", "download", pkg); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get left %d packages, want 1", len(debs))
	}
	if _, err := run(ctx, dir, "dpkg", "-x", debs[0], "."); err != nil {
		return err
	}
	if _, err := run(ctx, dir, "depmod", "-b", ".", abi); err != nil {
		return err
	}
	return os.Remove(debs[0])
}

func openKernel(root string) (Kernel, error) {
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return Kernel{}, fmt.Errorf("open kernel %s: found %d images, want 1", root, len(images))
	}
	abi := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	return Kernel{ABI: abi, Image: images[0], Root: root}, nil
}

// Modules returns the paths of the named modules and of all that they need, in
// the order in which they load. What is built into the kernel is left out.
func (k Kernel) Modules(ctx context.Context, names ...string) ([]string, error) {
	var paths []string
	seen := map[string]bool{}
	for _, name := range names {
		out, err := run(ctx, k.Root, "modprobe", "-d", k.Root, "-S", k.ABI, "--show-depends", name)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			path, isModule := strings.CutPrefix(strings.TrimSpace(line), "insmod ")
			if isModule && !seen[path] {
				seen[path] = true
				paths = append(paths, path)
			}
		}
	}
	return paths, nil
}

// run runs a program in dir and returns what it printed.
func run(ctx context.Context, dir, name string, arg ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, arg...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(complaint.String()))
	}
	return string(out), nil
}
